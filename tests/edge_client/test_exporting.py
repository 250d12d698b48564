"""Export: the template plus named arrays must be the model, for every kind of layer that is claimed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edge_client.exporting import export_bundle, export_template
from edge_client.tasks import load_task, parameter_table, read_state
from fedpruneshare.bundle import Bundle
from fedpruneshare.errors import ModelFileError, TaskError
from fedpruneshare.sparse.onnx_codec import build_model


def run(template, arrays, inputs):
    """Put dense arrays back by name and run the graph."""
    model = onnx.load_from_string(template)
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": inputs})[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.cells(x.transpose(1, 2))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x):
        return self.head(self.block(self.embed(x.transpose(1, 2))).mean(1))


def pooled(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5, bias=False))


MODELS = {
    "group norm": lambda: pooled(nn.Conv1d(6, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()),
    "batch norm": lambda: pooled(nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)),
    "transposed": lambda: pooled(nn.ConvTranspose1d(6, 8, 3), nn.ReLU()),
    "layer norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5)),
    "recurrent": Recurrent,
    "attention": Attention,
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch", [1, 5])
def test_template_and_arrays_are_the_model(kind, batch):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    table = parameter_table(model)
    template = export_template(model, table, (6, 32))
    inputs = np.random.default_rng(0).standard_normal((batch, 6, 32)).astype(np.float32)
    with torch.no_grad():
        for value in model.state_dict().values():  # other weights than those it was exported with
            if value.is_floating_point():
                value.uniform_(0.1, 0.5)
        wanted = model(torch.from_numpy(inputs)).numpy()
    found = run(template, table.unflatten(*read_state(model, table)), inputs)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_template_holds_no_weight_and_no_trace_of_the_machine():
    model = MODELS["group norm"]()
    template = export_template(model, parameter_table(model), (6, 32))
    graph = onnx.load_from_string(template)
    names = {p.name for p in parameter_table(model).parameters}
    assert not names & {array.name for array in graph.graph.initializer}
    assert names <= {name for node in graph.graph.node for name in node.input}
    assert len(template) < 6_000
    assert b".py" not in template and graph.producer_version == ""
    assert max(opset.version for opset in graph.opset_import) >= 17
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_exporting_leaves_the_model_as_it_was():
    model = MODELS["batch norm"]().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_template(model, parameter_table(model), (6, 32))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_newer_exporter_takes_over_where_the_older_fails(monkeypatch):
    from edge_client import exporting

    def fail(model, shape):
        raise TaskError("no tracing today")

    monkeypatch.setattr(exporting, "_export_by_tracing", fail)
    model = MODELS["group norm"]().eval()
    table = parameter_table(model)
    inputs = np.random.default_rng(0).standard_normal((4, 6, 32)).astype(np.float32)
    found = run(export_template(model, table, (6, 32)), table.unflatten(*read_state(model, table)), inputs)
    np.testing.assert_allclose(found, model(torch.from_numpy(inputs)).detach().numpy(), rtol=1e-4, atol=1e-5)


class Noisy(nn.Module):
    """Draws at random: an operator that nobody would run for others."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) + 0.0 * torch.rand_like(x[:, :3])


def test_what_nobody_would_read_is_refused_at_once():
    model = Noisy()
    with pytest.raises(TaskError, match=r"operator 'RandomUniformLike', which is not on the list"):
        export_template(model, parameter_table(model), (6,))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(6, 3), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


class Branching(nn.Module):
    """Does another thing for another batch size, which no graph can follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) * float(len(x))


def test_models_that_cannot_be_exported_get_a_reason():
    for model, reason in (
        (Unused(), "'spare.weight' is not in the exported graph"),
        (Branching(), "cannot be exported"),
    ):
        with pytest.raises(TaskError, match=reason):
            export_template(model, parameter_table(model), (6,))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return self.f(x)[0]", "expected scores"),
        ("return [self.f(x)]", "returns list"),
        ("return self.f(x.nothing)", "fails on the test inputs: AttributeError"),
        ("return self.f(x)[:, :2]", "gives 2 scores, but a test target is 2"),
    ],
)
def test_models_that_do_not_classify_get_a_reason(body, reason, tmp_path):
    (tmp_path / "t.py").write_text(
        "import numpy as np\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.f = nn.Linear(4, 3)\n"
        f"    def forward(self, x):\n        {body}\n"
        "def build_model(): return Net()\n"
        "def load_train(device, devices, rng): return load_test()\n"
        "def load_test(): return np.zeros((3, 4), np.float32), np.arange(3)\n"
    )
    with pytest.raises(TaskError, match=reason):
        export_bundle(load_task(tmp_path / "t.py"), tmp_path / "b", 0)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["hapt", "fashion-mnist", "examples/tool_wear.py"])
def test_bundles_are_reproducible_and_hold_the_seeded_model(name, tmp_path, pytestconfig):
    task = load_task(pytestconfig.rootpath / name if name.endswith(".py") else name, tmp_path)
    first = export_bundle(task, tmp_path / "a.bundle", 7)
    export_bundle(task, tmp_path / "b.bundle", 7)
    other = export_bundle(task, tmp_path / "c.bundle", 8)
    assert (tmp_path / "a.bundle").read_bytes() == (tmp_path / "b.bundle").read_bytes()
    assert other.digest != first.digest and other.template == first.template
    bundle = Bundle.open(tmp_path / "a.bundle")
    assert (bundle.digest, bundle.manifest.task) == (first.digest, task.name)
    test, model = task.load_test(), task.seeded_model(7).eval()
    np.testing.assert_array_equal(bundle.test_inputs, test.inputs)
    np.testing.assert_array_equal(bundle.test_targets, test.targets)
    found = run(
        bundle.template, bundle.manifest.table.unflatten(bundle.weights, bundle.vectors), bundle.test_inputs[:20]
    )
    with torch.no_grad():
        wanted = model(torch.from_numpy(test.inputs[:20])).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_bundle_of_values_says_so(tmp_path, pytestconfig):
    task = load_task(pytestconfig.rootpath / "examples" / "battery_temperature.py")
    manifest = export_bundle(task, tmp_path / "a.bundle", 1).manifest
    assert (manifest.metric, manifest.classes, manifest.target_shape) == ("rmse", 0, ())
    found = Bundle.open(tmp_path / "a.bundle")
    np.testing.assert_array_equal(found.test_targets, task.load_test().targets)


@pytest.mark.parametrize(
    ("model", "targets"), [("nn.Linear(4, 2)", "np.ones(3)"), ("nn.Linear(4, 1)", "np.ones((3, 2))")]
)
def test_values_of_another_shape_than_the_targets_are_named(model, targets, tmp_path):
    (tmp_path / "t.py").write_text(
        "import numpy as np\nfrom torch import nn\nmetric = 'mse'\n"
        f"def build_model(): return {model}\n"
        "def load_train(device, devices, rng): return load_test()\n"
        f"def load_test(): return np.zeros((3, 4), np.float32), {targets}\n"
    )
    with pytest.raises(TaskError, match=r"model returns \(2, .*expected values \['batch'"):
        export_bundle(load_task(tmp_path / "t.py"), tmp_path / "b", 0)


def test_a_bundle_may_start_from_a_model_file(tmp_path: Path) -> None:
    task = load_task("hapt", tmp_path / "no-data")
    first = export_bundle(task, tmp_path / "first.bundle", seed=1)
    table = first.manifest.table
    trained = first.weights * np.float32(0.5)
    trained[: trained.size // 2] = 0.0
    model = tmp_path / "model.onnx"
    model.write_bytes(build_model(first.template, table.unflatten(trained, first.vectors)))
    second = export_bundle(task, tmp_path / "second.bundle", seed=2, start_from=model)
    assert np.array_equal(second.weights, trained)
    assert np.array_equal(second.vectors, first.vectors)


@pytest.mark.parametrize(("content", "text"), [(None, "expected an ONNX file"), (b"\xff", "ONNX"), (b"", "IR version")])
def test_what_is_no_model_to_start_from_is_named(tmp_path: Path, content: bytes | None, text: str) -> None:
    model = tmp_path / "model.onnx"
    if content is not None:
        model.write_bytes(content)
    with pytest.raises(ModelFileError, match=text):
        export_bundle(load_task("hapt", tmp_path / "no-data"), tmp_path / "x.bundle", seed=1, start_from=model)

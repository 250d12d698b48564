"""`device predict`: what it prints is what torch computes with the model the device received, at every width."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edge_client.exporting import export_bundle
from edge_client.inference import rendering, template_export
from edge_client.inference.model_file import ModelFacts, StoredModel
from edge_client.inference.predicting import Predictor, predictions, read_inputs
from edge_client.inference.rendering import confirm_trial, keep_model, refresh, template_path
from edge_client.settings import DeviceSettings, DeviceTask
from edge_client.tasks import load_task, parameter_table, read_state, write_state
from edge_client.width.groups import find_groups
from edge_client.width.narrowing import narrow, write_narrow
from fedpruneshare.cli import run as command_line
from fedpruneshare.errors import DataError, ModelFileError, TaskError
from fedpruneshare.party import PartySettings
from fedpruneshare.settings import render_toml
from fedpruneshare.sparse.channels import nested_channels, rank_channels
from fedpruneshare.sparse.onnx_writer import read_facts

ROOT = Path(__file__).parents[3]
WEAR, HEAT = str(ROOT / "examples/tool_wear.py"), str(ROOT / "examples/battery_temperature.py")
RNG = np.random.default_rng(5)


class Place:
    """A device's folder with a model in it, and the model as torch has it."""

    def __init__(self, folder: Path, task_name: str, width: float = 1.0, density: float = 0.2) -> None:
        self.folder, self.task = folder, load_task(task_name, folder)
        self.model, self.example = self.task.seeded_model(3).eval(), self.task.load_train(0, 2, RNG.spawn(1)[0])
        self.table = parameter_table(self.model)
        self.settings = DeviceSettings(
            party=PartySettings("key", "directory.toml", "00" * 32),
            task=DeviceTask(task_name, 0, 2, str(folder)),
            store=str(folder),
        )
        self.round(1, width, density)

    def round(self, round_id: int, width: float = 1.0, density: float = 0.2, bundle: bytes = bytes(32)) -> None:
        """Receive a round: random weights of which `density` is left."""
        rng = np.random.default_rng(round_id)
        weights, vectors = read_state(self.model, self.table)
        weights = weights + 0.1 * rng.standard_normal(weights.size).astype(np.float16).astype(np.float32)
        weights[rng.random(weights.size) >= density] = 0.0
        facts = ModelFacts(
            self.task.name, bundle, self.task.metric, self.example.inputs.shape[1:], self.task.is_transforming,
            round_id, 0, width, density,
        )  # fmt: skip
        groups, kept = (), None
        if width < 1:
            groups = find_groups(self.model, self.table, torch.from_numpy(self.example.inputs[:2]))
            kept = nested_channels(rank_channels(np.abs(weights), self.table, groups), groups, [width])[0]
        self.stored = StoredModel(facts, self.table, weights, vectors, groups, kept)
        keep_model(self.folder, self.stored)

    def torch_outputs(self, inputs: np.ndarray) -> np.ndarray:
        model, stored = self.model, self.stored
        if stored.kept is None:
            write_state(model, self.table, stored.weights, stored.vectors)
        else:
            channels = (self.table, stored.groups, stored.kept)
            model = narrow(model, *channels)
            write_narrow(model, *channels, stored.weights, stored.vectors)
        with torch.no_grad():
            outputs: np.ndarray = model.eval()(torch.from_numpy(inputs)).numpy()
        return outputs

    def config(self, **task: object) -> Path:
        path = self.folder / "device.toml"
        own = msgspec.structs.replace(self.settings.task, **task)
        path.write_text(render_toml(msgspec.structs.replace(self.settings, task=own)))
        return path


def raw_windows(count: int) -> np.ndarray:
    return RNG.standard_normal((count, 2, 256)).astype(np.float32) * 3


@pytest.fixture(scope="module")
def wear(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("wear"), WEAR)


def test_classes_are_those_of_torch_on_transformed_input(
    wear: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = raw_windows(150)
    np.save(tmp_path / "in.npy", inputs)
    outputs = wear.torch_outputs(wear.task.transform(inputs))
    odds = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    arguments = ["device", "predict", "--config", str(wear.config()), "--input", str(tmp_path / "in.npy")]
    raw = tmp_path / "out.npy"
    assert command_line([*arguments, "--json", "--output", str(raw), "--batch", "64"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [one["class"] for one in body["predictions"]] == outputs.argmax(1).tolist()
    np.testing.assert_allclose([one["score"] for one in body["predictions"]], odds.max(1), atol=1e-5)
    np.testing.assert_allclose(np.load(raw), outputs, rtol=1e-4, atol=1e-5)
    assert body["model"]["task"] == "tool-wear" and body["model"]["round_id"] == str(wear.stored.facts.round_id)
    assert (body["model"]["rung"], body["model"]["width"], body["model"]["density"]) == ("0", "1", "0.2")
    assert body["model"]["table"] == wear.table.digest().hex()
    assert command_line([*arguments, "--benchmark"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"model: task tool-wear, round_id {wear.stored.facts.round_id}, rung 0, width 1, density 0.2"
    assert shown[1] == f"0: class {outputs[0].argmax()} ({odds[0].max():.3f})"
    assert len(shown) == 152 and "ms an example" in shown[-1]


def test_transformed_input_is_not_transformed_again(wear: Place, tmp_path: Path) -> None:
    inputs = wear.task.transform(raw_windows(4)) * 2  # the transform would undo the factor
    np.savez(tmp_path / "in.npz", other=np.zeros(3), inputs=inputs)
    arguments = ["device", "predict", "--config", str(wear.config()), "--input", str(tmp_path / "in.npz")]
    assert command_line([*arguments, "--transformed", "--output", str(tmp_path / "out.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wear.torch_outputs(inputs), rtol=1e-4, atol=1e-5)


def test_the_graph_is_exported_once_and_the_model_is_refreshed_each_round(
    wear: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = refresh(wear.settings)
    first = path.read_bytes()
    onnx.checker.check_model(onnx.load_from_string(first))
    assert len(onnx.load_from_string(first).graph.sparse_initializer) > 0
    monkeypatch.setattr(rendering, "_export_in_a_child", lambda *_: pytest.fail("the graph is there"))
    before = path.stat().st_mtime_ns
    assert refresh(wear.settings).stat().st_mtime_ns == before  # nothing new: not written again
    wear.round(2)
    inputs = raw_windows(5)
    found = Predictor(refresh(wear.settings)).run(inputs)
    np.testing.assert_allclose(found, wear.torch_outputs(inputs), rtol=1e-4, atol=1e-5)
    assert read_facts(path.read_bytes())["round_id"] == "2"
    wear.round(3)
    assert read_facts(path.read_bytes())["round_id"] == "2"
    confirm_trial(wear.folder)  # what the device does after a round, without being asked
    assert read_facts(path.read_bytes())["round_id"] == "3"
    path.write_bytes(b"damaged")
    assert read_facts(refresh(wear.settings).read_bytes())["round_id"] == "3"


@pytest.fixture
def _export_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export in this process, which has torch already; the tests above start a child."""

    def export(settings: DeviceSettings, model: StoredModel, slot: Path) -> None:
        template_export.export(settings.task.name, settings.task.data_dir, Path(settings.store), slot)

    monkeypatch.setattr(rendering, "_export_in_a_child", export)


@pytest.mark.usefixtures("_export_here")
@pytest.mark.parametrize("width", [0.5, 0.25])
def test_a_narrow_device_runs_the_narrow_model(tmp_path: Path, width: float) -> None:
    place = Place(tmp_path, WEAR, width=width, density=0.3)
    inputs = raw_windows(7)
    path = refresh(place.settings)
    np.testing.assert_allclose(Predictor(path).run(inputs), place.torch_outputs(inputs), rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(path.read_bytes())
    assert session.get_modelmeta().custom_metadata_map["width"] == f"{width:g}"
    graph = onnx.load_from_string(path.read_bytes()).graph
    shapes = {tuple(one.dims) for one in (*graph.initializer, *graph.sparse_initializer)}
    assert (round(32 * width), round(16 * width), 9) in shapes  # physically smaller, not zeros


def test_values_come_as_they_are_and_a_bundle_saves_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendering, "_export_in_a_child", lambda *_: pytest.fail("the bundle has the graph"))
    place = Place(tmp_path, HEAT)
    bundle = export_bundle(place.task, tmp_path / "heat.bundle", 0)
    place.round(2, bundle=bundle.digest)
    config = place.config(bundle=str(tmp_path / "heat.bundle"))
    inputs = RNG.standard_normal((3, 2, 64)).astype(np.float32)
    with (tmp_path / "in.csv").open("w") as file:
        csv.writer(file).writerows([[f"sample {i}" for i in range(128)], *inputs.reshape(3, 128).tolist()])
    output = tmp_path / "out.csv"
    arguments = ["device", "predict", "--config", str(config), "--input", str(tmp_path / "in.csv"), "--output"]
    assert command_line([*arguments, str(output)]) == 0
    with output.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["value_0"]
    np.testing.assert_allclose(np.array(rows[1:], float), place.torch_outputs(inputs), rtol=1e-4, atol=1e-5)
    shown = capsys.readouterr().out.splitlines()
    assert float(shown[1].removeprefix("0: ")) == pytest.approx(float(rows[1][0]), rel=1e-4)
    program = "import sys; from fedpruneshare.cli import run; code = run(sys.argv[1:]); loaded = set(sys.modules)\n"
    program += "sys.exit(code or sorted({'torch', 'onnx'} & loaded) or 0)"
    call = [sys.executable, "-c", program, *arguments, str(tmp_path / "again.npy")]
    assert subprocess.run(call, timeout=250, check=False, capture_output=True).returncode == 0
    np.testing.assert_allclose(np.load(tmp_path / "again.npy"), place.torch_outputs(inputs), rtol=1e-4, atol=1e-5)
    place.round(3)  # of another bundle
    assert command_line([*arguments, str(output)]) == 1
    assert "expected 0000000000000000… as the rounds' plan says" in capsys.readouterr().err


def test_a_file_alone_needs_no_device(wear: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = refresh(wear.settings)
    one = raw_windows(1)
    np.save(tmp_path / "one.npy", one[0])  # a single example, without an axis for many
    arguments = ["device", "predict", "--model", str(path), "--input", str(tmp_path / "one.npy"), "--output"]
    assert command_line([*arguments, str(tmp_path / "out.json")]) == 0
    body = json.loads((tmp_path / "out.json").read_text())
    assert [entry["class"] for entry in body["predictions"]] == wear.torch_outputs(one).argmax(1).tolist()
    capsys.readouterr()


@pytest.mark.usefixtures("_export_here")
def test_a_task_that_changed_is_exported_again(tmp_path: Path) -> None:
    place = Place(tmp_path, WEAR)
    refresh(place.settings)
    old = template_path(tmp_path, place.stored)
    place.round(2, bundle=b"\x01" * 32)
    refresh(place.settings)
    assert not old.exists() and template_path(tmp_path, place.stored).exists()


def test_a_task_that_builds_another_model_is_named(tmp_path: Path) -> None:
    place = Place(tmp_path, WEAR)
    other = parameter_table(nn.Linear(4, 2))
    weights, vectors = np.zeros(other.weight_count, np.float32), np.zeros(other.vector_count, np.float32)
    keep_model(tmp_path, StoredModel(place.stored.facts, other, weights, vectors))
    with pytest.raises(TaskError, match=r"cannot be exported: task .* builds a model of table .*, expected"):
        refresh(place.settings)


def test_before_the_first_round_there_is_nothing_to_run(
    tmp_path: Path, wear: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wear.config()
    path.write_text(path.read_text().replace(f'store = "{wear.folder}"', f'store = "{tmp_path}"'))
    assert command_line(["device", "predict", "--config", str(path), "--input", "x.npy"]) == 1
    assert "once it has received a round" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--model", "a.onnx", "--config", "CONFIG"]])
def test_one_of_two_is_asked_for(
    wear: Place, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(wear.config()) if word == "CONFIG" else word for word in arguments]
    assert command_line(["device", "predict", "--input", str(tmp_path / "x.npy"), *given]) == 2
    assert "expected one of --config and --model" in capsys.readouterr().err


class Boom:
    """Would leave a trace if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    evil = np.array([Boom(tmp_path / "trace")], dtype=object)
    np.save(tmp_path / "evil.npy", evil, allow_pickle=True)
    np.savez(tmp_path / "evil.npz", inputs=evil)
    for name in ("evil.npy", "evil.npz"):
        with pytest.raises(DataError, match="allow_pickle=False"):
            read_inputs(tmp_path / name, (2,))
    assert not (tmp_path / "trace").exists()


def test_input_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    files = {
        "x.txt": b"", "empty.npy": b"", "zip.npz": b"PK\x05\x06", "words.csv": b"a,b\nc,d\n", "blank.csv": b"",
        "uneven.csv": b"1,2\n3\n", "head.csv": b"a,b\n",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    np.save(tmp_path / "complex.npy", np.zeros((2, 4), complex))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    np.savetxt(tmp_path / "wide.csv", np.zeros((2, 5)), delimiter=",")
    for name, reason in {
        "x.txt": r"is a \.txt file, expected one of",
        "none.npy": "No such file",
        "empty.npy": "does not read",
        "zip.npz": "does not read",
        "words.csv": "does not read",
        "blank.csv": "first line is empty",
        "uneven.csv": "does not read",
        "head.csv": "no row of numbers",
        "complex.npy": "holds complex128, expected real numbers",
        "text.npy": "holds <U1",
        "two.npz": r"arrays \['a', 'b'\], expected one of",
        "wide.csv": r"has 2 rows of 5 numbers, expected rows of 4 \(2×2\)",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_inputs(tmp_path / name, (2, 2))


def test_inputs_of_another_shape_or_kind_are_named(wear: Place) -> None:
    predictor = Predictor(refresh(wear.settings))
    for inputs, reason in (
        (np.zeros((3, 2, 255), np.float32), r"float32\[3, 2, 255\], expected float32\[N, 2, 256\]"),
        (np.zeros((3, 512), np.float32), r"float32\[3, 512\]"),
        (np.zeros((3, 2, 256)), r"float64\[3, 2, 256\]"),
        (np.zeros((0, 2, 256), np.float32), r"float32\[0, 2, 256\]"),
        (np.full((1, 2, 256), np.nan, np.float32), "not finite"),
    ):
        with pytest.raises(DataError, match=reason):
            predictor.run(inputs)


def test_files_that_are_no_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"no\.onnx does not load"):
        Predictor(tmp_path / "no.onnx")
    with pytest.raises(ModelFileError, match="No such file"):
        Predictor(tmp_path / "none.onnx")


def test_a_model_without_facts_gives_classes_where_it_has_several_outputs(wear: Place) -> None:
    predictor = Predictor(refresh(wear.settings))
    predictor.facts = {}
    assert predictor.has_classes(np.zeros((2, 3), np.float32))
    assert not predictor.has_classes(np.zeros((2, 1), np.float32))
    assert predictions(np.array([[1000.0, 0.0]], np.float32), True)[0].score == 1.0

"""Training on another device than the processor: everything moves there, and a failure there costs nothing but time.

`test_on_cuda_*` run where there is a CUDA device: `pytest tests/edge_client/test_training_elsewhere.py -k cuda`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from edge_client import torch_device, training
from edge_client.datasets import Dataset
from edge_client.tasks.model import parameter_table
from edge_client.torch_device import Choice, choose
from edge_client.training import TrainingSettings, fit
from fedpruneshare.errors import TaskError

HAS_CUDA = torch.cuda.is_available()
SETTINGS = TrainingSettings(2, 8, 0.05, proximal_mu=0.1, torch_device="auto")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def data():
    inputs = np.random.default_rng(1).standard_normal((41, 4)).astype(np.float32)
    return Dataset(inputs, inputs[:, :3].argmax(1).astype(np.int64))


def masks():
    draw = np.random.default_rng(3)
    return [torch.from_numpy((draw.random(w.shape) < 0.5).astype(np.float32)) for w in parameter_table(net()).weights()]


def rng():
    return np.random.default_rng(2)


def trained(settings, loss=None):
    model, generator = net(), rng()
    result = fit(model, data(), masks(), settings, generator, loss)
    return model, result, generator.random()


def assert_same(model, other):
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture
def elsewhere(monkeypatch):
    """Another device, as `fit` sees it; where a test says nothing it is the processor once more."""

    def put(name="cpu"):
        monkeypatch.setattr(training, "choose", lambda wanted: Choice(torch.device(name), is_other=True))

    return put


def test_a_copy_is_trained_and_its_weights_come_back(elsewhere):
    wanted, plain, drawn = trained(TrainingSettings(2, 8, 0.05, proximal_mu=0.1))
    elsewhere()
    seen = set()

    def loss(outputs, targets):
        seen.add(torch.is_tensor(targets))
        return nn.functional.cross_entropy(outputs, targets)

    model, result, drawn_elsewhere = trained(SETTINGS, loss)
    assert_same(model, wanted)
    assert (result.mean_loss, drawn_elsewhere) == (plain.mean_loss, drawn)
    assert (result.fallback_reason, seen) == ("", {True})
    assert model.training and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())


def test_model_masks_and_batches_all_move(elsewhere):
    """A meta device computes shapes only, and refuses to meet any other: it fails first where a loss is read."""
    elsewhere("meta")
    places = []

    def loss(outputs, targets):
        places.append((outputs.device.type, targets.device.type))
        return nn.functional.cross_entropy(outputs, targets)

    model, result, _ = trained(SETTINGS, loss)
    assert places[:2] == [("meta", "meta"), ("cpu", "cpu")]
    assert "item()" in result.fallback_reason and result.fallback_reason.startswith("training on meta failed")
    assert_same(model, trained(TrainingSettings(2, 8, 0.05, proximal_mu=0.1))[0])


@pytest.mark.parametrize("step", [0, 3, 9])
def test_without_memory_the_processor_begins_again_from_what_was_received(elsewhere, step):
    wanted, plain, drawn = trained(TrainingSettings(2, 8, 0.05, proximal_mu=0.1))
    elsewhere()
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) == step + 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
        return nn.functional.cross_entropy(outputs, targets)

    with capture_logs() as logs:
        model, result, drawn_again = trained(SETTINGS, loss)
    assert_same(model, wanted)
    assert (result.device, result.steps, result.mean_loss, drawn_again) == ("cpu", plain.steps, plain.mean_loss, drawn)
    assert result.fallback_reason.endswith("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert [(line["event"], line["reason"]) for line in logs] == [("training-on-cpu", result.fallback_reason)]


def test_the_second_failure_is_not_hidden(elsewhere):
    elsewhere()

    def loss(outputs, targets):
        raise RuntimeError("a mistake of the task's own")

    with pytest.raises(RuntimeError, match="of the task's own"):
        trained(SETTINGS, loss)


def test_divergence_is_no_reason_to_begin_again(elsewhere):
    elsewhere()
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return nn.functional.cross_entropy(outputs, targets) * float("nan")

    with pytest.raises(TaskError, match="diverged"):
        trained(SETTINGS, loss)
    assert len(calls) == 1


def test_the_processor_is_taken_without_a_word_where_it_was_asked_for():
    with capture_logs() as logs:
        _, result, _ = trained(TrainingSettings(1, 8, 0.05))
    assert (result.device, result.fallback_reason, logs) == ("cpu", "", [])


@pytest.mark.parametrize(("wanted", "level"), [("auto", "info"), ("cuda", "warning")])
def test_what_is_not_there_is_said(monkeypatch, wanted, level):
    def broken():
        raise RuntimeError("no kernel image is available for execution on the device")

    for change, reason in (
        ((torch.backends.cuda, "is_built", lambda: False), "was built without CUDA"),
        ((torch.cuda, "is_available", lambda: False), "no CUDA device was found"),
        ((torch.cuda, "current_device", broken), "CUDA does not work here: RuntimeError: no kernel image"),
    ):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(*change)
        choice = choose(wanted)
        assert (choice.device.type, choice.is_other) == ("cpu", False)
        assert reason in choice.reason
        with capture_logs() as logs:
            _, result, _ = trained(TrainingSettings(1, 8, 0.05, torch_device=wanted))
        assert result.fallback_reason == choice.reason
        assert [(line["log_level"], line["wanted"]) for line in logs] == [(level, wanted)]


@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_this_machine_falls_back_for_real(wanted):
    model, result, _ = trained(TrainingSettings(2, 8, 0.05, proximal_mu=0.1, torch_device=wanted))
    assert result.device == "cpu" and "CUDA" in result.fallback_reason
    assert_same(model, trained(TrainingSettings(2, 8, 0.05, proximal_mu=0.1))[0])


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_on_cuda_the_weights_are_nearly_those_of_the_processor(wanted):
    there, here = (net().eval() for _ in range(2))
    there[3].p = here[3].p = 0.0  # each device draws its dropout by a generator of its own
    state = torch.cuda.get_rng_state()
    result = fit(there, data(), masks(), TrainingSettings(2, 8, 0.05, torch_device=wanted), rng())
    assert (result.device, result.fallback_reason) == ("cuda", "")
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in there.parameters())
    fit(here, data(), masks(), TrainingSettings(2, 8, 0.05), rng())
    for a, b in zip(there.state_dict().values(), here.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
def test_on_cuda_a_lack_of_memory_falls_back_for_real():
    calls = []

    def loss(outputs, targets):
        calls.append(outputs.device.type)
        if outputs.device.type == "cuda" and len(calls) == 3:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return nn.functional.cross_entropy(outputs, targets)

    model, result, _ = trained(SETTINGS, loss)
    assert result.device == "cpu" and "OutOfMemoryError" in result.fallback_reason
    assert_same(model, trained(TrainingSettings(2, 8, 0.05, proximal_mu=0.1))[0])
    torch_device.release(torch.device("cuda"))

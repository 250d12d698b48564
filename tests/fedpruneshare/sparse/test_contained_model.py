"""A model in a process that can harm nobody, and a library that reports to nobody."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hostile_models import HAND_MADE, SPARSE, growing, slow
from onnx_models import arrays, forward

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.contained_model import ChildLimits, ContainedModel

X = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)


def process(model: ContainedModel) -> psutil.Process:
    assert model._child is not None
    return psutil.Process(model._child.pid)


def limits_of(pid: int) -> dict[str, int]:
    """The soft limits of a process."""
    rows = [re.split(r" {2,}", line.strip()) for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]]
    return {row[0]: int(row[1]) if row[1].isdecimal() else 2**63 for row in rows}


def test_it_computes_what_the_model_says() -> None:
    with ContainedModel() as model:
        (found,) = model.load(SPARSE)
        assert (found.name, found.kind, found.shape) == ("x", "tensor(float)", (None, 8))
        assert model.run(X) == pytest.approx(forward(arrays(zeros=0.9), X), rel=1e-4, abs=1e-4)
        first = process(model).pid
        model.load(SPARSE)
        assert process(model).pid == first  # one process for many models


def test_the_process_can_open_nothing() -> None:
    with ContainedModel(ChildLimits(memory_bytes=64 << 20)) as model:
        model.load(SPARSE)
        child = process(model)
        limits = limits_of(child.pid)
        assert limits["Max open files"] == limits["Max file size"] == limits["Max core file size"] == 0
        assert limits["Max address space"] <= child.memory_info().vms + (64 << 20)
        assert child.open_files() == []
        assert not Path(child.cwd()).exists()  # the empty folder it was started in is gone
        assert not {"HOME", "PATH", "LD_PRELOAD", "ORT_LOAD_CONFIG_FROM_MODEL"} & set(child.environ())
        if os.geteuid() == 0:
            assert child.uids().effective == 65534


def test_memory_is_bounded() -> None:
    with ContainedModel(ChildLimits(memory_bytes=128 << 20)) as model:
        model.load(growing(28))
        with pytest.raises(ModelFileError, match=r"does not run|the process that runs the model"):
            model.run(X)
        model.load(SPARSE)
        assert len(model.run(X)) == 5


def test_time_is_bounded() -> None:
    with ContainedModel(ChildLimits(request_s=2.0)) as model:
        with pytest.raises(ModelFileError, match=r"took longer than 2 s|SIGALRM"):
            model.load(slow(3000))  # which a crowded machine takes too long for already
            model.run(X)
        model._limits = ChildLimits()
        model.load(SPARSE)  # a new process
        assert len(model.run(X)) == 5


def test_answers_are_bounded() -> None:
    with ContainedModel(ChildLimits(answer_bytes=64)) as model:
        model.load(SPARSE)
        with pytest.raises(ModelFileError, match="answers with 80 bytes, expected at most 64"):
            model.run(X)


def test_a_process_that_dies_costs_another_one_and_no_result() -> None:
    with ContainedModel() as model:
        model.load(SPARSE)
        first, wanted = process(model), model.run(X)
        first.send_signal(signal.SIGKILL)
        assert np.array_equal(model.run(X), wanted)
        assert process(model).pid != first.pid
        process(model).send_signal(signal.SIGSEGV)
        model.load(SPARSE)
        assert np.array_equal(model.run(X), wanted)


@pytest.mark.parametrize("op", ["load", "run"])
def test_a_process_that_dies_twice_is_named(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    ask, killed = ContainedModel._ask, set[int]()

    def killing(model: ContainedModel, header: dict[str, Any], data: bytes) -> Any:
        if header["op"] == op:
            killed.add(process(model).pid)
            process(model).send_signal(signal.SIGKILL)
        return ask(model, header, data)

    with ContainedModel() as model:
        monkeypatch.setattr(ContainedModel, "_ask", killing)
        with pytest.raises(ModelFileError, match="was ended by SIGKILL, expected an answer"):
            model.load(SPARSE)
            model.run(X)
        assert len(killed) == 2
        monkeypatch.undo()
        if op == "run":
            with pytest.raises(RuntimeError, match="no model was loaded"):
                model.run(X)
        model.load(SPARSE)
        assert len(model.run(X)) == 5


def test_what_the_fence_refuses_never_gets_there() -> None:
    with ContainedModel() as model:
        with pytest.raises(ModelFileError, match="outside the file"):
            model.load(HAND_MADE["external_initializer"][0])
        assert model._child is None


def test_a_process_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ContainedModel() as model:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        with pytest.raises(ModelFileError, match="does not start: No such file"):
            model.load(SPARSE)
        monkeypatch.undo()
        model.load(SPARSE)
        assert len(model.run(X)) == 5


def test_it_ends_with_its_owner() -> None:
    model = ContainedModel()
    model.load(SPARSE)
    child = process(model)
    model.close()
    assert not child.is_running()


def test_onnxruntime_reports_to_nobody(tmp_path: Path) -> None:
    """Official builds spool reports in the user's home, and send them, unless the environment forbids it."""
    program = (
        "import sys\n"
        "from fedpruneshare.sparse.local_model import LocalModel\n"
        "LocalModel().load(open(sys.argv[1], 'rb').read())\n"
    )
    (tmp_path / "model.onnx").write_bytes(SPARSE)
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.onnx")],
        env=environment | {"HOME": str(home), "XDG_CACHE_HOME": str(home)},
        timeout=250,
        check=False,
    )
    assert done.returncode == 0
    assert list(home.rglob("*")) == []

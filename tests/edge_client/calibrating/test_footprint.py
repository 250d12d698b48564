"""A device's memory, each figure from a process of its own: what a board of 512 MiB has to hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.calibrating import footprint
from edge_client.calibrating.footprint import Order, measure_footprint, resident_mib
from edge_client.settings import DeviceTask
from fedpruneshare.errors import TaskError

pytestmark = pytest.mark.skipif(not footprint.STATUS.exists(), reason="needs Linux's /proc")


def test_training_lenet_fits_in_270_mib(tmp_path: Path) -> None:
    """The bar of the small boards, with a part of the sample; on this processor and this torch."""
    found = measure_footprint(Order(DeviceTask("fashion-mnist", 0, 6, data_dir=str(tmp_path))))
    assert found.peak_mib <= 270
    assert found.base_mib + found.step_mib <= found.peak_mib + 0.1
    assert found.step_mib > 1  # the first step loads what training needs


def test_a_training_process_does_without_compilers_databases_and_onnx_runtimes(tmp_path: Path) -> None:
    """`torch.optim` classes would bring torch's compiler with sympy: 70 MiB."""
    script = f"""
import sys
from edge_client.running import workplace_of
from edge_client.settings import DeviceTask
from edge_client.calibrating.trial import Trial
Trial(workplace_of(DeviceTask("fashion-mnist", 0, 6, {str(tmp_path)!r}), 1), (), 1.0, 8).train(2)
heavy = "torch._dynamo sympy onnxruntime onnxscript torch_pruning matplotlib sqlite3 cryptography coordinator testbed"
print([name for name in heavy.split() if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(TaskError, match=r"ended with 1: .*no task 'lenot'"):
        measure_footprint(Order(DeviceTask("lenot", 0, 6)))


def test_memory_that_the_system_does_not_tell_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 5 < resident_mib("VmRSS") <= resident_mib("VmHWM")
    monkeypatch.setattr(footprint, "STATUS", tmp_path / "status")
    with pytest.raises(TaskError, match="no VmRSS"):
        resident_mib("VmRSS")
    (tmp_path / "status").write_text("Name: x\n")
    with pytest.raises(TaskError, match="no VmHWM"):
        resident_mib("VmHWM")

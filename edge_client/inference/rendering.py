"""`model.onnx` of a device: the graph of its task around the model it holds (docs/protocol.md §6.6).

A graph is exported once per shape of the model, by a process of its own that brings torch and onnx and ends; or it
comes with the task's bundle. From then on models are put into it without either, also while the device trains.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from edge_client.inference.health import check_health
from edge_client.inference.model_file import StoredModel
from edge_client.inference.slots import ModelSlots, Slot
from edge_client.settings import DeviceSettings
from fedpruneshare.bundle import Bundle
from fedpruneshare.errors import ModelFileError, TaskError
from fedpruneshare.sparse.model_fence import check_model
from fedpruneshare.sparse.onnx_writer import read_facts, write_model
from fedpruneshare.storage import write_atomically

ONNX_FILE: Final = "model.onnx"
_TEMPLATE: Final = "template-"
_EXPORT_LIMIT_S: Final = 600


def keep_model(folder: Path, model: StoredModel) -> None:
    """Keep a model that came in, until it is confirmed beside the one before. Raises `OSError`, `ModelFileError`."""
    ModelSlots(folder).receive(model)


def template_path(folder: Path, model: StoredModel) -> Path:
    """Where the graph of a model is kept: one for each shape of the models of one task bundle."""
    return folder / f"{_TEMPLATE}{model.facts.bundle.hex()[:12]}-{model.outline()}.onnx"


def refresh(settings: DeviceSettings) -> Path:
    """Bring `model.onnx` up to the newest model this device holds that works; returns its path.

    Raises `ModelFileError` where it holds none, or a bundle does not fit; `TaskError` where no graph can be exported.
    """
    folder = Path(settings.store)
    slots = ModelSlots(folder)
    while (trial := slots.trial()) is not None:
        model = _loaded(slots, trial)
        if model is not None and not template_path(folder, model).is_file():
            _make_template(settings, model, slots.folder_of(trial))
        confirm_trial(folder)
    confirmed = slots.confirmed()
    if confirmed is None:
        raise ModelFileError(
            f"{folder} has no model that works, expected the one that a device keeps once it has received a round"
        )
    path = folder / ONNX_FILE
    if not _is_of(path, confirmed):
        model = slots.load(confirmed)
        if not template_path(folder, model).is_file():
            _make_template(settings, model, slots.folder_of(confirmed))
        _write(path, _rendered(folder, model, confirmed))
    return path


def confirm_trial(folder: Path) -> None:
    """Where a model waits to be tried and its graph is known, see whether it works, and keep or drop it.

    `model.onnx` is of the new one before it is confirmed, and never of one that does not work.
    """
    slots = ModelSlots(folder)
    trial = slots.trial()
    model = _loaded(slots, trial) if trial is not None else None
    if trial is None or model is None or not template_path(folder, model).is_file() or not slots.begin_try(trial):
        return
    try:
        graph = _rendered(folder, model, trial)
        check_health(graph, model.facts.input_shape)
    except ModelFileError as error:
        slots.reject(trial, str(error))
        return
    _write(folder / ONNX_FILE, graph)
    slots.confirm(trial)


def _loaded(slots: ModelSlots, trial: Slot) -> StoredModel | None:
    try:
        return slots.load(trial)
    except ModelFileError as error:
        slots.reject(trial, str(error))
        return None


def _rendered(folder: Path, model: StoredModel, slot: Slot) -> bytes:
    facts = {
        "task": model.facts.task,
        "metric": model.facts.metric,
        "table": model.table.digest().hex(),
        "round_id": str(model.facts.round_id),
        "rung": str(model.facts.rung),
        "width": f"{model.facts.width:g}",
        "density": f"{model.facts.density:g}",
        "source": slot.digest,
    }
    return write_model(template_path(folder, model).read_bytes(), model.arrays(), facts)


def _write(path: Path, graph: bytes) -> None:
    """Write `model.onnx`, and beside it what it must be."""
    with path.with_name(f"{path.name}.lock").open("wb") as lock:  # a device and a `device predict` beside it
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_atomically(path, graph)
        write_atomically(_sum_of(path), hashlib.sha256(graph).hexdigest().encode())


def _is_of(path: Path, slot: Slot) -> bool:
    """Whether `model.onnx` is what was written there for this model, every byte of it."""
    try:
        data = path.read_bytes()
        return (
            hashlib.sha256(data).hexdigest().encode() == _sum_of(path).read_bytes()
            and read_facts(data).get("source") == slot.digest
        )
    except (OSError, ModelFileError):
        return False  # not written by us, or damaged: write it again


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _make_template(settings: DeviceSettings, model: StoredModel, slot: Path) -> None:
    path = template_path(Path(settings.store), model)
    for old in path.parent.glob(f"{_TEMPLATE}*.onnx"):
        if not old.name.startswith(f"{_TEMPLATE}{model.facts.bundle.hex()[:12]}-"):
            old.unlink()  # of a task as it was before
    if not settings.task.bundle or model.kept is not None:  # a narrower graph is not in a bundle
        _export_in_a_child(settings, model, slot)
        return
    bundle = Bundle.open(Path(settings.task.bundle))
    if bundle.digest != model.facts.bundle:
        found, wanted = bundle.digest.hex()[:16], model.facts.bundle.hex()[:16]
        raise ModelFileError(f"bundle {settings.task.bundle} is {found}…, expected {wanted}… as the rounds' plan says")
    check_model(bundle.template)  # somebody else's file
    write_atomically(path, bundle.template)


def _export_in_a_child(settings: DeviceSettings, model: StoredModel, slot: Path) -> None:
    """Run `template_export.py` for the model in a slot's folder; its memory is gone with it."""
    command = [sys.executable, "-m", "edge_client.inference.template_export"]
    paths = os.pathsep.join(path for path in sys.path if path)
    task = settings.task
    try:
        done = subprocess.run(
            [*command, task.name, task.data_dir, settings.store, str(slot)],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=_EXPORT_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TaskError(f"the graph of task {task.name!r} was not exported in {_EXPORT_LIMIT_S} s") from None
    if done.returncode or not template_path(Path(settings.store), model).is_file():
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        raise TaskError(f"the graph of task {task.name!r} cannot be exported: {reason.removeprefix('error: ')}")

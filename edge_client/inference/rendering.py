"""`model.onnx` of a device: the graph of its task around the model it holds (docs/protocol.md §6.6).

A graph is exported once per shape of the model, by a process of its own that brings torch and onnx and ends; or it
comes with the task's bundle. From then on models are put into it without either, also while the device trains.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from edge_client.inference.model_file import StoredModel, load_model, save_model
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
    """Keep a model that came in, as `model.msgpack`; and as `model.onnx` where its graph is known already."""
    source = save_model(folder, model)
    if template_path(folder, model).is_file():
        _render(folder, model, source)


def template_path(folder: Path, model: StoredModel) -> Path:
    """Where the graph of a model is kept: one for each shape of the models of one task bundle."""
    return folder / f"{_TEMPLATE}{model.facts.bundle.hex()[:12]}-{model.outline()}.onnx"


def refresh(settings: DeviceSettings) -> Path:
    """Bring `model.onnx` up to the model this device holds; returns its path.

    Raises `ModelFileError` where it holds none, or a bundle does not fit; `TaskError` where no graph can be exported.
    """
    folder = Path(settings.store)
    model, source = load_model(folder)
    path = folder / ONNX_FILE
    if path.is_file() and _source_of(path) == source.hex():
        return path
    if not template_path(folder, model).is_file():
        _make_template(settings, model)
    _render(folder, model, source)
    return path


def _render(folder: Path, model: StoredModel, source: bytes) -> None:
    facts = {
        "task": model.facts.task,
        "metric": model.facts.metric,
        "table": model.table.digest().hex(),
        "round_id": str(model.facts.round_id),
        "rung": str(model.facts.rung),
        "width": f"{model.facts.width:g}",
        "density": f"{model.facts.density:g}",
        "source": source.hex(),
    }
    graph = template_path(folder, model).read_bytes()
    data = write_model(graph, model.arrays(), facts)
    with (folder / f"{ONNX_FILE}.lock").open("wb") as lock:  # a device and a `device predict` beside it
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_atomically(folder / ONNX_FILE, data)


def _source_of(path: Path) -> str:
    try:
        return read_facts(path.read_bytes()).get("source", "")
    except ModelFileError:
        return ""  # not written by us: write it again


def _make_template(settings: DeviceSettings, model: StoredModel) -> None:
    path = template_path(Path(settings.store), model)
    for old in path.parent.glob(f"{_TEMPLATE}*.onnx"):
        if not old.name.startswith(f"{_TEMPLATE}{model.facts.bundle.hex()[:12]}-"):
            old.unlink()  # of a task as it was before
    if not settings.task.bundle or model.kept is not None:  # a narrower graph is not in a bundle
        _export_in_a_child(settings, model)
        return
    bundle = Bundle.open(Path(settings.task.bundle))
    if bundle.digest != model.facts.bundle:
        found, wanted = bundle.digest.hex()[:16], model.facts.bundle.hex()[:16]
        raise ModelFileError(f"bundle {settings.task.bundle} is {found}…, expected {wanted}… as the rounds' plan says")
    check_model(bundle.template)  # somebody else's file
    write_atomically(path, bundle.template)


def _export_in_a_child(settings: DeviceSettings, model: StoredModel) -> None:
    """Run `template_export.py`, whose memory is gone with it."""
    command = [sys.executable, "-m", "edge_client.inference.template_export"]
    paths = os.pathsep.join(path for path in sys.path if path)
    task = settings.task
    try:
        done = subprocess.run(
            [*command, task.name, task.data_dir, settings.store],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=_EXPORT_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TaskError(f"the graph of task {task.name!r} was not exported in {_EXPORT_LIMIT_S} s") from None
    if done.returncode or not template_path(Path(settings.store), model).is_file():
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        raise TaskError(f"the graph of task {task.name!r} cannot be exported: {reason.removeprefix('error: ')}")

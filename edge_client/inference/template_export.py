"""`python -m edge_client.inference.template_export TASK DATA_DIR STORE SLOT`: exports the graph of the model in SLOT.

A process of its own, started by `rendering.py`: torch and onnx are loaded here and nowhere else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from edge_client.exporting import export_template
from edge_client.inference.model_file import load_model
from edge_client.inference.rendering import template_path
from edge_client.tasks import load_task, parameter_table
from edge_client.width.narrowing import narrow
from fedpruneshare.errors import FedPruneShareError, TaskError
from fedpruneshare.storage import write_atomically


def export(task_name: str, data_dir: str, folder: Path, slot: Path) -> None:
    """Write the template of the model in a slot. Raises `TaskError` if the task builds another model."""
    torch.set_num_threads(1)
    stored, _ = load_model(slot)
    model = load_task(task_name, Path(data_dir)).seeded_model(0)
    table = parameter_table(model)
    if table != stored.table:
        found, wanted = table.digest().hex()[:16], stored.table.digest().hex()[:16]
        raise TaskError(f"task {task_name!r} builds a model of table {found}…, expected {wanted}… as received")
    if stored.kept is not None:
        model = narrow(model, table, stored.groups, stored.kept)
    template = export_template(model, parameter_table(model), stored.facts.input_shape)
    write_atomically(template_path(folder, stored), template)


if __name__ == "__main__":
    try:
        export(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    except FedPruneShareError as error:
        sys.exit(f"error: {error}")

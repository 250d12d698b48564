"""`fedpruneshare device predict`: the model in the field, on local input."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from edge_client.settings import DeviceSettings
from fedpruneshare.errors import SettingsError
from fedpruneshare.settings import load_settings
from fedpruneshare.storage import write_atomically

if TYPE_CHECKING:  # onnxruntime is loaded by this command alone
    from edge_client.inference.predicting import Floats, Prediction
    from fedpruneshare.sparse.contained_model import ContainedModel

_file = click.Path(dir_okay=False, path_type=Path)
_FACTS = ("task", "round_id", "rung", "width", "density")


@click.command()
@click.option("--config", type=_file, help="Settings of this device: runs the model of its last round.")
@click.option("--model", type=_file, help="Run this ONNX file instead.")
@click.option("--input", "source", type=_file, required=True, help="Examples: .npy, .npz or .csv (one a row).")
@click.option("--output", type=_file, help="Write to this file, too: .json, .csv, or .npy (the model's raw outputs).")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--transformed", is_flag=True, help="The input went through the task's transform() already.")
@click.option("--benchmark", is_flag=True, help="Also measure the time of one example.")
@click.option("--batch", type=click.IntRange(1, 65_536), default=64, show_default=True, help="Examples at a time.")
def predict(
    *,
    config: Path | None,
    model: Path | None,
    source: Path,
    output: Path | None,
    as_json: bool,
    transformed: bool,
    benchmark: bool,
    batch: int,
) -> None:
    """Run the current model on local examples: a class and its score each, or values.

    Input is what the task's sensors give: where the task has a transform(), it is applied (which loads the task).
    With --model nothing is known of a task, and the input is what the model takes.
    """
    if output is not None and output.suffix not in (".json", ".csv", ".npy"):
        raise SettingsError(f"--output is {output}, expected a .json, .csv or .npy file")
    from edge_client.inference.predicting import Predictor, predictions, read_inputs

    settings = load_settings(config, DeviceSettings) if config else None
    predictor = Predictor(_model_file(settings, model), None if model is None else _somebody_elses())
    inputs = read_inputs(source, predictor.shape)
    if settings is not None and not transformed:
        inputs = _transformed(settings, inputs)
    outputs = predictor.run(inputs, batch)
    found = predictions(outputs, predictor.has_classes(outputs))
    body: dict[str, Any] = {"model": dict(predictor.facts), "predictions": [_plain(one) for one in found]}
    if benchmark:
        body["ms_per_example"] = round(1000 * predictor.seconds_per_example(inputs, time.perf_counter), 4)
    if output is not None:
        write_atomically(output, _file_body(output.suffix, outputs, body))
    click.echo(json.dumps(body) if as_json else _readable(body))


def _model_file(settings: DeviceSettings | None, model: Path | None) -> Path:
    if (settings is None) == (model is None):
        raise click.UsageError("expected one of --config and --model")
    if model is not None:
        return model
    from edge_client.inference.rendering import refresh

    assert settings is not None
    return refresh(settings)


def _somebody_elses() -> ContainedModel:
    """A file that is not of this device's making runs in a process that can do no harm."""
    from fedpruneshare.sparse.contained_model import ContainedModel

    return ContainedModel()


def _transformed(settings: DeviceSettings, inputs: Floats) -> Floats:
    from edge_client.inference.slots import ModelSlots

    model = ModelSlots(Path(settings.store)).newest()
    if model is None or not model.facts.is_transformed:
        return inputs
    from edge_client.tasks import load_task  # brings torch

    return load_task(settings.task.name, Path(settings.task.data_dir)).transform(inputs)


def _plain(one: Prediction) -> dict[str, Any]:
    if one.label is None or one.score is None:
        return {"values": list(one.values)}
    return {"class": one.label, "score": round(one.score, 6)}


def _file_body(suffix: str, outputs: Floats, body: dict[str, Any]) -> bytes:
    if suffix == ".json":
        return json.dumps(body, indent=2).encode() + b"\n"
    if suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, outputs, allow_pickle=False)
        return buffer.getvalue()
    rows = [one.get("values") or [one["class"], one["score"]] for one in body["predictions"]]
    is_classes = "class" in body["predictions"][0]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "score"] if is_classes else [f"value_{place}" for place in range(len(rows[0]))])
    writer.writerows(rows)
    return text.getvalue().encode()


def _readable(body: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {body['model'][name]}" for name in _FACTS if name in body["model"])
    lines = [f"model: {facts or 'no facts in the file'}"]
    for place, one in enumerate(body["predictions"]):
        values = " ".join(f"{value:.6g}" for value in one.get("values", ()))
        lines.append(f"{place}: {values}" if "values" in one else f"{place}: class {one['class']} ({one['score']:.3f})")
    if "ms_per_example" in body:
        lines.append(f"{body['ms_per_example']:.3f} ms an example (median, one at a time, one thread)")
    return "\n".join(lines)

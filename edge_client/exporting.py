"""`task export`: turn a task into a bundle, once, on a machine that has torch.

The graph is exported once per architecture and its weights are taken out; from then on models are built by putting
named arrays back (docs/protocol.md §6.6), and no exporter runs in a round.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_client.datasets import Dataset
from edge_client.tasks import Task
from edge_client.tasks.model import parameter_table, read_state
from edge_client.width.groups import examine
from fedpruneshare.bundle import Bundle, Manifest
from fedpruneshare.errors import ModelFileError, TaskError
from fedpruneshare.sparse.model_fence import check_model
from fedpruneshare.sparse.onnx_codec import read_model
from fedpruneshare.sparse.parameters import ParameterTable, Role

INPUT, OUTPUT = "input", "output"
OPSET = 18
"""Of the newer exporter; the older one stops at 17."""

LARGEST_DEVIATION = 1e-3
"""Largest difference between torch and the exported graph, relative to the largest output."""


def export_bundle(task: Task, path: Path, seed: int, start_from: Path | None = None) -> Bundle:
    """Write the bundle of `task` with initial weights drawn from `seed`; the same inputs give the same bytes.

    `start_from` is a `model.onnx` of the same task: its weights then take the place of the drawn ones.
    Raises `ModelFileError` where that is not such a model, and `TaskError` where the model cannot be exported, loses or
    renames a weight on the way, gives other outputs as a graph than in torch, or returns neither one score per class
    nor values of the targets' shape, whichever the task's metric compares.
    """
    model = task.seeded_model(seed)
    table = parameter_table(model)
    test = task.load_test()
    shape = test.inputs.shape[1:]
    classes = _count_classes(model, test)
    weights, vectors = read_state(model, table)
    if start_from is not None:
        weights, vectors = _weights_of(start_from, table, table.unflatten(weights, vectors))
    manifest = Manifest(task.label, table, tuple(shape), len(test), classes, seed, task.data_source)
    cuts = examine(model, table, torch.from_numpy(test.inputs[:2]))
    manifest = msgspec.structs.replace(
        manifest,
        metric=task.metric,
        channel_groups=cuts.groups,
        uncut_reason="; ".join(cuts.reasons),
        target_shape=test.targets.shape[1:],
    )
    template = export_template(model, table, tuple(shape))
    bundle = Bundle(manifest, template, weights, vectors, test.inputs, test.targets)
    bundle.save(path)
    return bundle


def _weights_of(path: Path, table: ParameterTable, drawn: dict[str, NDArray[np.float32]]) -> tuple[Any, Any]:
    """Flat arrays of an ONNX model file; buffers that its graph does not use stay as drawn."""
    limit_bytes = 16 * (table.weight_count + table.vector_count) + (1 << 20)
    try:
        with path.open("rb") as file:
            found = read_model(file.read(limit_bytes + 1), table, limit_bytes)
    except OSError as error:
        raise ModelFileError(f"model {path}: {error.strerror}, expected an ONNX file of this task") from None
    if missing := [weight.name for weight in table.weights() if weight.name not in found]:
        raise ModelFileError(f"model {path} has no {missing[0]!r}, expected all weights of this task")
    return table.flatten({**drawn, **found})


def export_template(model: nn.Module, table: ParameterTable, input_shape: tuple[int, ...]) -> bytes:
    """The ONNX graph of `model` without the arrays of `table`, whose names its nodes still refer to.

    One input `input` float32[batch, *input_shape], one output `output`. Raises `TaskError`.
    """
    import onnx

    probe = _distinct_copy(model)
    reasons = []
    for route in (_export_by_tracing, _export_by_graph_capture):
        try:
            graph = _plain(route(probe, input_shape))
            _check_names(graph, table)
            _check_outputs(graph, probe, input_shape)
            _check_fence(graph)
        except TaskError as error:
            reasons.append(str(error))
            continue
        taken = {parameter.name for parameter in table.parameters if parameter.role is not Role.COUNTER}
        kept = [array for array in graph.graph.initializer if array.name not in taken]
        del graph.graph.initializer[:]
        graph.graph.initializer.extend(kept)
        onnx.checker.check_model(_with_inputs(graph, table))
        return bytes(graph.SerializeToString(deterministic=True))
    raise TaskError(f"model {type(model).__name__} cannot be exported: " + "; ".join(reasons))


def _distinct_copy(model: nn.Module) -> nn.Module:
    """A copy in which no two arrays are equal: exporters merge equal ones (two zero biases) under one name."""
    probe = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in probe.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.01)
    return probe


def _export_by_tracing(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """The older exporter: 0.1 s and no further package. PRESERVE keeps it from folding BatchNorm into its neighbour."""
    buffer = io.BytesIO()
    return _quietly(
        lambda: torch.onnx.export(
            model,
            (torch.zeros(2, *input_shape),),
            buffer,  # type: ignore[arg-type]  # the older exporter takes a stream, only its annotation does not
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        ),
        lambda _: _parse(buffer.getvalue()),
    )


def _export_by_graph_capture(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """The newer exporter, for what the older one cannot trace; without its optimiser, which renames weights."""
    return _quietly(
        lambda: torch.onnx.export(
            model,
            (torch.zeros(2, *input_shape),),
            None,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            external_data=False,
            optimize=False,
        ),
        lambda program: program.model_proto,
    )


def _quietly(export: Callable[[], Any], finish: Callable[[Any], Any]) -> Any:
    """Run an exporter without its warnings; whatever it raises becomes the reason in a `TaskError`."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return finish(export())
    except Exception as error:  # the exporters have no error type of their own
        text = next(iter(str(error).strip().splitlines()), "no message")
        raise TaskError(f"exporter failed with {type(error).__name__}: {text}") from error
    finally:
        exporter_log.setLevel(level)


def _parse(data: bytes) -> Any:
    import onnx

    return onnx.load_from_string(data)


def _plain(graph: Any) -> Any:
    """Drop what differs from machine to machine: versions, stack traces, file names."""
    graph.producer_name, graph.producer_version, graph.doc_string = "fedpruneshare", "", ""
    del graph.metadata_props[:]
    graph.graph.doc_string, graph.graph.name = "", "model"
    del graph.graph.metadata_props[:]
    del graph.graph.value_info[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    return graph


def _check_names(graph: Any, table: ParameterTable) -> None:
    found = {array.name: tuple(array.dims) for array in graph.graph.initializer}
    for parameter in table.parameters:
        required = parameter.role in (Role.WEIGHT, Role.VECTOR)
        if parameter.name in found and found[parameter.name] != parameter.shape:
            raise TaskError(f"{parameter.name!r} has shape {found[parameter.name]} in the graph, not {parameter.shape}")
        if required and parameter.name not in found:
            raise TaskError(
                f"parameter {parameter.name!r} is not in the exported graph: unused by forward(), or renamed"
            )


def _check_outputs(graph: Any, model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Compare with torch on a batch of another size than the exported one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    inputs = np.random.default_rng(0).standard_normal((3, *input_shape)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(inputs)).numpy()
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run([OUTPUT], {INPUT: inputs})[0]
    except Exception as error:  # the runtime's errors derive from Exception alone
        raise TaskError(f"exported graph does not run on a batch of 3: {str(error).splitlines()[0]}") from error
    deviation = float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-6))
    if not deviation <= LARGEST_DEVIATION:
        raise TaskError(
            f"exported graph differs from the model by {deviation:.2g}, expected {LARGEST_DEVIATION:g} at most"
        )


def _check_fence(graph: Any) -> None:
    """What nobody would read later is better refused now."""
    try:
        check_model(graph.SerializeToString())
    except ModelFileError as error:
        raise TaskError(str(error)) from None


def _with_inputs(graph: Any, table: ParameterTable) -> Any:
    """The template with the taken arrays as inputs: only so can the checker see a complete graph."""
    import onnx

    complete = copy.deepcopy(graph)
    for parameter in table.parameters:
        if parameter.role is not Role.COUNTER:
            value = onnx.helper.make_tensor_value_info(parameter.name, onnx.TensorProto.FLOAT, parameter.shape)
            complete.graph.input.append(value)
    return complete


def _count_classes(model: nn.Module, test: Dataset) -> int:
    """How many scores the model gives for an example; 0 where its outputs are values, as the targets are."""
    inputs = torch.from_numpy(test.inputs[:2])
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except Exception as error:  # the user's forward()
        raise TaskError(f"model fails on the test inputs: {type(error).__name__}: {error}") from error
    expected = "scores [batch, classes]" if test.has_classes else f"values {['batch', *test.targets.shape[1:]]}"
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    fault = TaskError(f"model returns {found} for {len(inputs)} examples, expected {expected}")
    if not isinstance(outputs, torch.Tensor) or not outputs.ndim or len(outputs) != len(inputs):
        raise fault
    if not test.has_classes:
        if outputs.shape[1:] not in (test.targets.shape[1:], test.targets.shape[1:] or (1,)):
            raise fault
        return 0
    if outputs.ndim != 2:
        raise fault
    if int(test.targets.max()) >= outputs.shape[1]:
        raise TaskError(f"model gives {outputs.shape[1]} scores, but a test target is {int(test.targets.max())}")
    return int(outputs.shape[1])

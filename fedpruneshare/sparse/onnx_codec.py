"""Models and updates as sparse ONNX, written from named arrays and read strictly (docs/protocol.md §6.6).

No exporter runs here: a template graph, exported once per task, has its initialisers put back by name. Reading trusts
nothing: every file passes the fence (`model_fence.py`) before onnx sees it, with sizes bounded by the parameter table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import helper

from fedpruneshare.errors import ModelFileError
from fedpruneshare.messages import MAX_SEGMENTS
from fedpruneshare.sparse.model_fence import FenceLimits, check_model
from fedpruneshare.sparse.parameters import Parameter, ParameterTable
from fedpruneshare.sparse.update import SparseUpdate

Arrays = Mapping[str, NDArray[np.float32]]

#: Share of zeros from which a sparse initialiser is smaller: linearised int64 indices cost 12 bytes a value against 4.
SPARSE_ABOVE: Final = 0.70
#: Facts of an update and the range of the numbers among them, as in a plan (docs/protocol.md §4.1).
_NUMBERS: Final = {"round_id": (1, 2**48 - 1), "rung": (0, MAX_SEGMENTS - 1), "weight": (1, 2**24 - 1)}
_FACTS: Final = ("round_id", "table", "rung", "weight")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,14}", re.ASCII)
#: A constant that a graph brings along (a shape, an axis) is small; what is larger must be in the parameter table.
_MAX_CONSTANT_BYTES: Final = 4096
_MAX_CONSTANTS: Final = 1 << 20
#: As large as a bundle's (`fedpruneshare.bundle`).
_TEMPLATE_LIMITS: Final = FenceLimits(32 << 20, 1 << 24)


# --------------------------------------------------------------------------- writing


def build_model(template: bytes, arrays: Arrays, sparse_above: float = SPARSE_ABOVE) -> bytes:
    """Template graph + named float32 arrays -> ONNX file bytes; mostly zero tensors become sparse initialisers.

    Raises `ModelFileError` if the template is no ONNX model, already holds one of the arrays, or needs one that is
    not there.
    """
    model = _parse(template, _TEMPLATE_LIMITS)
    needed, present = _names(model.graph)
    if clash := sorted(present & set(arrays)):
        raise ModelFileError(f"template already holds {clash[0]!r}, expected a graph without weights")
    if absent := sorted(needed - present - set(arrays)):
        raise ModelFileError(f"template needs {absent[0]!r}, found {sorted(arrays)}")
    for name, array in arrays.items():
        if name in needed:  # a buffer the graph does not use (a counter's neighbour, say) is left out
            _add_initializer(model.graph, name, np.asarray(array, dtype=np.float32), sparse_above)
    return bytes(model.SerializeToString(deterministic=True))


def _names(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Names that nodes read and names that the graph itself defines, those of sub-graphs among them."""
    needed: set[str] = set()
    present: set[str] = set()
    for inner in _graphs(graph):
        needed |= {name for node in inner.node for name in node.input if name}  # an empty name: input left out
        needed |= {value.name for value in inner.output}
        present |= {name for node in inner.node for name in node.output}
        present |= {value.name for value in (*inner.input, *inner.initializer)}
        present |= {sparse.values.name for sparse in inner.sparse_initializer}
    return needed, present


def _add_initializer(graph: onnx.GraphProto, name: str, array: NDArray[np.float32], sparse_above: float) -> None:
    flat = array.reshape(-1)
    places = np.flatnonzero(flat)
    if array.ndim < 2 or flat.size == 0 or 1 - places.size / flat.size <= sparse_above:
        graph.initializer.append(_dense(name, array))
        return
    indices = helper.make_tensor(f"{name}_indices", onnx.TensorProto.INT64, [places.size], places.astype(np.int64))
    graph.sparse_initializer.append(helper.make_sparse_tensor(_dense(name, flat[places]), indices, list(array.shape)))


def _dense(name: str, array: NDArray[np.float32]) -> onnx.TensorProto:
    data = np.ascontiguousarray(array, dtype="<f4").tobytes()
    return helper.make_tensor(name, onnx.TensorProto.FLOAT, list(array.shape), data, raw=True)


# --------------------------------------------------------------------------- reading


def read_model(data: bytes, table: ParameterTable, max_bytes: int) -> dict[str, NDArray[np.float32]]:
    """ONNX file bytes -> the table's named arrays that the file holds, each of the table's shape.

    Raises `ModelFileError` for a file that the fence refuses, and for a tensor that is not in the table or not of its
    shape.
    """
    model = _parse_bounded(data, max_bytes, table)
    expected = {parameter.name: parameter for parameter in table.parameters}
    arrays: dict[str, NDArray[np.float32]] = {}
    for tensor in model.graph.initializer:
        if tensor.name in expected:
            _store(arrays, tensor.name, _read_dense(tensor, expected[tensor.name].shape))
        elif tensor.ByteSize() > _MAX_CONSTANT_BYTES:
            raise ModelFileError(f"initialiser {tensor.name!r} is not in the parameter table")
    for sparse in model.graph.sparse_initializer:
        name = sparse.values.name
        if name not in expected:
            raise ModelFileError(f"sparse initialiser {name!r} is not in the parameter table")
        _store(arrays, name, _read_sparse(sparse, expected[name]))
    return arrays


def decode_update(data: bytes, table: ParameterTable, max_bytes: int = 1 << 30) -> SparseUpdate:
    """What `onnx_writer.write_update` wrote. Positions come back sorted. Raises `ModelFileError` for anything else."""
    model = _parse_bounded(data, max_bytes, table)
    graph = model.graph
    names = [*(sparse.values.name for sparse in graph.sparse_initializer), *(dense.name for dense in graph.initializer)]
    if names != ["values", "vectors"] or graph.initializer:
        raise ModelFileError(f"update with tensors {names[:4]}, expected sparse 'values' and 'vectors'")
    if graph.node or graph.input or graph.output:
        raise ModelFileError("update with nodes, inputs or outputs, expected tensors only")
    round_id, rung, weight = _read_facts(model, table)
    positions, values = _read_places(graph.sparse_initializer[0], table.weight_count)
    elements, vectors = _read_places(graph.sparse_initializer[1], table.vector_count)
    return SparseUpdate(round_id, table.digest(), rung, weight, positions, values, elements, vectors)


def _read_places(sparse: onnx.SparseTensorProto, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if tuple(sparse.dims) != (size,):
        raise ModelFileError(f"update of shape {tuple(sparse.dims)}, expected ({size},)")
    places = _read_indices(sparse, size)
    return places, _read_dense(sparse.values, (places.size,))


def _read_facts(model: onnx.ModelProto, table: ParameterTable) -> tuple[int, int, int]:
    keys = sorted(entry.key for entry in model.metadata_props)
    if keys != sorted(_FACTS):
        raise ModelFileError(f"update with facts {keys[:8]}, expected {sorted(_FACTS)}, each once")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if facts["table"] != table.digest().hex():
        raise ModelFileError(f"update of table {facts['table'][:16]!r}…, expected {table.digest().hex()[:16]}…")
    for name, (lowest, highest) in _NUMBERS.items():
        if not _DECIMAL.fullmatch(facts[name]) or not lowest <= int(facts[name]) <= highest:
            raise ModelFileError(f"update with {name} = {facts[name][:20]!r}, expected {lowest} to {highest}")
    return int(facts["round_id"]), int(facts["rung"]), int(facts["weight"])


def _parse(data: bytes, limits: FenceLimits) -> onnx.ModelProto:
    """Bytes that pass the fence -> model: what onnx then builds is no larger than it says."""
    check_model(data, limits)
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"not an ONNX file: {type(error).__name__}") from None
    return model


def _parse_bounded(data: bytes, max_bytes: int, table: ParameterTable) -> onnx.ModelProto:
    # A sparse tensor counts as expanded and with values and indices; the rest is for a graph's own constants.
    elements = 4 * (table.weight_count + table.vector_count) + _MAX_CONSTANTS
    return _parse(data, FenceLimits(max_bytes, elements))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its sub-graphs, the outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            own = [attribute.g] if attribute.HasField("g") else []
            for inner in (*own, *attribute.graphs):
                yield from _graphs(inner)


def _store(arrays: dict[str, NDArray[np.float32]], name: str, array: NDArray[np.float32]) -> None:
    if name in arrays:
        raise ModelFileError(f"initialiser {name!r} stands in the file twice")
    arrays[name] = array


def _read_dense(tensor: onnx.TensorProto, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if tensor.data_type != onnx.TensorProto.FLOAT or tuple(tensor.dims) != shape:
        found = f"type {tensor.data_type} and shape {tuple(tensor.dims)}"
        raise ModelFileError(f"tensor {tensor.name!r} is of {found}, expected FLOAT {shape}")
    size = 4 * math.prod(shape)
    if len(tensor.raw_data) != size:  # what is right, but stands in float_data
        raise ModelFileError(f"tensor {tensor.name!r} holds {len(tensor.raw_data)} raw bytes, expected {size}")
    array = np.frombuffer(tensor.raw_data, dtype="<f4").astype(np.float32).reshape(shape)
    if not np.isfinite(array).all():
        raise ModelFileError(f"tensor {tensor.name!r} holds a value that is not finite")
    return array


def _read_sparse(sparse: onnx.SparseTensorProto, parameter: Parameter) -> NDArray[np.float32]:
    if tuple(sparse.dims) != parameter.shape:
        raise ModelFileError(f"sparse {parameter.name!r} is {tuple(sparse.dims)}, expected {parameter.shape}")
    places = _read_indices(sparse, parameter.size)
    flat = np.zeros(parameter.size, dtype=np.float32)
    flat[places] = _read_dense(sparse.values, (places.size,))
    return flat.reshape(parameter.shape)


def _read_indices(sparse: onnx.SparseTensorProto, size: int) -> NDArray[np.int64]:
    """Linear indices, which the fence has found ascending and below the tensor's own size."""
    indices, name = sparse.indices, sparse.values.name
    if math.prod(sparse.dims) != size:
        raise ModelFileError(f"sparse {name!r} has shape {tuple(sparse.dims)}, expected {size} elements")
    raw = indices.raw_data
    return np.frombuffer(raw, dtype="<i8").astype(np.int64) if raw else np.array(indices.int64_data, dtype=np.int64)

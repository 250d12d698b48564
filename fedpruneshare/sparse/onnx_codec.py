"""Models and updates as sparse ONNX, written from named arrays and read strictly (docs/protocol.md §6.6).

No exporter runs here: a template graph, exported once per task, has its initialisers put back by name. Reading trusts
nothing: sizes are bounded against the known parameter table before a byte is expanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import helper

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.parameters import Parameter, ParameterTable
from fedpruneshare.sparse.update import SparseUpdate

Arrays = Mapping[str, NDArray[np.float32]]

#: Share of zeros from which a sparse initialiser is smaller: linearised int64 indices cost 12 bytes a value against 4.
SPARSE_ABOVE: Final = 0.70
_UPDATE_IR, _UPDATE_OPSET = 8, 17
_FACTS: Final = ("round_id", "table", "rung", "weight")


# --------------------------------------------------------------------------- writing


def build_model(template: bytes, arrays: Arrays, sparse_above: float = SPARSE_ABOVE) -> bytes:
    """Template graph + named float32 arrays -> ONNX file bytes; mostly zero tensors become sparse initialisers.

    Raises `ModelFileError` if the template is no ONNX model, or names of initialisers and arrays do not fit.
    """
    model = _parse(template)
    needed = {name for node in model.graph.node for name in node.input}
    present = {initializer.name for initializer in model.graph.initializer}
    if clash := sorted(present & set(arrays)):
        raise ModelFileError(f"template already holds {clash[0]!r}, expected a graph without weights")
    for name, array in arrays.items():
        if name in needed:  # a buffer the graph does not use (a counter's neighbour, say) is left out
            _add_initializer(model.graph, name, np.asarray(array, dtype=np.float32), sparse_above)
    return bytes(model.SerializeToString(deterministic=True))


def encode_update(update: SparseUpdate, table: ParameterTable) -> bytes:
    """An update as an ONNX file: one sparse tensor for the values, one dense for the vectors, facts as metadata.

    The linearised indices are the flat coordinates of the table (docs/protocol.md §6.1), sorted.
    """
    order = np.argsort(update.positions)
    values = _dense("values", update.values[order])
    indices = helper.make_tensor("values_indices", onnx.TensorProto.INT64, [order.size], update.positions[order])
    sparse = helper.make_sparse_tensor(values, indices, [table.weight_count])
    graph = helper.make_graph([], "fedpruneshare-update", [], [], initializer=[_dense("vectors", update.vectors)])
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _UPDATE_OPSET)], ir_version=_UPDATE_IR)
    facts = dict(zip(_FACTS, (update.round_id, update.table.hex(), update.rung, update.weight), strict=True))
    helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    return bytes(model.SerializeToString(deterministic=True))


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

    Raises `ModelFileError` for a file over `max_bytes`, external data, functions, foreign domains, a tensor that is not
    in the table or not of its shape, and sparse indices that are not int64, linearised, ascending and in range.
    """
    model = _parse_bounded(data, max_bytes)
    expected = {parameter.name: parameter for parameter in table.parameters}
    arrays: dict[str, NDArray[np.float32]] = {}
    for tensor in model.graph.initializer:
        if tensor.name in expected:
            _store(arrays, tensor.name, _read_dense(tensor, expected[tensor.name].shape))
        elif len(tensor.raw_data) > 4096 or tensor.float_data:
            raise ModelFileError(f"initialiser {tensor.name!r} is not in the parameter table")
    for sparse in model.graph.sparse_initializer:
        name = sparse.values.name
        if name not in expected:
            raise ModelFileError(f"sparse initialiser {name!r} is not in the parameter table")
        _store(arrays, name, _read_sparse(sparse, expected[name]))
    return arrays


def decode_update(data: bytes, table: ParameterTable, max_bytes: int = 1 << 30) -> SparseUpdate:
    """What `encode_update` wrote. Positions come back sorted. Raises `ModelFileError` for anything else."""
    model = _parse_bounded(data, max_bytes)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if sorted(facts) != sorted(_FACTS) or len(model.graph.sparse_initializer) != 1 or len(model.graph.initializer) != 1:
        raise ModelFileError(f"update with facts {sorted(facts)}, expected {sorted(_FACTS)}, values and vectors")
    sparse = model.graph.sparse_initializer[0]
    positions = _read_indices(sparse, table.weight_count)
    try:
        round_id, rung, weight = int(facts["round_id"]), int(facts["rung"]), int(facts["weight"])
        digest = bytes.fromhex(facts["table"])
    except ValueError as error:
        raise ModelFileError(f"update with malformed facts: {error}") from None
    if digest != table.digest():
        raise ModelFileError(f"update of table {digest.hex()[:16]}…, expected {table.digest().hex()[:16]}…")
    values = _read_dense(sparse.values, (positions.size,))
    vectors = _read_dense(model.graph.initializer[0], (table.vector_count,))
    return SparseUpdate(round_id, digest, rung, weight, positions, values, vectors)


def _parse(data: bytes) -> onnx.ModelProto:
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"not an ONNX file: {type(error).__name__}") from None
    return model


def _parse_bounded(data: bytes, max_bytes: int) -> onnx.ModelProto:
    if len(data) > max_bytes:
        raise ModelFileError(f"ONNX file of {len(data)} bytes, expected at most {max_bytes}")
    model = _parse(data)
    if model.functions or model.training_info:
        raise ModelFileError("ONNX file holds functions or training graphs, expected a plain graph")
    domains = {opset.domain for opset in model.opset_import} | {node.domain for node in model.graph.node}
    if foreign := sorted(domains - {"", "ai.onnx"}):
        raise ModelFileError(f"ONNX file uses operator domain {foreign[0]!r}, expected the standard one")
    for tensor in _tensors(model.graph):
        if tensor.external_data or tensor.data_location != onnx.TensorProto.DEFAULT:
            raise ModelFileError(f"tensor {tensor.name!r} points outside the file, expected its data inside")
    return model


def _tensors(graph: onnx.GraphProto, depth: int = 0) -> Iterable[onnx.TensorProto]:
    """Every tensor of a graph: initialisers, sparse ones and node attributes, sub-graphs included."""
    if depth > 4:
        raise ModelFileError("ONNX graph nests more than 4 deep")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner, depth + 1)


def _store(arrays: dict[str, NDArray[np.float32]], name: str, array: NDArray[np.float32]) -> None:
    if name in arrays:
        raise ModelFileError(f"initialiser {name!r} stands in the file twice")
    arrays[name] = array


def _read_dense(tensor: onnx.TensorProto, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if tensor.data_type != onnx.TensorProto.FLOAT or tuple(tensor.dims) != shape:
        found = f"type {tensor.data_type} and shape {tuple(tensor.dims)}"
        raise ModelFileError(f"tensor {tensor.name!r} is of {found}, expected FLOAT {shape}")
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if len(tensor.raw_data) != size:
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
    indices, name = sparse.indices, sparse.values.name
    if indices.data_type != onnx.TensorProto.INT64 or len(indices.dims) != 1 or indices.dims[0] > size:
        raise ModelFileError(f"sparse {name!r}: indices of type {indices.data_type}, expected linearised INT64")
    if int(np.prod(sparse.dims, dtype=np.float64)) != size:
        raise ModelFileError(f"sparse {name!r} has shape {tuple(sparse.dims)}, expected {size} elements")
    raw = indices.raw_data
    if raw and len(raw) != 8 * indices.dims[0]:
        raise ModelFileError(f"sparse {name!r}: {len(raw)} bytes of indices, expected {8 * indices.dims[0]}")
    places = np.frombuffer(raw, dtype="<i8") if raw else np.array(indices.int64_data, dtype=np.int64)
    if places.size != indices.dims[0]:
        raise ModelFileError(f"sparse {name!r}: {places.size} indices, expected {indices.dims[0]}")
    if places.size and (places[0] < 0 or places[-1] >= size or (np.diff(places) <= 0).any()):
        raise ModelFileError(f"sparse {name!r}: indices are not ascending, unique and below {size}")
    return places.astype(np.int64)

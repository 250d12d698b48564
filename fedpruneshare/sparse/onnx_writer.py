"""ONNX files written byte by byte, for devices: importing onnx costs 12 MiB and a quarter of a second there.

The bytes are those that onnx itself would write (`onnx_codec.py` reads and checks them; docs/protocol.md §6.6). Only
what a model and an update need is known here: protobuf's tags and lengths, tensors, and where a graph's lists stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.parameters import ParameterTable
from fedpruneshare.sparse.protobuf import BYTES, FIXED32, FIXED64, VARINT, read_varint
from fedpruneshare.sparse.update import SparseUpdate

#: Share of zeros from which a sparse initialiser is smaller, as in `onnx_codec.py`.
SPARSE_ABOVE: Final = 0.70

# Numbers of the fields, from onnx.proto.
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSETS, _MODEL_FACTS = 1, 7, 8, 14
_GRAPH_NODES, _GRAPH_NAME, _GRAPH_TENSORS, _GRAPH_SPARSE = 1, 2, 5, 15
_NODE_INPUTS, _NODE_ATTRIBUTES, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 1, 5, 6, 11
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 7, 8, 9
_SPARSE_VALUES, _SPARSE_INDICES, _SPARSE_DIMS = 1, 2, 3
_KEY, _VALUE = 1, 2
_FLOAT, _INT64 = 1, 7
_UPDATE_IR, _UPDATE_OPSET = 8, 17

_MAX_DEPTH: Final = 4
_CHUNK: Final = 1 << 14

#: Bytes of a message, in pieces.
Parts = list[bytes]


# --------------------------------------------------------------------------- files


def write_update(update: SparseUpdate, table: ParameterTable) -> bytes:
    """An update as an ONNX file: what `onnx_codec.decode_update` reads.

    Two sparse tensors, `values` at flat coordinates and `vectors` at vector elements, sorted; facts as metadata.
    """
    values = _sparse_tensor("values", update.positions, update.values, (table.weight_count,))
    vectors = _sparse_tensor("vectors", update.vector_positions, update.vectors, (table.vector_count,))
    graph = [
        _text(_GRAPH_NAME, "fedpruneshare-update"),
        *_field(_GRAPH_SPARSE, values),
        *_field(_GRAPH_SPARSE, vectors),
    ]
    facts = {
        "round_id": str(update.round_id),
        "table": update.table.hex(),
        "rung": str(update.rung),
        "weight": str(update.weight),
    }
    opset = [_text(1, ""), _number(2, _UPDATE_OPSET)]
    head = [_number(_MODEL_IR, _UPDATE_IR), *_field(_MODEL_GRAPH, graph), *_field(_MODEL_OPSETS, opset)]
    return b"".join([*head, *_facts(facts)])


def write_model(template: bytes, arrays: Mapping[str, NDArray[np.float32]], facts: Mapping[str, str]) -> bytes:
    """Template graph + named float32 arrays -> ONNX file bytes, with `facts` as its metadata.

    Mostly zero tensors become sparse initialisers; arrays that no node reads are left out. Raises `ModelFileError` if
    the template is no ONNX model or already holds one of the arrays.
    """
    model = list(_fields(template))
    graphs = [place for place, (number, _) in enumerate(model) if number == _MODEL_GRAPH]
    if len(graphs) != 1:
        raise ModelFileError(f"template with {len(graphs)} graphs, expected an ONNX file of one")
    graph = list(_fields(_content(model[graphs[0]][1])))
    needed = _names_read(graph)
    held = {_name_of(_content(data), _TENSOR_NAME) for number, data in graph if number == _GRAPH_TENSORS}
    if clash := sorted(held & set(arrays)):
        raise ModelFileError(f"template already holds {clash[0]!r}, expected a graph without weights")
    added = [_initializer(name, array) for name, array in arrays.items() if name in needed]
    own = [(number, [data]) for number, data in graph]
    others = [(number, [data]) for number, data in model if number not in (_MODEL_GRAPH, _MODEL_FACTS)]
    whole = (_MODEL_GRAPH, _field(_MODEL_GRAPH, _in_order([*own, *added])))
    return b"".join(_in_order([*others, whole, (_MODEL_FACTS, _facts(facts))]))


def read_facts(model: bytes) -> dict[str, str]:
    """The metadata of an ONNX file. Raises `ModelFileError` if it is none."""
    facts = {}
    for number, data in _fields(model):
        if number == _MODEL_FACTS:
            entry = _content(data)
            facts[_name_of(entry, _KEY)] = _name_of(entry, _VALUE)
    return facts


def _facts(facts: Mapping[str, str]) -> Parts:
    entries = [_field(_MODEL_FACTS, [_text(_KEY, key), _text(_VALUE, value)]) for key, value in facts.items()]
    return [part for entry in entries for part in entry]


# --------------------------------------------------------------------------- tensors


def _initializer(name: str, array: NDArray[np.float32]) -> tuple[int, Parts]:
    flat = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    places = np.flatnonzero(flat)
    if array.ndim < 2 or flat.size == 0 or 1 - places.size / flat.size <= SPARSE_ABOVE:
        return _GRAPH_TENSORS, _field(_GRAPH_TENSORS, _dense_tensor(name, [flat], array.shape))
    return _GRAPH_SPARSE, _field(_GRAPH_SPARSE, _sparse_tensor(name, places, flat[places], array.shape))


def _dense_tensor(name: str, chunks: Iterable[NDArray[np.float32]], shape: tuple[int, ...]) -> Parts:
    head = [*_numbers(_TENSOR_DIMS, shape), _number(_TENSOR_TYPE, _FLOAT), _text(_TENSOR_NAME, name)]
    return [*head, *_field(_TENSOR_RAW, [chunk.astype("<f4", copy=False).tobytes() for chunk in chunks])]


def _sparse_tensor(name: str, places: NDArray[np.int64], values: NDArray[np.float32], shape: tuple[int, ...]) -> Parts:
    """COO with linearised int64 indices, ascending. A chunk at a time: an update may be all a device has room for."""
    order = np.argsort(places)
    chunks = [order[start : start + _CHUNK] for start in range(0, order.size, _CHUNK)]
    indices = [*_numbers(_TENSOR_DIMS, (order.size,)), _number(_TENSOR_TYPE, _INT64)]
    if order.size:
        indices += _field(_TENSOR_INT64, [_varints(places[chunk]) for chunk in chunks])
    indices.append(_text(_TENSOR_NAME, f"{name}_indices"))
    dense = _dense_tensor(name, (values[chunk] for chunk in chunks), (order.size,))
    return [*_field(_SPARSE_VALUES, dense), *_field(_SPARSE_INDICES, indices), *_numbers(_SPARSE_DIMS, shape)]


def _varints(numbers: NDArray[np.int64]) -> bytes:
    """LEB128 of numbers below 2^35: column c holds the c-th seven bits of each."""
    shifts = np.arange(0, 35, 7)
    columns = ((numbers[:, None] >> shifts) & 0x7F).astype(np.uint8)
    lengths = 1 + (numbers[:, None] >= (np.int64(1) << shifts[1:])).sum(axis=1)
    place = np.arange(len(shifts))
    columns |= np.where(place < (lengths - 1)[:, None], 0x80, 0).astype(np.uint8)
    packed: NDArray[np.uint8] = columns[place < lengths[:, None]]
    return packed.tobytes()


# --------------------------------------------------------------------------- protobuf


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value)


def _numbers(field: int, values: Iterable[int]) -> Parts:
    return [_number(field, int(value)) for value in values]


def _field(field: int, content: Parts) -> Parts:
    """A length-delimited field. Contents are never joined before the whole file is: they may be large."""
    return [_varint(field << 3 | BYTES) + _varint(sum(map(len, content))), *content]


def _text(field: int, text: str) -> bytes:
    return b"".join(_field(field, [text.encode()]))


def _in_order(fields: Iterable[tuple[int, Parts]]) -> Parts:
    """Fields in the order of their numbers, those of one number as they come: what protobuf calls deterministic."""
    return [part for _, parts in sorted(fields, key=lambda entry: entry[0]) for part in parts]


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, whole bytes) of every field of a message. Raises `ModelFileError` where it is none."""
    at = 0
    while at < len(message):
        start = at
        tag, at = read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, at = read_varint(message, at)
        elif kind == BYTES:
            length, at = read_varint(message, at)
            at += length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ModelFileError(f"not an ONNX file: field of kind {kind} at byte {start}")
        if at > len(message) or not number:
            raise ModelFileError(f"not an ONNX file: field {number} at byte {start} of {len(message)} does not end")
        yield number, message[start:at]


def _content(field: bytes) -> bytes:
    """What a length-delimited field holds."""
    tag, at = read_varint(field, 0)
    if tag & 7 != BYTES:
        raise ModelFileError(f"not an ONNX file: field {tag >> 3} is of kind {tag & 7}, expected {BYTES}")
    length, at = read_varint(field, at)
    return field[at : at + length]


def _name_of(message: bytes, field: int) -> str:
    """The last string of that number in a message; empty if there is none."""
    names = [_content(data) for number, data in _fields(message) if number == field]
    try:
        return names[-1].decode() if names else ""
    except UnicodeDecodeError:
        raise ModelFileError(f"not an ONNX file: {names[-1][:40]!r} is no UTF-8 text") from None


def _names_read(graph: list[tuple[int, bytes]], depth: int = 0) -> set[str]:
    """Names that nodes read, those of sub-graphs among them."""
    if depth > _MAX_DEPTH:
        raise ModelFileError(f"ONNX graph nests more than {_MAX_DEPTH} deep")
    names: set[str] = set()
    for node in (_content(data) for number, data in graph if number == _GRAPH_NODES):
        for number, data in _fields(node):
            if number == _NODE_INPUTS:
                names.add(_content(data).decode(errors="replace"))
            elif number == _NODE_ATTRIBUTES:
                for kind, inner in _fields(_content(data)):
                    if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                        names |= _names_read(list(_fields(_content(inner))), depth + 1)
    return names

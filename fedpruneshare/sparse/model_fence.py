"""The fence before every ONNX library: what a file from outside must satisfy before onnx or onnxruntime see it.

Nothing here opens a file, and nothing a file claims is allocated. Sizes are Python integers, so that no product wraps.
What passes holds all its data, in tensors no larger than it says, and standard operators only. What cannot be seen
without running a graph (how large its results grow, how long it takes) is bounded where it runs
(`contained_model.py`); docs/protocol.md §6.6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.model_operators import ALLOWED_OPERATORS, OPSETS, check_amounts
from fedpruneshare.sparse.onnx_tree import Tree, read_tree
from fedpruneshare.sparse.protobuf import packed_count, packed_numbers

MAX_DEPTH: Final = 4
MAX_AXES: Final = 8
#: Of one tensor; what all of them may have together is in the limits.
MAX_ELEMENTS: Final = 2**35
MAX_NAME_BYTES: Final = 512
_IR_VERSIONS: Final = range(3, 14)
#: Metadata that onnxruntime may take session options from.
_OPTIONS: Final = "ort_config"
_DOMAINS: Final = ("", "ai.onnx")

#: data_type -> (bytes of an element, its field of numbers besides raw_data).
_TYPES: Final = {
    1: (4, "float_data"), 2: (1, "int32_data"), 3: (1, "int32_data"), 4: (2, "int32_data"), 5: (2, "int32_data"),
    6: (4, "int32_data"), 7: (8, "int64_data"), 9: (1, "int32_data"), 10: (2, "int32_data"), 11: (8, "double_data"),
    12: (4, "uint64_data"), 13: (8, "uint64_data"), 16: (2, "int32_data"),
}  # fmt: skip
_FLOATS: Final = {1: "<f4", 10: "<f2", 11: "<f8"}
_BFLOAT16: Final = 16
_INT64: Final = 7
_STORES: Final = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_FIXED: Final = {"float_data": 4, "double_data": 8}


@dataclass(frozen=True)
class FenceLimits:
    """The largest file, and the most elements all its tensors may have together, sparse ones as they are expanded."""

    file_bytes: int = 1 << 30
    elements: int = 1 << 28


def check_model(data: bytes, limits: FenceLimits | None = None) -> dict[str, str]:
    """Check a whole ONNX file; returns its metadata. Raises `ModelFileError` naming what was found and expected."""
    limits = limits or FenceLimits()
    if len(data) > limits.file_bytes:
        raise ModelFileError(f"ONNX file of {len(data)} bytes, expected at most {limits.file_bytes}")
    model = read_tree(data)
    if model.one("graph") is None or model.one("ir_version", 0) not in _IR_VERSIONS:
        raise ModelFileError(f"not an ONNX file: IR version {model.one('ir_version')} and a graph are expected")
    _check_opsets(model)
    facts = {entry.one("key", ""): entry.one("value", "") for entry in model.many("metadata_props")}
    if len(facts) != len(model.many("metadata_props")):
        raise ModelFileError("ONNX file has an entry of its metadata twice, expected each once")
    if _OPTIONS in facts:
        raise ModelFileError(f"ONNX file brings {_OPTIONS}, options for the runtime, expected none")
    graphs = list(_graphs(model.one("graph")))
    elements = sum(map(_check_graph, graphs))
    if elements > limits.elements:
        raise ModelFileError(f"tensors of {elements} elements in an ONNX file, expected at most {limits.elements}")
    for graph in graphs:
        check_amounts(graph, limits.elements)
    return facts


def _check_opsets(model: Tree) -> None:
    versions = {opset.one("domain", ""): opset.one("version", 0) for opset in model.many("opset_import")}
    if foreign := sorted(set(versions) - set(_DOMAINS)):
        raise ModelFileError(f"ONNX file uses operator domain {foreign[0]!r}, expected the standard one")
    if len(model.many("opset_import")) != 1 or set(versions.values()) - set(OPSETS):
        found = [opset.one("version", 0) for opset in model.many("opset_import")][:4]
        raise ModelFileError(f"ONNX file of operator sets {found}, expected one of {OPSETS.start} to {OPSETS.stop - 1}")


def _graphs(graph: Tree, depth: int = 0) -> Iterator[Tree]:
    """A graph and its sub-graphs, the outermost first."""
    if depth > MAX_DEPTH:
        raise ModelFileError(f"ONNX graph nests more than {MAX_DEPTH} deep")
    yield graph
    for node in graph.many("node"):
        for attribute in node.many("attribute"):
            own = [attribute.one("g")] if attribute.one("g") else []
            for inner in (*own, *attribute.many("graphs")):
                if node.one("op_type") != "If":
                    raise ModelFileError(f"operator {node.one('op_type')!r} holds a graph, expected only If to do so")
                if inner.many("sparse_initializer"):
                    raise ModelFileError("ONNX file holds a sparse tensor in a node or sub-graph, expected none there")
                yield from _graphs(inner, depth + 1)


def _check_graph(graph: Tree) -> int:
    """Check a graph without its sub-graphs; returns the elements of its tensors."""
    elements, names = 0, []
    for tensor in graph.many("initializer"):
        elements += _check_tensor(tensor, is_weight=True)
        names.append(_name(tensor.one("name", "")))
    for sparse in graph.many("sparse_initializer"):
        elements += _check_sparse(sparse)
        names.append(_name(sparse.one("values").one("name", "")))
    if len(set(names)) != len(names):
        raise ModelFileError(f"initialiser {max(names, key=names.count)!r} stands in the ONNX file twice")
    for value in (*graph.many("input"), *graph.many("output"), *graph.many("value_info")):
        _check_value(value)
    return elements + sum(map(_check_node, graph.many("node")))


def _check_node(node: Tree) -> int:
    operator, domain = node.one("op_type", ""), node.one("domain", "")
    if domain not in _DOMAINS:
        raise ModelFileError(f"ONNX file uses operator domain {domain[:80]!r}, expected the standard one")
    if operator not in ALLOWED_OPERATORS:
        raise ModelFileError(f"ONNX file uses operator {operator[:80]!r}, which is not on the list of what may run")
    for name in (node.one("name", ""), *node.many("input"), *node.many("output")):
        _name(name)
    elements = 0
    for attribute in node.many("attribute"):
        _name(attribute.one("name", ""))
        for number in (attribute.one("f"), *attribute.many("floats")):
            if number is not None and np.isnan(np.frombuffer(number, "<f4")).any():
                raise ModelFileError(f"attribute {attribute.one('name')!r} of {operator} is not a number")
        own = [attribute.one("t")] if attribute.one("t") else []
        elements += sum(_check_tensor(tensor, is_weight=False) for tensor in (*own, *attribute.many("tensors")))
    return elements


def _name(text: str) -> str:
    if len(text.encode()) > MAX_NAME_BYTES or "\0" in text:
        raise ModelFileError(f"name {text[:40]!r} of {len(text)} letters, expected at most {MAX_NAME_BYTES} and no NUL")
    return text


def _check_value(value: Tree) -> None:
    name = _name(value.one("name", ""))
    kind = value.one("type") and value.one("type").one("tensor_type")
    if kind is None:  # what a node gives may be left open; the inputs a runtime takes may not, and it says so itself
        return
    if kind.one("elem_type", 0) not in _TYPES:
        raise ModelFileError(f"{name!r} is of element type {kind.one('elem_type', 0)}, expected one of {list(_TYPES)}")
    if kind.one("shape") is not None:
        sizes = [dim.one("dim_value") for dim in kind.one("shape").many("dim") if dim.one("dim_value") is not None]
        if len(kind.one("shape").many("dim")) > MAX_AXES:
            raise ModelFileError(f"{name!r} has more than {MAX_AXES} axes, expected at most as many")
        _product(sizes, name)


def _product(sizes: list[int], name: str) -> int:
    if len(sizes) > MAX_AXES or not all(0 <= size <= MAX_ELEMENTS for size in sizes) or math.prod(sizes) > MAX_ELEMENTS:
        found = [min(size, 2**63) for size in sizes[:12]]
        raise ModelFileError(f"tensor {name!r} of shape {found}, expected at most {MAX_AXES} axes and 2^35 elements")
    return math.prod(sizes)


# --------------------------------------------------------------------------- tensors


def _check_tensor(tensor: Tree, is_weight: bool) -> int:
    """Check one tensor whole; returns its elements."""
    name, kind = _name(tensor.one("name", "")), tensor.one("data_type", 0)
    if tensor.one("data_location", 0) != 0:
        raise ModelFileError(f"tensor {name!r} points outside the file, expected its data inside")
    if kind not in _TYPES:
        raise ModelFileError(f"tensor {name!r} is of type {kind}, expected one of {list(_TYPES)}")
    count = _product(tensor.many("dims"), name)
    size, typed = _TYPES[kind]
    held = [store for store in _STORES if len(tensor.one(store, b""))]
    if len(held) > 1 or not set(held) <= {"raw_data", typed}:
        raise ModelFileError(f"tensor {name!r} holds {' and '.join(held)}, expected raw_data or {typed} only")
    store = held[0] if held else "raw_data"
    content = tensor.one(store, memoryview(b""))
    fixed = size if store == "raw_data" else _FIXED.get(store)
    found, wanted = (packed_count(content), count) if fixed is None else (len(content), fixed * count)
    if found != wanted:
        unit = "numbers" if fixed is None else "bytes"
        raise ModelFileError(f"tensor {name!r} holds {found} {unit} of {store}, expected {wanted} as its shape says")
    _check_finite(name, kind, content, store, is_weight and bool(tensor.many("dims")))
    return count


def _check_finite(name: str, kind: int, content: memoryview, store: str, is_weight: bool) -> None:
    """No tensor holds NaN. Infinities stand in constants of a graph (masks), never in arrays of initialisers."""
    if kind == _BFLOAT16:
        halves = np.frombuffer(content, "<u2") if store == "raw_data" else packed_numbers(content).astype("<u2")
        numbers: Any = (halves.astype("<u4") << 16).view("<f4")
    elif kind in _FLOATS and store != "int32_data":
        numbers = np.frombuffer(content, _FLOATS[kind])
    elif kind in _FLOATS:  # float16 as numbers
        numbers = packed_numbers(content).astype("<u2").view("<f2")
    else:
        return
    if np.isnan(numbers).any() or (is_weight and np.isinf(numbers).any()):
        raise ModelFileError(f"tensor {name!r} holds a value that is not finite")


def _check_sparse(sparse: Tree) -> int:
    """Check a sparse initialiser; returns its elements once a runtime has expanded it, and those of its two tensors."""
    values, indices = sparse.one("values"), sparse.one("indices")
    if values is None or indices is None:
        raise ModelFileError("a sparse initialiser lacks its values or indices")
    name = _name(values.one("name", ""))
    if indices.one("data_type", 0) != _INT64:
        raise ModelFileError(f"sparse {name!r}: indices of type {indices.one('data_type', 0)}, expected INT64")
    stored = _check_tensor(values, is_weight=True) + _check_tensor(indices, is_weight=True)
    whole, count = _product(sparse.many("dims"), name), math.prod(values.many("dims"))
    shape = tuple(indices.many("dims"))
    if len(values.many("dims")) != 1 or shape != (count,):
        raise ModelFileError(f"sparse {name!r}: {count} values and indices of {shape}, expected one linear index each")
    raw = indices.one("raw_data", b"")
    places = np.frombuffer(raw, "<i8") if len(raw) else packed_numbers(indices.one("int64_data", memoryview(b"")))
    if places.size and (places[0] < 0 or places[-1] >= whole or (np.diff(places) <= 0).any()):
        raise ModelFileError(f"sparse {name!r}: indices are not ascending, unique and below {whole}")
    return whole + stored

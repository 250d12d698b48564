"""The bytes of an ONNX file -> a tree of the few kinds of fields that a model here may have (docs/protocol.md §6.6).

The schema is closed: a field that is not in it is refused by name, whatever a later version of ONNX means by it, and so
is a single field that stands there twice, which readers merge. Nothing is copied: contents are views of the file.
Numbers of fields are those of `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.protobuf import BYTES, FIXED32, VARINT, Field, packed_numbers, read_fields, signed

#: Fields of all messages together, each some hundred bytes of memory here and in every other reader.
MAX_FIELDS: Final = 200_000
MAX_TEXT_BYTES: Final = 65_536
#: A model in a graph in a node in an attribute …: four sub-graphs deep (three messages each), and what they hold.
_MAX_MESSAGES_DEEP: Final = 24
#: Numbers in one attribute. Data of tensors are counted by the fence.
_MAX_NUMBERS: Final = 65_536

#: message -> number of a field -> (its name, what it holds). A `*` allows many; `refused` is known, and unwelcome.
_SCHEMA: Final[Mapping[str, Mapping[int, tuple[str, str]]]] = {
    "model": {
        1: ("ir_version", "int"), 2: ("producer_name", "text"), 3: ("producer_version", "text"), 4: ("domain", "text"),
        5: ("model_version", "int"), 6: ("doc_string", "text"), 7: ("graph", "graph"), 8: ("opset_import", "opset*"),
        14: ("metadata_props", "entry*"), 20: ("training graphs", "refused"), 25: ("functions", "refused"),
        26: ("device configurations", "refused"),
    },
    "opset": {1: ("domain", "text"), 2: ("version", "int")},
    "entry": {1: ("key", "text"), 2: ("value", "text")},
    "graph": {
        1: ("node", "node*"), 2: ("name", "text"), 5: ("initializer", "tensor*"), 10: ("doc_string", "text"),
        11: ("input", "value*"), 12: ("output", "value*"), 13: ("value_info", "value*"),
        14: ("quantisation annotations", "refused"), 15: ("sparse_initializer", "sparse*"),
        16: ("metadata_props", "entry*"),
    },
    "node": {
        1: ("input", "text*"), 2: ("output", "text*"), 3: ("name", "text"), 4: ("op_type", "text"),
        5: ("attribute", "attribute*"), 6: ("doc_string", "text"), 7: ("domain", "text"),
        8: ("overloaded functions", "refused"), 9: ("metadata_props", "entry*"),
        10: ("device configurations", "refused"),
    },
    "attribute": {
        1: ("name", "text"), 2: ("f", "float"), 3: ("i", "int"), 4: ("s", "bytes"), 5: ("t", "tensor"),
        6: ("g", "graph"), 7: ("floats", "float*"), 8: ("ints", "int*"), 9: ("strings", "bytes*"),
        10: ("tensors", "tensor*"), 11: ("graphs", "graph*"), 13: ("doc_string", "text"), 14: ("types", "refused"),
        15: ("types", "refused"), 20: ("type", "int"), 21: ("references to functions' attributes", "refused"),
        22: ("a sparse tensor in a node or sub-graph", "refused"),
        23: ("a sparse tensor in a node or sub-graph", "refused"),
    },
    "tensor": {
        1: ("dims", "int*"), 2: ("data_type", "int"), 3: ("a part of another tensor", "refused"),
        4: ("float_data", "bytes"), 5: ("int32_data", "bytes"), 6: ("texts in a tensor", "refused"),
        7: ("int64_data", "bytes"), 8: ("name", "text"), 9: ("raw_data", "bytes"), 10: ("double_data", "bytes"),
        11: ("uint64_data", "bytes"), 12: ("doc_string", "text"), 13: ("data outside the file", "refused"),
        14: ("data_location", "int"), 16: ("metadata_props", "entry*"),
    },
    "sparse": {1: ("values", "tensor"), 2: ("indices", "tensor"), 3: ("dims", "int*")},
    "value": {1: ("name", "text"), 2: ("type", "type"), 3: ("doc_string", "text"), 4: ("metadata_props", "entry*")},
    "type": {
        1: ("tensor_type", "tensor type"), 4: ("sequences", "refused"), 5: ("maps", "refused"),
        6: ("denotation", "text"), 8: ("sparse tensors as values", "refused"), 9: ("optional values", "refused"),
    },
    "tensor type": {1: ("elem_type", "int"), 2: ("shape", "shape")},
    "shape": {1: ("dim", "dim*")},
    "dim": {1: ("dim_value", "int"), 2: ("dim_param", "text"), 3: ("denotation", "text")},
}  # fmt: skip


@dataclass
class Tree:
    """One message: `of` says which, `values` hold its fields by name; those that may be many are lists."""

    of: str
    values: dict[str, Any] = field(default_factory=dict)

    def one(self, name: str, default: Any = None) -> Any:
        """A field that stands there at most once."""
        return self.values.get(name, default)

    def many(self, name: str) -> list[Any]:
        """A field that may stand there often, in its order."""
        return self.values.get(name, [])  # type: ignore[no-any-return]


def read_tree(data: bytes) -> Tree:
    """Bytes of a file -> its tree. Raises `ModelFileError` for anything the schema does not have."""
    return _Reader().read(memoryview(data), "model", 0)


class _Reader:
    """Reads one file; counts the fields of all its messages."""

    def __init__(self) -> None:
        self._fields = 0

    def read(self, message: memoryview, of: str, depth: int) -> Tree:
        if depth > _MAX_MESSAGES_DEEP:
            raise ModelFileError(f"ONNX file nests more than {_MAX_MESSAGES_DEEP} messages deep")
        tree, schema = Tree(of), _SCHEMA[of]
        for found in read_fields(message):
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise ModelFileError(f"ONNX file of more than {MAX_FIELDS} fields, expected at most as many")
            if found.number not in schema:
                raise ModelFileError(f"ONNX {of} has unknown field {found.number}, expected {sorted(schema)}")
            name, kind = schema[found.number]
            if kind == "refused":
                raise ModelFileError(f"ONNX {of} holds {name}, expected none")
            if kind.endswith("*"):
                tree.values.setdefault(name, []).extend(self._many(found, kind[:-1], depth))
            elif name in tree.values:
                raise ModelFileError(f"ONNX {of} has {name} twice, expected it once")
            else:
                tree.values[name] = self._one(found, kind, depth)
        return tree

    def _many(self, found: Field, kind: str, depth: int) -> list[Any]:
        if found.kind == BYTES and kind == "int":
            return list(map(int, packed_numbers(self._bounded(found.value, 10 * _MAX_NUMBERS))))
        if found.kind == BYTES and kind == "float":
            content = self._bounded(found.value, 4 * _MAX_NUMBERS)
            if len(content) % 4:
                raise ModelFileError(f"{len(content)} bytes of packed numbers, expected four for each")
            return [content[at : at + 4] for at in range(0, len(content), 4)]
        return [self._one(found, kind, depth)]

    def _one(self, found: Field, kind: str, depth: int) -> Any:
        wire = {"int": VARINT, "float": FIXED32}.get(kind, BYTES)
        if found.kind != wire:
            raise ModelFileError(f"not an ONNX file: field {found.number} is of kind {found.kind}, expected {wire}")
        value = found.value
        if isinstance(value, int):
            return signed(value)
        if kind in ("float", "bytes"):
            return value
        return _text(value) if kind == "text" else self.read(value, kind, depth + 1)

    @staticmethod
    def _bounded(value: int | memoryview, limit: int) -> memoryview:
        if isinstance(value, int) or len(value) > limit:
            raise ModelFileError(f"more than {limit} bytes of numbers in one ONNX field, expected at most as many")
        return value


def _text(value: memoryview) -> str:
    if len(value) > MAX_TEXT_BYTES:
        raise ModelFileError(f"text of {len(value)} bytes in an ONNX file, expected at most {MAX_TEXT_BYTES}")
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise ModelFileError(f"name {bytes(value[:40])!r} in an ONNX file, expected UTF-8 text") from None

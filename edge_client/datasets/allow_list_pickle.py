"""Read the numbers out of a pickled table without running anything the pickle names.

A pickle is a program: it may call any function it can name. This reader resolves eleven names, each to an inert
stand-in written here, and refuses every other by name. Nothing of numpy, pandas or the standard library is called
on the pickle's behalf: arrays come back as `PickledArray`, frames as `PickledObject`, both mere holders of state.
(Source: Python documentation, `pickle`, "Restricting Globals".)
"""

from __future__ import annotations

import io
import pickle
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import DataError

PLAIN_TYPES = {"f4", "f8", "i4", "i8", "u1", "u4", "u8"}
"""Element types an array may have, besides lists of plain objects ("O8")."""


class PickledObject:
    """Stand-in for an instance of a library class: its class name and the state that was stored. No behaviour."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PickledType:
    """Stand-in for a numpy dtype. Only plain little-endian numbers and lists of objects get through."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code not in PLAIN_TYPES | {"O8"}:
            raise DataError(f"pickle holds an array of {code!r}, expected one of {sorted(PLAIN_TYPES)} or O8")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", "|") or any(state[2:5]):
            raise DataError("pickle holds an array type with fields or foreign byte order, expected plain numbers")


class PickledArray:
    """Stand-in for a numpy array; `values` is the array, or a list for an array of objects."""

    def __init__(self) -> None:
        self.values: NDArray[Any] | list[Any] = []

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], PickledType):
            raise DataError("pickle holds an array state of another form, expected (version, shape, type, order, data)")
        _, shape, element, fortran, data = state
        if element.code == "O8":
            self.values = list(data)
            return
        if isinstance(data, str):  # bytes of a Python 2 pickle that was read as latin1
            data = data.encode("latin1")
        if not isinstance(data, bytes) or not _is_shape(shape):
            raise DataError("pickle holds an array whose data are not bytes or whose shape is not made of numbers")
        flat = np.frombuffer(data, dtype=np.dtype("<" + element.code))
        if flat.size != int(np.prod(shape, dtype=np.int64)):
            raise DataError(f"pickle holds an array of {flat.size} elements, expected shape {shape}")
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def load_allow_listed(
    data: bytes, library_classes: frozenset[tuple[str, str]], encoding: Literal["ASCII", "latin1"] = "ASCII"
) -> Any:
    """Decode a pickle in which only number arrays and `library_classes` (module, name) may occur.

    `encoding` is that of the texts of a pickle by Python 2; latin1 where bytes are among them. Instances of these
    classes come back as `PickledObject`. Raises `DataError` for any other name, naming it, and
    for a damaged pickle.
    """
    try:
        return _Reader(data, library_classes, encoding).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle may raise almost anything out of the C decoder
        raise DataError(f"pickle is damaged: {type(error).__name__}: {error}") from error


class _ClassName:
    """What a class resolves to: only its name. Calling it is refused, so no constructor runs."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, *_: Any) -> NoReturn:
        raise DataError(f"pickle calls {self.kind!r}, expected only to restore its state")


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, library_classes: frozenset[tuple[str, str]], encoding: str) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._names: dict[tuple[str, str], Any] = {name: _ClassName(name[1]) for name in library_classes}
        self._names |= {
            ("numpy", "ndarray"): _ARRAY,
            ("numpy", "dtype"): PickledType,
            ("numpy.core.multiarray", "_reconstruct"): _restore_array,
            ("numpy._core.multiarray", "_reconstruct"): _restore_array,
            ("_codecs", "encode"): _encode,
        }
        # Python 2 wrote these modules under other names; both spellings mean the same stand-in.
        for builtins, copyreg in (("__builtin__", "copy_reg"), ("builtins", "copyreg")):
            self._names |= {
                (builtins, "object"): _OBJECT,
                (builtins, "slice"): _slice,
                (copyreg, "_reconstructor"): _restore_object,
            }
        self._names |= {name: _restore_index for name in self._names if name[1] == "_new_Index"}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name from the list; refuse any other."""
        if (module, name) not in self._names:
            raise DataError(f"pickle names {module}.{name}, which is not on the list of what may be read")
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse references to objects outside the pickle."""
        raise DataError(f"pickle refers to outside object {pid!r}, expected none")


_ARRAY = _ClassName("ndarray")
_OBJECT = _ClassName("object")


def _restore_array(kind: Any, shape: Any, _code: Any) -> PickledArray:
    if kind is not _ARRAY or shape != (0,):
        raise DataError("pickle starts an array that is not an empty ndarray")
    return PickledArray()


def _restore_object(kind: Any, base: Any, state: Any) -> PickledObject:
    if not isinstance(kind, _ClassName) or base is not _OBJECT or state is not None:
        raise DataError("pickle restores an object of another form, expected a listed class over object")
    return PickledObject(kind.kind)


def _restore_index(kind: Any, state: Any) -> PickledObject:
    if not isinstance(kind, _ClassName) or not isinstance(state, dict):
        raise DataError("pickle restores an index of another form, expected a listed class and its state")
    index = PickledObject(kind.kind)
    index.state = state
    return index


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise DataError(f"pickle encodes as {encoding!r}, expected latin1 (how Python 2 pickles hold bytes)")
    return text.encode("latin1")


def _slice(*bounds: Any) -> slice:
    if not all(isinstance(bound, int) for bound in bounds):
        raise DataError("pickle holds a slice whose bounds are not whole numbers")
    return slice(*bounds)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)

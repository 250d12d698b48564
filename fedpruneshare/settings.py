"""TOML files and `--set` overrides -> frozen, typed settings; every mistake is reported at once.

A settings type is a frozen msgspec struct of plain fields (numbers, text, booleans, choices, lists, tuples, tables,
further structs), bounded with `Meta`. A struct may define `faults(self, path) -> Iterator[Fault]` for checks across its
fields; it is asked once the struct itself has converted. Quantities are plain numbers whose unit ends the key
(`deadline_s`, `ram_mib`). `fedpruneshare.settings_words` puts types and values into words.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from fedpruneshare.errors import Fault, SettingsError
from fedpruneshare.settings_words import accepts, describe, found, sole_member

T = TypeVar("T")

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_MAX_FILE_BYTES: Final = 1 << 20
_LISTS: Final = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)


def load_settings(source: str | Path | Mapping[str, Any], kind: type[T], overrides: Sequence[str] = ()) -> T:
    """Read settings of type `kind` from a TOML file or a mapping, after applying `a.b=value` overrides in order.

    An override's value is read as TOML, and as text where it is not TOML; `fleet.0.count=3` reaches into a list. Where
    the file leaves a table out, an override starts from that table's default.
    Raises `SettingsError` with all faults: syntax, unknown keys (with the nearest match), missing keys, wrong types,
    values out of bounds, and what the structs' own `faults` say.
    """
    name, data = _read(source)
    root = inspect.type_info(kind)
    checker = _Checker(root)
    for override in overrides:
        try:
            _override(data, root, override)
        except SettingsError as error:
            checker.faults.extend(error.faults)
    checker.check(data, root, "")
    if checker.faults:
        raise _error(name, checker.faults)
    return msgspec.convert(data, kind, dec_hook=_from_text)


def dotted(path: str, key: str) -> str:
    """The path of `key` inside `path`, quoted where a TOML key would be."""
    part = key if _BARE_KEY.fullmatch(key) else _quoted(key)
    return f"{path}.{part}" if path else part


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's too, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _error(name: str, faults: Sequence[Fault]) -> SettingsError:
    count = f"{len(faults)} mistake{'s' if len(faults) > 1 else ''}"
    return SettingsError(f"{name}: {count}", tuple(faults))


# --------------------------------------------------------------------------- reading


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "settings", _plain(dict(source))
    path = Path(source)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}, expected a readable TOML file") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"settings file {path}: byte {error.start} is not UTF-8, expected a TOML file") from None
    if len(text) > _MAX_FILE_BYTES:
        raise SettingsError(f"settings file {path} is larger than {_MAX_FILE_BYTES} bytes, expected a TOML file")
    try:
        return str(path), tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _error(str(path), [_syntax_fault(text, str(error))]) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise SettingsError(f"settings file {path}: {error}, expected a plain TOML file") from None


def _syntax_fault(text: str, message: str) -> Fault:
    """The parser's complaint with its line; Python names the place at the end of the message only."""
    lines = text.splitlines() or [""]
    place = re.search(r" \(at (line (\d+), column \d+|end of document)\)$", message)
    number = int(place[2]) if place and place[2] else len(lines)
    what = message[: place.start()] if place else message
    shown = lines[min(number, len(lines)) - 1].strip()[:60]
    return Fault(f"line {number}", repr(shown), "valid TOML", what)


def _plain(value: Any) -> Any:
    """Structs, enums, paths and tuples -> what a TOML reader would have given; None is an absent key."""
    made = msgspec.to_builtins(value, str_keys=True, enc_hook=_to_text)
    return _listed(made)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items() if item is not None}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _to_text(value: Any) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a settings value of type {type(value).__name__} has no TOML form")


def _from_text(kind: type, value: Any) -> Any:
    if issubclass(kind, PurePath):
        return kind(value)
    raise TypeError(f"settings fields of type {kind.__name__} are not supported")


# --------------------------------------------------------------------------- overrides


def _override(data: dict[str, Any], root: inspect.Type, text: str) -> None:
    """Set one `a.b=value` in `data`. What only the types can tell is left to the checker."""
    path, equals, raw = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise _fault(Fault(f"--set {text}", "no KEY=VALUE", "a dotted key, =, and a value", "e.g. rounds.count=40"))
    node: Any = data
    info: inspect.Type | None = root
    for depth, key in enumerate(keys[:-1]):
        node = _descend(node, info, key, ".".join(keys[:depth]))
        info = _inside(info, key)
    parent = ".".join(keys[:-1])
    if isinstance(node, list):
        node[_index(node, keys[-1], parent)] = _toml_value(raw)
    elif isinstance(node, dict):
        node[keys[-1]] = _toml_value(raw)
    else:
        raise _fault(Fault(parent, found(node), "a table or a list", f"from --set {text}"))


def _fault(fault: Fault) -> SettingsError:
    return SettingsError("override", (fault,))


def _descend(node: Any, info: inspect.Type | None, key: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, path)]
    if not isinstance(node, dict):
        raise _fault(Fault(path, found(node), "a table or a list", f"--set reaches for {key!r} inside it"))
    if key not in node:
        node[key] = _default(info, key)
    return node[key]


def _index(items: list[Any], key: str, path: str) -> int:
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    expected = f"an index from 0 to {len(items) - 1}" if items else "no index: the list is empty"
    raise _fault(Fault(f"{path}.{key}", f"the index {key!r}", expected))


def _default(info: inspect.Type | None, key: str) -> Any:
    """The default of a struct's field as plain data, so that overriding one key of a table keeps the others."""
    info = sole_member(info) if info is not None else None
    for field in info.fields if isinstance(info, inspect.StructType) else ():
        if field.encode_name == key and field.default not in (msgspec.NODEFAULT, None):
            return _plain(field.default)
        if field.encode_name == key and field.default_factory is not msgspec.NODEFAULT:
            return _plain(field.default_factory())
    return {}


def _inside(info: inspect.Type | None, key: str) -> inspect.Type | None:
    """The type found under `key` of a container type; None where there is none."""
    info = sole_member(info) if info is not None else None
    if isinstance(info, inspect.StructType):
        return next((field.type for field in info.fields if field.encode_name == key), None)
    if isinstance(info, inspect.DictType):
        return info.value_type
    return info.item_type if isinstance(info, _LISTS) else None


def _toml_value(raw: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {raw.strip()}")
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, lists in lists in lists
        return raw.strip()
    return parsed["value"] if set(parsed) == {"value"} else raw.strip()


# --------------------------------------------------------------------------- checking


class _Checker:
    """Walks data and type together and collects every fault; conversion itself would stop at the first."""

    def __init__(self, root: inspect.Type) -> None:
        self.root = root
        self.faults: list[Fault] = []

    def check(self, value: Any, info: inspect.Type, path: str) -> None:
        """Collect the faults of `value` (at `path`) against the type `info`."""
        info = sole_member(info)
        if isinstance(info, inspect.StructType):
            self._table(value, info, path)
        elif isinstance(info, inspect.DictType):
            self._dict(value, info, path)
        elif isinstance(info, (*_LISTS, inspect.TupleType)):
            self._list(value, info, path)
        elif isinstance(info, inspect.UnionType):
            self._union(value, info, path)
        elif not accepts(value, info):
            self.faults.append(Fault(path, found(value), describe(info), _nearest_choice(value, info)))

    def _table(self, value: Any, info: inspect.StructType, path: str) -> None:
        if not isinstance(value, dict):
            self.faults.append(Fault(path, found(value), "a table"))
            return
        before = len(self.faults)
        fields = {field.encode_name: field for field in info.fields}
        for key in (key for key in value if key not in fields):
            hint = self._nearest_key(key, list(fields), path)
            self.faults.append(Fault(dotted(path, key), "an unknown key", "a known one", hint))
        for key, field in fields.items():
            if key in value:
                self.check(value[key], field.type, dotted(path, key))
            elif field.required:
                self.faults.append(Fault(dotted(path, key), "nothing", describe(field.type)))
        if len(self.faults) == before:
            self.faults.extend(_own_faults(value, info.cls, path))

    def _dict(self, value: Any, info: inspect.DictType, path: str) -> None:
        if not isinstance(value, dict) or not accepts(value, info):
            self.faults.append(Fault(path, found(value), describe(info)))
            return
        for key, item in value.items():
            if not accepts(key, sole_member(info.key_type)):
                expected = f"{describe(info.key_type)} as the key"
                self.faults.append(Fault(dotted(path, key), found(key), expected))
            self.check(item, info.value_type, dotted(path, key))

    def _list(self, value: Any, info: Any, path: str) -> None:
        if not isinstance(value, list) or not accepts(value, info):
            self.faults.append(Fault(path, found(value), describe(info)))
            return
        fixed = isinstance(info, inspect.TupleType)
        for index, item in enumerate(value):
            self.check(item, info.item_types[index] if fixed else info.item_type, dotted(path, str(index)))

    def _union(self, value: Any, info: inspect.UnionType, path: str) -> None:
        trials: list[list[Fault]] = []
        for member in info.types:
            trial = _Checker(self.root)
            trial.check(value, member, path)
            trials.append(trial.faults)
        if not all(trials):
            return
        deeper = [faults for faults in trials if any(fault.path != path for fault in faults)]
        if deeper:
            best: list[Fault] = min(deeper, key=len)
            self.faults.extend(best)
        else:
            self.faults.append(Fault(path, found(value), describe(info)))

    def _nearest_key(self, key: str, known: list[str], path: str) -> str:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        if near:
            return f"did you mean {dotted(path, near[0])!r}?"
        elsewhere = next((place for place in _paths(self.root, "") if place.rpartition(".")[2] == key), "")
        if elsewhere:
            return f"did you mean {elsewhere!r}?"
        return f"known here: {', '.join(known)}" if known else "no keys are known here"


def _own_faults(value: dict[str, Any], cls: type, path: str) -> Iterator[Fault]:
    """What the struct itself says: its constructor, then its `faults` method if it has one."""
    try:
        made: object = msgspec.convert(value, cls, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        yield Fault(path or "the whole", "a table that contradicts itself", str(error))
        return
    own = getattr(made, "faults", None)
    for fault in own(path) if callable(own) else ():
        yield Fault(fault.path.lstrip("."), fault.found, fault.expected, fault.hint)


def _nearest_choice(value: Any, info: inspect.Type) -> str:
    choices: list[Any] = []
    if isinstance(info, inspect.LiteralType):
        choices = list(info.values)
    elif isinstance(info, inspect.EnumType):
        choices = [member.value for member in info.cls]
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def _paths(info: inspect.Type, path: str) -> Iterator[str]:
    """Every key path of a settings type; list entries as index 0."""
    info = sole_member(info)
    if isinstance(info, inspect.StructType):
        for field in info.fields:
            yield dotted(path, field.encode_name)
            yield from _paths(field.type, dotted(path, field.encode_name))
    elif isinstance(info, _LISTS):
        yield from _paths(info.item_type, dotted(path, "0"))


# --------------------------------------------------------------------------- writing


def render_toml(settings: msgspec.Struct) -> str:
    """A settings struct as TOML text that `load_settings` reads back to an equal struct. None is left out."""
    return "\n".join(_table_lines(_plain(settings), "")).strip() + "\n"


def _table_lines(table: dict[str, Any], path: str) -> Iterator[str]:
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    arrays = {key: value for key, value in table.items() if _is_table_list(value)}
    for key, value in table.items():
        if key not in tables and key not in arrays:
            yield f"{dotted('', key)} = {_inline(value)}"
    for key, value in tables.items():
        yield from ("", f"[{dotted(path, key)}]", *_table_lines(value, dotted(path, key)))
    for key, items in arrays.items():
        for item in items:
            yield from ("", f"[[{dotted(path, key)}]]", *_table_lines(item, dotted(path, key)))


def _is_table_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(_inline(item) for item in value)}]"
    if isinstance(value, dict):
        inner = (f"{dotted('', key)} = {_inline(item)}" for key, item in value.items())
        return f"{{{', '.join(inner)}}}"
    return repr(value)


__all__ = ["dotted", "load_settings", "render_toml"]

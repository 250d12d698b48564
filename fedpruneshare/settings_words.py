"""Types and values of settings in plain words, and the test whether a single value fits its type."""

from __future__ import annotations

import math
import re
from pathlib import PurePath
from typing import Any, Final

from msgspec import inspect

_LENGTHS: Final = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType, inspect.DictType)
_PLURALS: Final = (
    ("a whole number", "whole numbers"),
    ("a number", "numbers"),
    ("a table", "tables"),
    ("a list", "lists"),
    ("a path", "paths"),
)


def sole_member(info: inspect.Type) -> inspect.Type:
    """The type without its metadata, and `X` for `X | None`, since TOML has no null."""
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        members = [member for member in info.types if not isinstance(member, inspect.NoneType)]
        return sole_member(members[0]) if len(members) == 1 else info
    return info


def accepts(value: Any, info: inspect.Type) -> bool:
    """Whether a value fits: type and bounds for a single value, kind and size only for a list or table.

    A boolean is no number, and a number must be finite. Raises `TypeError` for a type settings cannot have.
    """
    if isinstance(info, inspect.AnyType):
        return True
    if isinstance(info, inspect.BoolType):
        return isinstance(value, bool)
    if isinstance(info, inspect.IntType):
        return type(value) is int and _within(value, info)
    if isinstance(info, inspect.FloatType):
        return type(value) in (int, float) and math.isfinite(value) and _within(value, info)
    if isinstance(info, inspect.StrType):
        return isinstance(value, str) and _sized(value, info) and _matches(value, info.pattern)
    if isinstance(info, (inspect.LiteralType, inspect.EnumType)):
        return any(type(value) is type(choice) and value == choice for choice in _choices(info))
    if isinstance(info, inspect.TupleType):
        return isinstance(value, list) and len(value) == len(info.item_types)
    if isinstance(info, _LENGTHS):
        return isinstance(value, dict if isinstance(info, inspect.DictType) else list) and _sized(value, info)
    if isinstance(info, inspect.CustomType) and issubclass(info.cls, PurePath):
        return isinstance(value, str)
    if isinstance(info, (inspect.NoneType, inspect.StructType, inspect.UnionType)):
        return isinstance(info, inspect.NoneType) and value is None
    raise TypeError(f"settings fields cannot be of type {info!r}")


def _within(value: float, info: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (info.ge is None or value >= info.ge)
        and (info.gt is None or value > info.gt)
        and (info.le is None or value <= info.le)
        and (info.lt is None or value < info.lt)
        and (info.multiple_of is None or value % info.multiple_of == 0)
    )


def _sized(value: Any, info: Any) -> bool:
    return (info.min_length is None or len(value) >= info.min_length) and (
        info.max_length is None or len(value) <= info.max_length
    )


def _matches(value: str, pattern: str | None) -> bool:
    return pattern is None or re.search(pattern, value) is not None


def _choices(info: inspect.LiteralType | inspect.EnumType) -> list[Any]:
    return [member.value for member in info.cls] if isinstance(info, inspect.EnumType) else list(info.values)


# --------------------------------------------------------------------------- words


def found(value: Any) -> str:
    """A value as a person would call it, cut at 60 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"the whole number {value}"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "a table" if isinstance(value, dict) else "a date or time"


def describe(info: inspect.Type) -> str:
    """What a type accepts, as in "a whole number from 2 to 16" or "a list of text"."""
    info = sole_member(info)
    if isinstance(info, inspect.BoolType):
        return "true or false"
    if isinstance(info, inspect.IntType):
        return f"a whole number{_bounds(info)}"
    if isinstance(info, inspect.FloatType):
        return f"a number{_bounds(info)}"
    if isinstance(info, inspect.StrType):
        pattern = f" matching {info.pattern}" if info.pattern else ""
        return f"text{_size(info, ' of', 'characters')}{pattern}"
    if isinstance(info, (inspect.LiteralType, inspect.EnumType)):
        choices = [repr(choice) for choice in _choices(info)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if isinstance(info, inspect.UnionType):
        return " or ".join(describe(member) for member in info.types if not isinstance(member, inspect.NoneType))
    if isinstance(info, inspect.CustomType):
        return "a path"
    return _describe_container(info)


def _describe_container(info: Any) -> str:
    if isinstance(info, inspect.StructType):
        required = [field.encode_name for field in info.fields if field.required]
        return f"a table with {', '.join(required)}" if required else "a table"
    if isinstance(info, inspect.TupleType):
        return f"a list of {len(info.item_types)}: {', '.join(describe(item) for item in info.item_types)}"
    if isinstance(info, inspect.DictType):
        return f"a table of {_plural(info.value_type)}{_size(info, ',', 'entries')}"
    if isinstance(info, inspect.AnyType):
        return "any value"
    return f"a list of {_plural(info.item_type)}{_size(info, ',', 'entries')}"


def _plural(info: inspect.Type) -> str:
    text = describe(info)
    for one, many in _PLURALS:
        if text.startswith(one):
            return many + text.removeprefix(one)
    return text


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge:g} to {info.le:g}" if isinstance(info.ge, float) else f" from {info.ge} to {info.le}"
    limits = [("at least", info.ge), ("above", info.gt), ("at most", info.le), ("below", info.lt)]
    parts = [f"{word} {limit}" for word, limit in limits if limit is not None]
    if info.multiple_of is not None:
        parts.append(f"a multiple of {info.multiple_of}")
    return f" {' and '.join(parts)}" if parts else ""


def _size(info: Any, joint: str, unit: str) -> str:
    low, high = info.min_length, info.max_length
    if low is None and high is None:
        return ""
    if low is not None and high is not None:
        return f"{joint} {low} {unit}" if low == high else f"{joint} {low} to {high} {unit}"
    return f"{joint} at least {low} {unit}" if high is None else f"{joint} at most {high} {unit}"


__all__ = ["accepts", "describe", "found", "sole_member"]

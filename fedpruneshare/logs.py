"""Logging: structlog set-up, and a gate that no secret, blob or array passes.

Library code says `log = structlog.get_logger()` and `log.info("share stored", device=…, chunk=…)`. Each process calls
`configure` once; `rename` gives it another name later (a device forked from a warmed-up parent).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, TextIO

from fedpruneshare.secret import SecretBytes, digest_text


@contextmanager
def _without(module: str) -> Iterator[None]:
    """For as long as the block lasts it looks as if a module were not installed, unless it is imported already."""
    is_hidden = sys.modules.setdefault(module, None) is None  # type: ignore[arg-type]
    try:
        yield
    finally:
        if is_hidden:
            del sys.modules[module]


with _without("rich"):  # it would be imported for tracebacks that are not shown here: 4 MiB of every process
    import structlog

LEVELS: Final = ("debug", "info", "warning", "error")
_TRACEBACK_KEYS: Final = ("exception", "stack")
_DEPTH: Final = 4
_ITEMS: Final = 50


@dataclass(frozen=True)
class _Name:
    """Processor that puts who speaks on every line; also in threads, which inherit no context variables."""

    role: str
    ident: str

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("role", self.role)
        if self.ident:
            event.setdefault("ident", self.ident)
        return event


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor: replace every value by one that is safe to print (`printable`). Tracebacks pass as they are."""
    return {key: value if key in _TRACEBACK_KEYS else printable(value) for key, value in event.items()}


def printable(value: object, depth: int = _DEPTH) -> object:
    """What a log may show of a value.

    Numbers, text, dates and paths pass (control characters escaped, so that a peer cannot forge lines); bytes show
    length and digest; arrays show shape and dtype; containers are walked; anything else shows only its type's name.
    """
    if value is None or isinstance(value, (bool, int, float, SecretBytes, date)):
        return value if not isinstance(value, (SecretBytes, date)) else str(value)
    if isinstance(value, Enum):
        return printable(value.value, depth)
    if isinstance(value, (str, PurePath)):
        return _one_line(str(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{memoryview(value).nbytes} bytes, sha256 {digest_text(bytes(value))}>"
    if isinstance(value, BaseException):
        return _one_line(f"{type(value).__name__}: {value}")
    return _printable_compound(value, depth)


def _printable_compound(value: object, depth: int) -> object:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape == () and hasattr(value, "item"):
        return printable(value.item())
    if shape is not None and dtype is not None:
        return f"<array shape={tuple(shape)} dtype={dtype}>"
    if depth == 0:
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {_one_line(str(key)): printable(item, depth - 1) for key, item in list(value.items())[:_ITEMS]}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [printable(item, depth - 1) for item in list(value)[:_ITEMS]]
    return f"<{type(value).__name__}>"


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def configure(role: str, ident: str, level: str = "info", json: bool = False, stream: TextIO | None = None) -> None:
    """Set up logging of this process, to standard error unless `stream` says otherwise.

    `level` is one of `LEVELS`; `json` gives one JSON object a line, else a readable line. Raises `ValueError` for an
    unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r}, expected one of {', '.join(LEVELS)}")
    out = stream if stream is not None else sys.stderr
    renderer: Any = structlog.processors.JSONRenderer()
    if not json:
        renderer = structlog.dev.ConsoleRenderer(
            colors=out.isatty(), pad_event_to=30, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            _Name(role, ident),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )


def rename(role: str, ident: str) -> None:
    """Give this process another name in the log; level, format and stream stay."""
    rest = [processor for processor in structlog.get_config()["processors"] if not isinstance(processor, _Name)]
    structlog.configure(processors=[_Name(role, ident), *rest])


__all__ = ["LEVELS", "configure", "printable", "redact", "rename"]

"""Logging: who speaks is on every line, and no secret, blob or array gets through."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog

from fedpruneshare.logs import configure, printable, rename
from fedpruneshare.secret import SecretBytes

log = structlog.get_logger()
SECRET = b"hunter2-hunter2-hunter2-hunter2!"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def started(level: str = "info", as_json: bool = True) -> io.StringIO:
    stream = io.StringIO()
    configure("device", "device-03", level, as_json, stream)
    return stream


def test_each_line_is_one_json_object_that_says_who_speaks() -> None:
    stream = started()
    log.info("share stored", chunk=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "share stored", "level": "info", "role": "device", "ident": "device-03", "chunk": 3}


def test_threads_speak_under_the_same_name() -> None:
    stream = started()
    thread = threading.Thread(target=lambda: log.info("from a thread"))
    thread.start()
    thread.join(10)
    assert lines(stream)[0]["ident"] == "device-03"


def test_rename_changes_the_name_and_nothing_else() -> None:
    stream = started("warning")
    rename("device", "device-04")
    log.info("too low")
    log.warning("heard")
    (line,) = lines(stream)
    assert (line["ident"], line["event"]) == ("device-04", "heard")


def test_context_bound_for_a_round_is_on_the_line() -> None:
    stream = started()
    with structlog.contextvars.bound_contextvars(round_id=7):
        log.info("inside")
    log.info("outside")
    assert [line.get("round_id") for line in lines(stream)] == [7, None]


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_filters(level: str, heard: int) -> None:
    stream = started(level)
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("x")
    assert len(lines(stream)) == heard


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of debug"):
        configure("device", "x", "loud")


class Wire(msgspec.Struct):
    sealed: bytes


@dataclass
class Holder:
    seed: bytes


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        bytearray(SECRET),
        memoryview(SECRET),
        SecretBytes(SECRET),
        Wire(SECRET),
        Holder(SECRET),
        [SECRET],
        {"deep": ({"deeper": SECRET},)},
        {"deep": [[[[[[SECRET]]]]]]},
        np.frombuffer(SECRET, np.uint8),
        [np.frombuffer(SECRET, np.uint8)],
    ],
)
def test_no_secret_or_blob_is_ever_printed(value: object, as_json: bool) -> None:
    stream = started(as_json=as_json)
    log.info("here it is", value=value)
    shown = stream.getvalue()
    assert "here it is" in shown
    for form in ("hunter2", SECRET.hex(), "104, 117, 110", "104 117 110"):
        assert form not in shown


def test_what_is_shown_instead() -> None:
    assert printable(b"abc") == "<3 bytes, sha256 ba7816bf>"
    assert printable(np.zeros((2, 3), np.uint32)) == "<array shape=(2, 3) dtype=uint32>"
    assert printable(np.float32(1.5)) == 1.5
    assert printable(Holder(b"")) == "<Holder>"
    assert printable(Path("a/b")) == "a/b"
    assert printable(ValueError("3 found")) == "ValueError: 3 found"
    assert printable(StrEnum("Phase", {"DONE": "done"})("done")) == "done"
    assert printable({"a": (1, None, True)}) == {"a": [1, None, True]}


@pytest.mark.parametrize("as_json", [True, False])
def test_a_peer_cannot_forge_a_line(as_json: bool) -> None:
    stream = started(as_json=as_json)
    log.info("declined", reason="no\n2030-01-01 [info] all is well\x1b[2J")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_is_printed_without_local_values(as_json: bool) -> None:
    stream = started(as_json=as_json)
    try:
        seed = SecretBytes(SECRET).reveal()
        raise ValueError(f"{len(seed)} bytes found, 16 expected")
    except ValueError:
        log.exception("failed")
    assert "32 bytes found, 16 expected" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()

"""Tables that a benchmark writes into a page, between two markers of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fedpruneshare.errors import SettingsError
from fedpruneshare.storage import write_atomically


def markers(bench: str) -> tuple[str, str]:
    """The lines between which `bench` writes."""
    return f"<!-- bench {bench}: begin -->", f"<!-- bench {bench}: end -->"


def check_page(path: Path, bench: str) -> str:
    """The text of a page that has the two markers, in order. Raises `SettingsError` otherwise, saying what to add."""
    begin, end = markers(bench)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise SettingsError(
            f"{path}: {error.strerror}, expected a page with a line {begin} and below it {end}"
        ) from None
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SettingsError(f"{path}: no place for the tables, expected one line {begin} and below it {end}")
    return text


def write_figures(report: msgspec.Struct, target: Path | None, markdown: Path | None, bench: str, tables: str) -> None:
    """The JSON of a report and its tables, where they are wanted. Raises `SettingsError` as `check_page`."""
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    if markdown is not None:
        write_page(markdown, bench, tables)


def write_page(path: Path, bench: str, tables: str) -> None:
    """Replace what stands between the markers. Raises `SettingsError` as `check_page`."""
    begin, end = markers(bench)
    head, _, rest = check_page(path, bench).partition(begin)
    write_atomically(path, f"{head}{begin}\n\n{tables}\n{end}{rest.partition(end)[2]}".encode())

"""Figures and tables as a reader sees them: sizes, durations, ratios, and HTML in which every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

#: Rows of one table in the page; the files beside it hold all of them.
MAX_ROWS: Final = 240
#: Characters from which on a cell is a text.
_LONG: Final = 40
#: What a reader's units are, smallest first: how much of it one is.
BYTE_UNITS: Final = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"))
JOULE_UNITS: Final = ((1.0, "J"), (1e3, "kJ"), (1e6, "MJ"))
SECOND_UNITS: Final = ((1.0, "s"), (3600.0, "h"))
Units = Sequence[tuple[float, str]]
#: A cell is a line, or a line and smaller ones below it.
Cell = str | tuple[str, ...]
_NARROW_SPACE: Final = "\u202f"


def size(count: float) -> str:
    """Bytes for a reader: 999 B, 12.3 kB, 4.56 MB (decimal)."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
    raise AssertionError("unreachable")


def exact_bytes(count: float) -> str:
    """Bytes for a reader, and to the byte."""
    return f"{size(count)} ({grouped(count)} bytes)"


def grouped(count: float) -> str:
    """A whole number with its digits in groups of three."""
    return f"{count:,.0f}".replace(",", _NARROW_SPACE)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent; nothing for None."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def seconds(length_s: float) -> str:
    """A duration for a reader: 7.5 s, 12 min, 3 h 05 min."""
    if length_s < 100:
        return f"{length_s:.1f} s"
    if length_s < 600:
        return f"{length_s:.0f} s"
    minutes = round(length_s / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def joules(energy_j: float) -> str:
    """Joules for a reader: 12.3 J, 4.56 kJ."""
    for unit in ("J", "kJ", "MJ"):
        if energy_j < 999.5 or unit == "MJ":
            return f"{energy_j:.3g} {unit}" if energy_j < 100 else f"{energy_j:.0f} {unit}"
        energy_j /= 1000
    raise AssertionError("unreachable")


def with_spread(mean: float, sd: float | None, units: Units) -> str:
    """A mean for a reader and, both in one unit, the deviation around it (None: there is none): 1.11 ± 0.04 MB."""
    worth, unit = next((one for one in reversed(units) if abs(mean) >= one[0]), units[0])
    digits = 0 if unit == "B" else max(0, 3 - len(str(int(abs(mean) / worth))))
    text = f"{mean / worth:.{digits}f}"
    return f"{text} {unit}" if sd is None else f"{text} ± {sd / worth:.{digits}f} {unit}"


def ratio(part: float, whole: float) -> str:
    """`part` in terms of `whole`: 9.8 %, or × 3.2 from twice on; a dash where there is no ratio."""
    if whole <= 0 or part < 0:
        return "–"
    found = part / whole
    if found >= 2:
        return f"× {found:.2f}" if found < 10 else f"× {found:.0f}"
    return f"{100 * found:.1f} %" if found >= 0.01 else f"{100 * found:.2g} %"


def signed(number: float, digits: int = 2) -> str:
    """A difference with its sign, a true minus."""
    return f"{number:+.{digits}f}".replace("-", "−")


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], cap: int = MAX_ROWS, file: str = "") -> str:
    """A table that scrolls in a box of its own. Rows beyond `cap` are left out, and `file` is said to hold them."""
    every = list(rows)
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr{_row_class(row)}>{''.join(map(_cell, row))}</tr>" for row in every[:cap])
    made = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    rest = len(every) - cap
    more = f"{grouped(rest)} further rows" + (f" are in {file}." if file else " are left out.")
    note = small(more) if rest > 0 else ""
    # A box that scrolls must be reachable by keyboard.
    return f'<div class="wide" tabindex="0">{made}</div>{note}'


def _cell(cell: Cell) -> str:
    text, *below = (cell,) if isinstance(cell, str) else cell
    more = "".join(f'<span class="sub">{escape(line)}</span>' for line in below)
    # A long text may wrap; figures and names stay on one line.
    kind = ' class="text"' if len(text) > _LONG else ""
    return f"<td{kind}>{escape(text)}{more}</td>"


def _row_class(row: Sequence[Cell]) -> str:
    is_failed = any(isinstance(cell, str) and cell.startswith("FAILED") for cell in row[:5])
    return ' class="failed"' if is_failed else ""


def small(text: str) -> str:
    """A note in small print."""
    return f'<p class="small">{escape(text)}</p>' if text else ""


def items(texts: Iterable[str]) -> str:
    """A list of points."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def section(ident: str, title: str, *parts: str) -> str:
    """A section of the page; nothing if its parts are empty."""
    body = "".join(parts)
    return f'<section id="{escape(ident)}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def folded(title: str, body: str, is_open: bool = False) -> str:
    """Something long that the reader unfolds."""
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{body}</details>"


def tiles(found: Iterable[tuple[str, str, str]]) -> str:
    """Label, value and note of each figure that is to be seen first."""
    cells = "".join(
        f'<div class="tile"><span class="label">{escape(label)}</span><span class="value">{escape(value)}</span>'
        f'<span class="note">{escape(note)}</span></div>'
        for label, value, note in found
    )
    return f'<section class="tiles">{cells}</section>' if cells else ""

"""The figures of `bench sharing` as Markdown tables, which also read well in a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from testbed.benchmarks.sharing_figures import (
    DEMANDS,
    KEYSTREAM_AND_COPY,
    SPLIT_FRACTIONS,
    Figure,
    SharingReport,
)


def tables(report: SharingReport) -> str:
    """All tables, ends with a line end."""
    parts = [
        _heading(report),
        "**Ratios** of our rate to the other's (median of the pairs; a percentage of the physical limit):",
        _ratios(report),
        f"**Rates**, million values a second of CPU time, at {max(_sizes(report)):,} values:",
        _rates(report),
        "**Ours alone**, million values a second (dispersal: million bytes):",
        _alone(report),
        "**Bytes** of one device's shares over all aggregators, without framing:",
        _wire(report),
    ]
    if report.memory:
        parts += [
            f"**Memory** that a split of {report.memory[0].values:,} values needs beyond its input:",
            _memory(report),
        ]
    parts += ["**Peers:**", _peers(report)]
    return "\n\n".join(parts) + "\n"


def ratio_table(report: SharingReport) -> str:
    """The table of ratios alone."""
    return _ratios(report)


def _heading(report: SharingReport) -> str:
    machine = report.machine
    aes = {True: "with AES instructions", False: "without AES instructions", None: "AES instructions unknown"}
    libraries = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    effort = "a quick run" if report.is_quick else "a full run"
    return (
        f"FedPruneShare {report.version}, {effort} on {report.date}. {machine.cpu}, {machine.cores} cores,"
        f" {machine.architecture}, {machine.system}, {aes[machine.has_aes]}; {libraries};"
        f" keystream: {report.keystream}. Threads: {report.threads}."
    )


# --------------------------------------------------------------------------- races


def _sizes(report: SharingReport) -> list[int]:
    return sorted({one.values for one in report.figures})


def _columns(report: SharingReport) -> list[tuple[int, int, int]]:
    """(values, n, k), in order."""
    return sorted({(one.values, one.n, one.k) for one in report.figures})


def _rows(report: SharingReport) -> list[tuple[str, str, str]]:
    """(operation, detail, other): operations in their order, limits last."""
    order = {"split": 0, "open": 1, "add": 2}
    rows = dict.fromkeys((one.operation, one.detail, one.other) for one in report.figures)
    limits = {one.other for one in report.figures if one.is_limit}
    return sorted(rows, key=lambda row: (order[row[0]], row[1], row[2] in limits))


def _ratios(report: SharingReport) -> str:
    columns = _columns(report)
    found = {(one.operation, one.detail, one.other, one.values, one.n, one.k): one for one in report.figures}
    head = ["operation", "against", *(f"({k},{n}), {values:,}" for values, n, k in columns), "demanded"]
    body = []
    for row in _rows(report):
        cells = [_ratio(found.get((*row, *column))) for column in columns]
        body.append([f"{row[0]}, {row[1]}", row[2], *cells, _demand(row[0], row[2])])
    return table(head, body, left=2)


def _ratio(one: Figure | None) -> str:
    if one is None:
        return "–"
    text = (
        f"{100 * one.ratio:.0f} %" if one.is_limit else f"{one.ratio:,.1f}" if one.ratio < 100 else f"{one.ratio:,.0f}"
    )
    return f"{text} (missed)" if one.met is False else text


def _demand(operation: str, other: str) -> str:
    if (operation, other) == ("split", KEYSTREAM_AND_COPY):
        return " and ".join(f"{100 * least:.0f} %" for least in SPLIT_FRACTIONS.values())
    least = DEMANDS.get((operation, other))
    return "" if least is None else f"{100 * least:.0f} %" if least < 1 else f"{least:g}"


def _rates(report: SharingReport) -> str:
    largest = max(_sizes(report))
    schemes = [(n, k) for values, n, k in _columns(report) if values == largest]
    body = []
    for operation, detail in dict.fromkeys(row[:2] for row in _rows(report)):
        here = [
            one for one in report.figures if (one.operation, one.detail, one.values) == (operation, detail, largest)
        ]
        # Ours ran against each of the others.
        ours = [statistics.median(one.ours for one in here if (one.n, one.k) == scheme) for scheme in schemes]
        body.append([f"{operation}, {detail}", "**ours**", *map(_million, ours), f"{largest:,}"])
        for other in [row[2] for row in _rows(report) if row[:2] == (operation, detail)]:
            ran = {(one.n, one.k): one for one in here if one.other == other}
            timed = max((one.other_values for one in ran.values()), default=0)
            cells = [_million(ran[scheme].other_rate) if scheme in ran else "–" for scheme in schemes]
            body.append(["", other, *cells, f"{timed:,}"])
    return table(["operation", "who", *(f"({k},{n})" for n, k in schemes), "timed with"], body, left=2)


def _million(rate: float) -> str:
    scaled = rate / 1e6
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


# --------------------------------------------------------------------------- the rest


def _alone(report: SharingReport) -> str:
    largest = max(_sizes(report))
    shown = [one for one in report.alone if one.values in {largest, 4 * largest, 10 * largest}]
    schemes = sorted({(one.n, one.k) for one in shown if one.n is not None and one.k is not None})
    body = []
    for operation in dict.fromkeys(one.operation for one in shown):
        cells = {(one.n, one.k): _million(one.rate) for one in shown if one.operation == operation}
        body.append([operation, *(cells.get(scheme, cells.get((None, None), "–")) for scheme in schemes)])
    return table(["what", *(f"({k},{n})" for n, k in schemes)], body, left=1)


def _wire(report: SharingReport) -> str:
    body = []
    for one in report.wire:
        right = "as the formula" if one.bytes == one.formula_bytes else f"formula: {one.formula_bytes:,}"
        demanded = "" if one.demanded is None else f"{one.demanded:.3g}"
        body.append(
            [
                one.name,
                f"({one.k},{one.n}), t = {one.t}",
                str(one.digits),
                f"{one.bytes_per_value:.3f}",
                right,
                demanded,
            ]
        )
    return table(["values", "scheme", "digits a word", "bytes a value", "counted", "demanded"], body, left=2)


def _memory(report: SharingReport) -> str:
    body = []
    for one in report.memory:
        demanded = "" if one.demanded is None else f"below {one.demanded / 2**20:.0f} MiB"
        missed = " (missed)" if one.met is False else ""
        size = f"{one.extra_bytes / 2**20:.1f} MiB{missed}"
        body.append([one.variant, f"({one.k},{one.n})", size, f"{one.extra_bytes / one.values:.2f}", demanded])
    return table(["variant", "scheme", "extra", "bytes a value", "demanded"], body, left=2)


def _peers(report: SharingReport) -> str:
    lines = []
    for one in report.peers:
        state = f"{one.pip} {one.version or ''}".rstrip() if one.missing is None else f"{one.missing} (pip: {one.pip})"
        most = "" if one.most_values is None or one.missing else f", timed with {one.most_values:,} values or fewer"
        lines.append(f"- {one.name}: {state}{most}")
    return "\n".join(lines)


def table(head: Sequence[str], body: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table with padded cells; the first `left` columns are aligned left, the others right."""
    widths = [max(len(row[place]) for row in (head, *body)) for place in range(len(head))]
    align: list[Callable[[str, int], str]] = [str.ljust if place < left else str.rjust for place in range(len(head))]
    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    rows = [[align[place](cell, widths[place]) for place, cell in enumerate(row)] for row in (head, *body)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))

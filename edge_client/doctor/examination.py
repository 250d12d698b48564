"""`fedpruneshare device doctor`: is this device ready to take part? Every check has a reason and a one-line fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from edge_client.doctor.board import board
from edge_client.doctor.federation import federation
from edge_client.doctor.findings import Finding, Result, Visit
from edge_client.doctor.software import software

_WORST_FIRST: Final[tuple[Result, ...]] = ("failed", "warning", "ok")


def examine(
    root: Path = Path("/"), config: Path | None = None, is_forced: bool = False
) -> tuple[Visit, tuple[Finding, ...]]:
    """Check the board whose files lie under `root`, and, with a settings file, the federation it takes part in.

    `is_forced`: log in also where that ends the connection of the device at work.

    Never raises for what it finds, and waits for nothing longer than two minutes (torch's import on a small board) and
    20 s (the brokers, all at once).
    """
    visit = Visit.begin(root, config, is_forced)
    return visit, (*board(visit), *software(visit), *federation(visit))


def verdict(findings: Sequence[Finding]) -> Result:
    """The worst result; "ok" where everything was skipped."""
    results = {finding.result for finding in findings}
    return next((result for result in _WORST_FIRST if result in results), "ok")


def as_record(visit: Visit, findings: Sequence[Finding]) -> dict[str, Any]:
    """The whole visit as JSON data: `result`, `board`, `checks` (one object each), `health`."""
    return {
        "result": verdict(findings),
        "board": visit.health.board,
        "checks": [{**asdict(finding), "figures": dict(finding.figures)} for finding in findings],
        "health": asdict(visit.health),
    }


def as_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Plain text, one line a check, and below it the reason and the fix where something is wrong."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        first, *rest = finding.found.splitlines() or [""]
        yield f"{finding.result:<8} {finding.name:<{width}}  {first}"
        indent = " " * (width + 11)
        yield from (f"{indent}{line}" for line in rest)
        if finding.result in ("warning", "failed"):
            yield f"{indent}why: {finding.why}"
            yield f"{indent}fix: {finding.fix}"
    counts = [sum(finding.result == result for finding in findings) for result in (*_WORST_FIRST, "skipped")]
    yield f"{counts[2]} ok, {counts[1]} warnings, {counts[0]} failed, {counts[3]} skipped"

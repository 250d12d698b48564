"""`bench sharing`, all of it: measure, write the JSON, render the tables."""

from __future__ import annotations

import importlib
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edge_client.ciphers import quickest_prg
from fedpruneshare import __version__
from fedpruneshare.errors import SettingsError
from fedpruneshare.sharing.prg import BACKENDS
from fedpruneshare.storage import write_atomically
from testbed.benchmarks.packages import installed_version
from testbed.benchmarks.pages import check_page, markers, write_page
from testbed.benchmarks.peers import OFFERS, Offer, available
from testbed.benchmarks.sharing import FULL, QUICK, SCHEMES, Effort, SharingBench
from testbed.benchmarks.sharing_alone import AloneBench, extra_memory, wire_bytes
from testbed.benchmarks.sharing_figures import JUDGED_VALUES, Machine, PeerState, SharingReport, missed, unmeasured
from testbed.benchmarks.sharing_plot import ratio_plot
from testbed.benchmarks.sharing_tables import ratio_table, tables
from testbed.benchmarks.timing import Clock

PAGE_NAME: Final = "sharing"
BEGIN, END = markers(PAGE_NAME)
_THREADS: Final = (
    "one for every side (libraries are told to start no other, and the clock counts the CPU time of all threads)"
)
#: Of the secrets that are shared and the peers' own generators, which are not secure anyway.
_DATA_SEED: Final = 20
_WIRE_VALUES: Final = 1_000_000
_LIBRARIES: Final = ("numpy", "pycryptodome", "cryptography", "numba", "gmpy2")


# --------------------------------------------------------------------------- measure


def measure_here(is_quick: bool, sizes: Sequence[int], note: Callable[[str], None]) -> SharingReport:
    """`measure_sharing` on this machine's CPU time and calendar. `sizes`: none for the usual ones."""
    effort = with_sizes(QUICK if is_quick else FULL, sizes)
    rng = np.random.default_rng(_DATA_SEED)
    return measure_sharing(effort, time.process_time, rng, datetime.now(UTC), note)


def measure_sharing(
    effort: Effort,
    clock: Clock,
    rng: np.random.Generator,
    now: datetime,
    note: Callable[[str], None],
    offers: Sequence[Offer] = OFFERS,
) -> SharingReport:
    """Everything, checked before it is timed. Raises `RunError` if a peer, or ours, shares wrongly."""
    present, missing = available(offers)
    prg = quickest_prg()
    bench = SharingBench(effort, prg, present, clock, rng, note)
    alone = AloneBench(effort.pairs, prg, clock, rng)
    figures = bench.run()
    for values in effort.sizes:
        note(f"ours alone, {values:,} values")
        _alone(alone, values)
    note(f"memory, {effort.memory_values:,} values")
    return SharingReport(
        version=__version__,
        date=now.isoformat(timespec="seconds"),
        is_quick=effort.pairs < 5,
        threads=_THREADS,
        keystream=f"{prg} by {BACKENDS[0]}",
        machine=machine(),
        versions=_versions(),
        peers=[
            PeerState(one.name, one.package, installed_version(one.package), missing.get(one.name), one.most_values)
            for one in offers
        ],
        figures=figures,
        alone=alone.rates,
        wire=wire_bytes(_WIRE_VALUES),
        memory=extra_memory(SCHEMES, effort.memory_values),
    )


def _alone(bench: AloneBench, values: int) -> None:
    for n, k in SCHEMES:
        bench.scheme(n, k, values)
        bench.blobs(n, k, 4 * values)
    bench.seeds(values)
    bench.keystreams(values)


def with_sizes(effort: Effort, sizes: Sequence[int]) -> Effort:
    """The same effort at other numbers of values, in ascending order: the tables show the last."""
    return replace(effort, sizes=tuple(sorted(set(sizes)))) if sizes else effort


def machine() -> Machine:
    """This machine, as far as it tells; nothing that names it."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        text = ""
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return Machine(
        cpu=model[1].strip() if model else platform.processor() or "unknown",
        cores=os.cpu_count() or 1,
        architecture=platform.machine(),
        system=platform.system(),
        has_aes="aes" in flags[1].split() if flags else None,
    )


def _versions() -> dict[str, str]:
    found = {name: installed_version(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | {name: one for name, one in found.items() if one is not None}


# --------------------------------------------------------------------------- write


def check_targets(markdown: Path | None, plot: Path | None) -> None:
    """Fail before minutes of measuring, not after. Raises `SettingsError`, or `ImportError` without matplotlib."""
    if markdown is not None:
        check_markdown(markdown)
    if plot is not None:
        importlib.import_module("matplotlib")


def write_all(report: SharingReport, target: Path, markdown: Path | None, plot: Path | None) -> None:
    """The JSON, and the tables and the plot where they are wanted."""
    write_json(target, report)
    if markdown is not None:
        write_markdown(markdown, report)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(plot, ratio_plot(report).encode())


def conclusion(report: SharingReport) -> str:
    """The ratios, and a line for each peer that is missing and each demand that is missed or was not measured."""
    lines = [ratio_table(report)]
    lines += [f"{one.name}: {one.missing} (pip install {one.pip})" for one in report.peers if one.missing]
    if open_ := unmeasured(report):
        lines.append(f"not measured (peer missing, or below {JUDGED_VALUES:,} values): {'; '.join(open_)}")
    lines += [f"MISSED: {line}" for line in missed(report)] or ["every demand that was measured is met"]
    return "\n".join(lines)


def write_json(path: Path, report: SharingReport) -> None:
    """The whole report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def read_json(path: Path) -> SharingReport:
    """A report written before. Raises `SettingsError` for a file that is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SharingReport)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}, expected a report of `bench sharing`") from None


def check_markdown(path: Path) -> str:
    """The text of a page that has the two markers, in order. Raises `SettingsError` otherwise, saying what to add."""
    return check_page(path, PAGE_NAME)


def write_markdown(path: Path, report: SharingReport) -> None:
    """Replace what stands between the markers. Raises `SettingsError` as `check_markdown`."""
    write_page(path, PAGE_NAME, tables(report))

"""`bench sharing`: demands, bytes and memory, the file, the page and the plot, and the command at a tiny size."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from fedpruneshare.errors import RunError, SettingsError
from fedpruneshare.sharing.field import F31
from fedpruneshare.sharing.prg import BACKENDS, Prg
from testbed.benchmarks import memory, sharing_report
from testbed.benchmarks.limits import copy_each, keystream_and_copy
from testbed.benchmarks.peer_vectors import HandWritten
from testbed.benchmarks.peers import OFFERS, Offer
from testbed.benchmarks.sharing import FULL, QUICK, Effort, SharingBench, openings
from testbed.benchmarks.sharing_alone import wire_bytes
from testbed.benchmarks.sharing_figures import (
    COPY,
    KEYSTREAM_AND_COPY,
    MOST_EXTRA_BYTES,
    Figure,
    Memory,
    SharingReport,
    demanded_ratio,
    missed,
    unmeasured,
)
from testbed.benchmarks.sharing_plot import ratio_plot
from testbed.benchmarks.sharing_report import BEGIN, END
from testbed.benchmarks.sharing_tables import ratio_table, table, tables
from testbed.cli import bench

TINY = Effort((2_000,), pairs=2, slow_pairs=1, clients=3, slow_share=0.01, memory_values=100_000)
ABSENT = Offer("nobody", "no-such-package", "no_such_package", HandWritten)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Ticking:
    """Every look at the clock costs a second, so nothing is repeated and every rate is known."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture(scope="module")
def report() -> SharingReport:
    """With the peers that are always there and one that never is."""
    always = [offer for offer in OFFERS if offer.package in {"numpy", "pycryptodome"}]
    rng = np.random.default_rng(1)
    return sharing_report.measure_sharing(TINY, Ticking(), rng, NOW, lambda _: None, [*always, ABSENT])


# --------------------------------------------------------------------------- what is measured


def test_rates_ratios_and_pairs_follow_from_the_clock(report: SharingReport) -> None:
    by_name = {(one.operation, one.detail, one.other, one.n): one for one in report.figures}
    split = by_name["split", "all n shares", "hand-written numpy", 3]
    assert (split.ours, split.other_rate, split.ratio, split.pairs) == (2_000, 2_000, 1.0, 2)
    packed = by_name["split", "all n shares", "pycryptodome, 4 packed", 5]
    assert (packed.values, packed.other_values, packed.pairs) == (2_000, 16, 1)
    assert packed.ratio == 2_000 / 16  # a second each: the ratio is that of values
    added = by_name["add", "3 clients", "hand-written numpy", 5]
    assert (added.ours, added.other_rate) == (6_000, 6_000)
    limit = by_name["add", "3 clients", COPY, 3]
    assert limit.is_limit
    assert limit.ratio == 1.0


def test_every_peer_meets_both_schemes_both_openings_and_sums_where_it_can(report: SharingReport) -> None:
    found = {(one.other, one.operation, one.detail) for one in report.figures if (one.k, one.n) == (3, 5)}
    opened = {("open", "consecutive points"), ("open", "points with a gap")}
    for offer in OFFERS:
        if offer.package in {"numpy", "pycryptodome"}:
            sums = {("add", "3 clients")} if offer.package == "numpy" else set()
            expected = {("split", "all n shares")} | opened | sums
            assert {key[1:] for key in found if key[0] == offer.name} == expected
    assert {(KEYSTREAM_AND_COPY, "split", "all n shares"), (COPY, "add", "3 clients")} <= found


def test_openings_use_k_points_and_one_has_a_gap() -> None:
    assert openings(3, 2) == {"consecutive points": (1, 2), "points with a gap": (1, 3)}
    assert openings(5, 3) == {"consecutive points": (1, 2, 3), "points with a gap": (1, 2, 5)}
    assert list(openings(3, 3)) == ["consecutive points"]


def test_a_missing_peer_is_named_with_what_to_install(report: SharingReport) -> None:
    state = next(one for one in report.peers if one.name == "nobody")
    assert (state.missing, state.pip, state.version) == ("not installed", "no-such-package", None)
    assert "nobody: not installed (pip install no-such-package)" in sharing_report.conclusion(report)
    assert "- nobody: not installed (pip: no-such-package)" in tables(report)
    assert not [one for one in report.figures if one.other == "nobody"]


def test_nothing_is_timed_after_a_wrong_opening() -> None:
    class Wrong(HandWritten):
        def open(self, picked: object) -> object:
            return super().open(picked) + 1

    clock = Ticking()
    offers = [replace(ABSENT, name="wrong", module="numpy", make=Wrong)]
    started: list[str] = []
    with pytest.raises(RunError, match="wrong: opening"):
        SharingBench(TINY, Prg.CHACHA20, offers, clock, np.random.default_rng(1), started.append).run()
    assert clock.now_s == 0.0
    assert started == ["checking wrong, (2,3)"]


def test_limits_write_what_a_split_writes() -> None:
    shares = {x: np.full(40_000, x, dtype=F31.word_type) for x in (1, 2, 3)}
    for backend in BACKENDS:
        for prg in Prg:
            keystream_and_copy(prg, backend, 2, shares)()
    copy_each(list(shares.values()))()


def test_usual_efforts_are_those_of_the_documentation() -> None:
    assert (FULL.sizes, FULL.pairs, FULL.clients, FULL.memory_values) == ((100_000, 1_000_000), 7, 100, 10_000_000)
    assert QUICK.pairs < FULL.pairs
    assert sharing_report.with_sizes(QUICK, [5_000, 2_000, 5_000]).sizes == (2_000, 5_000)
    assert sharing_report.with_sizes(QUICK, []) is QUICK


# --------------------------------------------------------------------------- demands


def test_demands_are_judged_at_a_million_values_only() -> None:
    assert demanded_ratio("split", "galois Horner", (3, 2), 1_000_000) == 4
    assert demanded_ratio("split", "galois Horner", (3, 2), 999_999) is None
    assert demanded_ratio("split", "tno", (3, 2), 1_000_000) is None
    assert demanded_ratio("split", KEYSTREAM_AND_COPY, (3, 2), 1_000_000) == 0.35
    assert demanded_ratio("split", KEYSTREAM_AND_COPY, (5, 3), 1_000_000) == 0.30
    assert demanded_ratio("add", COPY, (5, 3), 1_000_000) == 0.45
    assert demanded_ratio("split", "galois Horner", (9, 4), 1_000_000) is None


def judged(report: SharingReport, ratio: float) -> SharingReport:
    figure = Figure(
        operation="split",
        detail="all n shares",
        n=3,
        k=2,
        values=1_000_000,
        other="galois Horner",
        is_limit=False,
        other_values=1_000_000,
        pairs=7,
        ours=ratio * 1e6,
        other_rate=1e6,
        ratio=ratio,
        demanded=4.0,
        met=ratio >= 4.0,
    )
    return msgspec.structs.replace(report, figures=[figure])


def test_what_is_missed_is_said_and_what_was_not_measured(report: SharingReport) -> None:
    met, short = judged(report, 4.0), judged(report, 3.9)
    assert missed(met) == []
    assert missed(short) == ["split (2,3), all n shares, 1,000,000 values: 3.9 x galois Horner, demanded 4"]
    assert "MISSED: split (2,3)" in sharing_report.conclusion(short)
    assert "3.9 (missed)" in ratio_table(short)
    assert "split: 4 x galois Horner" not in unmeasured(short)
    assert "open: 3 x hand-written numpy" in unmeasured(short)
    assert len(unmeasured(report)) == 11


def test_too_much_memory_is_missed(report: SharingReport) -> None:
    extra = MOST_EXTRA_BYTES
    row = Memory(variant="streamed", n=3, k=2, values=9, extra_bytes=extra, demanded=extra, met=False)
    assert missed(msgspec.structs.replace(report, memory=[row])) == [
        f"streamed (2,3): {extra} extra bytes, demanded below {extra}"
    ]


# --------------------------------------------------------------------------- bytes and memory


def test_bytes_of_a_device_follow_the_formula_and_reach_what_is_demanded() -> None:
    rows = {(one.name, one.k, one.n): one for one in wire_bytes(1_000_000)}
    assert all(one.met for one in rows.values())
    expected = {
        ("one value a word", 2, 3): 8_000_032,
        ("8 bits, 128 devices", 2, 3): 4_000_032,
        ("8 bits, 128 devices", 3, 5): 6_000_064,
        ("8 bits, 128 devices", 3, 3): 2_000_064,
        ("8 bits, 128 devices, ramp", 3, 4): 3_000_032,
        ("4 bits, 68 devices", 2, 3): 2 * 4 * 333_334 + 32,
        ("8 bits, 4,112 devices, F61", 2, 3): 2 * 8 * 333_334 + 32,
    }
    assert {key: rows[key].bytes for key in expected} == expected


@pytest.mark.parametrize("values", [1, 2, 7, 1_001])
def test_bytes_round_up_as_the_formula_does(values: int) -> None:
    assert [one.name for one in wire_bytes(values) if one.bytes != one.formula_bytes] == []


@pytest.mark.skipif(not memory.can_measure(), reason="this system tells a process no peak")
def test_memory_of_whole_vectors_is_seen_although_this_process_is_larger() -> None:
    values = 2_000_000
    grown = np.ones(10_000_000)  # a child's ru_maxrss would start at this process's peak
    whole, streamed = (memory.extra_bytes(variant, 3, 2, values) for variant in ("all n vectors", "streamed"))
    assert grown.size
    assert 11.9 * values <= whole < 14 * values  # some pages may have been there before
    assert streamed < MOST_EXTRA_BYTES


def test_a_child_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(RunError, match="expected 2 <= k <= n"):
        memory.extra_bytes("streamed", 2, 3, 10)


# --------------------------------------------------------------------------- files


def test_the_file_says_what_ran_where_and_when(report: SharingReport, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "sharing.json"
    sharing_report.write_json(target, report)
    body = json.loads(target.read_text())
    assert (body["schema"], body["benchmark"], body["date"]) == (1, "sharing", "2026-01-02T03:04:05+00:00")
    assert set(body["machine"]) == {"cpu", "cores", "architecture", "system", "has_aes"}
    assert body["versions"]["numpy"] == np.__version__
    assert body["threads"].startswith("one")
    assert {"unit", "pairs", "ours", "other_rate", "ratio", "demanded", "met"} <= set(body["figures"][0])
    assert sharing_report.read_json(target) == report
    target.write_text('{"schema": 1}')
    with pytest.raises(SettingsError, match="expected a report"):
        sharing_report.read_json(target)


def test_only_what_stands_between_the_markers_is_replaced(report: SharingReport, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n")
    sharing_report.write_markdown(page, report)
    once = page.read_text()
    assert once.startswith(f"before\n{BEGIN}\n")
    assert once.endswith(f"\n{END}\nafter\n")
    assert "old figures" not in once
    assert ratio_table(report) in once
    sharing_report.write_markdown(page, report)
    assert page.read_text() == once


@pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}"])
def test_a_page_without_a_place_for_the_tables_is_refused(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SettingsError, match="expected one line <!-- bench sharing: begin -->"):
        sharing_report.check_markdown(page)
    with pytest.raises(SettingsError, match="expected a page"):
        sharing_report.check_markdown(tmp_path / "absent.md")


def test_the_page_of_the_project_has_its_place_and_a_full_run_with_every_peer() -> None:
    page = Path(__file__).parents[3] / "docs" / "benchmarks.md"
    text = sharing_report.check_markdown(page)
    assert "a full run" in text
    assert [offer.name for offer in OFFERS if f"| {offer.name} " not in text] == []


def test_a_table_is_padded_and_aligned() -> None:
    assert table(["a", "b"], [["long", "1"], ["x", "22"]], left=1).splitlines() == [
        "| a    |  b |",
        "| ---- | -: |",
        "| long |  1 |",
        "| x    | 22 |",
    ]


def test_the_plot_is_small_and_readable_and_the_same_each_time(report: SharingReport) -> None:
    image = ratio_plot(report)
    assert image == ratio_plot(report)
    assert len(image) < 60_000
    words = {"".join(node.itertext()) for node in ET.fromstring(image).iter() if node.tag.endswith("}text")}
    assert {"hand-written numpy", "pycryptodome, 4 packed", "(2,3)", "(3,5)", "demanded"} <= words


# --------------------------------------------------------------------------- the command


def test_the_command_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing_report, "QUICK", TINY)
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    paths = ["--json", str(tmp_path / "s.json"), "--markdown", str(page), "--plot", str(tmp_path / "p" / "s.svg")]
    ran = CliRunner().invoke(bench, ["sharing", "--quick", "--sizes", "1_000", *paths], standalone_mode=False)
    assert (ran.exception, ran.return_value) == (None, 0)
    found = sharing_report.read_json(tmp_path / "s.json")
    assert {one.values for one in found.figures} == {1_000}
    assert all(one.ours > 0 and one.other_rate > 0 for one in found.figures)
    assert "| split, all n shares" in ran.stdout
    assert "split, all n shares" in page.read_text()
    assert (tmp_path / "p" / "s.svg").read_text().startswith("<?xml")


def test_a_missed_demand_is_said_and_is_no_failure(
    report: SharingReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing_report, "measure_here", lambda *_: judged(report, 1.0))
    ran = CliRunner().invoke(bench, ["sharing", "--json", str(tmp_path / "s.json")], standalone_mode=False)
    assert (ran.exception, ran.return_value) == (None, 0)
    assert "MISSED: split (2,3)" in ran.stdout


@pytest.mark.parametrize("sizes", ["many", "10", "1000,", "1e6"])
def test_sizes_that_make_no_sense_are_refused_before_anything_runs(sizes: str, tmp_path: Path) -> None:
    ran = CliRunner().invoke(bench, ["sharing", "--json", str(tmp_path / "s.json"), "--sizes", sizes])
    assert ran.exit_code == 2
    assert "expected" in ran.output


def test_a_page_without_markers_is_refused_before_anything_runs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no markers")
    arguments = ["sharing", "--json", str(tmp_path / "s.json"), "--markdown", str(page)]
    ran = CliRunner().invoke(bench, arguments, standalone_mode=False)
    assert isinstance(ran.exception, SettingsError)
    assert not (tmp_path / "s.json").exists()

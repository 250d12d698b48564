from __future__ import annotations

import msgspec
import pytest
from click.testing import CliRunner

from edge_client.calibrating.footprint import STATUS, Footprint
from testbed.benchmarks import device_memory
from testbed.benchmarks.device_memory import MemoryReport, NetMemory, SharingMemory, missed, sharing_mib, table
from testbed.benchmarks.pages import markers
from testbed.benchmarks.sharing_report import machine
from testbed.cli_memory import memory as command

needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's /proc")


def report(peak=260.0, extra=7.0):
    nets = [NetMemory("LeNet-5", 0.5, Footprint(200.0, peak - 200.0, peak))]
    return MemoryReport(
        "0", "2026-01-02T03:04:05+00:00", machine(), {"torch": "2"}, nets, [SharingMemory(3, 2, 10**6, extra)]
    )


@needs_proc
@pytest.mark.parametrize(("n", "k"), device_memory.SHARINGS)
def test_sharing_a_million_values_adds_less_than_16_mib(n, k):
    """Outbox, splitting, sealing, signing and every courier at once; the words themselves are 4 MB of it."""
    assert 2.0 < sharing_mib(n, k, device_memory.VALUES) <= device_memory.LARGEST_SHARING_MIB


@needs_proc
def test_a_net_is_measured_at_its_widths():
    (half,) = device_memory.measure_net("ResNet-8, GroupNorm", (0.5,))
    assert (half.net, half.width) == ("ResNet-8, GroupNorm", 0.5)
    assert 50 < half.memory.base_mib < half.memory.peak_mib < 1000


def test_demands_that_are_missed_are_named():
    assert missed(report()) == []
    assert missed(report(peak=271.0, extra=16.5)) == [
        "LeNet-5 at width 0.5 takes 271.0 MiB, allowed 270",
        "sharing 1,000,000 values (2 of 3) adds 16.5 MiB, allowed 16",
    ]


def test_the_table_shows_every_figure():
    lines = table(report()).splitlines()
    assert lines[2] == "| LeNet-5 | 0.5 | 200 MiB | 60.0 MiB | 260 MiB |"
    assert lines[3] == "| sharing 1,000,000 values, 2 of 3 | | | 7.0 MiB | |"


def test_the_command_writes_json_and_page_and_fails_where_a_demand_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "measure_here", lambda note: note("LeNet-5") or report(peak=280.0))
    begin, end = markers("memory")
    page = tmp_path / "page.md"
    page.write_text(f"# Head\n{begin}\nold\n{end}\ntail\n")
    arguments = ["--json", str(tmp_path / "memory.json"), "--markdown", str(page)]
    ran = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert ran.return_value == 1
    assert "MISSED: LeNet-5 at width 0.5 takes 280.0 MiB" in ran.output
    assert msgspec.json.decode((tmp_path / "memory.json").read_bytes(), type=MemoryReport) == report(peak=280.0)
    assert "| LeNet-5 | 0.5 |" in page.read_text()
    assert "old" not in page.read_text()
    assert page.read_text().endswith("tail\n")

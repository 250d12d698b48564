from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edge_client.tasks.benchmark_models import NETS, prepare
from fedpruneshare.errors import SettingsError
from testbed.benchmarks import width
from testbed.benchmarks.pages import check_page, markers, write_page
from testbed.benchmarks.width import Timing, WidthFigures, WidthReport, measure_net, missed, page, table
from testbed.cli_width import width as command

PARAMETERS = {"CNN4": 545_098, "LeNet-5": 44_426, "HAPT 1-D CNN": 24_358, "ResNet-8, GroupNorm": 78_042}


def figures(net="CNN4", at=0.5, trains=2.0, infers=2.5):
    return WidthFigures(net, at, 1000, Timing(1.0, trains), Timing(2.0, infers), Timing(0.5, 1.0))


def report(*some):
    machine = width.machine()
    return WidthReport("0", "2026-01-02T03:04:05+00:00", 3, machine, {"torch": "2"}, list(some))


@pytest.mark.parametrize("name", NETS)
def test_the_nets_are_those_of_the_docs(name):
    net = NETS[name]
    model = net.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_a_net_is_prepared_at_every_width_and_trains():
    narrow, full = prepare("HAPT 1-D CNN", (0.5, 1.0), seed=1)
    assert full.parameters == PARAMETERS["HAPT 1-D CNN"]
    assert narrow.parameters < 0.3 * full.parameters
    assert len(narrow.onnx) < 0.5 * len(full.onnx)
    assert narrow.train().steps == 4
    assert narrow.train().mean_loss > 0


def test_cnn4_at_half_width_is_as_much_faster_as_is_demanded():
    prepared = prepare("CNN4", (0.5, 1.0), seed=1)
    for _ in range(6):  # caches that others fill slow the two down differently now and then
        measured = measure_net("CNN4", prepared, 5, time.process_time)
        if not missed(report(*measured)):
            break
    assert [one.width for one in measured] == [0.5, 1.0]
    assert missed(report(*measured)) == []
    assert measured[1].train.speedup == measured[1].infer.speedup == 1.0
    assert measured[0].train.ms < measured[1].train.ms


def test_a_demand_that_is_missed_is_named():
    assert missed(report(figures())) == []
    assert missed(report(figures(net="LeNet-5", trains=0.5))) == []
    assert missed(report(figures(trains=1.5, infers=1.99))) == [
        "CNN4 at width 0.5 trains 1.50 x as fast, demanded 1.8",
        "CNN4 at width 0.5 infers 1.99 x as fast, demanded 2.0",
    ]


def test_the_table_shows_the_full_model_first_and_ratios_of_the_others():
    lines = table(report(figures(), figures(at=1.0, trains=1.0, infers=1.0))).splitlines()
    assert lines[2] == "| CNN4 | 1 | 1,000 | 1 ms | 2 ms | 0.5 ms |"
    assert lines[3] == "| CNN4 | 0.5 | 1,000 | 1 ms, 2.00 × | 2 ms, 2.50 × | 0.5 ms, 1.00 × |"
    assert "3 turns on 2026-01-02T03:04:05+00:00" in page(report(figures()))


def test_the_command_writes_json_and_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(width, "NETS", {"HAPT 1-D CNN": NETS["HAPT 1-D CNN"]})
    target, markdown = tmp_path / "new" / "width.json", tmp_path / "page.md"
    begin, end = markers("width")
    markdown.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    ran = CliRunner().invoke(command, ["--quick", "--json", str(target), "--markdown", str(markdown)])
    assert ran.exit_code == 0, ran.output
    found = msgspec.json.decode(target.read_bytes(), type=WidthReport)
    assert [one.width for one in found.figures] == [0.25, 0.5, 0.75, 1.0]
    assert np.all(np.diff([one.parameters for one in found.figures]) > 0)
    text = markdown.read_text()
    assert text == f"before\n{begin}\n\n{page(found)}\n{end}\nafter\n"
    assert table(found) in ran.output


def test_a_page_without_a_place_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(width, "measure_here", lambda *_: pytest.fail("measured"))
    (tmp_path / "page.md").write_text("nothing")
    ran = CliRunner().invoke(command, ["--markdown", str(tmp_path / "page.md")])
    assert isinstance(ran.exception, SettingsError)
    assert "expected one line <!-- bench width: begin -->" in str(ran.exception)


def test_benchmarks_share_a_page_but_not_their_places(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("\n".join((*markers("sharing"), *markers("width"))))
    write_page(path, "width", "new\n")
    assert path.read_text() == "\n".join((*markers("sharing"), markers("width")[0], "", "new", "", markers("width")[1]))
    check_page(path, "sharing")

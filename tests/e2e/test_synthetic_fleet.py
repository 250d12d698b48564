"""Synthetic devices in two hosts over real brokers: the opened sum is the plain one, also when a device drops."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from e2e.fleets import complete_uploads, held

from coordinator.answers import Opened
from coordinator.ledger import RoundLedger
from coordinator.opening import Round, decode_sums, next_model
from coordinator.settings import CoordinatorSettings
from coordinator.store import RoundStore
from coordinator.supports import publish_model
from coordinator.workbench import Workbench
from fedpruneshare.messages import Freeze, RoundPlan, decode, digest
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.settings import load_settings
from testbed.cli_rounds import rounds
from testbed.federation import COORDINATOR
from testbed.fleet import Fleet
from testbed.ledger.rounds import read_ledgers
from testbed.scenario import load_scenario
from testbed.synthetic.words import random_words

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SEED, DROPPED = 5, "device-03"
OVERRIDES = (
    "fleet.devices=12", "fleet.synthetic_values=500", "fleet.synthetic_per_process=6", "rounds.cohort=12",
    "rounds.min_devices=6", "rounds.deadline_s=25", "rounds.grace_s=30", "rounds.count=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet whose device number 3 is killed when its first upload has arrived, and never comes back.

    The other host is silent until then, so that the first round is still open.
    """
    scenario = load_scenario("thousand-devices", OVERRIDES)
    with Fleet(scenario, tmp_path_factory.mktemp("synthetic"), SEED) as fleet:
        with held(fleet, *fleet.devices[6:]):
            for name in fleet.aggregators:
                fleet.wait_for(lambda a=name: complete_uploads(fleet, a, 1) == 6, 200, "the first host's uploads")
            fleet.kill_device(DROPPED)
            assert not fleet.is_running(DROPPED)
        assert all(fleet.is_running(device) for device in fleet.devices if device != DROPPED)
        fleet.wait_done(250)
    yield fleet


def test_rounds_are_applied_without_the_device_that_dropped(finished: Fleet) -> None:
    lines = finished.rounds()
    assert [line.phase for line in lines] == ["APPLIED"] * 2
    assert all(line.verified for line in lines)  # the third aggregator's sum agrees with the other two
    assert [line.contributors for line in lines] == [12, 11]


def test_the_opened_sum_is_the_plain_sum_of_what_the_devices_drew(finished: Fleet) -> None:
    """Exactly: the model of the last round is the one that the plain integer sum gives."""
    settings = load_settings(finished.folder.config(COORDINATOR), CoordinatorSettings)
    bench = Workbench.open(finished.folder.bundle, finished.folder.store(COORDINATOR), settings.coding)
    view, freeze = _last_round(finished)
    assert DROPPED not in {contributor.device_id for contributor in freeze.contributors}
    store = RoundStore(bench.folder, bench.facts.bundle)
    state = _model(store, applied=1)
    ledger = RoundLedger(view)
    ledger.freeze(freeze, b"")
    current = Round(ledger, state, publish_model(state, view.plan.round_id, settings, bench.facts))
    opened = Opened({0: _plain_sum(view, freeze)}, freeze.contributors, (1, 2, 3), "consistency+checksum")
    expected = next_model(current, bench, settings, decode_sums(current, bench, opened))
    found = _model(store, applied=2)
    assert np.array_equal(found.coded, expected.coded)
    assert np.array_equal(found.vectors, expected.vectors)
    assert not np.array_equal(found.coded, state.coded)


def _last_round(fleet: Fleet) -> tuple[PlanView, Freeze]:
    with sqlite3.connect(fleet.folder.store(COORDINATOR) / "rounds.sqlite") as database:
        body, frozen = database.execute("SELECT plan, freeze FROM rounds WHERE round_id = 2").fetchone()
    plan, freeze = decode("round-plan", body), decode("freeze", frozen)
    assert isinstance(plan, RoundPlan)
    assert isinstance(freeze, Freeze)
    assert fleet.directory is not None
    return check_plan(plan, digest(body), fleet.directory), freeze


def _model(store: RoundStore, applied: int):  # type: ignore[no-untyped-def]
    with sqlite3.connect(store.folder / "rounds.sqlite") as database:
        database.execute("CREATE TEMP TABLE newer AS SELECT * FROM models WHERE applied > ?", (applied,))
        kept = database.execute("SELECT * FROM newer").fetchall()
        database.execute("DELETE FROM models WHERE applied > ?", (applied,))
        database.commit()
    model = store.model()
    with sqlite3.connect(store.folder / "rounds.sqlite") as database:
        database.executemany("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)
    assert model is not None
    assert model.applied == applied
    return model


def _plain_sum(view: PlanView, freeze: Freeze) -> np.ndarray:
    total = np.zeros(view.segment_words[0], dtype=np.uint64)
    for contributor in freeze.contributors:
        _, words = random_words(view, contributor.rung, SEED, int(contributor.device_id.removeprefix("device-")))
        total += words[: total.size]
    assert int(total.max()) < view.field.p
    return total.astype(view.field.word_type)


def test_ledgers_say_what_every_device_sent_and_received(finished: Fleet) -> None:
    ledgers = read_ledgers({device: finished.folder.ledger(device) for device in finished.devices})
    for device, lines in ledgers.items():
        last = [line for line in lines if line.round == 2]
        if device == DROPPED:
            assert not last
            continue
        assert [line.status for line in last] == ["uploaded"]
        assert last[0].up.shares > 2 * 4 * 250 / 2  # two full shares, at least four values to a word
        assert last[0].down.model > 0
        assert last[0].down.plan > 0
        assert last[0].down.receipts > 0


def test_bench_rounds_prints_crowds_without_a_file() -> None:
    result = CliRunner().invoke(rounds, ["--devices", "4", "--values", "200", "--rounds", "2"], standalone_mode=False)
    assert (result.exception, result.return_value) == (None, 0)
    assert "| 4 |" in result.output
    assert "figures:" not in result.output
    assert "expected --json PATH" in CliRunner().invoke(rounds, []).output


def test_bench_rounds_measures_crowds_of_several_sizes(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    arguments = ["--devices", "4,6", "--values", "200", "--rounds", "2", "--json", str(target)]
    result = CliRunner().invoke(rounds, arguments, standalone_mode=False)
    assert result.exception is None
    assert result.return_value == 0
    assert "| 4 |" in result.output
    assert "as a multiple of those at 4 devices: 6: " in result.output
    written = json.loads(target.read_text())
    assert written["benchmark"] == "crowds"
    for devices, crowd in zip((4, 6), written["crowds"], strict=True):
        assert (crowd["devices"], crowd["contributors"], crowd["rounds_applied"]) == (devices, devices, 2)
        assert crowd["verified"]
        assert set(crowd["roles"]) == {"devices", "brokers", "aggregators", "coordinator"}
        for cost in crowd["roles"].values():
            assert cost["peak_rss_mib"] >= cost["largest_rss_mib"] > 5
        total = sum(cost["cpu_s_per_device"] for cost in crowd["roles"].values())
        assert crowd["cpu_s_per_device"] == pytest.approx(total, abs=1e-4)
        assert total > 0
        assert crowd["up_bytes"]["shares"] > 0 < crowd["down_bytes"]["model"]

"""What feeds a decision, and what a finished round teaches (docs/adaptation.md)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from builders import view

from edge_client.adaptation.adapter import CALIBRATION_FILE, Adapter
from edge_client.adaptation.calibration import Calibration, save_calibration
from edge_client.byte_ledger import RoundEntry
from edge_client.density import Constraint
from edge_client.settings import DeviceLimits, DeviceSettings, DeviceTask
from fedpruneshare.errors import SettingsError
from fedpruneshare.party import PartySettings

TREES = Path(__file__).parents[1] / "trees"
EXAMPLES = 320


def settings(folder: Path, **changes: object) -> DeviceSettings:
    base: dict[str, object] = {
        "party": PartySettings(key_file="", directory="", root_key="0" * 64),
        "task": DeviceTask("hapt", 0, 10),
        "store": str(folder),
    }
    return DeviceSettings(**(base | changes))  # type: ignore[arg-type]


def adapter(folder: Path, tree: str = "raspberry-pi-4b", **changes: object) -> Adapter:
    return Adapter(settings(folder, root=str(TREES / tree), **changes), 5000)


def finished(**seconds: float) -> RoundEntry:
    entry = RoundEntry(round=1, status="uploaded", seconds=dict(seconds))
    entry.down.model, entry.up.shares = 20_000, 100_000
    return entry


def test_a_device_that_has_measured_nothing_takes_the_largest_rung(tmp_path: Path) -> None:
    decision = adapter(tmp_path).decide(view(), EXAMPLES, 60.0, (None, None))
    plan = view().plan
    assert decision.rung == plan.rungs[-1]
    assert decision.constraint is Constraint.PLAN
    assert decision.local_steps == plan.training.local_epochs * -(-EXAMPLES // plan.training.batch_size)


def test_the_board_is_the_one_the_files_show_unless_it_is_named(tmp_path: Path) -> None:
    assert adapter(tmp_path).profile.name == "raspberry-pi-4b"
    assert adapter(tmp_path, board="jetson-nano").profile.name == "jetson-nano"
    with pytest.raises(SettingsError, match="jetson"):
        adapter(tmp_path, board="jetson-nana")


def test_slow_steps_lead_to_fewer_of_them_or_a_decline(tmp_path: Path) -> None:
    slow = adapter(tmp_path)
    slow.trained(1.0, 4.0)
    decision = slow.decide(view(), EXAMPLES, 30.0, (None, None))
    assert decision.constraint is Constraint.DEADLINE
    assert decision.rung is None
    assert "30 s left" in decision.reason
    assert slow.decide(view(), EXAMPLES, 3000.0, (None, None)).rung is not None


def test_a_hot_board_declines_and_names_the_degrees(tmp_path: Path) -> None:
    bounded = adapter(tmp_path, limits=DeviceLimits(temperature_c=30.0))
    health = bounded.health()
    assert health is not None
    assert health.temperature_c is not None
    bounded.trained(1.0, 0.001)
    decision = bounded.decide(view(), EXAMPLES, 60.0, (health, None))
    assert (decision.rung, decision.constraint) == (None, Constraint.TEMPERATURE)
    assert f"{health.temperature_c:.0f}" in decision.reason


def test_no_energy_left_is_a_reason_to_decline(tmp_path: Path) -> None:
    decision = adapter(tmp_path).decide(view(), EXAMPLES, 60.0, (None, 0.0))
    assert (decision.rung, decision.constraint) == (None, Constraint.ENERGY)


def test_without_adaptation_only_plan_settings_and_budget_count(tmp_path: Path) -> None:
    fixed = adapter(tmp_path, adaptive=False, limits=DeviceLimits(rung_max=1))
    fixed.trained(1.0, 4.0)
    assert fixed.health() is None
    decision = fixed.decide(view(), EXAMPLES, 30.0, (None, None))
    assert (decision.rung, decision.constraint) == (1, Constraint.RUNG_MAX)
    assert fixed.learn(decision, finished(train=500.0), None) == {}


def test_a_calibration_in_the_store_is_used_and_a_named_one_must_be_there(tmp_path: Path) -> None:
    made = Calibration("raspberry-pi-4b", "hapt", 32, step_s={"1.0": 100.0})
    save_calibration(tmp_path / CALIBRATION_FILE, made)
    decision = adapter(tmp_path).decide(view(), EXAMPLES, 60.0, (None, None))
    assert decision.constraint is Constraint.DEADLINE
    with pytest.raises(SettingsError, match="nowhere"):
        adapter(tmp_path, calibration=str(tmp_path / "nowhere.toml"))


def test_what_a_round_took_stands_beside_its_prediction_and_corrects_the_next(tmp_path: Path) -> None:
    learner = adapter(tmp_path)
    learner.trained(1.0, 0.1)
    first = learner.decide(view(), EXAMPLES, 600.0, (None, None))
    assert first.predicted is not None
    expected = first.predicted.seconds["train"]
    for _ in range(5):
        decision = learner.decide(view(), EXAMPLES, 600.0, (None, None))
        row = learner.learn(decision, finished(train=2 * expected, receive=0.1, share=0.1, send=0.1), None)
    assert row["actual"]["seconds"]["train"] == pytest.approx(2 * expected, rel=1e-3)
    later = adapter(tmp_path)  # what was learnt outlives a restart
    later.trained(1.0, 0.1)
    again = later.decide(view(), EXAMPLES, 600.0, (None, None))
    assert again.predicted is not None
    assert again.predicted.seconds["train"] == pytest.approx(2 * expected, rel=0.15)


def test_uploads_show_what_the_links_carry(tmp_path: Path) -> None:
    learner = adapter(tmp_path)
    decision = learner.decide(view(), EXAMPLES, 600.0, (None, None))
    assert decision.predicted is not None
    before = decision.predicted.seconds["send"]
    for aggregator in view().plan.points:
        for _ in range(3):
            learner.uploaded(aggregator, 65_536, 6.5536, 65_536)  # 10 kB a second
    learner.learn(decision, finished(train=1.0, receive=0.1, share=0.1, send=10.0), None)
    after = learner.decide(view(), EXAMPLES, 600.0, (None, None)).predicted
    assert after is not None
    assert after.seconds["send"] > 10 * before


def test_one_stall_does_not_keep_a_device_out_for_good(tmp_path: Path) -> None:
    """What it declines for it cannot measure again: after a while it has to doubt it."""
    stalled = adapter(tmp_path)
    stalled.trained(1.0, 60.0)
    first, second = (stalled.decide(view(), EXAMPLES, 60.0, (None, None)) for _ in range(2))
    assert (first.rung, second.rung) == (None, view().plan.rungs[0])
    assert second.constraint is Constraint.DEADLINE
    assert "to measure again after a decline for deadline" in second.reason
    stalled.trained(1.0, 0.001)
    stalled.learn(second, finished(train=0.1, receive=0.1, share=0.1, send=0.1), None)
    assert stalled.decide(view(), EXAMPLES, 60.0, (None, None)).rung == view().plan.rungs[-1]


def test_a_budget_that_does_for_nothing_is_not_spent_many_times_over_by_the_next_round(tmp_path: Path) -> None:
    """Where nothing is measured, training costs nothing to a prediction: so it tries no more than the least."""
    poor = adapter(tmp_path)
    poor.trained(1.0, 0.5)
    assert poor.decide(view(), EXAMPLES, 60.0, (None, 1.3)).constraint is Constraint.ENERGY
    again = poor.decide(view(), EXAMPLES, 60.0, (None, 1.3))
    training = view().plan.training
    assert (again.rung, again.constraint) == (view().plan.rungs[0], Constraint.ENERGY)
    full = training.local_epochs * -(-EXAMPLES // training.batch_size)
    assert again.local_steps == max(1, math.ceil(training.least_work * full))


def test_a_device_that_stays_too_poor_tries_ever_more_seldom_though_its_tries_arrive(tmp_path: Path) -> None:
    poor, taken = adapter(tmp_path), []
    for place in range(40):
        decision = poor.decide(view(), EXAMPLES, 60.0, (None, 1.3))
        if decision.rung is not None:
            taken.append(place)
            poor.trained(1.0, 0.5)
            poor.learn(decision, finished(train=10.0, receive=0.1, share=0.1, send=0.1), None)
    assert taken == [0, 2, 5, 10, 19, 36]


def test_a_device_that_stays_too_slow_tries_ever_more_seldom(tmp_path: Path) -> None:
    slow, taken = adapter(tmp_path), []
    for _ in range(40):
        taken.append(slow.decide(view(), EXAMPLES, 60.0, (None, None)).rung is not None)
        if taken[-1]:
            slow.trained(1.0, 60.0)
    assert [place for place, is_taken in enumerate(taken) if is_taken] == [0, 2, 5, 10, 19, 36]


def test_a_model_that_took_long_shows_the_link_however_small_it_is(tmp_path: Path) -> None:
    """A link of 3 kB a second would never carry a model large enough to be measured by otherwise."""
    learner = adapter(tmp_path)
    seconds = []
    for size_bytes, took_s in ((10_000, 0.5), (10_000, 4.0)):
        learner.received(size_bytes, took_s)
        predicted = learner.decide(view(), EXAMPLES, 600.0, (None, None)).predicted
        assert predicted is not None
        seconds.append(predicted.seconds["receive"])
    assert seconds[1] > 100 * seconds[0]

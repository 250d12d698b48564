"""What the coordinator does by itself; whole rounds are in tests/e2e."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from builders import AGGREGATORS, DEVICES, directory, identity, view
from msgspec.structs import replace
from simulators.federation import Federation

from coordinator.evaluation import Evaluation
from coordinator.ledger import RoundLedger
from coordinator.service import Coordinator, remaining_s
from coordinator.settings import AveragingSettings, SharingSettings
from coordinator.store import RoundStore
from coordinator.workbench import Workbench
from fedpruneshare.errors import SettingsError
from fedpruneshare.link.memory import Weather


def test_an_open_round_ends_by_its_own_plan() -> None:
    """Settings may have another deadline after a restart; the devices have this one."""
    assert remaining_s(1000.0, 600.0, 1010.0) == 590.0
    assert remaining_s(1000.0, 600.0, 2000.0) == 0.0
    assert remaining_s(1000.0, 600.0, 0.0) == 600.0  # a clock that was set back


def test_devices_that_nobody_could_hear_are_asked_again(tmp_path: Path) -> None:
    """Rounds without any aggregator: no device missed them, and none says hello again when they are back."""
    federation = Federation(tmp_path, 9, Weather(), rounds=3, max_failed=2, absent=AGGREGATORS)
    finish, plan = RoundStore.finish, Coordinator._plan
    ended: list[str] = []

    def finishing(store: RoundStore, round_id: int, outcome: dict[str, Any], model: Any) -> None:
        finish(store, round_id, outcome, model)
        ended.append(outcome["phase"])

    async def planning(coordinator: Coordinator, seconds: Any) -> Any:
        """The first rounds are short, for nobody comes; then the aggregators are back, and there is all the time."""
        settings, is_back = coordinator._settings, len(ended) >= 2
        if is_back and not federation.aggregators:
            for name in AGGREGATORS:
                await federation.start_aggregator(name)
        rounds = replace(settings.rounds, deadline_s=60.0 if is_back else 0.4)
        coordinator._settings = replace(settings, rounds=rounds)
        return await plan(coordinator, seconds)

    with patch.object(RoundStore, "finish", finishing), patch.object(Coordinator, "_plan", planning):
        federation.run()
    phases = [(line["phase"], line["contributors"]) for line in federation.outcomes()]
    assert phases == [("FAILED", 0)] * 2 + [("APPLIED", 10)]


@pytest.mark.parametrize("checks", [0, 1])
def test_with_a_quorum_sums_come_once_enough_have_accepted_the_freeze(tmp_path: Path, checks: int) -> None:
    sharing = SharingSettings(freeze_quorum=3, dealer_checks=checks)
    federation = Federation(tmp_path, 10, Weather(), rounds=1, sharing=sharing)
    assert federation.run(crash_at="coordinator.freeze-sent") == 0
    (line,) = federation.outcomes()
    assert (line["phase"], line["contributors"], line["verified_by"]) == ("APPLIED", 10, "consistency+checksum")
    federation.check_sums()


def test_without_enough_aggregators_for_a_quorum_nothing_is_summed(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path, 11, Weather(), rounds=1, sharing=SharingSettings(freeze_quorum=3), absent=AGGREGATORS[:1],
        deadline_s=2.0,
    )  # fmt: skip
    assert federation.run() == 1
    (line,) = federation.outcomes()
    assert line["reason"] == "attendance of 2 aggregators, expected at least freeze_quorum = 3"


async def test_whom_a_new_directory_revokes_is_left_out_of_the_open_round(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 12, Weather())
    coordinator = federation.coordinator()
    coordinator._desk.open(RoundLedger(view()))
    gone = identity("device-04").public()[0].key_id.hex()
    coordinator._party.on_change(coordinator._on_directory)
    coordinator._party._put_in_force(directory(version=2, revoked={gone: "device-04"}))
    assert (coordinator._desk.round.revoked, coordinator._desk.round.shut_out) == ({"device-04"}, frozenset())
    coordinator._store.greet(dict.fromkeys(DEVICES, 0))
    assert sorted(coordinator._fleet().limits) == [device for device in DEVICES if device != "device-04"]
    assert len(coordinator._roster()) == 9
    await coordinator.stop()


async def test_whose_key_was_replaced_and_revoked_since_the_plan_is_left_out_of_this_round(tmp_path: Path) -> None:
    """Aggregators drop what the old key has signed, and nobody tells the coordinator which key that was."""
    coordinator = Federation(tmp_path, 12, Weather()).coordinator()
    old = {name: identity(name).public()[0].key_id.hex() for name in DEVICES[3:5]}
    new = {**directory().devices, **{name: directory().devices["device-00"] for name in old}}
    before = directory(version=1, devices=new, revoked={old[DEVICES[3]]: DEVICES[3]})
    coordinator._party._put_in_force(before)
    coordinator._desk.open(RoundLedger(view()))
    coordinator._leave_out_revoked()
    assert coordinator._desk.round.revoked == frozenset()
    coordinator._party.on_change(coordinator._on_directory)
    coordinator._party._put_in_force(directory(version=2, devices=new, revoked={old[name]: name for name in old}))
    assert coordinator._desk.round.revoked == {DEVICES[4]}
    await coordinator.stop()
    again = Federation(tmp_path, 12, Weather()).coordinator()  # it cannot know any more what was revoked when
    again._party._put_in_force(directory(version=2, devices=new, revoked={old[name]: name for name in old}))
    again._desk.open(RoundLedger(view()))
    again._leave_out_revoked()
    assert again._desk.round.revoked == {*old}
    await again.stop()


async def test_a_decision_is_said_again_after_the_directory_that_knows_its_key(tmp_path: Path) -> None:
    """An aggregator that got the Freeze of a new key first has refused it, and nothing has it ask."""
    coordinator = Federation(tmp_path, 15, Weather()).coordinator()
    coordinator._desk.open(RoundLedger(view()))
    coordinator._desk.decision = ("freeze", b"the one that was committed")
    said: list[Any] = []

    async def say_directory() -> None:
        said.append("directory")

    async def send(decision: Any, within_s: float) -> None:
        said.append(decision)

    coordinator._publisher.say_directory, coordinator._publisher.send = say_directory, send  # type: ignore[method-assign]
    coordinator._party.on_change(coordinator._on_directory)
    coordinator._party._put_in_force(directory(version=2))
    await asyncio.gather(*coordinator._passing_on)
    assert said == ["directory", coordinator._desk.decision]
    await coordinator.stop()


def test_a_coordinator_whose_own_key_was_revoked_stops_and_says_so(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 13, Weather(), rounds=1)
    gone = identity("coordinator").public()[0].key_id.hex()
    federation.directory = directory(revoked={gone: "coordinator"})
    with pytest.raises(SettingsError, match="no key of 'coordinator' is in force any more"):
        federation.run()


def test_a_model_that_scores_too_much_worse_is_not_taken(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 14, Weather(), rounds=2, max_failed=1)
    settings = replace(federation.settings(), averaging=AveragingSettings(max_score_drop=0.05))
    scores = iter([Evaluation(0.9, 0.1), Evaluation(0.5, 0.9)])
    with (
        patch.object(Federation, "settings", lambda _: settings),
        patch.object(Workbench, "score", lambda *_: next(scores)),
    ):
        assert federation.run() == 0
    first, second = federation.outcomes()
    assert (first["phase"], second["phase"]) == ("APPLIED", "FAILED")
    assert "the new model's accuracy is 50.0 % after 90.0 %" in second["reason"]
    store = RoundStore(tmp_path / "coordinator", federation.bundle)
    state = store.model()
    assert state is not None
    assert state.applied == 1
    assert (tmp_path / "coordinator" / "model.onnx").read_bytes() == federation.rendered(state)


async def test_rounds_that_fail_in_a_row_are_not_used_up_within_a_minute(tmp_path: Path) -> None:
    """Aggregators that refuse every plan do so at once; whoever mends it is not waited for any longer."""
    coordinator = Federation(tmp_path, 16, Weather()).coordinator()
    store, wait_until, waited = coordinator._store, coordinator._desk.wait_until, []

    async def note(_: Any, limit_s: float) -> bool:
        waited.append(limit_s)
        return False

    coordinator._desk.wait_until = note  # type: ignore[method-assign]
    phases = ["FAILED"] * 12 + ["APPLIED"] + ["FAILED"] * 3
    for number, phase in enumerate(phases, 1):
        seconds = {"total": 50.0 if number == 12 else 0.0}  # one that was slow to fail has had its pause
        store.finish(number, {"round": number, "phase": phase, "reason": "refused", "seconds": seconds}, None)
        await coordinator._pause()
    assert waited == [0.5, 1, 2, 4, 8, 16, 32, 60, 10]

    coordinator._desk.wait_until = wait_until  # type: ignore[method-assign]
    coordinator._patience.failed_in_a_row = 20
    coordinator._party.on_change(coordinator._on_directory)
    waiting = asyncio.create_task(coordinator._pause())
    await asyncio.sleep(0)
    assert not waiting.done()
    coordinator._party._put_in_force(directory(version=2))
    await asyncio.wait_for(waiting, 60)
    await coordinator.stop()

"""Every way to share, through real services: exact sums, cheats found out, floors that hold (docs/protocol.md §5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES
from simulators.federation import Federation

from aggregator.settings import AggregatorFloors
from coordinator.settings import CodingSettings, SharingSettings
from fedpruneshare.link.memory import Weather

pytestmark = [pytest.mark.timeout(300)]
BAD = Weather(loss=0.05, duplication=0.1, delay_s=(0.0, 0.01))
EACH = AggregatorFloors(allow_reveal_each=True)


@pytest.mark.parametrize(
    "sharing",
    [
        SharingSettings(field="F61"),
        SharingSettings(threshold=3, privacy_threshold=1),
        SharingSettings(threshold=3, privacy_threshold=1, field="F61"),
        SharingSettings(dealer_checks=1),
        SharingSettings(dealer_checks=2, field="F61"),
    ],
    ids=["F61", "ramp", "ramp F61", "dealer check", "dealer checks F61"],
)
def test_every_mode_opens_the_exact_sum(tmp_path: Path, sharing: SharingSettings) -> None:
    federation = Federation(tmp_path, 7, BAD, sharing=sharing)
    assert federation.run() == 0
    assert len(federation.opened) == 2
    federation.check_sums()
    for line in federation.outcomes():
        assert "checksum" in line["verified_by"]
        assert (line["phase"], line["dealers_checked"]) == ("APPLIED", bool(sharing.dealer_checks))
        assert (line["left_out_devices"], line["wrong_aggregators"], line["reveal"]) == ([], [], "sum")


def test_digits_in_powers_of_two_open_the_same(tmp_path: Path) -> None:
    coding = CodingSettings(chunk_bytes=1024, value_bits=8, radix="power-of-two")
    federation = Federation(tmp_path, 8, Weather(), coding=coding)
    assert federation.run() == 0
    federation.check_sums()


# --------------------------------------------------------------------------- dealers that cheat


def one_wrong_word(device: str, shares: dict[int, bytes]) -> dict[int, bytes]:
    """`device-03` deals a last share that lies on no polynomial with the others."""
    if device != "device-03":
        return shares
    last = np.frombuffer(shares[max(shares)], dtype="<u4").copy()
    last[5] ^= 1
    return {**shares, max(shares): last.tobytes()}


def test_a_dealer_whose_shares_fit_no_polynomial_is_left_out(tmp_path: Path) -> None:
    sharing = SharingSettings(dealer_checks=1)
    federation = Federation(tmp_path, 11, Weather(), sharing=sharing, tamper=one_wrong_word)
    assert federation.run() == 0
    federation.check_sums()
    for line in federation.outcomes():
        assert (line["phase"], line["contributors"], line["verified"]) == ("APPLIED", 9, True)
        assert line["left_out_devices"] == ["device-03"]


def test_without_the_check_such_a_dealer_fails_the_round(tmp_path: Path) -> None:
    """Which is why there is one: honest aggregators disagree, and nobody can tell who is to blame."""
    sharing = SharingSettings(checksum=False)
    federation = Federation(tmp_path, 12, Weather(), rounds=1, sharing=sharing, tamper=one_wrong_word)
    assert federation.run() == 1
    (line,) = federation.outcomes()
    assert (line["phase"], line["dealers_checked"]) == ("FAILED", False)
    assert "check" not in line["seconds"]  # and nothing was asked or answered
    assert "disagree in 1 of" in line["reason"]


def test_with_the_checksum_alone_such_a_dealer_makes_an_aggregator_look_wrong(tmp_path: Path) -> None:
    """The two sums whose checksum is right are opened; the third differs from them, through no fault of its holder."""
    federation = Federation(tmp_path, 12, Weather(), rounds=1, tamper=one_wrong_word)
    assert federation.run() == 0
    federation.check_sums()
    (line,) = federation.outcomes()
    assert (line["phase"], line["contributors"], line["verified_by"]) == ("APPLIED", 10, "checksum")
    ((current, _),) = federation.opened
    last = next(name for name, x in current.ledger.view.plan.points.items() if x == 3)
    assert line["wrong_aggregators"] == [last]


def test_when_most_dealers_cheat_the_round_fails_and_says_so(tmp_path: Path) -> None:
    def most_cheat(device: str, shares: dict[int, bytes]) -> dict[int, bytes]:
        return one_wrong_word("device-03" if int(device[-2:]) < 6 else device, shares)

    federation = Federation(
        tmp_path, 13, Weather(), rounds=1, sharing=SharingSettings(dealer_checks=1), tamper=most_cheat
    )
    assert federation.run() == 1
    (line,) = federation.outcomes()
    assert line["phase"] == "FAILED"
    assert "dealer check: the shares of 6 of 10 devices disagree" in line["reason"]


@pytest.mark.parametrize("seed", range(2))
def test_aggregators_that_restart_answer_the_same_check(tmp_path: Path, seed: int) -> None:
    """A round that only k aggregators attended cannot be checked, and says so; any other one is without the cheat."""
    federation = Federation(tmp_path, seed, BAD, sharing=SharingSettings(dealer_checks=1), tamper=one_wrong_word)
    federation.run(faults=True)
    checked = [(current, opening) for current, opening in federation.opened if current.ledger.judgement is not None]
    for _, opening in checked:
        assert "device-03" not in {c.device_id for c in opening.opened.contributors}
    federation.opened = checked
    federation.check_sums()
    lines = [line for line in federation.outcomes() if line["phase"] == "APPLIED"]
    assert [line["dealers_checked"] for line in lines].count(True) == len(checked)


@pytest.mark.parametrize("decision", ["dealer-check", "freeze"])
def test_a_coordinator_that_crashes_goes_on_with_what_it_had_decided(tmp_path: Path, decision: str) -> None:
    """Committed, not sent: a second challenge would be refused by whoever had answered the first."""
    federation = Federation(
        tmp_path, 14, Weather(), rounds=1, sharing=SharingSettings(dealer_checks=1), tamper=one_wrong_word
    )
    assert federation.run(crash_before=decision) == 0
    federation.check_sums()
    (line,) = federation.outcomes()
    assert (line["phase"], line["contributors"], line["verified"]) == ("APPLIED", 9, True)
    assert (line["dealers_checked"], line["left_out_devices"]) == (True, ["device-03"])


# --------------------------------------------------------------------------- single updates


def test_each_update_rebuilt_gives_the_exact_sum(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 21, BAD, sharing=SharingSettings(reveal="each"), floors=EACH)
    assert federation.run() == 0
    federation.check_sums()
    assert [(line["phase"], line["reveal"]) for line in federation.outcomes()] == [("APPLIED", "each")] * 2


def test_the_same_words_give_the_same_model_either_way(tmp_path: Path) -> None:
    models = []
    for reveal in ("sum", "each"):
        federation = Federation(
            tmp_path / reveal, 22, Weather(), rounds=1, sharing=SharingSettings(reveal=reveal, checksum=False),
            floors=EACH, words_seed=5,
        )  # fmt: skip
        assert federation.run() == 0
        ((_, opening),) = federation.opened
        assert len(opening.opened.contributors) == len(DEVICES)
        models.append(opening)
    one, other = models
    assert one.opened.words.keys() == other.opened.words.keys()
    assert all(np.array_equal(one.opened.words[s], other.opened.words[s]) for s in one.opened.words)
    assert np.array_equal(one.model.coded, other.model.coded)
    assert np.array_equal(one.model.vectors, other.model.vectors)


@pytest.mark.parametrize("is_most", [False, True])
def test_tampered_fragments_do_no_harm(tmp_path: Path, is_most: bool) -> None:
    """One may be the device's own doing; an aggregator most of whose fragments are wrong is named."""

    def tampered(device: str, shares: dict[int, bytes]) -> dict[int, bytes]:
        damaged = bytearray(shares[2])
        damaged[-1] ^= 1
        return {**shares, 2: bytes(damaged)} if is_most or device == "device-04" else shares

    federation = Federation(
        tmp_path, 23, Weather(), rounds=1, sharing=SharingSettings(reveal="each"), floors=EACH, tamper=tampered
    )
    assert federation.run() == 0
    federation.check_sums()
    ((current, _),) = federation.opened
    second = next(name for name, x in current.ledger.view.plan.points.items() if x == 2)
    (line,) = federation.outcomes()
    assert (line["contributors"], line["wrong_aggregators"]) == (10, [second] if is_most else [])


def test_an_update_no_device_may_send_is_left_out(tmp_path: Path) -> None:
    """In this mode the range of every digit can be checked; in a sum it cannot."""

    def nonsense(device: str, shares: dict[int, bytes]) -> dict[int, bytes]:
        return {x: bytes(share) if device != "device-05" else bytes(len(share)) for x, share in shares.items()}

    federation = Federation(
        tmp_path, 24, Weather(), rounds=1, sharing=SharingSettings(reveal="each"), floors=EACH, tamper=nonsense
    )
    assert federation.run() == 0
    federation.check_sums()
    (line,) = federation.outcomes()
    assert (line["contributors"], line["left_out_devices"]) == (9, ["device-05"])


# --------------------------------------------------------------------------- what aggregators refuse


@pytest.mark.parametrize(
    ("sharing", "floors", "reason"),
    [
        (SharingSettings(reveal="each"), AggregatorFloors(), "allow_reveal_each is off"),
        (
            SharingSettings(threshold=3, privacy_threshold=1),
            AggregatorFloors(privacy_threshold=2),
            "plan with t = 1, expected at least the privacy_threshold of this aggregator, 2",
        ),
    ],
    ids=["each", "low t"],
)
def test_a_plan_below_the_aggregators_floors_fails_at_once_with_the_reason(
    tmp_path: Path, sharing: SharingSettings, floors: AggregatorFloors, reason: str
) -> None:
    federation = Federation(tmp_path, 31, Weather(), rounds=1, sharing=sharing, floors=floors)
    assert federation.run() == 1
    (line,) = federation.outcomes()
    assert line["phase"] == "FAILED"
    assert reason in line["reason"]
    assert any(name in line["reason"] for name in AGGREGATORS)
    assert line["seconds"]["total"] < 10  # of a deadline of 12
    assert not federation.opened

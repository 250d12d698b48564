"""F14: aggregators and devices that lie. Noticed wherever docs/protocol.md §5.11 says so, labelled elsewhere (§5.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from simulators.federation import Federation
from simulators.frozen_round import FrozenRound

import aggregator.answers as aggregator_answers
from coordinator.answers import open_answers, sum_vectors
from coordinator.settings import SharingSettings
from fedpruneshare.errors import InconsistentSharesError, ProtocolError
from fedpruneshare.link.memory import Weather
from fedpruneshare.messages import Sharing
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.checksum import fill_checksum, is_checksum_right
from fedpruneshare.sharing.field import F31, F61, Field
from fedpruneshare.sharing.shamir import SharingScheme
from fedpruneshare.sparse.update import quantise

pytestmark = [pytest.mark.faults, pytest.mark.timeout(170)]
TRIALS = 20_000
LIES = ("additive", "swapped", "old", "other-set", "two")


# --------------------------------------------------------------------------- sums alone


@dataclass
class Trial:
    """A sum of four devices at exactly k points, shared by random polynomials, and the same after a lie."""

    rng: np.random.Generator
    scheme: SharingScheme
    tail: int
    seed: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.seed = self.rng.bytes(32)

    def elements(self, count: int) -> np.ndarray:
        return self.rng.integers(0, self.scheme.field.p, count, dtype=self.scheme.field.word_type)

    def words(self) -> np.ndarray:
        """The sum of four devices, with a right checksum: as every device's is right, so is that of the sum."""
        words = self.elements(24 + self.tail)
        fill_checksum(words, self.seed, 0, self.tail, self.scheme.field)
        return words

    def shares(self, words: np.ndarray, points: tuple[int, ...]) -> dict[int, np.ndarray]:
        p, rows = self.scheme.field.p, [words.astype(object)]
        rows += [self.elements(words.size).astype(object) for _ in range(self.scheme.k - 1)]
        return {x: (sum(row * x**power for power, row in enumerate(rows)) % p) for x in points}

    def lie(self, kind: str, sums: dict[int, np.ndarray]) -> None:
        """One aggregator answers otherwise, or two do."""
        p, points = self.scheme.field.p, list(sums)
        first, second = points[0], points[1]
        size = sums[first].size
        if kind in ("additive", "two"):
            error = np.zeros(size, dtype=object)
            error[self.rng.choice(size, int(self.rng.integers(1, size)), replace=False)] = int(self.rng.integers(1, p))
            sums[first] = (sums[first] + error) % p
            if kind == "two":  # in league: the same places, another multiple
                sums[second] = (sums[second] + error * int(self.rng.integers(2, p // 4))) % p
        elif kind == "swapped":
            cut = int(self.rng.integers(1, size))
            sums[first] = np.concatenate([sums[first][cut:], sums[first][:cut]])
        elif kind == "old":
            other = Trial(self.rng, self.scheme, self.tail)
            sums[first] = other.shares(other.words(), (first,))[first]
        else:  # one device more or less than the others have summed
            sums[first] = (sums[first] + self.shares(self.words(), (first,))[first]) % p


def opened(trial: Trial, sums: dict[int, np.ndarray]) -> np.ndarray:
    kind = trial.scheme.field.word_type
    return trial.scheme.open({x: elements.astype(kind) for x, elements in sums.items()})


@pytest.mark.parametrize("kind", LIES)
def test_at_exactly_k_every_lie_is_noticed(kind: str) -> None:
    """20,000 trials over all kinds of lies: 20,000 noticed; and not one honest sum is taken for a lie."""
    rng, noticed, harmless, alarms = np.random.default_rng([14, LIES.index(kind)]), 0, 0, 0
    for number in range(TRIALS // len(LIES)):
        field, tail = ((F31, 3), (F61, 2))[number % 10 == 9]
        n, k = ((3, 2), (5, 3), (5, 4))[number % 3]
        trial = Trial(rng, SharingScheme(n, k, k - 1, field), tail)
        points = tuple(sorted(int(x) for x in rng.choice(np.arange(1, n + 1), k, replace=False)))
        words = trial.words()
        sums = trial.shares(words, points)
        alarms += number % 20 == 0 and not is_right(opened(trial, sums), trial, field)
        trial.lie(kind, sums)
        found = opened(trial, sums)
        harmless += bool(np.array_equal(found, words))
        noticed += not is_right(found, trial, field)
    assert (noticed, harmless, alarms) == (TRIALS // len(LIES), 0, 0)


def is_right(words: np.ndarray, trial: Trial, field: Field) -> bool:
    return is_checksum_right(words, trial.seed, 0, trial.tail, field)


def test_with_more_than_k_the_right_sum_is_opened_or_none() -> None:
    """One or two liars of five, with a flipped bit or the answer of another round: the exact sum, and who lied."""
    rng, scenes = np.random.default_rng(15), [FrozenRound(Sharing(5, 3, 2), bytes([i]) * 32) for i in range(10)]
    exact = 0
    for number in range(1000):
        scene, other = scenes[number % 10], scenes[(number + 1) % 10]
        answers = dict(scene.answers)
        liars = sorted(int(x) for x in rng.choice(np.arange(1, 6), 1 + number % 2, replace=False))
        for x in liars:
            words = np.frombuffer(answers[x], "<u4").copy()
            words[int(rng.integers(words.size))] ^= np.uint32(1 << int(rng.integers(20)))
            answers[x] = other.answers[x] if number % 5 == 4 else words.tobytes()
        found = open_answers(scene.view, scene.freeze, answers, scene.seed)
        exact += found.words[0].tolist() == scene.expected(0)
        assert found.wrong_points == tuple(liars)
    assert exact == 1000


def test_without_the_checksum_more_than_k_notice_one_liar() -> None:
    scene, noticed = FrozenRound(Sharing(3, 2, 1)), 0
    rng, size = np.random.default_rng(16), len(FrozenRound(Sharing(3, 2, 1)).answers[1]) // 4
    for _ in range(2000):
        answers, x = dict(scene.answers), int(rng.integers(1, 4))
        words = sum_vectors(scene.view, scene.freeze, answers)[x].copy()
        place = int(rng.integers(size))
        words[place] = (int(words[place]) + int(rng.integers(1, F31.p))) % F31.p
        try:
            open_answers(scene.view, scene.freeze, answers | {x: words.astype("<u4").tobytes()})
        except InconsistentSharesError:
            noticed += 1
    assert noticed == 2000


# --------------------------------------------------------------------------- whole rounds, aggregators that lie


@contextmanager
def lying(liars: tuple[str, ...], lie: Callable[[np.ndarray, Any], np.ndarray]) -> Iterator[None]:
    """Some aggregators answer a Freeze with what `lie` makes of their sum and of the call's arguments."""
    honest = aggregator_answers.answer_freeze

    def answer(view: PlanView, x: int, segments: tuple[int, ...], shares: Any, prg_of: Any) -> bytes:
        names, held = {point: name for name, point in view.plan.points.items()}, list(shares)
        if names[x] not in liars:
            return honest(view, x, segments, held, prg_of)
        if lie is without_one:
            return honest(view, x, segments, held[1:], prg_of)
        words = np.frombuffer(honest(view, x, segments, held, prg_of), "<u4").astype(np.int64)
        return (lie(words, x) % F31.p).astype("<u4").tobytes()

    with patch.object(aggregator_answers, "answer_freeze", answer):
        yield


def additive(words: np.ndarray, x: int) -> np.ndarray:
    words[3] += 1
    return words


def swapped(words: np.ndarray, x: int) -> np.ndarray:
    return np.concatenate([words[256:], words[:256]]) if words.size > 256 else words[::-1]


def old(words: np.ndarray, x: int) -> np.ndarray:
    return np.random.default_rng(x).integers(0, F31.p, words.size)


def without_one(words: np.ndarray, x: int) -> np.ndarray:
    """Stands for a sum without one of the devices: see `lying`."""
    return words


def in_league(words: np.ndarray, x: int) -> np.ndarray:
    words[5] += 7 * (x + 1)
    return words


@pytest.mark.parametrize("lie", [additive, swapped, old, without_one])
@pytest.mark.parametrize("is_one_absent", [True, False])
def test_a_round_with_one_liar(tmp_path: Path, lie: Any, is_one_absent: bool) -> None:
    absent = ("aggregator-3",) if is_one_absent else ()
    federation = Federation(tmp_path, 41, Weather(), rounds=1, absent=absent)
    with lying(("aggregator-2",), lie):
        code = federation.run()
    (line,) = federation.outcomes()
    if is_one_absent:  # exactly k answers
        assert (code, line["phase"], line["verified"], line["accuracy"]) == (1, "FAILED", False, None)
        assert "the checksum of segment" in line["reason"]
        assert not federation.opened
        return
    assert (code, line["phase"], line["verified_by"]) == (0, "APPLIED", "checksum")
    assert line["wrong_aggregators"] == ["aggregator-2"]
    federation.check_sums()


def test_a_round_with_two_liars_of_three_fails_and_names_nobody(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 42, Weather(), rounds=1)
    with lying(("aggregator-1", "aggregator-2"), in_league):
        assert federation.run() == 1
    (line,) = federation.outcomes()
    assert (line["phase"], line["wrong_aggregators"]) == ("FAILED", [])
    assert "no 2 of them have the right checksum" in line["reason"]


@pytest.mark.parametrize("lie", [additive, without_one])
@pytest.mark.parametrize("is_one_absent", [True, False])
def test_without_the_checksum_k_answers_are_labelled_and_more_notice(
    tmp_path: Path, lie: Any, is_one_absent: bool
) -> None:
    absent = ("aggregator-3",) if is_one_absent else ()
    sharing = SharingSettings(checksum=False)
    federation = Federation(tmp_path, 43, Weather(), rounds=1, absent=absent, sharing=sharing)
    with lying(("aggregator-2",), lie):
        federation.run()
    (line,) = federation.outcomes()
    assert (line["verified"], line["verified_by"]) == (False, "")
    if not is_one_absent:
        assert line["phase"] == "FAILED"
        assert "disagree" in line["reason"]


# --------------------------------------------------------------------------- devices that lie


def one_wrong_element(device: str, shares: dict[int, bytes]) -> dict[int, bytes]:
    last = np.frombuffer(shares[max(shares)], dtype="<u4").copy()
    last[5] ^= 1
    return {**shares, max(shares): last.tobytes()} if device == "device-03" else shares


def not_canonical(device: str, shares: dict[int, bytes]) -> dict[int, bytes]:
    if device != "device-03":
        return shares
    return {x: share if len(share) == 32 else b"\xff" * len(share) for x, share in shares.items()}


@pytest.mark.parametrize("checks", [0, 1])
def test_shares_on_no_polynomial(tmp_path: Path, checks: int) -> None:
    """A dealer check names the device. Without one the sum is still the one whose checksum is right."""
    sharing = SharingSettings(dealer_checks=checks)
    federation = Federation(tmp_path, 44, Weather(), rounds=1, sharing=sharing, tamper=one_wrong_element)
    assert federation.run() == 0
    federation.check_sums()
    (line,) = federation.outcomes()
    assert line["left_out_devices"] == (["device-03"] if checks else [])
    assert line["verified_by"] == ("consistency+checksum" if checks else "checksum")
    assert len(line["wrong_aggregators"]) == 1 - checks


def test_words_beyond_the_modulus_are_refused_where_they_arrive(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 45, Weather(), rounds=1, deadline_s=3.0, tamper=not_canonical)
    assert federation.run() == 0
    (line,) = federation.outcomes()
    assert (line["phase"], line["contributors"]) == ("APPLIED", 9)
    federation.check_sums()


def _spoilt(change: Callable[[PlanView, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda device, view, words: change(view, words.copy()) if device == "device-03" else words


def no_checksum(view: PlanView, words: np.ndarray) -> np.ndarray:
    words[view.segment_words[0] - 1] = 0
    return words


def huge_weight(view: PlanView, words: np.ndarray) -> np.ndarray:
    words[0] = F31.p // 2
    return words


def huge_values(view: PlanView, words: np.ndarray) -> np.ndarray:
    tail = view.plan.coding.tail_words
    words[1 : view.segment_words[0] - tail] = F31.p // 2
    return words


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_checksum, "or a device made its checksum wrong"),
        (huge_weight, "weight sum|the checksum of segment"),
        (huge_values, "more than its digits|the checksum of segment"),
    ],
)
def test_words_that_no_device_may_send_fail_the_round(tmp_path: Path, change: Any, reason: str) -> None:
    federation = Federation(tmp_path, 46, Weather(), rounds=1, spoil=_spoilt(change))
    assert federation.run() == 1
    (line,) = federation.outcomes()
    assert (line["phase"], line["wrong_aggregators"], line["accuracy"]) == ("FAILED", [], None)
    assert any(part in line["reason"] for part in reason.split("|"))


@pytest.mark.parametrize(("change", "reason"), [(huge_weight, "weight sum"), (huge_values, "more than its digits")])
def test_so_do_they_with_a_checksum_made_for_them(tmp_path: Path, change: Any, reason: str) -> None:
    """Whoever knows the seed can make any words pass the checksum: what they can say is bounded all the same."""
    seeds: list[bytes] = []

    def refilled(device: str, view: PlanView, words: np.ndarray) -> np.ndarray:
        if device != "device-03":
            return words
        words = change(view, words.copy())
        fill_checksum(words[: view.segment_words[0]], seeds[0], 0, view.plan.coding.tail_words, view.field)
        return words

    federation = Federation(tmp_path, 47, Weather(), rounds=1, spoil=refilled)
    with patch("coordinator.service.os.urandom", lambda count: seeds.append(bytes(count)) or bytes(count)):
        assert federation.run() == 1
    (line,) = federation.outcomes()
    assert line["phase"] == "FAILED"
    assert reason in line["reason"]


def test_a_number_that_is_none_never_leaves_a_device() -> None:
    for wrong in (np.nan, np.inf, -np.inf):
        values = np.array([0.1, wrong, 0.2], np.float32)
        with pytest.raises(ProtocolError):
            quantise(values, np.ones(3, np.float32), 7, (10, 512), np.random.default_rng(0))

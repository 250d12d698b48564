"""The hidden checksum at the coordinator: a wrong sum never opens, and nobody is named for another (§5.11)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from simulators.frozen_round import FrozenRound

from coordinator.answers import open_answers, sum_vectors
from coordinator.checksums import find_right_answers
from fedpruneshare.errors import InconsistentSharesError, SharingError
from fedpruneshare.messages import Sharing
from fedpruneshare.sharing.checksum import fill_checksum
from fedpruneshare.sharing.field import Words

SEED = bytes(range(32))
MODES = [
    Sharing(3, 2, 1),
    Sharing(5, 3, 2),
    Sharing(5, 4, 2),
    Sharing(5, 4, 2, "F61"),
    Sharing(3, 3, 1),
    Sharing(3, 2, 1, dealer_checks=2),
]


def with_error(scene: FrozenRound, x: int, error: Words) -> dict[int, bytes]:
    """All answers, one of them with an error added."""
    sums = sum_vectors(scene.view, scene.freeze, scene.answers)
    p = scene.view.field.p
    wrong = (sums[x].astype(object) + error.astype(object)) % p
    return {**scene.answers, x: wrong.astype(scene.view.field.word_type).tobytes()}


def one_word(scene: FrozenRound, place: int, by: int = 1) -> Words:
    error = np.zeros(len(scene.answers[1]) // scene.view.field.word_bytes, scene.view.field.word_type)
    error[place] = by
    return error


def open_at(scene: FrozenRound, answers: dict[int, bytes], points: tuple[int, ...]):  # type: ignore[no-untyped-def]
    return open_answers(scene.view, scene.freeze, {x: answers[x] for x in points}, scene.seed)


@pytest.mark.parametrize("sharing", MODES, ids=str)
def test_every_subset_opens_the_plain_sum_and_says_by_what_it_is_verified(sharing: Sharing) -> None:
    scene = FrozenRound(sharing, SEED)
    for size in range(sharing.k, sharing.n + 1):
        for points in combinations(scene.answers, size):
            opened = open_at(scene, scene.answers, points)
            assert opened.verified_by == ("checksum" if size == sharing.k else "consistency+checksum")
            assert opened.wrong_points == ()
            assert {segment: words.tolist() for segment, words in opened.words.items()} == {
                segment: scene.expected(segment) for segment in (0, 1)
            }


@pytest.mark.parametrize("sharing", MODES, ids=str)
def test_with_exactly_k_answers_no_wrong_word_goes_unnoticed(sharing: Sharing) -> None:
    """Every word of a sum in turn, those of the checksum itself among them; and in every segment."""
    scene = FrozenRound(sharing, SEED)
    words = len(scene.answers[1]) // scene.view.field.word_bytes
    for place in range(words):
        answers = with_error(scene, sharing.k, one_word(scene, place))
        with pytest.raises(SharingError, match=r"checksum of segment \d is wrong|behind the last word"):
            open_at(scene, answers, tuple(range(1, sharing.k + 1)))
    assert words > 8


@pytest.mark.parametrize("sharing", [s for s in MODES if s.n > s.k], ids=str)
def test_with_more_answers_the_right_ones_are_opened_and_the_wrong_one_is_named(sharing: Sharing) -> None:
    scene = FrozenRound(sharing, SEED)
    for liar in range(1, sharing.n + 1):
        opened = open_at(scene, with_error(scene, liar, one_word(scene, 7, 123)), tuple(scene.answers))
        assert opened.wrong_points == (liar,)
        assert opened.words[0].tolist() == scene.expected(0)
        assert opened.verified_by == ("checksum" if sharing.n == sharing.k + 1 else "consistency+checksum")


def test_two_liars_in_league_are_told_from_three_honest_aggregators() -> None:
    """Four sums that agree with each other by the liars' making: decoding by distance would blame an honest one."""
    scene = FrozenRound(Sharing(5, 3, 2), SEED)
    sums = sum_vectors(scene.view, scene.freeze, scene.answers)
    error = np.array([int(w) for w in one_word(scene, 11)], dtype=object)
    p, answers = scene.view.field.p, dict(scene.answers)
    for x in (4, 5):
        factor = (x - 1) * (x - 2)  # zero at points 1 and 2
        answers[x] = ((sums[x].astype(object) + factor * error) % p).astype("<u4").tobytes()
    opened = open_at(scene, answers, (1, 2, 3, 4, 5))
    assert opened.wrong_points == (4, 5)
    assert opened.words[0].tolist() == scene.expected(0)
    assert scene.view.scheme.locate(sum_vectors(scene.view, scene.freeze, answers)) == (3,)  # the honest one


def test_liars_whose_errors_cancel_leave_nobody_named() -> None:
    """Two polynomials open to the same words: what is opened is right, and who lied is not known."""
    scene = FrozenRound(Sharing(5, 3, 2), SEED)
    answers, p = dict(scene.answers), scene.view.field.p
    sums = sum_vectors(scene.view, scene.freeze, scene.answers)
    error = np.array([int(w) for w in one_word(scene, 3)], dtype=object)
    for x in (4, 5):  # x·(x − 1): zero at 0, where the words are, and at point 1
        answers[x] = ((sums[x].astype(object) + x * (x - 1) * error) % p).astype("<u4").tobytes()
    opened = open_at(scene, answers, (1, 2, 3, 4, 5))
    assert opened.wrong_points == ()
    assert opened.words[0].tolist() == scene.expected(0)
    assert opened.verified_by == "checksum"


def test_whoever_knows_the_seed_can_stop_a_round_but_is_not_believed() -> None:
    """A device that tells an aggregator the seed: both polynomials have right checksums, so the round fails."""
    scene = FrozenRound(Sharing(5, 3, 2), SEED)
    error = np.zeros(len(scene.answers[1]) // 4, "<u4")
    start, size = 0, scene.view.segment_words[0]
    part = error[start:size]
    part[4] = 9
    fill_checksum(part, SEED, 0, scene.view.plan.coding.tail_words, scene.view.field)
    with pytest.raises(InconsistentSharesError, match="knows the seed"):
        open_at(scene, with_error(scene, 2, error), (1, 2, 3, 4, 5))


@pytest.mark.parametrize("points", [(1, 2), (1, 2, 3)])
def test_a_device_that_leaves_its_checksum_out_fails_the_round(points: tuple[int, ...]) -> None:
    scene = FrozenRound(Sharing(3, 2, 1), SEED, unfilled=("device-03",))
    with pytest.raises(SharingError, match="or a device made its checksum wrong"):
        open_at(scene, scene.answers, points)


def test_answers_of_another_set_of_devices_do_not_open_with_those_of_this_one() -> None:
    scene = FrozenRound(Sharing(3, 2, 1), SEED)
    other = FrozenRound(Sharing(3, 2, 1), SEED)  # fresh polynomials: as of another attempt of everybody
    for points in ((1, 2), (1, 3), (2, 3)):
        with pytest.raises(SharingError):
            open_at(scene, {**scene.answers, points[0]: other.answers[points[0]]}, points)


def test_which_answers_are_right_is_found_also_among_sixteen() -> None:
    scene = FrozenRound(Sharing(13, 7, 6), SEED)
    answers = dict(scene.answers)
    for liar in (2, 5, 6, 9, 12):
        answers[liar] = with_error(scene, liar, one_word(scene, liar, liar))[liar]
    sums = sum_vectors(scene.view, scene.freeze, answers)
    found = find_right_answers(scene.view, scene.freeze.segments, sums, SEED)
    assert found.wrong == (2, 5, 6, 9, 12)
    assert found.points == (1, 3, 4, 7, 8, 10, 11, 13)


def test_seeds_are_not_shown() -> None:
    from coordinator.store import OpenRound

    assert "seed" not in repr(OpenRound(1, b"", 0.0, seed=SEED))

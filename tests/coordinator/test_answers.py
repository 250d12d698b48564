"""From answers to words: whoever answers wrongly is named, and what opens is exact (docs/protocol.md §5.5, §5.9)."""

from __future__ import annotations

from itertools import combinations

import pytest
from simulators.frozen_round import FrozenRound

from coordinator.answers import open_answers, sum_vectors
from fedpruneshare.errors import InconsistentSharesError, PeerError, ProtocolError, SharingError
from fedpruneshare.messages import Reveal, Sharing

MODES = [
    Sharing(3, 2, 1),
    Sharing(5, 3, 2),
    Sharing(4, 3, 1),
    Sharing(5, 4, 2, "F61"),
    Sharing(3, 2, 1, dealer_checks=2),
    Sharing(3, 2, 1, reveal=Reveal.EACH),
    Sharing(5, 3, 2, "F61", reveal=Reveal.EACH),
]


@pytest.mark.parametrize("sharing", MODES, ids=str)
def test_every_subset_opens_the_plain_sum(sharing: Sharing) -> None:
    scene = FrozenRound(sharing)
    for size in range(sharing.k, sharing.n + 1):
        for points in combinations(scene.answers, size):
            opened = open_answers(scene.view, scene.freeze, {x: scene.answers[x] for x in points})
            assert opened.points == points
            assert opened.is_verified == (size > sharing.k or sharing.reveal is Reveal.EACH)
            assert (opened.wrong_points, opened.left_out_devices) == ((), ())
            assert {segment: words.tolist() for segment, words in opened.words.items()} == {
                segment: scene.expected(segment) for segment in (0, 1)
            }


@pytest.mark.parametrize("x", range(1, 6))
def test_one_wrong_sum_of_five_is_named_and_left_out(x: int) -> None:
    """By two to open and one in league, that is certain."""
    scene = FrozenRound(Sharing(5, 2, 1), quorum=4)
    opened = open_answers(scene.view, scene.freeze, {**scene.answers, x: scene.altered(x, 9)})
    assert (opened.wrong_points, opened.is_verified) == ((x,), True)
    assert opened.words[0].tolist() == scene.expected(0)


def test_two_in_league_cannot_have_an_honest_one_blamed_and_their_sum_opened() -> None:
    """Their error lies on a polynomial that is zero at two honest points: to the others the third looks like a liar."""
    for seed in (None, bytes(32)):
        scene = FrozenRound(Sharing(5, 3, 2), seed)
        answers = dict(scene.answers)
        for x in (1, 2):
            error = 1000 * (x - 3) * (x - 4)
            words = sum_vectors(scene.view, scene.freeze, answers)[x].astype(object)
            answers[x] = ((words + error) % scene.view.field.p).astype("<u4").tobytes()
        if seed is None:
            with pytest.raises(InconsistentSharesError, match=r"without those of \[5\] .* 2 others in league"):
                open_answers(scene.view, scene.freeze, answers)
        else:
            opened = open_answers(scene.view, scene.freeze, answers, seed)
            assert (opened.words[0].tolist(), opened.wrong_points) == (scene.expected(0), (1, 2))


def test_one_wrong_sum_of_three_is_noticed_but_not_blamed_on_anyone() -> None:
    scene = FrozenRound(Sharing(3, 2, 1))
    with pytest.raises(InconsistentSharesError, match="disagree in 1 of"):
        open_answers(scene.view, scene.freeze, {**scene.answers, 2: scene.altered(2, 9)})


@pytest.mark.parametrize(("n", "k"), [(3, 2), (5, 3)])
def test_one_wrong_answer_is_named_also_among_fragments(n: int, k: int) -> None:
    """Also where no more than k + 1 answered: each fragment shows by itself whether it is right."""
    scene = FrozenRound(Sharing(n, k, k - 1, reveal=Reveal.EACH))
    answers = {x: scene.answers[x] for x in range(1, k + 2)}
    opened = open_answers(scene.view, scene.freeze, {**answers, 2: scene.altered(2, -1)})
    assert opened.wrong_points == ()  # one fragment: the device may have made it so
    assert len(opened.contributors) == 7
    opened = open_answers(scene.view, scene.freeze, {**answers, 2: bytes(len(answers[2]))})
    assert opened.wrong_points == (2,)
    assert len(opened.contributors) == 7
    assert opened.words[1].tolist() == scene.expected(1)


def test_with_k_answers_a_wrong_fragment_costs_its_device() -> None:
    scene = FrozenRound(Sharing(3, 2, 1, reveal=Reveal.EACH))
    opened = open_answers(scene.view, scene.freeze, {1: scene.answers[1], 3: scene.altered(3, -1)})
    assert opened.left_out_devices == ("device-06",)
    assert opened.words[0].tolist() == scene.expected(0, without=("device-06",))


def test_too_few_updates_that_can_be_rebuilt_fail_the_round() -> None:
    scene = FrozenRound(Sharing(3, 2, 1, reveal=Reveal.EACH))
    with pytest.raises(ProtocolError, match="0 updates could be rebuilt, expected min_devices = 3"):
        open_answers(scene.view, scene.freeze, {1: scene.answers[1], 3: bytes(len(scene.answers[3]))})


@pytest.mark.parametrize("sharing", MODES, ids=str)
def test_answers_that_are_none_are_refused(sharing: Sharing) -> None:
    scene = FrozenRound(sharing)
    nonsense = {x: b"\xff" * len(answer) for x, answer in scene.answers.items()}
    with pytest.raises(PeerError):
        open_answers(scene.view, scene.freeze, nonsense)
    if sharing.reveal is Reveal.SUM:
        with pytest.raises(SharingError, match="bytes of words"):
            sum_vectors(scene.view, scene.freeze, {1: scene.answers[1][:-1]})

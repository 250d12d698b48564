"""From what aggregators answer a Freeze with to the words of the sum (docs/protocol.md §4.6, §5). No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from coordinator.checksums import RightAnswers, check_checksums, find_right_answers
from fedpruneshare.errors import InconsistentSharesError, ProtocolError, SharingError
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import Contribution, Freeze
from fedpruneshare.plain import PlainSegment
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.dispersal import rebuild
from fedpruneshare.sharing.field import Words, check_canonical, from_bytes
from fedpruneshare.sharing.shamir import Accumulator

_log = structlog.get_logger()


@dataclass(frozen=True)
class Opened:
    """The words of the sum by opened segment, whose they are, and who was found out on the way.

    `plain` stands for the words where updates are not shared: Σw, Σw·v (docs/protocol.md §5.10). `points` answered;
    `wrong_points` of them answered something else than the others. `verified_by`: by what a wrong answer would have
    been noticed: `consistency` of more than k sums, the hidden `checksum`, both (`consistency+checksum`), the `digests`
    of fragments, or nothing. `left_out_devices`: their updates could not be rebuilt, or are none a device may send.
    """

    words: dict[int, Words] = field(repr=False)
    contributors: tuple[Contribution, ...]
    points: tuple[int, ...]
    verified_by: str
    wrong_points: tuple[int, ...] = ()
    left_out_devices: tuple[str, ...] = ()
    plain: Mapping[int, PlainSegment] = field(default_factory=dict, repr=False)

    @property
    def is_verified(self) -> bool:
        """Whether a wrong answer would have been noticed."""
        return bool(self.verified_by)

    @property
    def segments(self) -> list[int]:
        """The opened segments."""
        return sorted(self.plain or self.words)


def open_answers(view: PlanView, freeze: Freeze, answers: Mapping[int, bytes], seed: bytes | None = None) -> Opened:
    """Open what at least k points answered: sums, or with `reveal = "each"` every contributor's fragments.

    `seed`: that of the hidden checksum, if the plan has one. Raises `InconsistentSharesError` if more than k sums
    disagree and it cannot be told which are right, `SharingError` for a wrong checksum, other `PeerError`s for answers
    that do not open.
    """
    return _rebuild_updates(view, freeze, answers) if view.is_each_revealed else _open_sums(view, freeze, answers, seed)


def sum_vectors(view: PlanView, freeze: Freeze, answers: Mapping[int, bytes]) -> dict[int, Words]:
    """Sums by point as elements of the field, read-only. Raises `SharingError` on another length."""
    count = view.sum_bytes(freeze) // view.field.word_bytes
    return {x: from_bytes(answer, count, view.field) for x, answer in answers.items()}


def _open_sums(view: PlanView, freeze: Freeze, answers: Mapping[int, bytes], seed: bytes | None) -> Opened:
    scheme, given = view.scheme, sum_vectors(view, freeze, answers)
    sums = _canonical(view, given)
    right = _find_right(view, freeze, sums, seed)
    chosen = {x: sums[x] for x in right.points[: scheme.k]}
    words, start = {}, 0
    for segment in freeze.segments:
        end = start + view.segment_elements[segment]
        parts = {x: elements[start:end] for x, elements in chosen.items()}
        words[segment] = scheme.open(parts, view.segment_words[segment])
        start = end
    proofs = ["consistency"] if len(right.points) > scheme.k else []
    if view.plan.checksum:
        if seed is None:
            raise RuntimeError("a plan with a checksum, opened without its seed")
        check_checksums(view, words, seed)
        proofs.append("checksum")
    wrong = tuple(sorted({*right.wrong, *(given.keys() - sums.keys())}))
    return Opened(words, freeze.contributors, tuple(sorted(given)), "+".join(proofs), wrong)


def _canonical(view: PlanView, sums: Mapping[int, Words]) -> dict[int, Words]:
    """The sums whose words are below p, if those are at least k: what is not was wrong whatever devices sent."""
    sound: dict[int, Words] = {}
    refused: SharingError | None = None
    for x, words in sums.items():
        try:
            check_canonical(words, view.field)
            sound[x] = words
        except SharingError as error:
            refused = error
    if refused is not None and len(sound) < view.scheme.k:
        raise refused
    return sound


def _find_right(view: PlanView, freeze: Freeze, sums: Mapping[int, Words], seed: bytes | None) -> RightAnswers:
    """The answers to open: all, if they agree; else those with the right checksum; without one see `_nearest`."""
    scheme, points = view.scheme, tuple(sorted(sums))
    if len(points) <= scheme.k:
        return RightAnswers(points, ())
    if not view.plan.checksum or seed is None:
        return _nearest(view, sums)
    try:
        scheme.check(sums)
    except InconsistentSharesError:
        return find_right_answers(view, freeze.segments, sums, seed)
    return RightAnswers(points, ())


def _nearest(view: PlanView, sums: Mapping[int, Words]) -> RightAnswers:
    """Those on the one polynomial that fewest answers are not on, if that is certain with up to t liars in league.

    Words that two polynomials explain differ in at least m − k + 1 of m answers: so t liars could have made it look as
    if so few others lied. Raises `InconsistentSharesError` where they could, or where nothing explains the answers.
    """
    scheme, points = view.scheme, tuple(sorted(sums))
    wrong = scheme.locate(sums)
    if wrong and len(points) - scheme.k < scheme.t + len(wrong):
        raise InconsistentSharesError(
            f"shares of points {list(points)} disagree: without those of {list(wrong)} they would not, but {scheme.t}"
            " others in league could have made it look so, and there is no checksum to tell"
        )
    return RightAnswers(tuple(x for x in points if x not in wrong), wrong)


def _rebuild_updates(view: PlanView, freeze: Freeze, answers: Mapping[int, bytes]) -> Opened:
    """Every update is rebuilt and checked; those that no device may send are left out of the sum, and named."""
    updates: dict[Contribution, Words] = {}
    wrong: Counter[int] = Counter()
    refused, start = [], 0
    for contributor in freeze.contributors:
        end = start + view.share_bytes(contributor.rung, 1)
        fragments = {x: answer[start:end] for x, answer in answers.items()}
        start = end
        try:
            updates[contributor] = _rebuild_one(view, contributor, fragments, wrong)
        except SharingError as error:
            _log.warning("update-refused", device=contributor.device_id, reason=str(error))
            refused.append(contributor.device_id)
    # One wrong fragment may be the device's doing; most of them are the aggregator's.
    named = tuple(sorted(x for x, count in wrong.items() if 2 * count > len(freeze.contributors)))
    contributors, plan = tuple(updates), view.plan
    rungs = [contributor.rung for contributor in contributors]
    segments = open_segments(rungs, view.rungs, plan.min_devices, plan.min_devices_segment)
    if not segments:
        raise ProtocolError(
            f"{len(contributors)} updates could be rebuilt, expected min_devices = {plan.min_devices};"
            f" not those of {', '.join(refused)}"
        )
    words = {segment: _sum_segment(view, segment, updates) for segment in segments}
    return Opened(words, contributors, tuple(sorted(answers)), "digests", named, tuple(refused))


def _rebuild_one(
    view: PlanView, contributor: Contribution, fragments: Mapping[int, bytes], wrong: Counter[int]
) -> Words:
    scheme, count = view.scheme, view.upload_words(contributor.rung)
    context = view.dispersal_context(contributor.device_id, contributor.upload_id, contributor.rung)
    rebuilt = rebuild(fragments, count * view.field.word_bytes, scheme.n, scheme.k, context)
    if rebuilt.wrong:
        names = {x: name for name, x in view.plan.points.items()}
        _log.warning("fragment-wrong", device=contributor.device_id, held_by=[names[x] for x in rebuilt.wrong])
    wrong.update(rebuilt.wrong)
    words = from_bytes(rebuilt.blob, count, view.field)
    check_canonical(words, view.field)
    start = 0
    for segment in range(contributor.rung + 1):
        end, facts = start + view.segment_words[segment], view.plan.segments[segment]
        # Packing refuses what one device may not send: a digit or a weight out of its range.
        view.layout.pack(view.layout.unpack(words[start:end], facts.vectors, facts.weights))
        start = end
    return words


def _sum_segment(view: PlanView, segment: int, updates: Mapping[Contribution, Words]) -> Words:
    start, size = sum(view.segment_words[:segment]), view.segment_words[segment]
    total = Accumulator(size, view.field)
    for contributor, words in updates.items():
        if contributor.rung >= segment:
            total.add(words[start : start + size])
    return total.export()

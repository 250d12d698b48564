"""Supports are integers only, exact, nested, and checked by whoever holds a prefix (docs/protocol.md §6.2, §6.3)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedpruneshare.sparse.support as support_module
from fedpruneshare.errors import PeerError, PlanError, SupportMismatchError
from fedpruneshare.messages import SupportRule
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role
from fedpruneshare.sparse.support import (
    OUTSIDE,
    DensitySchedule,
    Frame,
    Support,
    check_prefix,
    code_values,
    decode_values,
    derive_support,
    order_keys,
    plain_frame,
    rung_counts,
    support_digests,
)

MASK = 2**64 - 1
FRAME = plain_frame(500)


def slow_key(code: int, position: int, round_id: int) -> int:
    """The order key as docs and docstring say it, in Python integers."""
    z = ((round_id << 40) + position + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    z ^= z >> 31
    return (code & 0x7FFF) << 49 | z >> 15


def model(d: int, seed: int = 0) -> np.ndarray:
    return code_values(np.random.default_rng(seed).normal(size=d).astype(np.float32))


@given(st.lists(st.integers(0, 0x7BFF) | st.sampled_from([0, 0x8000, 0x3C00, 0xBC00]), max_size=30),
       st.integers(1, 2**47))  # fmt: skip
def test_order_keys(codes: list[int], round_id: int) -> None:
    coded, positions = np.array(codes, dtype=np.uint16), np.arange(len(codes), dtype=np.int64)
    expected = [slow_key(code, place, round_id) for place, code in enumerate(codes)]
    assert order_keys(coded, positions, round_id).tolist() == expected


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 9), st.data())
def test_derived_supports_are_the_largest_in_order(codes: list[int], round_id: int, data: st.DataObject) -> None:
    d = len(codes)
    counts = sorted(data.draw(st.lists(st.integers(0, d), min_size=1, max_size=4)))
    support = derive_support(np.array(codes, dtype=np.uint16), round_id, counts)
    order = sorted(range(d), key=lambda i: slow_key(codes[i], i, round_id), reverse=True)
    start = 0
    for segment, count in zip(support.segments, counts, strict=True):
        assert segment.tolist() == sorted(order[start:count])
        start = count
    assert support.prefix(len(counts) - 1).size == counts[-1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_weights_still_give_exact_counts(value: float) -> None:
    coded = code_values(np.full(10_000, value, dtype=np.float32))
    first, second = (derive_support(coded, round_id, (100, 1000)) for round_id in (1, 2))
    assert [s.size for s in first.segments] == [100, 900]
    assert not np.array_equal(first.segments[0], second.segments[0])


@given(st.integers(1, 4), st.integers(0, 99))
def test_every_prefix_passes_its_check(rungs: int, seed: int) -> None:
    coded = model(500, seed)
    counts = rung_counts(500, [(place + 1) / rungs for place in range(rungs)], 0.4)
    support = derive_support(coded, 7, counts)
    digests = support.digests(7)
    for rung in range(rungs):
        held = support.segments[: rung + 1]
        check_prefix(held, [coded[s] for s in held], 7, FRAME, digests)


def test_equal_keys_are_told_apart_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two 49-bit hashes may be equal; every party must still cut at the same place."""
    monkeypatch.setattr(support_module, "order_keys", lambda coded, *_: coded.astype(np.uint64))
    support = derive_support(np.array([5, 1, 5, 5, 1, 9, 5], dtype=np.uint16), 1, (0, 3, 3, 6, 7))
    assert [segment.tolist() for segment in support.segments] == [[], [0, 2, 5], [], [1, 3, 6], [4]]


@pytest.mark.parametrize("counts", [(), (3, 2), (-1, 2), (2, 11)])
def test_counts_that_fall_or_exceed_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="rung counts"):
        derive_support(model(10), 1, counts)


@pytest.mark.parametrize(("fractions", "density"), [((), 0.5), ((0.5, 0.2), 0.5), ((0.0, 1.0), 0.5), ((0.5, 1.1), 0.5),
                                                    ((0.5, 1.0), 0.0), ((0.5, 1.0), float("nan"))])  # fmt: skip
def test_odd_rungs_are_refused(fractions: tuple[float, ...], density: float) -> None:
    with pytest.raises(PlanError, match="expected"):
        rung_counts(100, fractions, density)


def test_more_segments_than_the_plan_names_are_refused() -> None:
    coded = model(500)
    support = derive_support(coded, 7, (50, 200))
    with pytest.raises(SupportMismatchError, match="segment 1: 1 supports, expected 2"):
        check_prefix(support.segments, [coded[s] for s in support.segments], 7, FRAME, support.digests(7)[:1])


def spoiled(how: str, support: Support, coded: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    segments, round_id = [s.copy() for s in support.segments], 7
    if how == "boundary":
        segments[0], segments[1] = (
            np.sort(np.append(segments[0][1:], segments[1][0])),
            np.sort(np.append(segments[1][1:], segments[0][0])),
        )
    elif how == "order":
        segments[0] = segments[0][::-1].copy()
    elif how == "twice":
        segments[1] = np.sort(np.append(segments[1][1:], segments[0][0]))
    elif how == "range":
        segments[0] = np.append(segments[0][:-1], 500)
    elif how == "round":
        round_id = 8
    values = [coded[np.minimum(s, 499)] for s in segments]
    if how == "count":
        values[0] = values[0][1:]
    if how == "value":
        values[1] = values[1].copy()
        values[1][0] = 0x7BFF
    return segments, values, round_id


@pytest.mark.parametrize("how", ["boundary", "order", "twice", "range", "round", "count", "value"])
def test_a_spoiled_prefix_is_refused(how: str) -> None:
    coded = model(500)
    support = derive_support(coded, 7, (50, 200))
    segments, values, round_id = spoiled(how, support, coded)
    with pytest.raises(SupportMismatchError, match="segment"):
        check_prefix(segments, values, round_id, FRAME, support.digests(7))


def forged(segments: list[np.ndarray], coded: np.ndarray) -> None:
    """Check segments against digests that a lying coordinator made to match them."""
    digests = support_module.support_digests(segments, 7, 500)
    check_prefix(segments, [coded[s] for s in segments], 7, FRAME, digests)


def test_matching_digests_do_not_excuse_a_wrong_order() -> None:
    coded = model(500)
    honest = derive_support(coded, 7, (50, 200))
    forged(list(honest.segments), coded)
    with pytest.raises(SupportMismatchError, match="segment 1 holds a larger weight than segment 0"):
        forged(spoiled("boundary", honest, coded)[0], coded)
    with pytest.raises(SupportMismatchError, match="segment 1: positions are not ascending, new"):
        forged(spoiled("twice", honest, coded)[0], coded)
    with pytest.raises(SupportMismatchError, match="segment 0: positions are not ascending, new"):
        forged([np.append(honest.segments[0][1:], honest.segments[0][-1]), honest.segments[1]], coded)
    with pytest.raises(SupportMismatchError, match="segment 0: positions are not ascending, new"):
        forged([np.insert(honest.segments[0], 0, -1), honest.segments[1]], coded)


def test_an_empty_segment_does_not_hide_a_larger_weight_behind_it() -> None:
    coded = model(500)
    first, last = derive_support(coded, 7, (50, 200)).segments
    empty = np.empty(0, dtype=np.int64)
    forged([first, empty, last], coded)
    with pytest.raises(SupportMismatchError, match="segment 2 holds a larger weight"):
        forged([last, empty, first], coded)


def test_ties_at_the_boundary_are_checked_by_hash_and_so_by_round() -> None:
    coded = code_values(np.ones(500, dtype=np.float32))
    other_round = derive_support(coded, 8, (50, 200))
    with pytest.raises(SupportMismatchError, match="larger weight"):
        forged(list(other_round.segments), coded)


def test_a_copy_of_the_model_gives_the_same_supports() -> None:
    coded = model(5000)
    made, again = derive_support(coded, 9, (500, 1500)), derive_support(coded.copy(), 9, (500, 1500))
    assert made.digests(9) == again.digests(9)
    assert all(np.array_equal(a, b) for a, b in zip(made.segments, again.segments, strict=True))
    inner, outer = set(made.prefix(0).tolist()), set(made.prefix(1).tolist())
    assert inner < outer
    assert np.array_equal(made.prefix(1), np.concatenate(made.segments))
    # Signs carry no magnitude: the same support, whatever they are.
    assert derive_support(coded ^ np.uint16(0x8000), 9, (500, 1500)).digests(9) == made.digests(9)


def test_digests_cover_round_size_and_boundaries() -> None:
    coded = model(300)
    support = derive_support(coded, 1, (30, 60))
    other = derive_support(coded, 1, (31, 60))
    assert len({*support.digests(1), *support.digests(2), *other.digests(1)}) == 6
    assert Support(301, support.segments).digests(1) != support.digests(1)
    assert derive_support(coded, 1, (30, 90)).digests(1)[0] == support.digests(1)[0]


def test_the_coded_model_is_float16_by_magnitude() -> None:
    values = np.array([0.1, -0.1, 1e9, -1e9, 0.0, 6e-8], dtype=np.float32)
    assert decode_values(code_values(values)).tolist() == pytest.approx(
        [0.1, -0.1, 65504, -65504, 0, 6e-8], rel=1e-3, abs=1e-8
    )
    assert np.array_equal(code_values(decode_values(code_values(values))), code_values(values))
    with pytest.raises(PeerError, match="not finite"):
        code_values(np.array([np.nan], dtype=np.float32))


def test_the_schedule_is_dense_then_falls_to_its_target() -> None:
    schedule = DensitySchedule(1.0, 0.1, 2, 14)
    densities = [schedule.density(applied) for applied in range(20)]
    assert densities[:2] == [1.0, 1.0]  # rounds 1 and 2
    assert densities[2] < 1.0
    assert densities[13:] == [0.1] * 7  # from round 14 on
    assert all(later <= earlier for earlier, later in itertools.pairwise(densities))
    assert densities[7] == pytest.approx(0.1 + 0.9 * (1 - 6 / 12) ** 3)


@given(st.floats(1e-3, 1), st.floats(1e-3, 1), st.integers(0, 20), st.integers(1, 30))
def test_the_schedule_meets_its_ends_exactly_and_never_rises(one: float, two: float, dense: int, span: int) -> None:
    start, target = max(one, two), min(one, two)
    schedule = DensitySchedule(start, target, dense, dense + span)
    densities = [schedule.density(applied) for applied in range(dense + span + 5)]
    assert densities[:dense] == [start] * dense
    assert densities[dense + span - 1 :] == [target] * 6
    assert all(target <= later <= earlier <= start for earlier, later in itertools.pairwise([start, *densities]))


def test_the_schedule_starts_at_its_start_to_the_last_bit() -> None:
    assert 0.08 + (0.21 - 0.08) != 0.21
    assert DensitySchedule(0.21, 0.08, 1, 9).density(0) == 0.21


@pytest.mark.parametrize("wrong", [(0.1, 0.5, 0, 5), (1.0, 0.0, 0, 5), (1.0, 0.1, 5, 5), (1.2, 0.1, 0, 5)])
def test_a_schedule_that_does_not_fall_is_refused(wrong: tuple[float, float, int, int]) -> None:
    with pytest.raises(PlanError, match="schedule"):
        DensitySchedule(*wrong)


@given(st.integers(1, 10**7), st.floats(0.001, 1.0), st.lists(st.floats(0.01, 0.99), max_size=4, unique=True))
def test_rung_counts_rise(d: int, density: float, fractions: list[float]) -> None:
    counts = rung_counts(d, [*sorted(fractions), 1.0], density)
    assert list(counts) == sorted(counts)
    assert counts[0] >= 1
    assert abs(counts[-1] - density * d) <= 1


# --------------------------------------------------------------------------- frames

LAYERS = ParameterTable(
    (Parameter("a", (8, 4), Role.WEIGHT), Parameter("b", (8, 8), Role.WEIGHT), Parameter("c", (3, 16), Role.WEIGHT))
)
D = LAYERS.weight_count


def narrower(seed: int, counts: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Random nested sets of coordinates, the last of them all."""
    mixed = np.random.default_rng(seed).permutation(D)
    return tuple(np.isin(np.arange(D), mixed[:count]) for count in counts)


@given(st.sampled_from(["global", "erk"]), st.integers(0, 300), st.booleans(), st.booleans(), st.integers(0, 50))
def test_every_honest_support_passes_its_check(
    allocation: str, churn: int, is_narrow: bool, is_probing: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    coded = model(D, seed)
    exist = narrower(seed, (50, 100, D, D) if is_probing else (50, 100, D)) if is_narrow else ()
    frame = Frame(LAYERS, SupportRule(allocation, churn, is_probing), exist)
    last = rng.integers(0, 4, D).astype(np.uint8)
    counts = (20, 45, 80, 90) if is_probing else (20, 45, 80)
    support = derive_support(coded, 5, counts, frame, last)
    assert [len(part) for part in support.segments] == list(np.diff([0, *counts]))
    for rung in range(len(counts)):
        held = support.segments[: rung + 1]
        check_prefix(held, [coded[part] for part in held], 5, frame, support.digests(5))


def test_a_rung_has_no_more_than_exists_at_its_width() -> None:
    frame = Frame(LAYERS, SupportRule(), narrower(1, (30, 60, D)))
    support = derive_support(model(D), 5, (50, 70, 100), frame)
    assert [len(part) for part in support.segments] == [30, 30, 40]
    assert np.array_equal(np.sort(support.prefix(1)), np.flatnonzero(frame.coordinates[1]))


def test_each_tensor_keeps_its_quota_of_its_largest() -> None:
    coded = model(D)
    frame = Frame(LAYERS, SupportRule("erk"))
    support = derive_support(coded, 5, (20, 60), frame)
    bounds = LAYERS.weight_bounds()
    magnitudes = (coded & 0x7FFF).astype(int)
    for rung in range(2):
        held = np.isin(np.arange(D), support.prefix(rung))
        for start, end in itertools.pairwise(bounds):
            own = held[start:end]
            assert magnitudes[start:end][own].min(initial=1 << 15) >= magnitudes[start:end][~own].max(initial=0)
    counts = [
        np.count_nonzero((support.prefix(1) >= a) & (support.prefix(1) < b)) for a, b in itertools.pairwise(bounds)
    ]
    assert counts == frame.quotas(60, frame.blank, frame.exists(1)).tolist()


def test_what_was_in_a_rung_stays_until_another_is_clearly_larger() -> None:
    codes = np.array([0x3C00, 0x3C40, 0x3D00, 0x3A00], dtype=np.uint16)  # 1.0, 1.0625, 1.25, 0.75
    last = np.array([0, OUTSIDE, OUTSIDE, OUTSIDE], dtype=np.uint8)
    plain = Frame(ParameterTable((Parameter("w", (4,), Role.WEIGHT),)), SupportRule("global", 0x80))
    assert derive_support(codes, 1, (2,), plain, last).segments[0].tolist() == [0, 2]
    assert derive_support(codes, 1, (2,), plain, None).segments[0].tolist() == [1, 2]
    wide = replace(plain, rule=SupportRule("global", 0x10))
    assert derive_support(codes, 1, (2,), wide, last).segments[0].tolist() == [1, 2]


def test_less_churn_with_a_tolerance() -> None:
    """The same small noise on a model: with a tolerance, fewer coordinates change places at the boundary."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000).astype(np.float32)
    table = ParameterTable((Parameter("w", (20_000,), Role.WEIGHT),))

    def changed(churn: int) -> int:
        frame, last, total = Frame(table, SupportRule("global", churn)), None, 0
        moved = np.random.default_rng(1)
        for round_id in range(1, 6):
            noise = moved.normal(scale=0.02, size=values.size).astype(np.float32)
            found = derive_support(code_values(values + noise), round_id, (2000,), frame, last).rung_of()
            total += 0 if last is None else int(np.count_nonzero(found != last))
            last = found
        return total

    assert changed(100) < changed(0) / 3


@pytest.mark.parametrize("allocation", ["global", "erk"])
def test_a_support_of_another_rule_is_refused(allocation: str) -> None:
    coded = model(D)
    made = derive_support(coded, 5, (20, 60), Frame(LAYERS, SupportRule(allocation)))
    other = Frame(LAYERS, SupportRule("erk" if allocation == "global" else "global"))
    with pytest.raises(SupportMismatchError, match=r"larger weight than segment|coordinates of '"):
        check_prefix(made.segments, [coded[part] for part in made.segments], 5, other, made.digests(5))


def test_a_coordinate_outside_the_width_is_refused() -> None:
    coded = model(D)
    made = derive_support(coded, 5, (20, 60))
    frame = Frame(LAYERS, SupportRule(), narrower(1, (30, D)))
    with pytest.raises(SupportMismatchError, match="does not exist at its width"):
        check_prefix(made.segments, [coded[part] for part in made.segments], 5, frame, made.digests(5))


def test_a_swap_beyond_the_tolerance_is_refused() -> None:
    coded = model(D)
    honest = derive_support(coded, 5, (20, 60))
    first, second = (part.copy() for part in honest.segments)
    magnitudes = (coded & 0x7FFF).astype(int)
    largest, smallest = first[magnitudes[first].argmax()], second[magnitudes[second].argmin()]
    segments = (
        np.sort(np.append(first[first != largest], smallest)),
        np.sort(np.append(second[second != smallest], largest)),
    )
    frame = Frame(LAYERS, SupportRule("global", 50))
    with pytest.raises(SupportMismatchError, match="segment 1 holds a larger weight"):
        check_prefix(segments, [coded[part] for part in segments], 5, frame, support_digests(segments, 5, D))

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.errors import PlanError
from fedpruneshare.sparse.channels import (
    ChannelGroup,
    Cut,
    all_kept,
    channel_count,
    check_groups,
    coordinates,
    kept_indices,
    kept_per_part,
    nested_channels,
    pack_channels,
    rank_channels,
    unpack_channels,
)
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role

#: Two layers and a norm: 4 channels of `a` are read by `b` in blocks of 2, behind 3 features of something else.
TABLE = ParameterTable(
    (
        Parameter("a.weight", (4, 2, 3), Role.WEIGHT, 0),
        Parameter("a.bias", (4,), Role.VECTOR),
        Parameter("norm.mean", (4,), Role.BUFFER),
        Parameter("norm.count", (), Role.COUNTER),
        Parameter("b.weight", (6, 11), Role.WEIGHT, 0),
        Parameter("b.bias", (6,), Role.VECTOR),
    )
)
GROUPS = (
    ChannelGroup(4, 2, (Cut(0, 0), Cut(1, 0), Cut(2, 0), Cut(4, 1, 3, 2))),
    ChannelGroup(3, 1, (Cut(4, 0, 0, 2), Cut(5, 0, 0, 2))),
)


@st.composite
def group_lists(draw):
    """Groups without cuts that matter: sizes and parts alone."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=4))
    return tuple(ChannelGroup(each * parts, parts, (Cut(0, 0),)) for each, parts in shapes)


def scores_of(groups, seed, levels=5):
    """Few different values, so that there are ties."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, levels, group.channels).astype(np.float64) for group in groups]


rising = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5).map(sorted)
seeds = st.integers(0, 2**32 - 1)


@given(group_lists(), rising, seeds)
def test_wider_keeps_what_narrower_keeps_and_every_part_as_many(groups, widths, seed):
    kept = nested_channels(scores_of(groups, seed), groups, widths)
    for narrower, wider in itertools.pairwise(kept):
        assert all((few <= many).all() for few, many in zip(narrower, wider, strict=True))
    for width, own in zip(widths, kept, strict=True):
        for group, mask in zip(groups, own, strict=True):
            counts = mask.reshape(group.parts, -1).sum(1)
            assert set(counts) == {kept_per_part(group, width)}


@given(group_lists(), st.floats(0.01, 1.0), seeds)
def test_the_best_are_kept_and_the_first_of_equals(groups, width, seed):
    scores = scores_of(groups, seed)
    (kept,) = nested_channels(scores, groups, [width])
    for group, score, mask in zip(groups, scores, kept, strict=True):
        size = group.channels // group.parts
        for start in range(0, group.channels, size):
            order = sorted(range(start, start + size), key=lambda channel: (-score[channel], channel))
            assert set(np.flatnonzero(mask[start : start + size]) + start) == set(
                order[: int(mask[start : start + size].sum())]
            )


@given(group_lists(), rising, seeds, seeds)
def test_with_much_hysteresis_nothing_changes_and_with_none_the_past_does_not_count(groups, widths, first, second):
    before = nested_channels(scores_of(groups, first), groups, widths)
    positive = [score + 1 for score in scores_of(groups, second)]
    after = nested_channels(positive, groups, widths, before, hysteresis=100.0)
    for old, new in zip(before, after, strict=True):
        assert all((a == b).all() for a, b in zip(old, new, strict=True))
    free = nested_channels(positive, groups, widths)
    same = nested_channels(positive, groups, widths, before, hysteresis=0.0)
    assert all((a == b).all() for x, y in zip(free, same, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("width", "kept"), [(1.0, 10), (0.5, 5), (0.51, 6), (0.1, 1), (0.001, 1), (0.3, 3)])
def test_channels_a_part_keeps(width, kept):
    assert kept_per_part(ChannelGroup(20, 2, (Cut(0, 0),)), width) == kept


@given(seeds)
def test_coordinates_are_those_no_cut_channel_owns(seed):
    """By brute force: every element is looked up in every cut."""
    rng = np.random.default_rng(seed)
    kept = tuple(rng.random(group.channels) < 0.5 for group in GROUPS)
    expected = {}
    for number, parameter in enumerate(TABLE.parameters):
        mask = np.ones(parameter.shape, np.bool_)
        for place in np.ndindex(parameter.shape):
            for group, own in zip(GROUPS, kept, strict=True):
                for cut in (cut for cut in group.cuts if cut.parameter == number):
                    channel = math.floor((place[cut.axis] - cut.offset) / cut.block)
                    if 0 <= channel < group.channels and not own[channel]:
                        mask[place] = False
        expected[parameter.name] = mask.reshape(-1)
        left = np.zeros(parameter.shape, np.bool_)
        left[np.ix_(*kept_indices(number, TABLE, GROUPS, kept))] = True
        assert (left == mask).all()
    weights, vectors = coordinates(TABLE, GROUPS, kept)
    assert (weights == np.concatenate([expected["a.weight"], expected["b.weight"]])).all()
    assert (vectors == np.concatenate([expected["a.bias"], expected["norm.mean"], expected["b.bias"]])).all()


@given(seeds)
def test_a_channel_scores_the_mean_of_all_weights_it_owns(seed):
    magnitudes = np.random.default_rng(seed).random(TABLE.weight_count).astype(np.float32)
    a, b = magnitudes[:24].reshape(4, 2, 3), magnitudes[24:].reshape(6, 11)
    first, second = rank_channels(magnitudes, TABLE, GROUPS)
    for channel in range(4):
        owned = np.concatenate([a[channel].reshape(-1), b[:, 3 + 2 * channel : 5 + 2 * channel].reshape(-1)])
        assert first[channel] == pytest.approx(owned.mean())
    for channel in range(3):
        assert second[channel] == pytest.approx(b[2 * channel : 2 * channel + 2].mean())


def test_the_full_model_has_all_coordinates():
    check_groups(GROUPS, TABLE)
    weights, vectors = coordinates(TABLE, GROUPS, all_kept(GROUPS))
    assert weights.all()
    assert vectors.all()
    assert (len(weights), len(vectors)) == (TABLE.weight_count, TABLE.vector_count)
    assert [len(part) for part in coordinates(TABLE, (), ())] == [TABLE.weight_count, TABLE.vector_count]


@pytest.mark.parametrize(
    ("group", "text"),
    [
        (ChannelGroup(4, 3, (Cut(0, 0),)), "4 channels, expected a multiple of 3"),
        (ChannelGroup(4, 1, (Cut(6, 0),)), "no axis 0 of array 6"),
        (ChannelGroup(4, 1, (Cut(0, 3),)), "no axis 3 of array 0"),
        (ChannelGroup(1, 1, (Cut(3, 0),)), "no axis 0 of array 3"),
        (ChannelGroup(5, 1, (Cut(0, 0),)), "reaches 5 along axis 0 of 'a.weight', not 4"),
        (ChannelGroup(4, 1, (Cut(4, 1, 4, 2),)), "reaches 12 along axis 1 of 'b.weight', not 11"),
        (ChannelGroup(2, 1, (Cut(0, 0), Cut(0, 0, 1))), "axis 0 of array 0 is cut twice"),
    ],
)
def test_groups_that_do_not_fit_the_table_are_refused(group, text):
    with pytest.raises(PlanError, match=text):
        check_groups((group,), TABLE)


def test_two_groups_may_share_an_axis_but_no_place():
    check_groups((ChannelGroup(2, 1, (Cut(0, 0),)), ChannelGroup(2, 1, (Cut(0, 0, 2),))), TABLE)
    with pytest.raises(PlanError, match="group 1: axis 0 of array 0 is cut twice"):
        check_groups((ChannelGroup(2, 1, (Cut(0, 0),)), ChannelGroup(2, 1, (Cut(0, 0, 1),))), TABLE)


@given(group_lists(), seeds)
def test_channel_bitmaps_come_back(groups, seed):
    rng = np.random.default_rng(seed)
    kept = tuple(rng.random(group.channels) < 0.5 for group in groups)
    data = pack_channels(kept)
    assert len(data) == -(-channel_count(groups) // 8)
    assert all((a == b).all() for a, b in zip(unpack_channels(data, groups), kept, strict=True))


def test_a_bitmap_is_least_significant_bit_first():
    kept = (np.array([1, 0, 0, 1], np.bool_), np.array([0, 1, 0], np.bool_))
    assert pack_channels(kept) == bytes([0b0101001])


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x80"], ids=["short", "long", "a bit too many"])
def test_bitmaps_of_other_lengths_are_refused(data):
    with pytest.raises(PlanError, match="expected one of 7 channels"):
        unpack_channels(data, GROUPS)

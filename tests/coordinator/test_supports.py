"""What a round publishes: supports by density and width, probes that come and go (docs/protocol.md §6.2, §6.7)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator import supports
from coordinator.planning import ModelState, PublishedModel, TaskFacts
from coordinator.settings import CoordinatorSettings, PruningSettings, RoundSettings
from coordinator.supports import Press, check_widths, probe_count, publish_model
from fedpruneshare.errors import SettingsError
from fedpruneshare.messages import Segment
from fedpruneshare.party import PartySettings
from fedpruneshare.sparse.channels import ChannelGroup, Cut, unpack_channels
from fedpruneshare.sparse.model_coding import SegmentReader
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role
from fedpruneshare.sparse.support import OUTSIDE, code_values, decode_values

TABLE = ParameterTable(
    (
        Parameter("a", (40, 20), Role.WEIGHT), Parameter("a.bias", (40,), Role.VECTOR),
        Parameter("b", (30, 40), Role.WEIGHT), Parameter("b.bias", (30,), Role.VECTOR),
        Parameter("c", (10, 30), Role.WEIGHT), Parameter("c.bias", (10,), Role.VECTOR),
    )
)  # fmt: skip
GROUPS = (
    ChannelGroup(40, 1, (Cut(0, 0), Cut(1, 0), Cut(2, 1))),
    ChannelGroup(30, 1, (Cut(2, 0), Cut(3, 0), Cut(4, 1))),
)
FACTS = TaskFacts("made-up", bytes(32), TABLE, GROUPS)
D, V = TABLE.weight_count, TABLE.vector_count


def settings(**pruning: object) -> CoordinatorSettings:
    chosen = {"rungs": (0.25, 0.5, 1.0), "start_density": 0.4, "target_density": 0.1, "dense_rounds": 0} | pruning
    return CoordinatorSettings(
        party=PartySettings(key_file="", directory="", root_key="0" * 64),
        bundle="",
        store="",
        rounds=RoundSettings(count=20),
        pruning=PruningSettings(**chosen),  # type: ignore[arg-type]
    )


def state(applied: int = 0, seed: int = 3) -> ModelState:
    rng = np.random.default_rng(seed)
    coded = code_values(rng.normal(size=D).astype(np.float32))
    return ModelState(coded, rng.normal(size=V).astype(np.float32), (0.1,) * 3, (0.1,) * 3, applied)


def received(published: PublishedModel) -> tuple[np.ndarray, np.ndarray]:
    """Weights and vectors that a device on the last rung has, read from the blobs."""
    reader, weights, vectors = SegmentReader(TABLE), np.zeros(D, np.float32), np.full(V, np.nan, np.float32)
    for index, blob in enumerate(published.blobs):
        counts = published.support.segments[index].size, published.support.vectors[index].size
        part = reader.read(blob, Segment(*counts, 1, 0.5, bytes(32), len(blob), bytes(32), published.widths[index]))
        weights[part.positions] = decode_values(part.codes)
        vectors[part.vector_positions] = part.vectors
    return weights, vectors


@pytest.mark.parametrize("widths", [(), (0.25, 0.5, 1.0), (0.5, 0.5, 1.0)])
def test_devices_read_what_was_published(widths: tuple[float, ...]) -> None:
    model = state()
    published = publish_model(model, 4, settings(widths=widths), FACTS)
    weights, vectors = received(published)
    inside = published.support.rung_of() != OUTSIDE
    assert np.array_equal(weights[inside], decode_values(model.coded)[inside])
    assert not weights[~inside].any()
    assert np.array_equal(vectors, model.vectors)
    assert published.widths == (widths or (1.0, 1.0, 1.0))


def test_vectors_follow_their_channels() -> None:
    published = publish_model(state(), 4, settings(widths=(0.25, 0.5, 1.0)), FACTS)
    assert [part.size for part in published.support.vectors] == [10 + 8 + 10, 10 + 7, 20 + 15]
    narrow, half = (unpack_channels(bitmap, GROUPS) for bitmap in published.channels[:2])
    assert [int(channels.sum()) for channels in narrow] == [10, 8]
    assert all((small <= large).all() for small, large in zip(narrow, half, strict=True))
    biases = published.support.vectors[0][published.support.vectors[0] < 40]
    assert np.array_equal(biases, np.flatnonzero(narrow[0]))


def test_channels_stay_until_others_are_clearly_larger() -> None:
    first = state()
    chosen = settings(widths=(0.25, 0.5, 1.0), churn_tolerance=0.5)
    published = publish_model(first, 4, chosen, FACTS)
    rng = np.random.default_rng(0)
    noisy = code_values(decode_values(first.coded) + rng.normal(scale=0.3, size=D).astype(np.float32))
    forgetful = replace(first, coded=noisy, applied=1)
    keeping = replace(forgetful, last_rungs=published.support.rung_of(), last_channels=published.channels)
    assert publish_model(keeping, 5, chosen, FACTS).channels == published.channels
    assert publish_model(forgetful, 5, chosen, FACTS).channels != published.channels


# --------------------------------------------------------------------------- probes


def test_a_probe_is_a_segment_of_its_own_and_ends_with_three_quarters_of_the_rounds() -> None:
    chosen = settings(probe=0.05)
    published = publish_model(state(), 4, chosen, FACTS)
    assert published.rule.is_probing
    assert [part.size for part in published.support.segments][3] == round(0.05 * D) == probe_count(chosen, 0, D)
    assert publish_model(state(applied=15), 4, chosen, FACTS).rule.is_probing is False
    assert publish_model(state(applied=15), 4, settings(probe=0.05, probe_until=16), FACTS).rule.is_probing


def test_a_fresh_probe_is_drawn_from_all_that_was_pruned_and_starts_at_zero() -> None:
    model, chosen = state(applied=5), settings(probe=0.05)
    one, other = (publish_model(model, round_id, chosen, FACTS) for round_id in (8, 9))
    for published in (one, other):
        assert not published.coded[published.support.segments[3]].any()
        assert not received(published)[0][published.support.segments[3]].any()
    assert np.array_equal(one.support.segments[2], other.support.segments[2])
    assert not np.array_equal(one.support.segments[3], other.support.segments[3])


def test_between_fresh_ones_a_probe_keeps_what_it_has_learnt_and_a_large_one_joins_a_rung() -> None:
    model, chosen = state(applied=5), settings(probe=0.05)
    published = publish_model(model, 8, chosen, FACTS)
    grown, growing = published.support.segments[3][:2]
    coded = np.where(published.support.rung_of() == OUTSIDE, np.uint16(0), published.coded)
    coded[grown], coded[growing] = code_values(np.array([9.0, 0.001], np.float32))
    after = publish_model(replace(model, coded=coded, applied=6), 9, chosen, FACTS)
    assert grown in after.support.segments[0]
    assert growing in after.support.segments[3]
    assert after.coded[growing] == coded[growing]


# --------------------------------------------------------------------------- settings


def test_widths_of_a_model_that_cannot_be_cut() -> None:
    chosen = settings(widths=(0.5, 0.5, 1.0))
    check_widths(chosen, GROUPS, "")
    check_widths(settings(), (), "one tensor of everything")
    with pytest.raises(SettingsError) as caught:
        check_widths(chosen, (), "one tensor of everything")
    assert caught.value.faults[0].path == "pruning.widths"
    assert caught.value.faults[0].hint == "one tensor of everything"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"widths": (0.5, 1.0)}, "pruning.widths"),
        ({"widths": (0.5, 0.25, 1.0)}, "pruning.widths"),
        ({"widths": (0.25, 0.5, 0.75)}, "pruning.widths"),
        ({"rungs": (0.5, 0.5, 1.0)}, "pruning.rungs"),
        ({"rungs": (0.5, 0.5, 1.0), "widths": (0.5, 0.5, 1.0)}, "pruning.rungs"),
        ({"rungs": (0.5, 0.4, 1.0)}, "pruning.rungs"),
        ({"rungs": (1.0, 1.0, 1.0), "widths": (0.25, 0.5, 1.0)}, ""),
    ],
)
def test_rungs_rise_in_density_or_width(changes: dict[str, object], path: str) -> None:
    found = [fault.path for fault in settings(**changes).pruning.faults("pruning")]
    assert found == ([path] if path else [])


async def test_the_model_of_a_round_is_coded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the size of a ResNet-18 it takes seconds, off the round's own time."""
    made: list[int] = []

    def counting(model: ModelState, round_id: int, *rest: object) -> PublishedModel:
        made.append(round_id)
        return publish_model(model, round_id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(supports, "publish_model", counting)
    press, model = Press(settings(), FACTS), state()
    first = await press.publish(model, 4)
    assert await press.publish(model, 4) is first
    assert await press.publish(model, 5) is not first
    assert made == [4, 5]

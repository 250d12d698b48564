"""A round of real processes against the same round in plain arithmetic (docs/protocol.md §4.6, §6.4).

The devices' own words (outbox) are added as plain integers, their own updates (`update.onnx`, which never travels) are
averaged as floats: the first must give the stored model bit for bit, the second within the rounding to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from e2e.fleets import coordinator_rows, outboxes, paused, small_fleet, start
from numpy.typing import NDArray

from edge_client.outbox import Upload
from fedpruneshare.bundle import Bundle
from fedpruneshare.messages import Freeze, RoundPlan, decode, digest
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sparse.onnx_codec import decode_update
from fedpruneshare.sparse.parameters import ParameterTable
from fedpruneshare.sparse.support import Positions
from fedpruneshare.sparse.update import SparseUpdate
from testbed.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


#: Two rungs of the full width, and three of rising width and density: all devices of a rung above one that is missing.
RUNGS = {
    "densities": (),
    "widths and densities": (
        "fleet.devices=9", "rounds.cohort=9",
        "fleet.groups=[{rung_max=0}, {rung_max=1}, {rung_max=2}]",
        "pruning.rungs=[0.5, 0.75, 1.0]", "pruning.widths=[0.25, 0.5, 1.0]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rungs", RUNGS)
def test_the_next_model_is_that_of_plain_masked_fedavg(tmp_path: Path, rungs: str) -> None:
    # A task whose examples are dealt unevenly; half the weights, so that some coordinates are outside every rung.
    task = ('task.name="fashion-mnist"', "pruning.dense_rounds=0", "pruning.start_density=0.5", "coding.value_bits=8")
    task += RUNGS[rungs]
    with small_fleet(tmp_path / "run", *task, "rounds.count=1", "rounds.deadline_s=300", "rounds.grace_s=60") as fleet:
        pids = start(fleet)
        with paused(pids["aggregator-3"]):  # so that every upload is still in its outbox
            uploads = fleet.wait_for(lambda: outboxes(fleet), 200, "every device's upload")
        assert fleet.wait_done(250) == 0
        assert [(line.phase, line.verified) for line in fleet.rounds()] == [("APPLIED", True)]
        table = Bundle.open(fleet.folder.bundle).manifest.table
        view, freeze = planned(fleet)
        updates = [update_of(fleet, ident, table) for ident in fleet.devices]
        before, after = (model(fleet, applied) for applied in (0, 1))
    held_back = {ident: (upload.rung, upload.upload_id) for ident, upload in uploads.items()}
    assert {c.device_id: (c.rung, c.upload_id) for c in freeze.contributors} == held_back
    assert {update.rung for update in updates} == set(range(len(view.plan.segments)))
    assert len({update.weight for update in updates}) > 1
    facts = Facts(view, table, before, after, list(uploads.values()), updates)
    check_against_integers(facts)
    check_against_floats(facts)


@pytest.mark.parametrize("bits", [32, 16])
def test_without_sharing_the_next_model_is_plain_fedavg_to_the_last_bit(tmp_path: Path, bits: int) -> None:
    """What the other arms of a comparison are measured against (docs/protocol.md §5.10)."""
    plain = ('sharing.reveal="plain"', "sharing.threshold=1", "aggregators.count=1", "rounds.deadline_s=300")
    coded = (f"coding.value_bits={bits}", f"coding.vector_bits={bits}", "coding.max_weight=4096")
    task = ('task.name="fashion-mnist"', "pruning.dense_rounds=0", "pruning.start_density=0.5", "rounds.count=1")
    with small_fleet(tmp_path / "run", *plain, *coded, *task) as fleet:
        start(fleet)
        assert fleet.wait_done(250) == 0
        assert [(line.phase, line.verified, line.reveal) for line in fleet.rounds()] == [("APPLIED", False, "plain")]
        table = Bundle.open(fleet.folder.bundle).manifest.table
        updates = [update_of(fleet, ident, table) for ident in fleet.devices]
        before, after = (model(fleet, applied) for applied in (0, 1))
    as_sent = np.float32 if bits == 32 else np.float16
    weights, vectors = np.zeros(before.codes.size), before.vectors.astype(np.float64)
    for index, positions in enumerate(segments_of(updates)):
        there = [update for update in updates if update.rung >= index]
        mean = fedavg([u.values[np.isin(u.positions, positions)].astype(as_sent) for u in there], there)
        weights[positions] = before.codes[positions].astype(np.float64) + mean
    mean = fedavg([update.vectors.astype(as_sent) for update in updates], updates)
    vectors[updates[0].vector_positions] += mean
    assert len({update.weight for update in updates}) > 1
    assert np.array_equal(weights.astype(np.float32).astype(np.float16), after.codes)
    assert np.allclose(vectors, after.vectors, rtol=1e-7, atol=1e-9)


@dataclass(frozen=True)
class Facts:
    """What the round left: the plan, the model before and after it, and what every device kept of it."""

    view: PlanView
    table: ParameterTable
    before: Model
    after: Model
    uploads: list[Upload]
    updates: list[SparseUpdate]


def planned(fleet: Fleet) -> tuple[PlanView, Freeze]:
    ((plan_body, freeze_body),) = coordinator_rows(fleet, "SELECT plan, freeze FROM rounds")
    plan, freeze = decode("round-plan", plan_body), decode("freeze", freeze_body)
    assert isinstance(plan, RoundPlan)
    assert isinstance(freeze, Freeze)
    assert fleet.directory is not None
    return check_plan(plan, digest(plan_body), fleet.directory), freeze


def update_of(fleet: Fleet, ident: str, table: ParameterTable) -> SparseUpdate:
    return decode_update((fleet.folder.store(ident) / "update.onnx").read_bytes(), table)


@dataclass(frozen=True)
class Model:
    """A stored model: its float16 codes as they stand, and its vectors."""

    codes: NDArray[np.float16]
    vectors: NDArray[np.float32]


def model(fleet: Fleet, applied: int) -> Model:
    ((coded, vectors),) = coordinator_rows(fleet, "SELECT coded, vectors FROM models WHERE applied = ?", applied)
    return Model(np.frombuffer(coded, "<f2"), np.frombuffer(vectors, "<f4"))


def segments_of(updates: Iterable[SparseUpdate]) -> list[Positions]:
    """Positions of every segment, ascending, as the devices' updates show them: a longer rung holds the shorter."""
    return added({update.rung: update.positions for update in updates})


def vector_segments_of(updates: Iterable[SparseUpdate]) -> list[Positions]:
    """Vector elements of every segment in the same way: those of the channels that its width adds."""
    return added({update.rung: update.vector_positions for update in updates})


def added(by_rung: dict[int, Positions]) -> list[Positions]:
    segments, before = [], np.empty(0, dtype=np.int64)
    for _, held in sorted(by_rung.items()):
        assert np.isin(before, held).all()
        segments.append(np.setdiff1d(held, before))
        before = held
    return segments


def tensor_clips(bounds: NDArray[np.int64], clips: tuple[float, ...]) -> NDArray[np.float64]:
    """The clip of every coordinate of a flat vector."""
    return np.repeat(np.asarray(clips, np.float32).astype(np.float64), np.diff(bounds))


def digits(words: NDArray[np.uint64], bits: int, devices: int, count: int) -> NDArray[np.uint64]:
    """Digit sums out of summed words, as §5.3 says: digit j of word i is number j·h + i."""
    radix = devices * (2**bits - 1) + 1
    return np.concatenate([words // radix**j % radix for j in range(-(-count // words.size))])[:count]


def check_against_integers(facts: Facts) -> None:
    """Words of all devices, added as 64-bit integers, decoded and averaged here: the stored model to the last bit."""
    plan = facts.view.plan
    coding, n_words = plan.coding, [segment.words for segment in plan.segments]
    weights, vectors = np.zeros(facts.before.codes.size), facts.before.vectors.astype(np.float64)
    clips = tensor_clips(facts.table.weight_bounds(), coding.weight_clips)
    vector_clips = tensor_clips(facts.table.vector_bounds(), coding.vector_clips)
    segments = zip(segments_of(facts.updates), vector_segments_of(facts.updates), strict=True)
    for index, (positions, elements) in enumerate(segments):
        parts = [upload.words for upload in facts.uploads if upload.rung >= index]
        start = sum(n_words[:index])
        total = np.sum([part[start : start + n_words[index]] for part in parts], axis=0, dtype=np.uint64)
        weight, count = int(total[0]), len(parts)
        assert weight == sum(upload.weight for upload in facts.uploads if upload.rung >= index)
        total = total[: total.size - coding.tail_words]
        middle = facts.view.layout.words(elements.size, 0) - coding.tail_words
        if elements.size:
            sums = digits(total[1:middle], coding.vector_bits, coding.max_devices, elements.size)
            mean = decoded(sums, coding.vector_bits, count, vector_clips[elements]) * coding.max_weight / weight
            vectors[elements] += mean
        sums = digits(total[middle:], coding.value_bits, coding.max_devices, positions.size)
        mean = decoded(sums, coding.value_bits, count, clips[positions]) * coding.max_weight / weight
        weights[positions] = facts.before.codes[positions].astype(np.float64) + mean
    assert np.array_equal(weights.astype(np.float32).astype(np.float16), facts.after.codes)
    assert np.array_equal(vectors.astype(np.float32), facts.after.vectors)


def decoded(sums: NDArray[np.uint64], bits: int, count: int, clips: NDArray[np.float64]) -> NDArray[np.float64]:
    q = 2 ** (bits - 1) - 1
    return (sums.astype(np.float64) - count * q) * clips / q


def check_against_floats(facts: Facts) -> None:
    """FedAvg of the float updates on each segment; every device is off by less than one step of clip/Q."""
    coding = facts.view.plan.coding
    clips = tensor_clips(facts.table.weight_bounds(), coding.weight_clips)
    vector_clips = tensor_clips(facts.table.vector_bounds(), coding.vector_clips)
    for index, positions in enumerate(segments_of(facts.updates)):
        there = [update for update in facts.updates if update.rung >= index]
        scale = coding.max_weight / sum(update.weight for update in there)
        values = [update.values[np.isin(update.positions, positions)] for update in there]
        mean = fedavg(values, there)
        step = clips[positions] / (2 ** (coding.value_bits - 1) - 1)
        found = facts.after.codes[positions].astype(np.float64) - facts.before.codes[positions]
        coding_error = np.abs(facts.after.codes[positions].astype(np.float64)) * 2.0**-11 + 2.0**-24
        assert (np.abs(found - mean) < len(there) * step * scale + coding_error).all()
    for index, elements in enumerate(vector_segments_of(facts.updates)):
        there = [update for update in facts.updates if update.rung >= index]
        scale = coding.max_weight / sum(update.weight for update in there)
        step = vector_clips[elements] / (2 ** (coding.vector_bits - 1) - 1)
        mean = fedavg([update.vectors[np.isin(update.vector_positions, elements)] for update in there], there)
        error = np.abs(facts.after.vectors[elements].astype(np.float64) - facts.before.vectors[elements] - mean)
        assert (error < len(there) * step * scale + 1e-6).all()
    outside = np.setdiff1d(np.arange(facts.after.codes.size), np.concatenate(segments_of(facts.updates)))
    assert outside.size > 0
    assert not facts.after.codes[outside].any()


def fedavg(values: list[NDArray[np.float32]], updates: Sequence[SparseUpdate]) -> NDArray[np.float64]:
    """The mean weighted by numbers of examples."""
    return np.average(np.array(values, np.float64), axis=0, weights=[update.weight for update in updates])

"""From sums to the next model: the same for every k-subset, equal to plain masked FedAvg (docs/protocol.md §4.6)."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES, directory
from onnx_models import TABLE, arrays, template
from simulators.whole_shares import split_upload

from aggregator.summing import sum_shares
from coordinator.evaluation import Evaluator
from coordinator.ledger import RoundLedger
from coordinator.opening import Opening, Round, open_and_apply
from coordinator.planning import AvailableDevices, TaskFacts, plan_round
from coordinator.settings import CodingSettings, CoordinatorSettings, PruningSettings, RoundSettings
from coordinator.supports import publish_model
from coordinator.workbench import Workbench
from edge_client.fresh_upload import new_upload
from edge_client.local_round import encode_words
from fedpruneshare.bundle import Bundle, Manifest
from fedpruneshare.errors import InconsistentSharesError, PeerError, SharingError
from fedpruneshare.messages import Attendance, Contribution, Freeze, digest, encode
from fedpruneshare.party import PartySettings
from fedpruneshare.plan import check_plan
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.sparse.support import decode_values
from fedpruneshare.sparse.update import SparseUpdate

RNG = np.random.default_rng(8)
RUNGS = {device: place % 3 for place, device in enumerate(DEVICES)}
WEIGHTS = {device: 40 * (place + 1) for place, device in enumerate(DEVICES)}


class Scene:
    """One frozen round of ten devices with known updates, and the sums of all three aggregators."""

    def __init__(self, folder: Path, value_bits: int) -> None:
        self.settings = CoordinatorSettings(
            party=PartySettings(key_file="", directory="", root_key="0" * 64),
            bundle="",
            store="",
            rounds=RoundSettings(cohort=10),
            pruning=PruningSettings(rungs=(0.25, 0.5, 1.0), start_density=0.8),
            coding=CodingSettings(value_bits=value_bits, chunk_bytes=1024, clip_initial=0.5),
        )
        self.bench = make_bench(folder, self.settings.coding)
        self.state = self.bench.first_model()
        facts = TaskFacts("tiny", bytes(32), TABLE)
        self.published = publish_model(self.state, 1, self.settings, facts)
        plan = plan_round(1, self.state, self.published, facts, (AvailableDevices(RUNGS), self.settings, directory()))
        self.view = check_plan(plan, digest(encode(plan)), directory())
        self.updates = {device: self.make_update(device) for device in DEVICES}
        self.freeze, self.sums = self.share()

    def make_update(self, device: str) -> SparseUpdate:
        positions = self.published.support.prefix(RUNGS[device])
        values = RNG.normal(scale=0.1, size=positions.size).astype(np.float32).clip(-0.5, 0.5)
        vectors = RNG.normal(scale=0.1, size=TABLE.vector_count).astype(np.float32).clip(-0.5, 0.5)
        facts = (1, TABLE.digest(), RUNGS[device], WEIGHTS[device])
        return SparseUpdate(*facts, positions, values, np.arange(vectors.size), vectors)

    def share(self, segments: tuple[int, ...] = (0, 1, 2)) -> tuple[Freeze, dict[str, bytes]]:
        contributors, held = [], {name: [] for name in AGGREGATORS}
        for device, update in self.updates.items():
            words = encode_words(self.view, TABLE, update, RNG)
            upload = new_upload(self.view, update.rung, update.weight, words, Prg.CHACHA20)
            contribution = Contribution(device, upload.upload_id, upload.rung)
            contributors.append(contribution)
            shares = split_upload(self.view, device, upload)
            for name, x in self.view.plan.points.items():
                held[name].append((contribution, shares[x]))
        freeze = Freeze(1, self.view.digest, AGGREGATORS, tuple(contributors), segments)
        sums = {
            name: sum_shares(self.view, x, freeze.segments, held[name], lambda _: Prg.CHACHA20)
            for name, x in self.view.plan.points.items()
        }
        return freeze, sums

    def open(self, names: tuple[str, ...]) -> Opening:
        ledger = RoundLedger(self.view)
        for name in AGGREGATORS:
            assert ledger.attend(name, Attendance(1, self.view.digest, self.freeze.contributors, ()))
        assert ledger.choose_freeze() == self.freeze
        ledger.freeze(self.freeze, digest(encode(self.freeze)))
        for name in names:
            step = self.view.plan.chunk_bytes
            for place, start in enumerate(range(0, len(self.sums[name]), step)):
                ledger.add_answer_chunk(name, place, self.sums[name][start : start + step])
        return open_and_apply(Round(ledger, self.state, self.published), self.bench, self.settings)

    def plain_fedavg(self) -> np.ndarray:
        d = TABLE.weight_count
        total, weight = np.zeros(d), np.zeros(d)
        for update in self.updates.values():
            total[update.positions] += update.weight * update.values
            weight[update.positions] += update.weight
        model = np.zeros(d)
        everywhere = self.published.support.prefix(2)
        model[everywhere] = decode_values(self.state.coded)[everywhere]
        return model + np.divide(total, weight, out=np.zeros(d), where=weight > 0)

    def plain_vectors(self) -> np.ndarray:
        whole = np.array([update.vectors for update in self.updates.values()], dtype=np.float64)
        return self.state.vectors + np.average(whole, axis=0, weights=list(WEIGHTS.values()))


def make_bench(folder: Path, coding: CodingSettings) -> Workbench:
    weights, vectors = TABLE.flatten(arrays())
    inputs, targets = RNG.normal(size=(50, 8)).astype(np.float32), RNG.integers(0, 4, 50)
    manifest = Manifest("tiny", TABLE, (8,), 50, 4, 0, "fixture")
    bundle = Bundle(manifest, template(), weights, vectors, inputs, targets)
    return Workbench(bundle, Evaluator(template(), inputs, targets), folder, coding)


@pytest.mark.parametrize("value_bits", [4, 8, 16])
def test_averaging_is_masked_fedavg_within_its_rounding(tmp_path: Path, value_bits: int) -> None:
    scene = Scene(tmp_path, value_bits)
    opening = scene.open(AGGREGATORS)
    found = decode_values(opening.model.coded)
    # Vectors have 16 bits always; their clip is 0.5 as well, and all ten devices contribute.
    assert opening.model.vectors == pytest.approx(
        scene.plain_vectors(), abs=10 * 0.5 / 32767 * 512 / sum(WEIGHTS.values())
    )
    assert 0 <= opening.accuracy <= 1
    step = 0.5 / (2 ** (value_bits - 1) - 1)
    # Each device errs by less than a step of the folded value; at least three of the lightest contribute.
    bound = 10 * step * 512 / sum(sorted(WEIGHTS.values())[:3]) / 3
    error = np.abs(found - scene.plain_fedavg())
    assert error.max() < bound + 2e-3  # and float16
    assert error.mean() < (0.2 * bound if value_bits < 16 else 1e-3)


def test_every_k_subset_gives_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 4)
    whole = scene.open(AGGREGATORS)
    assert whole.opened.is_verified
    for subset in combinations(AGGREGATORS, 2):
        found = scene.open(subset)
        assert found.opened.points == tuple(sorted(scene.view.plan.points[name] for name in subset))
        assert not found.opened.is_verified
        assert np.array_equal(found.model.coded, whole.model.coded)
        assert np.array_equal(found.model.vectors, whole.model.vectors)
        assert found.model.weight_clips == whole.model.weight_clips
    assert whole.model.applied == 1
    assert whole.model.weight_clips != scene.state.weight_clips


def test_one_altered_word_is_noticed_by_the_third_sum(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 4)
    altered = bytearray(scene.sums["aggregator-2"])
    altered[0] ^= 1
    scene.sums["aggregator-2"] = bytes(altered)
    with pytest.raises(InconsistentSharesError, match="disagree in 1 of"):
        scene.open(AGGREGATORS)


def test_two_sums_open_but_cannot_be_verified_against_an_altered_one(tmp_path: Path) -> None:
    """k sums fix one polynomial: what is altered then is refused only where it does not decode. Never another error."""
    scene = Scene(tmp_path, 4)
    honest = scene.open(AGGREGATORS[:2])
    first, opened = scene.sums["aggregator-1"], 0
    for place in range(0, len(first), 4):
        altered = bytearray(first)
        altered[place] ^= 1
        scene.sums["aggregator-1"] = bytes(altered)
        try:
            found = scene.open(AGGREGATORS[:2])
        except PeerError:
            continue
        opened += 1
        assert not found.opened.is_verified
        assert any(not np.array_equal(found.opened.words[s], honest.opened.words[s]) for s in honest.opened.words)
    assert opened > len(first) // 8


def test_sums_that_are_no_field_elements_are_refused(tmp_path: Path) -> None:
    """Whatever devices sent, an honest sum is below the modulus: who answers so is named."""
    scene = Scene(tmp_path, 4)
    honest = scene.open(AGGREGATORS[:2])
    scene.sums["aggregator-3"] = b"\xff" * len(scene.sums["aggregator-3"])
    found = scene.open(AGGREGATORS)
    assert found.opened.wrong_points == (scene.view.plan.points["aggregator-3"],)
    assert not found.opened.is_verified
    assert np.array_equal(found.model.coded, honest.model.coded)
    with pytest.raises(SharingError, match="not below the modulus"):
        scene.open(AGGREGATORS[1:])


def test_a_segment_too_few_reach_stays_closed_and_keeps_its_weights(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 16)
    for device in [d for d in DEVICES if RUNGS[d] == 2][1:]:
        del scene.updates[device]
    scene.freeze, scene.sums = scene.share((0, 1))
    found = decode_values(scene.open(AGGREGATORS).model.coded)
    old, (first, second, closed) = decode_values(scene.state.coded), scene.published.support.segments
    assert np.array_equal(found[closed], old[closed])
    opened = np.concatenate([first, second])
    assert found[opened] == pytest.approx(scene.plain_fedavg()[opened], abs=2e-3)
    assert not np.array_equal(found[opened], old[opened])
    assert not found[np.setdiff1d(np.arange(old.size), scene.published.support.prefix(2))].any()

"""The parts of a synthetic fleet: its bundle, its words, and that nothing of it needs torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import plain_view

from coordinator.evaluation import Evaluator
from fedpruneshare.bundle import Bundle
from fedpruneshare.directory import DeviceEntry, Directory, PartyKeys, Service
from fedpruneshare.errors import SettingsError
from fedpruneshare.messages import Coding, RoundPlan, Segment, Sharing, Training, digest, encode
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sharing.field import check_canonical
from fedpruneshare.words import WordLayout
from testbed.engines import new_engine
from testbed.places import Place
from testbed.scenario import load_scenario
from testbed.synthetic.bundle import write_bundle
from testbed.synthetic.words import random_words

DEVICES = tuple(f"device-{index:02d}" for index in range(5))
SIZES = ((40, 6), (60, 0))


@pytest.fixture(scope="module")
def view() -> PlanView:
    """A plan of two segments."""
    coding = Coding(4, 16, (0.1,), (0.1,), 512, len(DEVICES))
    layout = WordLayout(coding)
    segments = tuple(
        Segment(weights, vectors, layout.words(vectors, weights), 1.0, bytes(32), 100, bytes(32))
        for weights, vectors in SIZES
    )
    keys = (PartyKeys("0" * 64, "0" * 64),)
    services = {f"aggregator-{number}": Service(keys, "127.0.0.1", 1) for number in (1, 2, 3)}
    devices = {name: DeviceEntry(keys) for name in DEVICES}
    directory = Directory("lab", 1, "coordinator", services["aggregator-1"], services, devices, 3, 3)
    points = {name: place for place, name in enumerate(services, 1)}
    plan = RoundPlan(
        4, 1, "synthetic", bytes(32), bytes(32), Sharing(3, 2, 1), points, coding, segments, (0, 1),
        Training(1, 1, 0.1), DEVICES, 3, 3, 60.0,
    )  # fmt: skip
    return check_plan(plan, digest(encode(plan)), directory)


def test_words_fill_the_plans_layout_and_follow_from_seed_device_and_round(view: PlanView) -> None:
    weight, words = random_words(view, 1, seed=7, index=3)
    assert words.size == view.upload_words(1)
    check_canonical(words, view.field)
    again = random_words(view, 1, seed=7, index=3)
    assert again[0] == weight == int(words[0])
    assert np.array_equal(again[1], words)
    assert not np.array_equal(random_words(view, 1, seed=7, index=4)[1], words)
    assert random_words(view, 0, seed=7, index=3)[1].size == view.upload_words(0)


@pytest.mark.parametrize("bits", [32, 16])
def test_without_sharing_the_words_are_numbers(bits: int) -> None:
    """As `--arm fedavg` and `prune-only` of thousand-devices send them."""
    made = plain_view(bits)
    weight, words = random_words(made, 1, seed=7, index=3)
    assert words.size == made.upload_words(1)
    first = made.plan.segments[0]
    part = made.plain_layout.unpack(words[: first.words], first.vectors, first.weights)
    assert part.weight == weight
    assert 0.8 < part.values.std() < 1.2


def test_values_spread_over_a_part_of_the_range_as_a_real_updates_do(view: PlanView) -> None:
    found = []
    for index in range(60):
        weight, words = random_words(view, 0, seed=1, index=index)
        part = view.layout.unpack(words[: view.segment_words[0]], SIZES[0][1], SIZES[0][0])
        assert part.weight == weight
        found.append(part.values.astype(int) - 7)
    values = np.concatenate(found)
    assert abs(values.mean()) < 0.2
    assert 0.8 < values.std() < 2.5  # a third of the clip, folded by weights from 1 to 512


@pytest.mark.parametrize("values", [100, 997, 1003, 10_000])
def test_the_bundle_has_exactly_as_many_weights_and_scores(tmp_path: Path, values: int) -> None:
    write_bundle(values, seed=3, path=tmp_path / "task.bundle")
    bundle = Bundle.open(tmp_path / "task.bundle")
    assert bundle.manifest.table.weight_count == values
    evaluator = Evaluator(bundle.template, bundle.test_inputs, bundle.test_targets)
    arrays = bundle.manifest.table.unflatten(bundle.weights, bundle.vectors)
    assert 0.0 <= evaluator.score(arrays).metric <= 1.0


def test_a_host_needs_no_torch() -> None:
    """Thousands of devices: a few hundred MiB a process would be most of what they take."""
    code = "import sys, testbed.synthetic.host; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("override", ["task.name=hapt", "fleet.engine=process"])
def test_the_synthetic_task_goes_with_the_synthetic_engine_alone(override: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_scenario("thousand-devices", [override.replace("=", '="') + '"'])
    assert [fault.path for fault in caught.value.faults] == ["task.name"]


def test_a_synthetic_device_has_no_place_of_its_own(tmp_path: Path) -> None:
    engine = new_engine(load_scenario("thousand-devices"), tmp_path)
    with pytest.raises(SettingsError, match="expected no network or control group of its own"):
        engine.start("device-000", tmp_path, Place("/proc/1/ns/net"))

"""device calibrate: real steps, real publishes over a real broker, real memory; and what fails alone."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest
from builders import AGGREGATORS, directory, identity
from click.testing import CliRunner, Result

from edge_client.adaptation.calibration import Calibration, LinkRate, load_calibration
from edge_client.calibrating import bench as calibrating
from edge_client.calibrating.bench import Bench, calibrate
from edge_client.calibrating.trial import Trial
from edge_client.cli import device
from edge_client.energy.meters import Source
from edge_client.running import workplace
from edge_client.settings import DeviceSettings, DeviceTask
from fedpruneshare.directory import write_directory
from fedpruneshare.errors import FedPruneShareError, MeterError, TaskError
from fedpruneshare.messages import ShareUpload
from fedpruneshare.party import LinkSettings, Party, PartySettings
from fedpruneshare.process import open_link
from fedpruneshare.settings import render_toml
from fedpruneshare.topics import Role
from firmware_configs.brokers.embedded import embedded_broker

NAME = "device-03"


@dataclass
class Place:
    """A device's files; its second aggregator's broker is gone."""

    config: Path
    settings: DeviceSettings
    party: Party

    def bench(self, **changes: object) -> Bench:
        return Bench(self.settings, self.party, **{"seconds": 0.2, **changes})  # type: ignore[arg-type]

    def run(self, *options: str) -> Result:
        return CliRunner().invoke(device, ["calibrate", "--config", str(self.config), *options], standalone_mode=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    broker = embedded_broker(folder / "broker")
    broker.start()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: nothing answers there
        services = {
            name: msgspec.structs.replace(service, host="127.0.0.1", port=broker.address.port)
            for name, service in directory().aggregators.items()
        }
        services[AGGREGATORS[1]] = msgspec.structs.replace(services[AGGREGATORS[1]], port=closed.getsockname()[1])
        whole = directory(aggregators=services)
        root = identity("root")
        write_directory(folder / "directory.json", whole, root)
        identity(NAME).save(folder / "key.json")
        settings = DeviceSettings(
            PartySettings(str(folder / "key.json"), str(folder / "directory.json"), root.public()[0].signing.hex()),
            DeviceTask("hapt", 3, 6, data_dir=str(folder)),
            str(folder / "store"),
            link=LinkSettings(connect_timeout_s=4.0),
        )
        (folder / "device.toml").write_text(render_toml(settings))
        try:
            yield Place(folder / "device.toml", settings, Party.load(settings.party, Role.DEVICE))
        finally:
            broker.stop()


def test_the_command_writes_what_could_be_measured(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "find_meter", absent_meter)
    started_s = time.monotonic()
    found = place.run("--seconds", "0.3", "--widths", "0.5")
    took_s = time.monotonic() - started_s
    assert found.return_value == 0, found.output
    assert "power    left out: no sensor here" in found.output
    assert f"links    {AGGREGATORS[1]}: left out" in found.output
    written = load_calibration(Path(place.settings.store) / "calibration.toml")
    assert (written.task, written.batch_size) == ("hapt", 32)
    assert set(written.step_s) == set(written.step_mib) == {"1.0", "0.5"}
    assert all(1e-5 < seconds < took_s for seconds in written.step_s.values())
    assert written.share_bytes_s is not None
    assert 1e5 < written.share_bytes_s < 1e10
    assert set(written.links) == {AGGREGATORS[0], AGGREGATORS[2]}
    assert all(rate.up_bytes_s > 1e3 and 0 < rate.rtt_s < took_s for rate in written.links.values())
    assert (written.idle_w, written.busy_w, written.power_source) == (None, None, "")
    assert written.base_mib is not None
    assert 50 < written.base_mib < 1000


def absent_meter(_root: Path) -> object:
    raise TaskError("no sensor here")


def test_nothing_measured_is_a_failure_and_writes_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "find_meter", absent_meter)
    found = place.run("--skip", "steps,sharing,links,memory", "--out", str(tmp_path / "c.toml"))
    assert found.return_value == 1
    assert "no sensor here" in found.output
    assert not (tmp_path / "c.toml").exists()


@pytest.mark.parametrize("options", [("--skip", "stepps"), ("--widths", "0.5,2"), ("--widths", "half")], ids=str)
def test_options_that_make_no_sense_are_refused(place: Place, options: tuple[str, ...]) -> None:
    refused = place.run(*options).exception
    assert isinstance(refused, click.BadParameter)
    assert "expected" in refused.message


def test_a_skipped_part_keeps_what_was_measured_before(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "find_meter", absent_meter)
    before = Calibration("this", "hapt", 32, {"1.0": 0.5}, links={"aggregator-1": LinkRate(1.0, 0.1)}, idle_w=3.0)
    outcome = calibrate(place.bench(), "this", before, {"sharing": ignore, "power": ignore})
    assert outcome.calibration.step_s == {"1.0": 0.5}
    assert outcome.calibration.links == before.links
    assert outcome.calibration.share_bytes_s is not None
    assert outcome.calibration.idle_w is None  # measured again, and in vain
    other = calibrate(place.bench(), "another board", before, {"sharing": ignore})
    assert other.calibration.step_s == {}


def ignore(_part: float) -> None:
    return None


def test_a_damaged_file_is_replaced(place: Place, tmp_path: Path) -> None:
    target = tmp_path / "calibration.toml"
    target.write_text("board = 7\n")
    found = place.run("--skip", "steps,links,power,memory", "--seconds", "0.1", "--out", str(target))
    assert found.return_value == 0, found.output
    assert load_calibration(target).share_bytes_s is not None


# --------------------------------------------------------------------------- power


class Watts:
    """A sensor that shows 3 W, and a little more with every reading so that it does not seem to hang."""

    source = Source("fake", "the whole board", "exact")

    def __init__(self) -> None:
        self._noise = itertools.count()

    def watts(self) -> float:
        return 3.0 + 1e-6 * next(self._noise)


def test_power_is_the_meters_and_names_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "find_meter", lambda root: Watts())
    told: list[float] = []
    found = calibrating.measure_power(place.bench(seconds=0.5), told.append)
    assert found.fields["idle_w"] == pytest.approx(3.0, abs=1e-3)
    assert found.fields["busy_w"] == pytest.approx(3.0, abs=1e-3)
    assert found.fields["power_source"] == "fake: the whole board"
    assert told == sorted(told)
    assert told[-1] == 1.0


# --------------------------------------------------------------------------- links


async def test_what_is_published_is_a_share_of_no_open_round(place: Place) -> None:
    """An aggregator answers it as any share that comes too early, and keeps nothing."""
    party, kept = place.party, []
    watcher = open_link(party.directory.aggregators[AGGREGATORS[0]].address, "watcher", place.settings.link)

    async def keep(delivery: object) -> None:
        kept.append(party.open("up", delivery.payload))  # type: ignore[attr-defined]

    await watcher.subscribe(party.topics.every("up"), keep)
    await watcher.connect()
    try:
        rate = await calibrating._measure_link(place.bench(), AGGREGATORS[0])
        async with asyncio.timeout(60):
            while not kept:
                await watcher.subscribe(party.topics.name("ack", NAME), keep)
    finally:
        await watcher.close()
    assert rate.up_bytes_s > 0
    messages = [opened.message for opened in kept]
    assert all(isinstance(message, ShareUpload) and message.round_id == 2**48 - 1 for message in messages)
    assert {opened.sender for opened in kept} == {NAME}


def test_a_device_without_any_uplink_says_why(place: Place) -> None:
    only = {AGGREGATORS[1]: place.party.directory.aggregators[AGGREGATORS[1]]}
    party = Party(identity(NAME), msgspec.structs.replace(place.party.directory, aggregators=only), Role.DEVICE)
    with pytest.raises(FedPruneShareError, match=rf"{AGGREGATORS[1]}: left out"):
        calibrating.measure_links(Bench(place.settings, party, 0.2), ignore)


# --------------------------------------------------------------------------- training


def test_a_trial_leaves_the_devices_own_model_alone(place: Place) -> None:
    bench = place.bench()
    before = {key: value.clone() for key, value in bench.work.model.state_dict().items()}
    for width in (1.0, 0.5):
        assert Trial(bench.work, bench.groups, width, 16, density=0.1).train(2) > 0
    assert all(np.array_equal(before[key], value) for key, value in bench.work.model.state_dict().items())


def test_a_narrower_trial_is_a_smaller_model(place: Place) -> None:
    bench = place.bench()
    sizes = [
        sum(parameter.numel() for parameter in Trial(bench.work, bench.groups, width, 16)._model.parameters())
        for width in (1.0, 0.5, 0.25)
    ]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


def test_a_model_that_cannot_be_cut_is_measured_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise TaskError("nothing to cut")

    monkeypatch.setattr(calibrating, "groups_of", refuse)
    found = calibrating.measure_steps(place.bench(widths=(1.0, 0.5)), ignore)
    assert set(found.fields["step_s"]) == {"1.0"}
    assert "width 1 only: nothing to cut" in found.notes


def test_a_bundle_of_another_model_is_refused(place: Place, tmp_path: Path) -> None:
    bench = place.bench(bundle=tmp_path / "missing.bundle")
    assert bench.groups == ()
    assert "missing.bundle" in bench.uncut_reason


def test_the_workplace_of_the_bench_is_the_devices(place: Place) -> None:
    assert len(place.bench().work.dataset) == len(workplace(place.settings).dataset)


def test_watts_of_the_processor_alone_do_not_stand_for_the_board(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Watts()
    meter.source = Source("rapl", "1 processor packages, not the board", "exact")
    monkeypatch.setattr(calibrating, "find_meter", lambda root: meter)
    with pytest.raises(MeterError, match=r"3\.00 W idle.*not the board.*profile stay"):
        calibrating.measure_power(place.bench(), ignore)

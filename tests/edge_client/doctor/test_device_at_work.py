"""A device at work keeps its connections: who measures beside it looks at the lock on its store first."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import builders
import msgspec
import pytest
from certificates import Certificates
from click.testing import CliRunner

from edge_client.adaptation.calibration import Calibration
from edge_client.calibrating import bench
from edge_client.calibrating.bench import Outcome
from edge_client.cli import device
from edge_client.doctor.federation import federation
from edge_client.doctor.findings import Finding, Visit
from edge_client.settings import DeviceSettings, DeviceTask
from fedpruneshare.directory import write_directory
from fedpruneshare.link import BrokerAddress
from fedpruneshare.party import LinkSettings, PartySettings
from fedpruneshare.process import open_link
from fedpruneshare.settings import render_toml
from firmware_configs.brokers.mosquitto import MosquittoSettings, mosquitto_broker

DEVICE = builders.DEVICES[0]
HOLD = """
import sys
from pathlib import Path
from fedpruneshare.at_work import at_work
with at_work(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(store: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is at work on a store."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(store)], **pipes) as child:  # type: ignore[call-overload]
        try:
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def settings_in(folder: Path, **changes: object) -> DeviceSettings:
    root = builders.identity("root")
    party = PartySettings(str(folder / "key.json"), str(folder / "directory.json"), root.public()[0].signing.hex())
    whole = DeviceSettings(party, DeviceTask("hapt", 0, 6, data_dir=str(folder)), str(folder / "store"), **changes)  # type: ignore[arg-type]
    (folder / "device.toml").write_text(render_toml(whole))
    builders.identity(DEVICE).save(folder / "key.json")
    write_directory(folder / "directory.json", builders.directory(), root)
    return whole


def test_calibrate_leaves_a_device_at_work_alone_unless_it_is_forced(tmp_path: Path) -> None:
    whole = settings_in(tmp_path)
    words = ["calibrate", "--config", str(tmp_path / "device.toml"), "--skip", "steps,links,power,memory"]
    words += ["--seconds", "0.1"]
    with holder(Path(whole.store)):
        refused = CliRunner().invoke(device, words, standalone_mode=False)
        assert "its device is at work, expected it to be stopped" in str(refused.exception)
        assert CliRunner().invoke(device, [*words, "--force"], standalone_mode=False).return_value == 0


def test_calibrate_looks_for_its_folder_before_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that it makes is its owner's only; where there can be none, nobody waits to be told so."""
    settings_in(tmp_path)
    (tmp_path / "file").write_text("in the way")
    measured: list[Path] = []

    def measure(*_: object) -> Outcome:
        measured.append(tmp_path)
        return Outcome(Calibration("generic-x86-64", "hapt", 32))

    monkeypatch.setattr(bench, "calibrate", measure)
    words = ["calibrate", "--config", str(tmp_path / "device.toml")]
    refused = CliRunner().invoke(device, [*words, "--out", str(tmp_path / "file" / "x" / "c.toml")])
    assert isinstance(refused.exception, NotADirectoryError)
    assert not measured
    assert CliRunner().invoke(device, words, standalone_mode=False).return_value == 0
    assert measured
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


def direct_to(folder: Path, address: BrokerAddress) -> None:
    """Have the directory name one broker for everything."""
    at, known = msgspec.structs.replace, builders.directory()
    place = {"host": address.host, "port": address.port, "tls": True}
    services = {name: at(service, **place) for name, service in known.aggregators.items()}
    known = at(known, coordinator=at(known.coordinator, **place), aggregators=services)
    write_directory(folder / "directory.json", known, builders.identity("root"))


async def examined(
    folder: Path, own: LinkSettings, address: BrokerAddress, *, is_forced: bool = False
) -> tuple[list[Finding], list[bool]]:
    """The doctor's findings on brokers while the device is connected, and the connections it had."""
    link, connects = open_link(address, DEVICE, own), list[bool]()

    async def connected(first: bool) -> None:
        connects.append(first)

    link.on_connect(connected)
    await link.connect()
    try:
        found = await asyncio.to_thread(federation, Visit.begin(Path("/"), folder / "device.toml", is_forced))
        async with asyncio.timeout(60):
            while len(connects) < 1 + is_forced:
                await asyncio.sleep(0.01)
        if not is_forced:
            await link.publish("t/still-here", b"x")
    finally:
        await link.close()
    return [finding for finding in found if finding.name.startswith("broker")], connects


@pytest.mark.mosquitto
def test_the_doctor_does_not_end_the_connection_of_a_device_with_a_certificate(tmp_path: Path) -> None:
    """By mutual TLS a broker knows a device by its certificate alone, whatever name it gives itself."""
    certificates = Certificates(tmp_path / "tls")
    own = LinkSettings(tls=certificates.client(DEVICE), connect_timeout_s=60.0)
    whole = settings_in(tmp_path, link=own)
    access = {"allow_anonymous": False, "access_list": "pattern readwrite #\n", "tls": certificates.server()}
    with mosquitto_broker(MosquittoSettings(tmp_path / "broker", **access)) as broker, holder(Path(whole.store)):  # type: ignore[arg-type]
        direct_to(tmp_path, broker.address)
        found, connects = asyncio.run(examined(tmp_path, own, broker.address))
        assert connects == [True], "its connection fell"
        assert {finding.result for finding in found} == {"ok"}
        assert all("no login" in finding.found and finding.figures["tls_s"] > 0 for finding in found)
        found, connects = asyncio.run(examined(tmp_path, own, broker.address, is_forced=True))
        assert connects[:2] == [True, False]
        assert any("login in" in finding.found for finding in found)
        Path(own.tls.ca_file).write_bytes(Certificates(tmp_path / "other").ca_file.read_bytes())  # type: ignore[union-attr]
        visit = Visit.begin(Path("/"), tmp_path / "device.toml")
        assert {one.result for one in federation(visit) if one.name.startswith("broker")} == {"failed"}

"""The doctor's findings: right on every board's tree, bounded on any network, and harmless to what it looks at."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity

from edge_client.adaptation.calibration import Calibration, save_calibration
from edge_client.board.profiles import load_board
from edge_client.commands.doctor import _print_table
from edge_client.device import Health, LinkState, measure
from edge_client.doctor import federation as doctor_federation
from edge_client.doctor import findings
from edge_client.doctor.board import NEEDED_MIB, board
from edge_client.doctor.examination import as_lines, as_record, examine, verdict
from edge_client.doctor.federation import brokers, calibration_finding, federation, file_system, store_finding
from edge_client.doctor.findings import Check, Finding, Visit
from edge_client.doctor.software import (
    Library,
    keystream_finding,
    onnxruntime_finding,
    python_finding,
    threads_finding,
    torch_finding,
    tried,
)
from edge_client.settings import DeviceLimits, DeviceSettings, DeviceTask
from fedpruneshare.cli import run
from fedpruneshare.directory import Service, write_directory
from fedpruneshare.link import BrokerAddress
from fedpruneshare.party import LinkSettings, PartySettings
from fedpruneshare.process import open_link
from fedpruneshare.settings import render_toml
from firmware_configs.brokers.embedded import embedded_broker

TREES = Path(__file__).parents[1] / "trees"
NOW = 1_800_000_000.0
PI4, PI5 = load_board("raspberry-pi-4b"), load_board("raspberry-pi-5")
ZERO, ORIN, X86 = (load_board(name) for name in ("raspberry-pi-zero-2-w", "jetson-orin-nano", "generic-x86-64"))


def visit(name: str, **known: Any) -> Visit:
    """A visit to a tree, with parts of its health replaced."""
    root = TREES / name
    profile = load_board(name)
    seen = measure(root, arch=profile.processor.arch, unix_s=NOW)
    return Visit(root, replace(seen, **known), profile)


def by_name(found: list[Finding] | tuple[Finding, ...]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def settings(tmp_path: Path, **changes: Any) -> DeviceSettings:
    whole = DeviceSettings(
        party=PartySettings(
            key_file=str(tmp_path / "key"),
            directory=str(tmp_path / "directory"),
            root_key=identity("root").public()[0].signing.hex(),
        ),
        task=DeviceTask("hapt", 0, 10),
        store=str(tmp_path / "store"),
        link=LinkSettings(connect_timeout_s=10.0),
    )
    return msgspec.structs.replace(whole, **changes)


# --------------------------------------------------------------------------- the board

RESULTS = {
    "raspberry-pi-zero-2-w": "ok warning warning ok skipped skipped ok ok ok",
    "raspberry-pi-4b": "ok ok warning warning ok skipped ok ok ok",
    "raspberry-pi-5": "ok warning ok ok ok skipped skipped ok ok",
    "jetson-nano": "ok ok ok skipped skipped skipped ok ok ok",
    "jetson-orin-nano": "ok ok ok skipped ok skipped ok ok ok",
    "generic-x86-64": "ok ok ok skipped ok ok ok ok ok",
}
NAMES = ("board", "memory", "heat", "supply", "clock", "battery", "sensor", "load", "network")


@pytest.mark.parametrize("name", RESULTS)
def test_findings_on_a_tree(name: str) -> None:
    found = {finding.name: finding.result for finding in board(visit(name))}
    assert found == dict(zip(NAMES, RESULTS[name].split(), strict=True))


@pytest.mark.parametrize(
    ("known", "name", "result", "text"),
    [
        ({"free_mib": NEEDED_MIB - 1}, "memory", "failed", f"{NEEDED_MIB} needed"),
        ({"free_mib": NEEDED_MIB}, "memory", "warning", "kept for the system"),
        ({"free_mib": None}, "memory", "skipped", ""),
        ({"is_throttled": True, "alarms": ("throttled",)}, "heat", "warning", "throttled"),
        ({"temperature_c": 80.0, "alarms": ()}, "heat", "warning", "the limit is 80 C"),
        ({"temperature_c": 79.9, "alarms": ()}, "heat", "ok", "79.9 C"),
        ({"temperature_c": None, "alarms": ()}, "heat", "ok", "temperature unknown; not throttled"),
        ({"temperature_c": None, "is_throttled": None, "alarms": ()}, "heat", "skipped", ""),
        ({"is_undervolted": True}, "supply", "failed", "undervoltage now"),
        ({"clock": "unset"}, "clock", "warning", "before this software was released"),
        ({"clock": "unsynchronised"}, "clock", "warning", "no time source"),
        ({"battery_percent": 20.0, "on_mains": False}, "battery", "warning", "20 % are its reserve"),
        ({"battery_percent": 20.0, "on_mains": None}, "battery", "warning", "reserve"),
        ({"battery_percent": 5.0, "on_mains": True}, "battery", "ok", "5 %"),
        ({"load_1min": 4.01}, "load", "warning", "4.01 on 4 cores"),
        ({"load_1min": 1.5, "cores": 1}, "load", "warning", "1.50 on 1 cores"),
        ({"links": ()}, "network", "skipped", ""),
        ({"links": (LinkState("eth0", "ethernet", False, None),)}, "network", "failed", "eth0 (ethernet) is down"),
        ({"links": (LinkState("wwan0", "lte", None, None),)}, "network", "ok", "wwan0 (lte)"),
    ],
)
def test_what_ails_a_board(known: dict[str, Any], name: str, result: str, text: str) -> None:
    finding = by_name(board(visit("raspberry-pi-4b", **known)))[name]
    assert finding.result == result
    assert text in finding.found


def test_limits_of_the_settings_count(tmp_path: Path) -> None:
    own = settings(tmp_path, limits=DeviceLimits(memory_mib=100, battery_reserve_percent=90.0))
    found = by_name(board(replace(visit("generic-x86-64"), settings=own)))
    assert (found["memory"].result, found["memory"].fix) == (
        "warning",
        f"set limits.memory_mib to {NEEDED_MIB} or more",
    )
    assert (found["battery"].result, "90 % are its reserve" in found["battery"].found) == ("warning", True)


def test_throttling_by_a_weak_supply_is_not_laid_on_the_cooling() -> None:
    assert by_name(board(visit("raspberry-pi-4b")))["heat"].fix == "mend the supply first"


def test_a_board_without_a_profile(tmp_path: Path) -> None:
    unknown = measure(tmp_path, arch="armv7l", unix_s=NOW)
    finding = by_name(board(Visit(tmp_path, unknown)))["board"]
    assert (finding.result, "armv7l" in finding.found) == ("failed", True)
    strange = replace(measure(tmp_path, arch="aarch64", unix_s=NOW), model="Radxa ROCK 5B")
    finding = by_name(board(Visit(tmp_path, strange, load_board("generic-arm64"))))["board"]
    assert (finding.result, "no profile of its own" in finding.found) == ("warning", True)


def test_a_sensor_that_may_not_be_read_is_answered_with_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.read_text

    def refuse(self: Path, *args: Any, **options: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    finding = by_name(board(visit("generic-x86-64")))["sensor"]
    assert finding.result == "warning"
    assert "permission denied" in finding.found and "energy_uj" in finding.found
    assert "/etc/udev/rules.d/" in finding.fix


def test_a_sensor_that_is_missing_on_a_board_that_should_have_one(tmp_path: Path) -> None:
    bare = replace(visit("jetson-orin-nano"), root=tmp_path)
    assert by_name(board(bare))["sensor"].fix == "read an external meter: device power --csv FILE"


# --------------------------------------------------------------------------- software


@pytest.mark.parametrize(
    ("version", "arch", "bits", "result"),
    [((3, 11), "aarch64", 64, "ok"), ((3, 14), "x86_64", 64, "ok"), ((3, 10), "x86_64", 64, "failed"),
     ((3, 12), "armv7l", 32, "failed"), ((3, 12), "aarch64", 32, "failed")],
)  # fmt: skip
def test_python(version: tuple[int, int], arch: str, bits: int, result: str) -> None:
    assert python_finding(version, arch, bits).result == result


@pytest.mark.parametrize(
    ("profile", "library", "result", "text"),
    [
        (PI4, Library("2.9.1", 0), "ok", "torch 2.9.1"),
        (PI4, Library("2.10.0", -signal.SIGILL), "failed", "illegal instruction"),
        (PI4, Library("2.10.0", 0), "warning", "reported to stop"),
        (PI4, Library("2.4.0+cpu", 0), "warning", "reported to stop"),
        (ZERO, Library("2.10.0", 0), "warning", "reported to stop"),
        (PI5, Library("2.10.0", 0), "ok", "torch 2.10.0"),
        (PI5, Library("2.11.0", 0), "warning", "CUDA"),
        (ORIN, Library("2.11.0", 0), "ok", "torch"),
        (X86, Library("2.13.0+cpu", 0), "ok", "torch"),
        (X86, Library("", None), "failed", "not installed"),
        (X86, Library("2.13.0", 1, "ImportError: libgomp.so.1"), "failed", "libgomp"),
        (ZERO, Library("2.9.1", -signal.SIGKILL), "failed", "memory"),
        (ZERO, Library("2.9.1", None, "still importing after 120 s"), "warning", "still importing"),
        (None, Library("2.9.1", 0), "ok", "torch"),
    ],
)
def test_torch(profile: Any, library: Library, result: str, text: str) -> None:
    finding = torch_finding(profile, library)
    assert (finding.result, text in finding.found) == (result, True)
    assert bool(finding.fix) == (result != "ok")


@pytest.mark.parametrize(
    ("profile", "library", "result"),
    [(PI4, Library("1.21.0", 0), "failed"), (PI4, Library("1.21.1", 0), "ok"), (PI5, Library("1.21.0", 0), "ok"),
     (X86, Library("1.21.0", 0), "ok"), (X86, Library(""), "warning"), (PI4, Library("1.20.0", 1, "x"), "failed")],
)  # fmt: skip
def test_onnxruntime(profile: Any, library: Library, result: str) -> None:
    assert onnxruntime_finding(profile, library).result == result


def test_keystream_libraries() -> None:
    both = ("cryptography", "pycryptodome")
    assert keystream_finding(PI4, both, "auto").result == "ok"
    assert keystream_finding(PI4, both[1:], "auto").fix == "pip install 'fedpruneshare[fast]'"
    assert "no AES instructions" in keystream_finding(PI4, both, "aes-256-ctr").found
    assert keystream_finding(PI5, both, "aes-256-ctr").result == "ok"


@pytest.mark.parametrize(
    ("profile", "environment", "threads", "result", "fix"),
    [
        (PI4, {}, 1, "ok", ""),
        (ZERO, {}, 1, "warning", "Environment=OMP_NUM_THREADS=1 in the service's unit"),
        (ZERO, {"OMP_NUM_THREADS": "1"}, 1, "ok", ""),
        (PI4, {"OPENBLAS_NUM_THREADS": "64"}, 1, "warning", "export OPENBLAS_NUM_THREADS=1"),
        (PI4, {"OMP_NUM_THREADS": "all"}, 1, "warning", "export OMP_NUM_THREADS=1"),
        (PI4, {"OMP_NUM_THREADS": "0"}, 1, "warning", "export OMP_NUM_THREADS=1"),
        (PI4, {}, 5, "warning", "set limits.torch_threads = 4 or less"),
    ],
)
def test_threads(profile: Any, environment: dict[str, str], threads: int, result: str, fix: str) -> None:
    finding = threads_finding(profile, environment, threads)
    assert (finding.result, finding.fix) == (result, fix)


def test_a_library_is_tried_in_a_process_of_its_own() -> None:
    assert tried("msgspec", "msgspec.json.encode([1])").exit_code == 0
    assert tried("msgspec", "import os, signal; os.kill(os.getpid(), signal.SIGILL)").exit_code == -signal.SIGILL
    failed = tried("msgspec", "raise RuntimeError('no such thing')")
    assert (failed.exit_code, failed.complaint) == (1, "RuntimeError: no such thing")
    assert tried("surely-not-installed", "1") == Library("")


def test_a_trial_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.doctor.software._TRIAL_S", 0.5)
    assert tried("msgspec", "import time; time.sleep(60)").complaint == "still importing after 0 s"


def test_the_doctor_does_not_import_torch() -> None:
    code = (
        "import sys; from edge_client.doctor.examination import examine; found = examine()[1]; "
        "names = [item.name for item in found if item.result == 'ok']; "
        "sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules or 'torch' not in names)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=250, check=False).returncode == 0


# --------------------------------------------------------------------------- the store's folder


def test_a_store_that_can_be_written(tmp_path: Path) -> None:
    assert store_finding(tmp_path, tmp_path).result == "ok"
    later = store_finding(tmp_path / "a/b", tmp_path)
    assert (later.result, "not made yet" in later.found) == ("ok", True)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    assert store_finding(tmp_path / "file", tmp_path).result == "failed"
    monkeypatch.setattr(doctor_federation.os, "access", lambda path, mode: False)
    refused = store_finding(tmp_path / "later", tmp_path)
    assert (refused.result, "permission denied" in refused.found) == ("failed", True)


@pytest.mark.parametrize(("free_mib", "result"), [(49, "failed"), (499, "warning"), (500, "ok")])
def test_room_for_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, result: str) -> None:
    class Usage:
        free = free_mib << 20

    monkeypatch.setattr(doctor_federation.shutil, "disk_usage", lambda path: Usage)
    assert store_finding(tmp_path, tmp_path).result == result


MOUNTS = """/dev/mmcblk0p2 / ext4 rw,noatime 0 0
tmpfs /run tmpfs rw 0 0
/dev/sda1 /media/my\\040disk ext4 rw 0 0
overlay /srv overlay rw 0 0
/dev/sdb1 /srv ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/var/lib/x", "ext4"), ("/run/x", "tmpfs"), ("/runner", "ext4"), ("/media/my disk/x", "ext4"), ("/srv", "ext4")],
)
def test_the_file_system_of_a_place(tmp_path: Path, place: str, kind: str) -> None:
    assert file_system(Path(place), tmp_path) == ""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text(MOUNTS)
    assert file_system(Path(place), tmp_path) == kind


def test_a_store_that_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_federation, "file_system", lambda place, root: "tmpfs")
    assert "forgets at every start" in store_finding(tmp_path, tmp_path).found


# --------------------------------------------------------------------------- calibration and board


def test_calibrations(tmp_path: Path) -> None:
    own = settings(tmp_path)
    (tmp_path / "store").mkdir()
    path = tmp_path / "store/calibration.toml"
    assert calibration_finding(own, PI4).result == "warning"
    assert calibration_finding(msgspec.structs.replace(own, adaptive=False), PI4).result == "skipped"
    assert calibration_finding(msgspec.structs.replace(own, calibration=str(path)), PI4).result == "failed"
    save_calibration(path, Calibration(PI4.name, "hapt", 32, {"1.0": 0.1, "0.5": 0.05}))
    fine = calibration_finding(own, PI4)
    assert (fine.result, "widths 0.5, 1.0" in fine.found or "widths 1.0, 0.5" in fine.found) == ("ok", True)
    assert f"this is {PI5.name}" in calibration_finding(own, PI5).found
    save_calibration(path, Calibration(PI4.name, "fashion-mnist", 32))
    assert "the task is hapt" in calibration_finding(own, PI4).found


@pytest.mark.parametrize(("name", "result"), [("raspberry-pi-5", "ok"), ("raspberry-pi-6", "failed")])
def test_the_board_that_the_settings_name(tmp_path: Path, name: str, result: str) -> None:
    path = tmp_path / "device.toml"
    path.write_text(render_toml(settings(tmp_path, board=name)))
    seen = Visit.begin(TREES / "raspberry-pi-4b", path)
    finding = by_name(board(seen))["board"]
    assert (finding.result, name in finding.found) == (result, True)


# --------------------------------------------------------------------------- federation


def write_federation(folder: Path, addresses: dict[str, BrokerAddress]) -> DeviceSettings:
    """Key file, signed directory and settings of the first device."""
    own = settings(folder)

    def at(service: Service, name: str) -> Service:
        return msgspec.structs.replace(service, host=addresses[name].host, port=addresses[name].port)

    whole = directory()
    whole = msgspec.structs.replace(
        whole,
        coordinator=at(whole.coordinator, "coordinator"),
        aggregators={name: at(service, name) for name, service in whole.aggregators.items()},
    )
    write_directory(folder / "directory", whole, identity("root"))
    identity(DEVICES[0]).save(folder / "key")
    (folder / "device.toml").write_text(render_toml(own))
    return own


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerAddress]:
    folder = tmp_path_factory.mktemp("broker")
    with embedded_broker(folder) as running:
        yield running.address


def everywhere(address: BrokerAddress) -> dict[str, BrokerAddress]:
    return dict.fromkeys(("coordinator", *AGGREGATORS), address)


def at_home(folder: Path) -> Visit:
    return Visit.begin(Path("/"), folder / "device.toml")


def test_a_federation_in_order(tmp_path: Path, broker: BrokerAddress) -> None:
    write_federation(tmp_path, everywhere(broker))
    for _ in range(6):  # a crowded machine's round trips are slow now and then
        started_s = time.monotonic()
        found = by_name(federation(at_home(tmp_path)))
        took_s = time.monotonic() - started_s
        if not any(finding.result == "warning" and name.startswith("broker") for name, finding in found.items()):
            break
    assert list(found) == [
        "config",
        "calibration",
        "directory",
        "store",
        "broker control",
        *(f"broker {name}" for name in AGGREGATORS),
    ]
    assert all(finding.result == "ok" for name, finding in found.items() if name not in ("store", "calibration")), found
    assert found["directory"].found == f"lab, version 1: this is {DEVICES[0]}, 3 aggregators"
    for name in AGGREGATORS:
        figures = found[f"broker {name}"].figures
        assert min(figures.values()) > 0 and figures["tcp_s"] + figures["login_s"] + figures["rtt_s"] < took_s


def test_the_running_service_keeps_its_connection(tmp_path: Path, broker: BrokerAddress) -> None:
    own = write_federation(tmp_path, everywhere(broker))

    async def while_it_runs() -> list[Finding]:
        link = open_link(broker, DEVICES[0], own.link)
        fallen: list[bool] = []

        async def connected(first: bool) -> None:
            fallen.append(not first)

        link.on_connect(connected)
        await link.connect()
        try:
            found = await asyncio.to_thread(federation, at_home(tmp_path))
            await link.publish("t/still-here", b"x")  # raises if the connection has fallen
        finally:
            await link.close()
        assert fallen == [False]
        return found

    assert all(finding.result != "failed" for finding in asyncio.run(while_it_runs()))


def test_brokers_that_do_not_answer_are_told_apart_and_in_time(tmp_path: Path, broker: BrokerAddress) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = closed.getsockname()[1]
        write_federation(
            tmp_path,
            {
                "coordinator": BrokerAddress("no-such-host.invalid", 1883),
                AGGREGATORS[0]: broker,
                AGGREGATORS[1]: BrokerAddress("127.0.0.1", silent.getsockname()[1]),
                AGGREGATORS[2]: BrokerAddress("127.0.0.1", port),
            },
        )
        found = by_name(federation(at_home(tmp_path)))
    assert [found[f"broker {name}"].result for name in ("control", *AGGREGATORS)] == [
        "failed",
        "ok",
        "failed",
        "failed",
    ]
    assert "no such host" in found["broker control"].found
    refused = found[f"broker {AGGREGATORS[2]}"]
    assert refused.found == f"127.0.0.1:{port}: no TCP connection: connection refused"
    assert f"nc -vz 127.0.0.1 {port}" in refused.fix


def test_a_broker_that_hangs_after_its_login_costs_a_bounded_time(
    tmp_path: Path, broker: BrokerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(link: object, topic: str) -> float:
        await asyncio.sleep(60)
        return 0.0

    monkeypatch.setattr(doctor_federation, "_round_trip", hang)
    monkeypatch.setattr(doctor_federation, "_BROKER_S", 0.5)
    write_federation(tmp_path, everywhere(broker))
    party = at_home(tmp_path).party
    assert party is not None
    assert {finding.result for finding in brokers(party, LinkSettings())} == {"failed"}


def test_a_slow_link_is_a_warning(tmp_path: Path, broker: BrokerAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(link: object, topic: str) -> float:
        return 1.5

    monkeypatch.setattr(doctor_federation, "_round_trip", slow)
    write_federation(tmp_path, everywhere(broker))
    party = at_home(tmp_path).party
    assert party is not None
    found = brokers(party, LinkSettings())
    assert {finding.result for finding in found} == {"warning"}
    assert {finding.figures["rtt_s"] for finding in found} == {1.5}


def test_a_directory_of_another_root(tmp_path: Path, broker: BrokerAddress) -> None:
    write_federation(tmp_path, everywhere(broker))
    write_directory(tmp_path / "directory", directory(), identity("somebody"))
    found = by_name(federation(at_home(tmp_path)))
    assert (found["directory"].result, "not signed by the root key" in found["directory"].found) == ("failed", True)
    assert found["brokers"].result == "skipped"


def test_a_directory_that_does_not_name_this_device(tmp_path: Path, broker: BrokerAddress) -> None:
    write_federation(tmp_path, everywhere(broker))
    (tmp_path / "key").unlink()
    identity("device-99").save(tmp_path / "key")
    found = by_name(federation(at_home(tmp_path)))["directory"]
    assert (found.result, "does not hold the key the directory has for 'device-99'" in found.found) == ("failed", True)


def test_a_settings_file_with_mistakes_lists_them_all(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text('store = 5\n[party]\nkey_file = "k"\n')
    found = by_name(federation(Visit.begin(Path("/"), path)))
    assert found["config"].result == "failed"
    assert all(text in found["config"].found for text in ("store", "party.directory", "party.root_key", "task"))
    assert [found[name].result for name in ("calibration", "directory", "store", "brokers")] == ["skipped"] * 4


def test_a_copied_tree_keeps_off_the_network(tmp_path: Path, broker: BrokerAddress) -> None:
    write_federation(tmp_path, everywhere(broker))
    away = Visit.begin(TREES / "raspberry-pi-4b", tmp_path / "device.toml")
    assert by_name(federation(away))["brokers"].result == "skipped"


# --------------------------------------------------------------------------- the whole


def test_verdicts() -> None:
    check = Check("x", "y")
    assert verdict([check.skipped("")]) == "ok"
    assert verdict([check.ok(""), check.warning("", "f")]) == "warning"
    assert verdict([check.failed("", "f"), check.warning("", "f"), check.ok("")]) == "failed"


@pytest.mark.parametrize("name", RESULTS)
def test_every_finding_has_a_reason_and_what_is_wrong_has_a_fix(name: str) -> None:
    seen, found = examine(TREES / name)
    assert len({finding.name for finding in found}) == len(found) >= 19
    for finding in found:
        assert finding.why and finding.found
        assert bool(finding.fix) == (finding.result in ("warning", "failed"))
        assert "\n" not in finding.fix
    record = json.loads(json.dumps(as_record(seen, found)))
    assert record["board"] == name
    assert [check["name"] for check in record["checks"]] == [finding.name for finding in found]
    assert record["health"]["temperature_c"] == seen.health.temperature_c


def test_the_command_on_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["device", "doctor", "--root", str(TREES / "raspberry-pi-zero-2-w")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "ok",
        "board",
        "raspberry-pi-zero-2-w",
        "(Raspberry",
        "Pi",
        "Zero",
        "2",
        "W",
        "Rev",
        "1.0)",
    ]
    assert any(line.strip().startswith("fix: ") for line in lines)
    assert lines[-1].endswith("skipped")


def test_the_command_fails_when_a_check_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nowhere.toml"
    arguments = ["device", "doctor", "--json", "--root", str(TREES / "jetson-nano"), "--config", str(missing)]
    assert run(arguments) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["result"] == "failed"
    assert [check["name"] for check in record["checks"] if check["result"] == "failed"] == ["config"]


def test_the_table_holds_every_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = (Check("odd [bold]", "because").failed("[red]x[/red]", "do it"), Check("fine", "so").ok("yes"))
    assert _print_table(found)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("odd [bold]", "[red]x[/red]", "because", "do it", "fine"))


def test_lines_of_several_lines_are_indented() -> None:
    lines = list(as_lines([Check("config", "w").failed("f.toml: 2 mistakes\n  a: b\n  c: d", "f")]))
    assert lines[0] == "failed   config  f.toml: 2 mistakes"
    assert lines[1].strip() == "a: b" and lines[1].startswith(" " * 17)


def test_a_visit_never_raises(tmp_path: Path) -> None:
    nothing = Visit.begin(tmp_path / "nowhere", tmp_path / "no.toml")
    assert nothing.settings is None and "no.toml" in nothing.settings_error
    assert isinstance(nothing.health, Health)
    assert findings.Finding("a", "ok", "b", "c").figures == {}

"""The preflight: what it says of files, dates and keys, and of real brokers as they ship."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from provisioned import Root, fill, make_root, own_ports

from coordinator.store import RoundStore
from fedpruneshare.at_work import at_work
from fedpruneshare.bundle import Bundle, Manifest
from fedpruneshare.sparse.parameters import Parameter, ParameterTable
from fedpruneshare.sparse.parameters import Role as ArrayRole
from fedpruneshare.topics import Role
from firmware_configs.brokers.mosquitto import find_mosquitto
from firmware_configs.provision import check as check_module
from firmware_configs.provision import probing
from firmware_configs.provision.authority import Authority
from firmware_configs.provision.check import examine
from firmware_configs.provision.findings import FAILED, OK, WARNING, Finding

DAY_S = 86_400


@pytest.fixture
def folder(root: Root, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root.bundle("pi-01"))
    return root.bundle("pi-01")


def looked_at(now: float | None = None) -> list[Finding]:
    return examine(Path("device.toml"), is_offline=True, now=now)


def failures(findings: list[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.state == FAILED]


def test_a_bundle_as_it_was_made_is_fine(folder: Path) -> None:
    findings = looked_at()
    assert {finding.state for finding in findings} == {OK}
    assert {finding.what for finding in findings} == {"settings", "keys", "directory", "certificate"}


@pytest.mark.parametrize(
    ("days", "state", "what"),
    [
        (-1, FAILED, "clock"),
        (-20_000, FAILED, "clock"),
        (80, WARNING, "certificate"),
        (91, FAILED, "certificate"),
        (3651, FAILED, "certificate"),
    ],
)
def test_time_is_told_by_what_is_wrong_with_it(folder: Path, days: float, state: str, what: str) -> None:
    found = [finding for finding in looked_at(time.time() + days * DAY_S) if finding.state != OK]
    assert {(finding.state, finding.what) for finding in found} == {(state, what)}
    if what == "clock":
        assert all("this machine's clock says" in finding.found for finding in found)
    assert all(finding.fix for finding in found)


def test_a_directory_that_ends_is_told(root: Root, folder: Path) -> None:
    place = root.folder / "federation.toml"
    text = place.read_text()
    place.write_text(text.replace("directory_days = 0", "directory_days = 20"))
    assert place.read_text() != text
    root.call("directory")
    assert [one.state for one in looked_at() if one.what == "directory"] == [OK]
    ends = [one for one in looked_at(time.time() + 10 * DAY_S) if one.what == "directory"]
    assert [one.state for one in ends] == [OK, WARNING]
    assert "ends at" in failures(looked_at(time.time() + 21 * DAY_S))[0]


def no_settings(folder: Path) -> None:
    (folder / "device.toml").unlink()


def settings_without_party(folder: Path) -> None:
    (folder / "device.toml").write_text("store = 'x'\n")


def settings_no_toml(folder: Path) -> None:
    (folder / "device.toml").write_text("[party\n")


def open_key(folder: Path) -> None:
    (folder / "key.json").chmod(0o644)


def open_tls_key(folder: Path) -> None:
    (folder / "tls.key").chmod(0o640)


def other_root(folder: Path) -> None:
    text = (folder / "device.toml").read_text().splitlines()
    changed = [f'root_key = "{"0" * 64}"' if line.startswith("root_key") else line for line in text]
    (folder / "device.toml").write_text("\n".join(changed))


def damaged_directory(folder: Path) -> None:
    data = (folder / "directory.json").read_bytes()
    (folder / "directory.json").write_bytes(data.replace(b'"min_devices":8', b'"min_devices":3'))


def other_keys(folder: Path) -> None:
    stranger = json.loads((folder.parent / "pi-02" / "key.json").read_text()) | {"id": "pi-01"}
    (folder / "key.json").write_text(json.dumps(stranger))


def others_certificate(folder: Path) -> None:
    shutil.copy(folder.parent / "pi-02" / "tls.pem", folder / "tls.pem")


def others_key(folder: Path) -> None:
    shutil.copy(folder.parent / "pi-02" / "tls.key", folder / "tls.key")


def other_authority(folder: Path) -> None:
    (folder / "tls.pem").write_bytes(Authority.create("lab").issue_client("pi-01", Role.DEVICE).certificate)


def aggregators_certificate(folder: Path) -> None:
    shutil.copy(folder.parent / "a" / "tls.pem", folder / "tls.pem")


def no_certificate(folder: Path) -> None:
    (folder / "tls.pem").unlink()


def no_tls(folder: Path) -> None:
    text = (folder / "device.toml").read_text()
    (folder / "device.toml").write_text(text.partition("[link.tls]")[0])


@pytest.mark.parametrize(
    ("spoil", "what", "found"),
    [
        (no_settings, "settings", "No such file"),
        (settings_without_party, "settings", "no [party]"),
        (settings_no_toml, "settings", "expected TOML"),
        (open_key, "keys", "open to others"),
        (open_tls_key, "certificate", "open to others"),
        (other_root, "directory", "is not signed by the root key"),
        (damaged_directory, "directory", "is not signed by the root key"),
        (other_keys, "directory", "does not hold the key"),
        (others_certificate, "certificate", "CN=pi-02"),
        (others_key, "certificate", "not of the key"),
        (
            other_authority,
            "certificate",
            "issued by CN=lab authority,OU=authority,O=lab, expected another of that name",
        ),
        (aggregators_certificate, "certificate", "OU=aggregator"),
        (no_certificate, "certificate", "tls.pem"),
        (no_tls, "certificate", "no [link.tls]"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_is_wrong_is_one_line_and_exit_code_1(
    root: Root, folder: Path, spoil: Callable[[Path], None], what: str, found: str
) -> None:
    spoil(folder)
    (line,) = failures(looked_at())
    assert line.startswith(f"FAILED  {what}: ")
    assert found in line
    assert "; " in line, "it says what to do"
    assert line in root.run(["check", "--config", "device.toml", "--offline"], code=1).splitlines()


def test_a_revoked_device_is_told(root: Root, folder: Path) -> None:
    root.call("revoke", "pi-01")
    shutil.copy(root.folder / "directory.json", folder / "directory.json")
    assert "'pi-01' is revoked" in failures(looked_at())[0]


def test_beside_its_own_service_it_leaves_brokers_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a broker that knows a party by its certificate a second connection ends the first."""
    monkeypatch.setattr(check_module, "probe_brokers", lambda *_: [Finding(OK, "brokers", "tried")])
    text = (folder / "device.toml").read_text()
    store = Path(tomllib.loads(text)["store"])
    with at_work(store):
        (finding,) = [one for one in examine(Path("device.toml")) if one.what == "brokers"]
    assert (finding.state, "the service is at work" in finding.found) == (WARNING, True)
    (finding,) = [one for one in examine(Path("device.toml")) if one.what == "brokers"]
    assert finding.found == "tried"


# --------------------------------------------------------------------------- the coordinator's task bundle


def write_bundle(folder: Path, seed: int = 1) -> Bundle:
    """A task bundle of a few numbers, where the coordinator's settings have it."""
    table = ParameterTable((Parameter("w", (2, 3), ArrayRole.WEIGHT, 0), Parameter("b", (2,), ArrayRole.VECTOR)))
    weights, vectors = np.ones(6, np.float32), np.ones(2, np.float32)
    inputs, targets = np.ones((4, 3), np.float32), np.array([0, 1, 1, 0], np.int64)
    bundle = Bundle(Manifest("t", table, (3,), 4, 2, seed, "fixture"), b"a graph", weights, vectors, inputs, targets)
    bundle.save(folder / "task.bundle")
    return bundle


@pytest.fixture
def office(root: Root, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The coordinator's folder, with a task bundle."""
    folder = root.bundle("coordinator")
    write_bundle(folder)
    monkeypatch.chdir(folder)
    return folder


def of_the_bundle() -> Finding:
    (finding,) = [one for one in examine(Path("coordinator.toml"), is_offline=True) if one.what == "task bundle"]
    return finding


def test_a_coordinators_task_bundle_is_named(office: Path) -> None:
    digest = write_bundle(office).digest
    RoundStore(office / "store", digest).close()
    before = sorted(place.name for place in (office / "store").iterdir())
    finding = of_the_bundle()
    assert (finding.state, finding.found) == (OK, f"task.bundle: t (fixture data), SHA-256 {digest.hex()[:16]}…")
    assert sorted(place.name for place in (office / "store").iterdir()) == before, "nothing is left beside the store"


def no_bundle(folder: Path) -> None:
    (folder / "task.bundle").unlink()


def folder_for_bundle(folder: Path) -> None:
    no_bundle(folder)
    (folder / "task.bundle").mkdir()


def half_a_bundle(folder: Path) -> None:
    data = (folder / "task.bundle").read_bytes()
    (folder / "task.bundle").write_bytes(data[: len(data) // 2])


def other_bundle(folder: Path) -> None:
    RoundStore(folder / "store", write_bundle(folder).digest).close()
    write_bundle(folder, seed=2)


def no_bundle_in_settings(folder: Path) -> None:
    place = folder / "coordinator.toml"
    place.write_text(place.read_text().replace("bundle = ", "# bundle = "))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (no_bundle, "task.bundle cannot be read: No such file or directory; `fedpruneshare task export TASK --out"),
        (folder_for_bundle, "task.bundle cannot be read: Is a directory"),
        (half_a_bundle, "not a readable zip file"),
        (other_bundle, "store store was begun with"),
        (no_bundle_in_settings, "no `bundle` in the settings"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_is_wrong_with_a_task_bundle_is_told_before_the_coordinator_starts(
    root: Root, office: Path, spoil: Callable[[Path], None], found: str
) -> None:
    spoil(office)
    finding = of_the_bundle()
    assert (finding.state, found in str(finding)) == (FAILED, True), str(finding)
    assert finding.fix
    assert str(finding) in root.run(["check", "--config", "coordinator.toml", "--offline"], code=1).splitlines()


def test_brokers_are_tried_whatever_the_bundle_is(office: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "probe_brokers", lambda *_: [Finding(OK, "brokers", "tried")])
    no_bundle(office)
    assert [one.found for one in examine(Path("coordinator.toml")) if one.what == "brokers"] == ["tried"]


# --------------------------------------------------------------------------- real brokers


class Brokers:
    """The four brokers of a provisioned federation, as rendered, in their bundles."""

    def __init__(self, root: Root, ports: list[int]) -> None:
        self.root, self.ports = root, ports
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        program = find_mosquitto()
        assert program is not None
        home = self.root.bundle(name)
        with (home / "broker.log").open("ab") as log:
            command = [str(program), "-c", "broker/mosquitto.conf"]
            self._running[name] = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
        port = (home / "broker" / "mosquitto.conf").read_text().partition("listener ")[2].split()[0]
        give_up_s = time.monotonic() + 60
        while time.monotonic() < give_up_s:
            with socket.socket() as trial:
                if not trial.connect_ex(("127.0.0.1", int(port))):
                    return
        raise AssertionError((home / "broker.log").read_text())

    def stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.terminate()
        process.wait(60)

    def hang_up(self, name: str) -> None:
        """Have it read its lists again, and wait until it has tried."""
        log = self.root.bundle(name) / "broker.log"
        before = log.stat().st_size
        self._running[name].send_signal(signal.SIGHUP)
        give_up_s = time.monotonic() + 60
        while b"acl" not in log.read_bytes()[before:]:
            assert time.monotonic() < give_up_s, log.read_text()
            time.sleep(0.02)

    def restart(self, name: str) -> None:
        self.stop(name)
        self.start(name)


@pytest.fixture
def brokers(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Brokers]:
    monkeypatch.setattr(probing, "_CONNECT_S", 60.0)  # a crowded machine shakes hands slowly
    monkeypatch.setattr(probing, "_ANSWER_S", 60.0)
    monkeypatch.setattr(probing, "_ARRIVAL_S", 0.2)
    with own_ports(4) as ports:
        made = fill(make_root(tmp_path / "root", ports=ports), devices=2)
        capsys.readouterr()
        running = Brokers(Root(made.folder, capsys), ports)
        try:
            for name in ("coordinator", "a", "b", "c"):
                running.start(name)
            yield running
        finally:
            for name in list(running._running):
                running.stop(name)


def check(root: Root, name: str, code: int) -> list[str]:
    """`provision check` in a party's own folder."""
    before = Path.cwd()
    os.chdir(root.bundle(name))
    try:
        (settings,) = Path().glob("*.toml")
        return root.run(["check", "--config", settings], code).splitlines()
    finally:
        os.chdir(before)


@pytest.mark.mosquitto
def test_a_broker_whose_certificate_ends_soon_is_told(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("the certificate it shows ends" in line for line in check(brokers.root, "pi-01", 0))
    monkeypatch.setattr(probing, "SOON_S", 91 * 86_400)
    lines = check(brokers.root, "pi-01", 0)
    assert sum(line.startswith("warning broker") and "the certificate it shows ends" in line for line in lines) == 4


@pytest.mark.mosquitto
def test_brokers_are_tried_by_connections_and_messages(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    root = brokers.root
    write_bundle(root.bundle("coordinator"))
    for name, count in (("pi-01", 4), ("a", 2), ("coordinator", 1)):
        lines = check(root, name, 0)
        assert sum("connected, mutual TLS" in line for line in lines) == count
        assert sum("takes this party's own messages and refuses others'" in line for line in lines) == count

    # An access list of before the device came: its own messages are refused.
    place = root.bundle("a") / "broker" / "access.acl"
    good = place.read_text()
    place.write_text(good.partition("user CN=pi-01")[0])
    brokers.restart("a")
    # Beside it one that cannot be read at a SIGHUP: Mosquitto 2.0 goes on without any.
    (root.bundle("c") / "broker" / "access.acl").unlink()
    brokers.hang_up("c")
    lines = check(root, "pi-01", 1)
    assert any(line.startswith("FAILED  broker a: refuses this party's own up") for line in lines)
    assert any(line.startswith("FAILED  broker c: ") for line in lines)

    # An access list that lets everybody do everything.
    place.write_text(good + "\nuser CN=pi-01,OU=device,O=lab\ntopic readwrite #\n")
    brokers.restart("a")
    lines = check(root, "pi-01", 1)
    assert any(line.startswith("FAILED  broker a: takes what only others may write: ") for line in lines)

    # A broker that is not there.
    brokers.stop("b")
    monkeypatch.setattr(probing, "_CONNECT_S", 1.0)
    assert any(line.startswith("FAILED  broker b: ") for line in check(root, "pi-01", 1))


@pytest.mark.mosquitto
def test_a_revoked_device_does_not_get_in(brokers: Brokers, tmp_path: Path) -> None:
    root = brokers.root
    lost = tmp_path / "lost"
    shutil.copytree(root.bundle("pi-02"), lost)
    root.call("revoke", "pi-02")
    for name in ("a", "coordinator"):
        brokers.restart(name)
    assert sum("connected" in line for line in check(root, "pi-01", 0)) == 4, "the others go on"
    copied = root.bundle("pi-02")
    shutil.rmtree(copied)
    shutil.copytree(lost, copied)  # with the directory of before: the device itself knows nothing of it
    lines = check(root, "pi-02", 1)
    assert sum(line.startswith("FAILED  broker") and "revoked" in line for line in lines) == 2


@pytest.mark.mosquitto
def test_another_federations_broker_is_named_as_such(
    brokers: Brokers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No advice to copy this federation's files to it, and its address once."""
    other = fill(make_root(tmp_path / "other", ports=brokers.ports), devices=1)
    capsys.readouterr()
    lines = [line for line in check(Root(other.folder, capsys), "pi-01", 1) if line.startswith("FAILED")]
    assert len(lines) == 4
    for line in lines:
        assert line.count("127.0.0.1") == 1 and "not of this federation's authority" in line
        assert line.endswith("look at host and port")

"""Keys made where they stay: what travels, what is answered, what is refused, and what is installed."""

from __future__ import annotations

import json
import os
import shutil
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from provisioned import Root, make_root

from edge_client.settings import DeviceSettings
from fedpruneshare.directory import read_directory
from fedpruneshare.errors import FedPruneShareError
from fedpruneshare.keys import Identity
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role
from firmware_configs.provision import enrolment
from firmware_configs.provision.authority import belong_together, new_request
from firmware_configs.provision.bundles import read_bundle
from firmware_configs.provision.installing import install


class Device:
    """A device's own folder, with the commands it calls."""

    def __init__(self, root: Root, folder: Path, name: str = "pi-09") -> None:
        self.root, self.folder, self.name = root, folder, name

    @property
    def request(self) -> Path:
        return self.folder / f"{self.name}.request"

    def ask(self, *options: str, code: int = 0) -> str:
        words = ["enrol", "request", self.folder, "--federation", "lab", "--name", self.name, *options]
        return self.root.run(words, code)

    def finish(self, bundle: Path, code: int = 0) -> str:
        return self.root.run(["enrol", "finish", self.folder, bundle], code)

    def party(self) -> Party:
        settings = json.loads((self.root.folder / "register.json").read_text())
        files = PartySettings(str(self.folder / "key.json"), str(self.folder / "directory.json"), settings["root_key"])
        return Party.load(files, Role.DEVICE)


@pytest.fixture
def device(root: Root, tmp_path: Path) -> Device:
    return Device(root, tmp_path / "device")


def enrolled(device: Device) -> Device:
    device.ask()
    device.root.call("enrol accept", device.request)
    device.finish(device.root.bundle(device.name))
    shutil.rmtree(device.root.bundle(device.name))
    return device


def test_three_steps_make_a_device_that_nobody_else_has_keys_of(device: Device) -> None:
    asked = device.ask()
    root = device.root
    printed = root.call("enrol accept", device.request)
    key_id = Identity.load(device.folder / "key.json").public()[0].key_id.hex()
    assert key_id in asked, "both ends print the key id"
    assert key_id in printed, "both ends print the key id"
    assert not set(read_bundle(root.bundle("pi-09"))) & {"key.json", "tls.key"}
    assert json.loads((root.folder / "register.json").read_text())["root_key"] in device.finish(root.bundle("pi-09"))
    assert device.party().ident == "pi-09"
    settings = load_settings(device.folder / "device.toml", DeviceSettings)
    assert settings.task.index == 3
    assert belong_together(*((device.folder / name).read_bytes() for name in ("tls.pem", "tls.key")))


def test_nothing_secret_travels(device: Device) -> None:
    device.ask()
    text = device.request.read_text()
    keys = json.loads((device.folder / "key.json").read_text())["keys"][0]
    for secret in (*keys.values(), (device.folder / "tls.key").read_text().splitlines()[1], "PRIVATE"):
        assert secret not in text


def test_keys_made_here_are_private(device: Device) -> None:
    device.ask()
    assert device.folder.stat().st_mode & 0o777 == 0o700
    for name in ("key.json", "tls.key"):
        assert (device.folder / name).stat().st_mode & 0o777 == 0o600


def test_a_service_enrols_with_its_broker(empty: Root, tmp_path: Path) -> None:
    for name in "abc":
        folder = tmp_path / name
        service = Device(empty, folder, name)
        service.ask("--role", "aggregator")
        empty.call("enrol accept", service.request)
    coordinator = Device(empty, tmp_path / "coordinator", "coordinator")
    coordinator.ask("--role", "coordinator")
    empty.call("enrol accept", coordinator.request)
    for name in "abc":
        folder = tmp_path / name
        Device(empty, folder, name).finish(empty.bundle(name))
        assert belong_together(*((folder / "broker" / one).read_bytes() for one in ("server.pem", "server.key")))
        assert "user CN=a" in (folder / "broker" / "access.acl").read_text() or name != "a"
        assert (folder / "broker" / "server.key").stat().st_mode & 0o777 == 0o600


# --------------------------------------------------------------------------- what is not answered


def resigned(device: Device, **changes: Any) -> Path:
    """The device's request with fields changed and signed anew, as its owner could."""
    signed = json.loads(device.request.read_text())
    body = json.loads(signed["request"]) | changes
    text = json.dumps(body)
    identity = Identity.load(device.folder / "key.json")
    signature = identity.sign(enrolment._DOMAIN + text.encode()).hex()
    device.request.write_text(json.dumps({"request": text, "signature": signature}))
    return device.request


def other_csr(name: str = "pi-09", role: Role = Role.DEVICE, federation: str = "lab") -> str:
    return new_request(name, role, federation)[0].decode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (lambda: {"name": "pi-01"}, "pi-01"),
        (lambda: {"name": "pi-01", "csr": other_csr("pi-01")}, "taken by a device"),
        (lambda: {"csr": other_csr("pi-01")}, "expected the same party"),
        (lambda: {"csr": other_csr(role=Role.AGGREGATOR)}, "expected the same party"),
        (lambda: {"csr": other_csr(federation="other")}, "expected the same party"),
        (lambda: {"csr": "nonsense"}, "certificate request does not read"),
        (lambda: {"federation": "other"}, "federation 'other'"),
        (lambda: {"name": "a", "csr": other_csr("a")}, "is an aggregator by federation.toml"),
        (lambda: {"role": "aggregator", "csr": other_csr(role=Role.AGGREGATOR)}, "names no aggregator 'pi-09'"),
        (lambda: {"name": "PI"}, "expected what `provision enrol request` writes"),
        (lambda: {"extra": 1}, "expected what `provision enrol request` writes"),
        (lambda: {"signer": "0" * 16}, "is not signed by its key"),
    ],
)
def test_a_request_that_is_not_what_it_seems_is_refused(
    device: Device, changes: Callable[[], dict[str, Any]], reason: str
) -> None:
    device.ask()
    before = (device.root.folder / "register.json").read_bytes()
    assert reason in device.root.refused("enrol accept", resigned(device, **changes()))
    assert (device.root.folder / "register.json").read_bytes() == before
    assert not device.root.bundle("pi-09").exists()


@pytest.mark.parametrize("field", ["sealing", "csr"])
def test_a_request_that_was_changed_on_its_way_is_refused(device: Device, field: str) -> None:
    device.ask()
    text = device.request.read_text()
    signed = json.loads(text)
    body = json.loads(signed["request"])
    if field == "csr":
        body["csr"] = other_csr()  # of the same party, and of somebody else's key
    else:
        body["keys"][field] = "0" * 64
    device.request.write_text(json.dumps(signed | {"request": json.dumps(body)}))
    assert "is not signed by its key" in device.root.refused("enrol accept", device.request)


@pytest.mark.parametrize("text", ["", "{}", "null", "[" * 10_000, "x" * 100_000, '{"request": "{}", "signature": ""}'])
def test_anything_else_is_refused(device: Device, text: str) -> None:
    device.folder.mkdir()
    device.request.write_text(text)
    complaint = device.root.refused("enrol accept", device.request)
    assert complaint.startswith(f"error: {device.request}: ")
    assert "expected what `provision enrol request` writes" in complaint


@pytest.mark.parametrize("words", [["--name", "Pi-9"], ["--name", "../pi-9"], ["--federation", "Lab"]], ids=str)
def test_a_name_that_cannot_be_is_told_where_the_keys_are_made(device: Device, words: list[str]) -> None:
    """Not by the root, after a journey; and nothing is written outside the folder."""
    device.ask(*words, code=2)
    assert f"{words[1]!r}, expected 1 to 32 of a-z" in device.root.error
    assert not device.folder.exists()


def test_a_missing_request_is_named(device: Device) -> None:
    assert "pi-09.request" in device.root.refused("enrol accept", device.request)


def test_a_request_is_answered_once(device: Device) -> None:
    enrolled(device)
    assert "answered before" in device.root.refused("enrol accept", device.request)


def test_a_replayed_request_does_not_bring_a_revoked_device_back(device: Device) -> None:
    enrolled(device)
    device.root.call("revoke", "pi-09")
    assert "is revoked" in device.root.refused("enrol accept", device.request)
    assert "is revoked" in device.root.refused("enrol accept", device.request, "--replace")
    device.ask("--replace")
    assert "is revoked" in device.root.refused("enrol accept", device.request, "--replace")


def test_one_bad_request_of_many_stops_them_all(device: Device, tmp_path: Path) -> None:
    device.ask()
    other = Device(device.root, tmp_path / "other", "pi-01")
    other.ask()
    assert "taken by a device" in device.root.refused("enrol accept", device.request, other.request)
    assert not device.root.bundle("pi-09").exists()
    device.root.call("enrol accept", device.request)


def test_a_post_quantum_federation_takes_hybrid_keys_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_root(tmp_path / "root", "--post-quantum")
    root = Root(tmp_path / "root", capsys)
    root.call("aggregator", "a", "b", "c")
    root.call("coordinator")
    device = Device(root, tmp_path / "device")
    device.ask()
    assert "ask with --hybrid" in root.refused("enrol accept", device.request)
    shutil.rmtree(device.folder)
    device.ask("--hybrid")
    root.call("enrol accept", device.request)
    device.finish(root.bundle("pi-09"))
    assert device.party().directory.devices["pi-09"].keys[0].hybrid
    assert device.party().directory.post_quantum


# --------------------------------------------------------------------------- asking again


def test_asking_again_is_for_the_same_keys(device: Device) -> None:
    device.ask()
    key = (device.folder / "key.json").read_bytes()
    assert device.ask(code=2) == ""
    assert "--replace asks again" in device.root.error
    device.ask("--replace")
    assert (device.folder / "key.json").read_bytes() == key


def test_an_enrolled_device_asks_for_a_new_certificate(device: Device) -> None:
    enrolled(device)
    before = (device.folder / "tls.pem").read_bytes()
    device.ask("--replace")
    device.root.call("enrol accept", device.request)
    device.finish(device.root.bundle("pi-09"))
    assert (device.folder / "tls.pem").read_bytes() != before
    assert len(device.party().identity.keys) == 1


def test_an_enrolled_device_rotates_its_keys_and_the_old_ones_vouch(device: Device) -> None:
    enrolled(device)
    old = device.party().identity.public()[0]
    device.ask("--keys", "--replace")
    assert Identity.load(device.folder / "key.json").public() == (old,), "the new key waits for the directory"
    device.root.call("enrol accept", device.request)
    device.finish(device.root.bundle("pi-09"))
    party = device.party()
    new = party.identity.public()
    assert new[1] == old
    assert new[0] != old
    listed = party.directory.devices["pi-09"].keys
    assert [keys.raw() for keys in listed] == list(new)
    assert listed[0].expires_at == 0
    assert listed[1].expires_at > party.directory.issued_at
    assert not (device.folder / "key.next.json").exists()


def test_a_rotation_that_was_not_answered_goes_on_waiting(device: Device) -> None:
    enrolled(device)
    old = device.party().identity.public()
    device.ask("--keys", "--replace")
    device.root.call("renew", device.name)
    device.finish(device.root.folder / "renewals" / device.name)
    assert device.party().identity.public() == old, "the directory knows no other key yet"
    device.root.call("enrol accept", device.request)
    device.finish(device.root.bundle(device.name))
    assert device.party().identity.public()[1:] == old
    assert not (device.folder / "key.next.json").exists()


def test_what_is_there_once_is_synced_before_it_is_renamed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync, rename = os.fsync, Path.replace

    def syncing(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        sync(file)

    def renaming(path: Path, target: Path) -> Path:
        if target.parent == device.folder or target.parent.name == "certificates":
            lasting.append((target.name, path.name in synced))
        return rename(path, target)

    lasting: list[tuple[str, bool]] = []
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", renaming)
    enrolled(device)
    lasting = [(name, is_synced) for name, is_synced in lasting if not name.endswith(".request")]
    assert {name for name, _ in lasting} >= {"key.json", "tls.key", "tls.pem"}
    assert len(lasting) >= 5
    assert all(is_synced for _, is_synced in lasting), lasting
    assert device.folder.name in synced, "the folder, too"


def test_a_stranger_cannot_rotate_keys(device: Device, tmp_path: Path) -> None:
    enrolled(device)
    thief = Device(device.root, tmp_path / "thief")
    thief.ask()
    assert "taken by a device" in device.root.refused("enrol accept", thief.request)
    thief.ask("--keys", "--replace")
    known = device.party().identity.public()[0].key_id.hex()
    assert "is not signed by its key" in device.root.refused("enrol accept", resigned(thief, signer=known))


def test_new_keys_need_old_ones(device: Device) -> None:
    device.ask("--keys", code=2)
    assert "which vouch for the new ones" in device.root.error


def test_a_folder_is_one_partys(device: Device) -> None:
    device.ask()
    other = Device(device.root, device.folder, "pi-10")
    other.ask(code=2)
    assert "holds the keys of 'pi-09'" in device.root.error


@pytest.mark.parametrize("name", ["key.json", "tls.key"])
def test_keys_that_are_open_to_others_are_refused(device: Device, name: str) -> None:
    device.ask()
    (device.folder / name).chmod(0o644)
    device.ask("--replace", code=2)
    assert "is open to others" in device.root.error


# --------------------------------------------------------------------------- installing


def test_a_bundle_is_installed_by_whom_it_is_for(device: Device, tmp_path: Path) -> None:
    device.ask()
    device.root.call("enrol accept", device.request)
    other = Device(device.root, tmp_path / "other", "pi-10")
    other.ask()
    other.finish(device.root.bundle("pi-09"), code=2)
    assert "no key of device 'pi-10'" in device.root.error
    assert not (other.folder / "tls.pem").exists()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("tls.pem", None, "lacks settings, directory or certificates"),
        ("ca.pem", None, "lacks settings, directory or certificates"),
        ("directory.json", None, "lacks settings, directory or certificates"),
        ("device.toml", None, "lacks settings, directory or certificates"),
        ("authorized_keys", b"mine", "holds authorized_keys"),
        ("device.toml", b"party = 3", "root_key"),
        ("tls.pem", b"nonsense", "not a PEM certificate"),
        ("device.toml", b"root_key = ", "the settings do not read"),
        ("device.toml", b"a = " + b"[" * 5000, "the settings do not read"),
        ("device.toml", b"a = " + b"9" * 5000, "the settings do not read"),
        ("key.json", b"[" * 100_000, "the key file in the bundle does not read"),
        ("directory.json", b"{}\n{}", "no signature line"),
    ],
)
def test_a_damaged_bundle_changes_nothing(device: Device, name: str, data: bytes | None, reason: str) -> None:
    device.ask()
    device.root.call("enrol accept", device.request)
    place = device.root.bundle("pi-09") / name
    if data is None:
        place.unlink()
    else:
        place.write_bytes(data)
    before = sorted(path.name for path in device.folder.iterdir())
    device.finish(device.root.bundle("pi-09"), code=2)
    assert reason in device.root.error
    assert sorted(path.name for path in device.folder.iterdir()) == before


@pytest.mark.parametrize("name", ["tls.pem", "ca.pem"])
def test_a_certificate_that_is_not_whole_is_named_wherever_it_is_spoilt(device: Device, name: str) -> None:
    """Its parts are read late: a wrong one must not end in anything but a named error."""
    device.ask()
    device.root.call("enrol accept", device.request)
    place = device.root.bundle("pi-09") / name
    good = ssl.PEM_cert_to_DER_cert(place.read_text())
    for index in range(0, len(good), 9):
        spoilt = bytes([*good[:index], good[index] ^ 0x1F, *good[index + 1 :]])
        place.write_text(ssl.DER_cert_to_PEM_cert(spoilt))
        with suppress(FedPruneShareError):
            install(device.folder, device.root.bundle("pi-09"))


def test_a_certificate_of_another_key_is_not_installed(device: Device, original: Root) -> None:
    device.ask()
    device.root.call("enrol accept", device.request)
    shutil.copy(original.bundle("pi-01") / "tls.pem", device.root.bundle("pi-09") / "tls.pem")
    device.finish(device.root.bundle("pi-09"), code=2)
    assert "is not of the key" in device.root.error


def test_a_bundle_of_another_root_is_not_installed(device: Device, empty: Root) -> None:
    enrolled(device)
    device.ask("--replace")
    device.root.call("enrol accept", device.request)
    bundle = device.root.bundle("pi-09")
    text = (bundle / "device.toml").read_text()
    known = json.loads((device.root.folder / "register.json").read_text())["root_key"]
    (bundle / "device.toml").write_text(text.replace(known, "0" * 64))
    device.finish(bundle, code=2)
    assert "trusts another root" in device.root.error


def test_settings_that_were_edited_stay(device: Device) -> None:
    enrolled(device)
    place = device.folder / "device.toml"
    place.write_text(place.read_text() + "\n[limits]\nrung_max = 0\n")
    device.ask("--replace")
    device.root.call("enrol accept", device.request)
    device.finish(device.root.bundle("pi-09"))
    assert "rung_max = 0" in place.read_text()


def test_a_tar_can_be_installed(device: Device, tmp_path: Path) -> None:
    device.ask()
    device.root.call("enrol accept", device.request, "--tar", "--out", tmp_path / "out")
    device.finish(tmp_path / "out" / "pi-09.tar")
    assert device.party().ident == "pi-09"


def test_the_directory_in_a_bundle_is_the_newest(device: Device) -> None:
    enrolled(device)
    version = device.party().directory.version
    root_key = json.loads((device.root.folder / "register.json").read_text())["root_key"]
    assert version == read_directory(device.root.folder / "directory.json", root_key).version


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave files to others")
def test_root_leaves_files_to_whom_they_belong(device: Device) -> None:
    enrolled(device)
    os.chown(device.folder / "tls.pem", 1234, 1234)
    device.ask("--replace")
    device.root.call("enrol accept", device.request)
    device.finish(device.root.bundle("pi-09"))
    assert (device.folder / "tls.pem").stat().st_uid == 1234
    assert (device.folder / "key.json").stat().st_uid == 0

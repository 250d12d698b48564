"""The course of time: renewal, rotation, revocation, new directories, and a root that has grown too old."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from provisioned import PASSPHRASE, Root

from fedpruneshare.directory import Directory, read_directory
from fedpruneshare.errors import SettingsError, SignatureError
from fedpruneshare.keys import Identity
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.topics import Role
from firmware_configs.provision.authority import belong_together, read_certificate
from firmware_configs.provision.office import Office
from firmware_configs.provision.parties import Wishes, renew


def register(root: Root) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root.folder / "register.json").read_text())
    return found


def directory(root: Root) -> Directory:
    return read_directory(root.folder / "directory.json", register(root)["root_key"])


def party(root: Root, folder: Path, role: Role = Role.DEVICE) -> Party:
    files = PartySettings(str(folder / "key.json"), str(folder / "directory.json"), register(root)["root_key"])
    return Party.load(files, role)


def carried(root: Root, name: str, tmp_path: Path) -> Path:
    """A party's bundle where it belongs, on another machine."""
    folder = tmp_path / f"at-{name}"
    shutil.move(root.bundle(name), folder)
    return folder


def serials(root: Root, name: str) -> list[str]:
    return [card["serial"] for card in register(root)["parties"][name]["cards"]]


# --------------------------------------------------------------------------- renewal


def test_a_renewal_brings_a_certificate_and_its_key(root: Root, tmp_path: Path) -> None:
    folder = carried(root, "pi-01", tmp_path)
    before = directory(root).version
    printed = root.call("renew", "pi-01")
    assert f"directory version {before} stays in force" in printed
    root.run(["enrol", "finish", folder, root.folder / "renewals" / "pi-01"])
    assert belong_together(*((folder / name).read_bytes() for name in ("tls.pem", "tls.key")))
    number = read_certificate((folder / "tls.pem").read_bytes()).serial_number
    assert [f"{number:x}", *serials(root, "pi-01")[1:]] == serials(root, "pi-01")
    assert len(serials(root, "pi-01")) == 2
    assert party(root, folder).ident == "pi-01"


def test_an_aggregator_gets_a_certificate_for_its_broker_too(root: Root, tmp_path: Path) -> None:
    folder = carried(root, "a", tmp_path)
    old = (folder / "broker" / "server.pem").read_bytes()
    root.call("renew", "a")
    root.run(["enrol", "finish", folder, root.folder / "renewals" / "a"])
    assert (folder / "broker" / "server.pem").read_bytes() != old
    assert belong_together(*((folder / "broker" / one).read_bytes() for one in ("server.pem", "server.key")))


def test_all_are_everybody_in_good_standing(root: Root) -> None:
    root.call("revoke", "pi-02")
    root.call("renew", "--all")
    made = {path.name for path in (root.folder / "renewals").iterdir()}
    assert made == {"a", "b", "c", "coordinator", "pi-01", "pi-03"}


def test_an_enrolled_device_is_renewed_without_a_key(root: Root, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    root.run(["enrol", "request", folder, "--federation", "lab", "--name", "pi-09"])
    root.call("enrol accept", folder / "pi-09.request")
    root.run(["enrol", "finish", folder, root.bundle("pi-09")])
    key = (folder / "tls.key").read_bytes()
    root.call("renew", "pi-09")
    assert not (root.folder / "renewals" / "pi-09" / "tls.key").exists()
    root.run(["enrol", "finish", folder, root.folder / "renewals" / "pi-09"])
    assert (folder / "tls.key").read_bytes() == key
    assert "keys of 'pi-09' were made where it runs" in root.refused("renew", "pi-09", "--keys", "--replace")


def test_a_renewal_is_not_written_over(root: Root) -> None:
    root.call("renew", "pi-01")
    assert "expected it carried to pi-01" in root.refused("renew", "pi-01")
    root.call("renew", "pi-01", "--replace")


@pytest.mark.parametrize(("arguments", "reason"), [(["nobody"], "'nobody' is not in the register"), ([], "either")])
def test_who_is_renewed_must_be_known(root: Root, arguments: list[str], reason: str) -> None:
    assert reason in root.refused("renew", *arguments)


# --------------------------------------------------------------------------- rotation


def test_keys_are_rotated_with_two_in_force_and_then_one(root: Root, tmp_path: Path) -> None:
    folder = carried(root, "pi-01", tmp_path)
    old = party(root, folder).identity.public()[0]
    root.call("renew", "pi-01", "--keys")
    listed = directory(root).devices["pi-01"].keys
    assert [keys.raw() == old for keys in listed] == [False, True]
    week = listed[1].expires_at - directory(root).issued_at
    assert (listed[0].expires_at, week) == (0, 7 * 86_400)

    # What the device has until the renewal reaches it still counts.
    shutil.copy(root.folder / "directory.json", folder / "directory.json")
    assert party(root, folder).identity.public() == (old,)
    root.run(["enrol", "finish", folder, root.folder / "renewals" / "pi-01"])
    assert [key == old for key in party(root, folder).identity.public()] == [False, True]

    root.call("renew", "pi-01", "--keys", "--replace")
    now = directory(root)
    assert now.devices["pi-01"].keys == (listed[0],)
    assert now.revoked == {old.key_id.hex(): "pi-01"}
    with pytest.raises(SignatureError, match="is revoked"):
        now.signing_key(Role.DEVICE, "pi-01", old.key_id, now.issued_at)


def test_an_expired_key_leaves_the_next_directory(root: Root) -> None:
    root.call("renew", "pi-01", "--keys")
    later = datetime.now(UTC) + timedelta(days=8)
    with Office.open(root.folder, clock=lambda: later) as office:
        office.unlock(PASSPHRASE)
        made = office.commit(sign=True)
    assert made is not None
    assert len(made.devices["pi-01"].keys) == 1


def test_a_rotation_after_the_last_one_ended_is_a_new_one(root: Root) -> None:
    root.call("renew", "pi-01", "--keys")
    (first, _) = directory(root).devices["pi-01"].keys
    later = at(root, 365)
    with Office.open(root.folder, clock=lambda: later) as office:
        office.unlock(PASSPHRASE)
        renew(office, "pi-01", Wishes(replace=True), keys=True)
        office.commit()
    new, old = directory(root).devices["pi-01"].keys
    assert new.signing != first.signing
    assert (old.signing, old.expires_at) == (first.signing, int(later.timestamp()) + 7 * 86_400)


def test_a_key_file_is_not_merged_with_anothers(root: Root, tmp_path: Path) -> None:
    folder = carried(root, "pi-01", tmp_path)
    root.call("renew", "pi-02", "--keys")
    root.run(["enrol", "finish", folder, root.folder / "renewals" / "pi-02"], code=2)
    assert "expected the same party" in root.error
    assert Identity.load(folder / "key.json").ident == "pi-01"


# --------------------------------------------------------------------------- revocation


def test_a_revoked_device_is_out_everywhere(root: Root) -> None:
    known = directory(root).devices["pi-02"].keys[0].raw().key_id
    serial = serials(root, "pi-02")[0]
    printed = root.call("revoke", "pi-02")
    now = directory(root)
    assert "pi-02" not in now.devices
    assert now.revoked == {known.hex(): "pi-02"}
    with pytest.raises(SignatureError, match="is revoked"):
        now.signing_key(Role.DEVICE, "pi-02", known, now.issued_at)
    for name in ("a", "b", "c", "coordinator"):
        update = root.folder / "updates" / name
        assert str(update) in printed, "it says what to copy where"
        assert "pi-02" not in (update / "broker" / "access.acl").read_text()
        crl = x509.load_pem_x509_crl((update / "broker" / "crl.pem").read_bytes())
        assert crl.get_revoked_certificate_by_serial_number(int(serial, 16)) is not None
    assert "kill -HUP" in printed


def test_a_name_that_was_revoked_is_not_given_again_by_mistake(root: Root) -> None:
    root.call("revoke", "pi-02")
    assert "'pi-02' is revoked" in root.refused("device", "pi-02")
    assert "'pi-02' is revoked" in root.refused("renew", "pi-02")
    assert "is revoked already" in root.refused("revoke", "pi-02")
    root.call("device", "pi-02", "--replace")
    assert "pi-02" in directory(root).devices
    assert len(directory(root).revoked) == 1


@pytest.mark.parametrize("name", ["a", "coordinator"])
def test_a_service_is_replaced_rather_than_revoked(root: Root, name: str) -> None:
    assert "name another there first" in root.refused("revoke", name)


def test_a_lost_aggregator_gets_new_keys(root: Root) -> None:
    old = directory(root).aggregators["b"].keys[0].raw().key_id.hex()
    root.call("aggregator", "b", "--replace")
    now = directory(root)
    assert now.aggregators["b"].keys[0].raw().key_id.hex() != old
    assert now.revoked == {old: "b"}
    assert len(register(root)["revoked_serials"]) == 2, "its own certificate and its broker's"


# --------------------------------------------------------------------------- the directory


def test_edits_take_effect_when_the_directory_is_signed(root: Root, tmp_path: Path) -> None:
    place = root.folder / "federation.toml"
    place.write_text(place.read_text().replace("min_devices = 8", "min_devices = 9").replace("18831", "28831"))
    printed = root.call("directory", "--copy-to", tmp_path / "copy.json")
    now = directory(root)
    assert (now.min_devices, now.aggregators["a"].port) == (9, 28831)
    assert f"version {now.version}, SHA-256 " in printed
    assert (tmp_path / "copy.json").read_bytes() == (root.folder / "directory.json").read_bytes()
    assert "listener 28831" in (root.folder / "updates" / "a" / "broker" / "mosquitto.conf").read_text()


def test_a_mistake_in_the_settings_is_named(root: Root) -> None:
    place = root.folder / "federation.toml"
    place.write_text(place.read_text().replace("min_devices = 8", "min_device = 8"))
    assert "did you mean 'min_devices'?" in root.refused("directory")


def test_a_directory_may_expire(root: Root) -> None:
    place = root.folder / "federation.toml"
    text = re.sub(r"directory_days = [0-9.]+", "directory_days = 30", place.read_text())
    place.write_text(text)
    root.call("directory")
    now = directory(root)
    assert now.expires_at - now.issued_at == 30 * 86_400


def test_a_lost_plan_key_is_answered_with_a_new_epoch(root: Root) -> None:
    root.call("coordinator", "--replace")
    root.call("directory", "--new-epoch")
    assert directory(root).round_epoch == 1


def test_two_aggregators_more_come_one_after_the_other(root: Root) -> None:
    place = root.folder / "federation.toml"
    more = '\n[aggregators.d]\nhost = "h"\nport = 1\n\n[aggregators.e]\nhost = "h"\nport = 2\n'
    place.write_text(place.read_text().replace("threshold = 2", "threshold = 3") + more)
    before = directory(root)
    assert "bundles for e" in root.call("aggregator", "d")
    assert directory(root) == before
    assert "bundles for e" in root.call("device", "pi-04"), "what comes in between waits, too"
    root.call("aggregator", "e")
    now = directory(root)
    assert (list(now.aggregators), now.version) == (["a", "b", "c", "d", "e"], before.version + 1)
    assert "pi-04" in now.devices
    for name in "abcde":
        assert "CN=pi-04" in (root.folder / "updates" / name / "broker" / "access.acl").read_text()


def test_an_aggregator_that_is_left_out_is_out(root: Root) -> None:
    place = root.folder / "federation.toml"
    text = place.read_text()
    place.write_text(re.sub(r"\n\[aggregators\.c\]\n(?:[a-z]+ = .*\n)+", "\n", text))
    root.call("directory")
    assert list(directory(root).aggregators) == ["a", "b"]
    root.call("revoke", "c")
    assert "c" in directory(root).revoked.values()


def test_no_directory_before_every_service_has_keys(empty: Root) -> None:
    empty.call("aggregator", "a", "b")
    assert "c, coordinator without keys" in empty.refused("directory")
    assert "no directory yet" in empty.call("aggregator", "c")
    assert "directory version 1" in empty.call("coordinator")


# --------------------------------------------------------------------------- a root that is too old


def at(root: Root, days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def test_an_expired_authority_issues_nothing(root: Root) -> None:
    later = at(root, 3651)
    with Office.open(root.folder, clock=lambda: later) as office, pytest.raises(SettingsError, match="authority ended"):
        office.unlock(PASSPHRASE)


def test_a_clock_before_the_federation_began_issues_nothing(root: Root) -> None:
    past = at(root, -1)
    with Office.open(root.folder, clock=lambda: past) as office, pytest.raises(SettingsError, match="set the clock"):
        office.unlock(PASSPHRASE)


def test_a_clock_that_went_back_is_told_and_the_directory_signed_with_the_right_one_counts(root: Root) -> None:
    root.call("directory")
    assert "warning" not in root.error
    ahead = at(root, 30)
    with Office.open(root.folder, clock=lambda: ahead) as office:
        office.unlock(PASSPHRASE)
        assert not office.clock_fault()
        office.commit(sign=True)
    for command in ("renew pi-01", "directory"):
        words = command.split()
        root.call(words[0], *words[1:])
        assert "warning: this machine's clock says 20" in root.error
        assert f"directory version 4 was signed at {ahead:%Y-%m-%d %H:%M:%S} UTC. If the clock went back" in root.error
    root.call("directory")
    assert "warning" not in root.error


def test_nothing_outlives_the_authority(root: Root) -> None:
    later = at(root, 3600)
    with Office.open(root.folder, clock=lambda: later) as office:
        office.unlock(PASSPHRASE)
        renew(office, "pi-01", Wishes())
        office.commit()
    certificate, ca = (
        read_certificate((root.folder / "renewals" / "pi-01" / name).read_bytes()) for name in ("tls.pem", "ca.pem")
    )
    assert certificate.not_valid_after_utc == ca.not_valid_after_utc


def test_keys_of_another_federation_do_not_open_this_one(root: Root, empty: Root) -> None:
    shutil.copy(empty.folder / "root.key", root.folder / "root.key")
    assert "key file of another federation" in root.refused("device", "pi-04")

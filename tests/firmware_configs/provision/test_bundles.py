"""What `init`, `aggregator`, `coordinator` and `device` make: complete, private, nobody else's, and never twice."""

from __future__ import annotations

import errno
import json
import os
import tarfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from provisioned import PASSPHRASE, Root, copied, make_root, write_passphrase

from aggregator.settings import AggregatorSettings
from coordinator.settings import CoordinatorSettings
from edge_client.settings import DeviceSettings
from fedpruneshare import storage
from fedpruneshare.directory import Directory, read_directory
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role
from firmware_configs.provision import bundles, office
from firmware_configs.provision.authority import belong_together, certificate_fault, read_certificate
from firmware_configs.provision.bundles import read_bundle
from firmware_configs.provision.cli import provision
from firmware_configs.provision.register import Register

ROLES = {"a": Role.AGGREGATOR, "b": Role.AGGREGATOR, "c": Role.AGGREGATOR, "coordinator": Role.COORDINATOR}
SETTINGS: dict[Role, type[Any]] = {
    Role.DEVICE: DeviceSettings,
    Role.AGGREGATOR: AggregatorSettings,
    Role.COORDINATOR: CoordinatorSettings,
}
EVERYBODY = {**ROLES, "pi-01": Role.DEVICE, "pi-02": Role.DEVICE, "pi-03": Role.DEVICE}


def register(root: Root) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root.folder / "register.json").read_text())
    return found


def directory(root: Root) -> Directory:
    return read_directory(root.folder / "directory.json", register(root)["root_key"])


def everything(folder: Path) -> Iterator[Path]:
    return (path for path in (folder, *folder.rglob("*")))


# --------------------------------------------------------------------------- what a bundle holds


@pytest.mark.parametrize(("name", "role"), EVERYBODY.items())
def test_a_bundle_starts_the_service_it_is_for(
    root: Root, name: str, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root.bundle(name)
    settings = load_settings(folder / f"{role.value}.toml", SETTINGS[role])
    monkeypatch.chdir(folder)
    party = Party.load(settings.party, role)
    assert (party.ident, party.directory) == (name, directory(root))
    tls = settings.link.tls
    certificate, key, ca = (Path(place).read_bytes() for place in (tls.certificate, tls.key_file, tls.ca_file))
    assert belong_together(certificate, key)
    assert certificate_fault(read_certificate(certificate), read_certificate(ca), name, role) == ""


def test_settings_say_what_the_federation_says(root: Root) -> None:
    aggregator = load_settings(root.bundle("a") / "aggregator.toml", AggregatorSettings)
    assert (aggregator.floors.min_devices, aggregator.floors.privacy_threshold) == (8, 1)
    coordinator = load_settings(root.bundle("coordinator") / "coordinator.toml", CoordinatorSettings)
    assert (coordinator.sharing.threshold, coordinator.rounds.min_devices) == (2, 8)
    parts = [load_settings(root.bundle(f"pi-0{n}") / "device.toml", DeviceSettings).task.index for n in (1, 2, 3)]
    assert parts == [0, 1, 2]


@pytest.mark.parametrize("name", EVERYBODY)
def test_what_a_bundle_holds_is_its_owners_only(root: Root, name: str) -> None:
    for path in everything(root.bundle(name)):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_private_keys_of_the_root_and_of_the_root_folder_are_private(root: Root) -> None:
    assert root.folder.stat().st_mode & 0o777 == 0o700
    assert (root.folder / "root.key").stat().st_mode & 0o777 == 0o600
    for path in everything(root.folder):
        if path.is_file() and path.name != "root.key" and b"PRIVATE" in path.read_bytes():
            assert path.name in ("tls.key", "server.key"), path


def test_no_two_parties_share_a_key(root: Root) -> None:
    keys = [json.loads((root.bundle(name) / "key.json").read_text())["keys"][0]["signing"] for name in EVERYBODY]
    tls = [(root.bundle(name) / "tls.key").read_bytes() for name in EVERYBODY]
    servers = [(root.bundle(name) / "broker" / "server.key").read_bytes() for name in ROLES]
    assert len({*keys}) == len(keys)
    assert len({*tls, *servers}) == len(tls) + len(servers)


@pytest.mark.parametrize("name", ROLES)
def test_a_broker_folder_is_rendered_for_its_broker(root: Root, original: Root, name: str) -> None:
    folder = root.bundle(name) / "broker"
    conf = (folder / "mosquitto.conf").read_text()
    home = original.bundle(name) / "broker"
    for line in (f"certfile {home / 'server.pem'}", f"crlfile {home / 'crl.pem'}", "require_certificate true"):
        assert line in conf
    for file in ("server.pem", "server.key", "ca.pem", "crl.pem", "access.acl"):
        assert (folder / file).stat().st_size
    users = {line for line in (folder / "access.acl").read_text().splitlines() if line.startswith("user ")}
    others = set(ROLES) if name == "coordinator" else {name}
    assert users == {f"user CN={who},OU={EVERYBODY[who].value},O=lab" for who in others | {"pi-01", "pi-02", "pi-03"}}


def test_bundles_that_lie_here_and_updates_follow_the_directory(root: Root) -> None:
    before = directory(root).version
    root.call("device", "pi-04")
    assert directory(root).version == before + 1
    signed = (root.folder / "directory.json").read_bytes()
    for name in (*EVERYBODY, "pi-04"):
        assert (root.bundle(name) / "directory.json").read_bytes() == signed
    for name in ROLES:
        update = root.folder / "updates" / name
        assert (update / "directory.json").read_bytes() == signed
        assert "CN=pi-04" in (update / "broker" / "access.acl").read_text()
        assert not list(update.rglob("*.key")) + list(update.rglob("key.json"))


def test_tar_files_that_lie_here_follow_the_directory_too(empty: Root) -> None:
    """That of the first service is made before there is a directory, and so before its broker can be configured."""
    empty.call("aggregator", "a", "--tar")
    tar = empty.folder / "bundles" / "a.tar"
    assert "broker/mosquitto.conf" not in read_bundle(tar)
    empty.call("aggregator", "b", "c")
    damaged = empty.folder / "bundles" / "c.tar"
    damaged.write_bytes(b"no tar")
    empty.call("coordinator")
    kept = read_bundle(tar)
    assert {"broker/mosquitto.conf", "broker/access.acl", "directory.json", "key.json"} <= kept.keys()
    empty.call("device", "pi-01", "--tar")
    assert read_bundle(tar)["directory.json"] == (empty.folder / "directory.json").read_bytes()
    assert read_bundle(tar)["key.json"] == kept["key.json"]
    assert tar.stat().st_mode & 0o777 == 0o600
    assert damaged.read_bytes() == b"no tar"


def test_every_version_of_the_directory_is_kept(root: Root) -> None:
    root.call("device", "pi-04")
    root.call("revoke", "pi-04")
    newest = directory(root).version
    kept = [
        read_directory(path, register(root)["root_key"]) for path in sorted((root.folder / "directories").iterdir())
    ]
    assert [one.version for one in kept] == list(range(1, newest + 1))
    assert kept[-1] == directory(root)


def test_an_install_prefix_makes_paths_absolute(root: Root) -> None:
    root.call("device", "pi-04", "--install-prefix", "/etc/fps/{name}")
    settings = load_settings(root.bundle("pi-04") / "device.toml", DeviceSettings)
    assert settings.party.key_file == "/etc/fps/pi-04/key.json"
    assert settings.store == "/etc/fps/pi-04/store"
    assert settings.link.tls is not None
    assert settings.link.tls.key_file == "/etc/fps/pi-04/tls.key"


def test_a_broker_learns_where_it_will_lie_and_who_it_runs_as(empty: Root) -> None:
    empty.call("aggregator", "a", "b", "c", "--install-prefix", "/etc/fps", "--broker-user", "mosquitto")
    empty.call("coordinator")
    conf = (empty.bundle("a") / "broker" / "mosquitto.conf").read_text()
    assert "keyfile /etc/fps/broker/server.key" in conf
    assert "user mosquitto" in conf


@pytest.mark.parametrize(
    ("host", "listens"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("192.0.2.7", "0.0.0.0"),
        ("mqtt.a.example", "0.0.0.0"),
        ("[2001:db8::7]", "::"),
    ],
)
def test_a_broker_listens_where_its_host_is_dialled(tmp_path: Path, host: str, listens: str) -> None:
    root = Root(tmp_path / "root")
    write_passphrase(root)
    places = f"a={host}:8884,b=127.0.0.1:8885,c=127.0.0.1:8886"
    root.call("init", "--federation", "lab", "--aggregators", places, "--coordinator", "127.0.0.1:8883")
    root.call("aggregator", "a", "b", "c")
    root.call("coordinator")
    conf = (root.bundle("a") / "broker" / "mosquitto.conf").read_text()
    assert f"\nlistener 8884 {listens}\n" in conf


def test_a_tar_holds_the_same_and_nothing_is_open_to_others(root: Root, tmp_path: Path) -> None:
    root.call("device", "pi-04", "--tar", "--out", tmp_path / "out")
    path = tmp_path / "out" / "pi-04.tar"
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        modes = {member.name: member.mode for member in archive}
        assert {mode for name, mode in modes.items() if "." in name} == {0o600}
        assert modes["pi-04"] == 0o700
        assert set(read_bundle(path)) == set(read_bundle(root.bundle("pi-01")))


def test_a_tar_that_leads_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    (tmp_path / "key").write_text("x")
    for name in ("../../key", "pi/../../key", "pi"):
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "key", name)
        with pytest.raises(Exception, match="plain files inside one folder"):
            read_bundle(path)
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("pi/key")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(Exception, match="plain files inside one folder"):
        read_bundle(path)


def test_five_hundred_bundles_take_less_than_a_minute(root: Root) -> None:
    started_s = time.monotonic()
    printed = root.call("device", "--count", "500", "--prefix", "x-")
    assert time.monotonic() - started_s < 60
    assert "500 devices" in root.error, "no progress was shown"
    assert len(list((root.folder / "bundles").glob("x-*"))) == 500
    assert len(directory(root).devices) == 503
    assert "x-500" in printed


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["pi-01"], "taken by a device"),
        (["a"], "is an aggregator by federation.toml"),
        (["coordinator"], "is the coordinator by federation.toml"),
        (["Pi-1"], "expected 1 to 32 of"),
        (["pi/1"], "expected 1 to 32 of"),
        (["pi#"], "expected 1 to 32 of"),
        (["pi+1"], "expected 1 to 32 of"),
        (["x" * 33], "expected 1 to 32 of"),
        (["--", "-x"], "expected 1 to 32 of"),
        ([""], "expected 1 to 32 of"),
        (["pi-08", "pi-08"], "taken by a device"),
        (["pi-08", "--count", "3"], "either names or --count"),
        ([], "either names or --count"),
    ],
)
def test_a_name_is_one_partys(root: Root, arguments: list[str], reason: str) -> None:
    before = register(root)
    words = ["device", str(root.folder), "--passphrase-file", str(root.passphrase), *arguments]
    root.run(words, code=2)
    assert reason in root.error
    assert register(root) == before
    assert not root.bundle("pi-08").exists()


def test_services_are_those_of_the_settings(root: Root) -> None:
    assert "names no aggregator 'd', expected a, b, c" in root.refused("aggregator", "d")
    assert "'a' is an aggregator by federation.toml" in root.refused("device", "a", "--replace")
    assert "taken by an aggregator" in root.refused("aggregator", "a")
    assert "taken by the coordinator" in root.refused("coordinator")


def test_nothing_is_written_over_without_replace(root: Root) -> None:
    stranger = root.bundle("pi-04")
    stranger.mkdir()
    (stranger / "mine").write_text("mine")
    assert "expected a free place" in root.refused("device", "pi-04")
    assert (stranger / "mine").read_text() == "mine"


def test_replace_makes_new_keys_and_revokes_the_old(root: Root) -> None:
    old = register(root)["parties"]["pi-02"]
    old_key = directory(root).devices["pi-02"].keys[0].raw().key_id.hex()
    root.call("device", "pi-02", "--replace")
    new = directory(root)
    assert new.devices["pi-02"].keys[0].raw().key_id.hex() != old_key
    assert new.revoked == {old_key: "pi-02"}
    assert list(register(root)["revoked_serials"]) == [old["cards"][0]["serial"]]
    settings = load_settings(root.bundle("pi-02") / "device.toml", DeviceSettings)
    assert settings.task.index == 1, "the part of its data stays"


def test_a_root_is_begun_once(root: Root) -> None:
    key = (root.folder / "root.key").read_bytes()
    words = ["--federation", "x", "--aggregators", "a=h:1,b=h:2,c=h:3", "--coordinator", "h:4"]
    assert "holds a federation already" in root.refused("init", *words)
    assert (root.folder / "root.key").read_bytes() == key


def test_a_root_is_begun_in_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder becomes its owner's only: that of something else would be taken from whom it is shared with."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    (folder / "mine").write_text("mine")
    root = Root(folder, capsys)
    write_passphrase(root)
    words = ["--federation", "x", "--aggregators", "a=h:1,b=h:2,c=h:3", "--coordinator", "h:4"]
    assert "holds mine, expected an empty or new folder" in root.refused("init", *words)
    assert [place.name for place in folder.iterdir()] == ["mine"]
    assert folder.stat().st_mode & 0o777 == 0o755
    (folder / "mine").unlink()
    root.call("init", *words)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (["--federation", "Lab"], "federation"),
        (["--aggregators", "a=h:1,b=h:2"], "or --threshold"),
        (["--aggregators", "a=h:1,b=h:2,c"], "expected name=host:port"),
        (["--aggregators", "a=h:1,b=h:2,c=h:x"], "expected name=host:port"),
        (["--aggregators", "a=h:1,b=h:2,c=h:2"], "a broker of its own"),
        (["--aggregators", "a=h:1,b=h:2,c=h:99999"], "port"),
        (["--aggregators", "a=h:1,b=h:2,C=h:3"], "'C'"),
        (["--aggregators", "a=h:1,b=h:2,a=h:3,c=h:5"], "names a more than once"),
        (["--coordinator", "h"], "expected name=host:port"),
        (["--coordinator", "a=h:4"], "a name that no aggregator has"),
        (["--aggregators", "control=h:1,b=h:2,c=h:3"], "the coordinator's broker goes by it"),
        (["--profile", "standard"], "or --threshold"),
        (["--threshold", "4"], "threshold"),
        (["--aggregators", "a=h:1,b=h:2,c=h:3,d=h:5", "--threshold", "2"], "two different sums"),
        (["--min-devices", "2"], "min_devices"),
        (["--certificate-days", "0"], "certificate_days"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], reason: str
) -> None:
    root = Root(tmp_path / "root", capsys)
    write_passphrase(root)
    words = ["--federation", "lab", "--aggregators", "a=h:1,b=h:2,c=h:3", "--coordinator", "h:4", *changed]
    assert reason in root.refused("init", *words)
    assert not (root.folder / "register.json").exists()


@pytest.mark.parametrize(("count", "profile", "threshold"), [(3, "small", 2), (5, "standard", 3), (5, "careful", 4)])
def test_profiles_are_k_of_n(tmp_path: Path, count: int, profile: str, threshold: int) -> None:
    root = Root(tmp_path / "root")
    write_passphrase(root)
    places = ",".join(f"agg-{number}=host-{number}:8883" for number in range(count))
    words = ["--federation", "lab", "--aggregators", places, "--coordinator", "main=host:8883", "--profile", profile]
    root.call("init", *words)
    settings = tomllib.loads((root.folder / "federation.toml").read_text())
    assert (settings["threshold"], settings["coordinator_id"]) == (threshold, "main")


# --------------------------------------------------------------------------- the passphrase


def test_a_wrong_passphrase_changes_nothing(root: Root) -> None:
    before = register(root)
    write_passphrase(root, PASSPHRASE + "r")
    assert "wrong passphrase" in root.refused("device", "pi-04")
    assert register(root) == before
    assert not root.bundle("pi-04").exists()


def test_a_passphrase_file_that_is_open_to_others_is_refused(root: Root) -> None:
    root.passphrase.chmod(0o644)
    assert "open to others" in root.refused("device", "pi-04")


def test_a_missing_passphrase_file_is_named(root: Root) -> None:
    root.passphrase.unlink()
    assert f"passphrase file {root.passphrase}: No such file" in root.refused("device", "pi-04")


def test_the_passphrase_file_can_come_from_the_environment(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPS_PASSPHRASE_FILE", str(root.passphrase))
    root.run(["device", root.folder, "pi-04"])
    assert root.bundle("pi-04").is_dir()


def test_the_passphrase_is_asked_for(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FPS_PASSPHRASE_FILE", raising=False)
    asked = CliRunner().invoke(provision, ["device", str(root.folder), "pi-04"], input=f"{PASSPHRASE}\n")
    assert asked.exit_code == 0, asked.output
    assert PASSPHRASE not in asked.output
    assert root.bundle("pi-04").is_dir()


def test_a_new_passphrase_is_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FPS_PASSPHRASE_FILE", raising=False)
    words = ["--federation", "lab", "--aggregators", "a=h:1,b=h:2,c=h:3", "--coordinator", "h:4"]
    typed = f"{PASSPHRASE}\nmistyped\n{PASSPHRASE}\n{PASSPHRASE}\n"
    asked = CliRunner().invoke(provision, ["init", str(tmp_path / "root"), *words], input=typed)
    assert asked.exit_code == 0, asked.output
    assert "do not match" in asked.output


def test_no_command_takes_a_passphrase_as_a_word(root: Root) -> None:
    root.run(["device", root.folder, "pi-04", "--passphrase", PASSPHRASE], code=2)
    assert "No such option" in root.error


# --------------------------------------------------------------------------- one at a time, and whole


def test_two_commands_do_not_work_in_one_folder(root: Root) -> None:
    with office.Office.open(root.folder):
        assert "another `provision` command" in root.refused("device", "pi-04")
    root.call("device", "pi-04")


def test_what_the_disk_refuses_is_one_line(root: Root, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file/x" in root.refused("device", "pi-04", "--out", tmp_path / "file" / "x")
    assert "nowhere" in root.refused("directory", "--copy-to", tmp_path / "nowhere" / "directory.json")
    assert "pi-04" not in (root.folder / "register.json").read_text()
    root.run(["enrol", "request", tmp_path / "file", "--federation", "lab", "--name", "pi-05"], code=2)
    assert "Traceback" not in root.error


def test_nothing_is_said_to_be_done_that_the_disk_did_not_take(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for words in (["revoke", "pi-02"], ["renew", "pi-01"], ["device", "pi-04"], ["aggregator", "a", "--replace"]):
        with monkeypatch.context() as patch:
            patch.setattr(storage.os, "fsync", full)
            out = root.call(words[0], *words[1:], code=2)
        assert out == ""
        assert "No space left on device, expected a place with room" in root.error
        assert f"error: {root.folder}" in root.error, "the path is named"
    assert "pi-02" in directory(root).devices


def test_a_folder_without_a_federation_is_named(root: Root, tmp_path: Path) -> None:
    root.folder = tmp_path / "elsewhere"
    assert "holds no federation" in root.refused("device", "pi-04")


def test_a_damaged_register_is_named(root: Root) -> None:
    (root.folder / "register.json").write_text('{"root_key": 1}')
    assert "register.json" in root.refused("device", "pi-04")


class Killed(BaseException):
    """The command ends here."""


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.faults) for first in range(1, 8))])
def test_a_command_that_is_killed_anywhere_leaves_a_whole_folder(
    original: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], first: int
) -> None:
    """Killed before its i-th rename, for every i: then the next command finds either all of it done, or nothing."""
    outcomes = []
    for step in range(first, 200, 8):
        root = copied(original, tmp_path / f"root-{step}", capsys)
        root.call("device", "pi-01", "--replace")  # its bundle was the last to be moved where the killed one lies
        before = directory(root)
        was_killed = kill_at(step, monkeypatch, lambda root=root: root.call("device", "pi-04", "pi-01", "--replace"))
        root.call("directory")  # the next command
        outcomes.append(check_whole(root, before))
        if not was_killed:
            break
    assert not was_killed
    assert set(outcomes) == {"nothing", "all"}
    assert outcomes == sorted(outcomes, key=["nothing", "all"].index), "once it is done it is done"


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch, work: Any) -> bool:
    """Whether `work` was killed before its rename number `step`."""
    left = [step]
    real_path, real_os = Path.replace, bundles.os.replace

    def count(real: Any) -> Any:
        def renamed(*arguments: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(*arguments)

        return renamed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", count(real_path))
        patched.setattr(bundles.os, "replace", count(real_os))
        try:
            work()
        except Killed:
            return True
    return False


def check_whole(root: Root, before: Directory) -> str:
    """Register, directory and bundles of a root say the same; whether pi-04 is in and pi-01 has new keys."""
    found = directory(root)
    known = register(root)
    Register(**{"root_key": known["root_key"]})
    assert found.version == known["version"]
    assert not list((root.folder / "bundles").glob("*.part"))
    for name in found.devices:
        settings = PartySettings(
            str(root.bundle(name) / "key.json"), str(root.bundle(name) / "directory.json"), known["root_key"]
        )
        assert Party.load(settings, Role.DEVICE).ident == name
        serial = read_certificate((root.bundle(name) / "tls.pem").read_bytes()).serial_number
        assert f"{serial:x}" == known["parties"][name]["cards"][0]["serial"]
    assert {path.name for path in (root.folder / "bundles").iterdir()} == {*found.devices, *ROLES}
    is_new = found.devices["pi-01"] != before.devices["pi-01"]
    assert is_new == ("pi-04" in found.devices) == (len(found.revoked) == 2)
    return "all" if is_new else "nothing"


def test_init_that_was_killed_may_be_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(20):
        folder = tmp_path / f"root-{step}"
        was_killed = kill_at(step, monkeypatch, lambda folder=folder: make_root(folder))
        if not was_killed:
            break
        make_root(folder)
        assert register(Root(folder))["version"] == 0
    assert not was_killed
    assert step > 3

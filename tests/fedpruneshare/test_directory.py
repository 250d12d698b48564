"""The directory is what the root signed, or nothing (docs/protocol.md §7.1)."""

from __future__ import annotations

import gc
import hashlib
from pathlib import Path

import pytest
from builders import AGGREGATORS, DEVICES, directory, identity

from fedpruneshare import directory as directory_module
from fedpruneshare.directory import MAX_DIRECTORY_BYTES, read_directory, sign_directory, write_directory
from fedpruneshare.errors import SettingsError, SignatureError
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.sealing import Identity
from fedpruneshare.topics import Role

ROOT = identity("root")
KEY = ROOT.public()[0].signing.hex()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "directory.json"
    write_directory(made, directory(), ROOT)
    return made


def test_there_and_back(path: Path) -> None:
    assert read_directory(path, KEY) == directory()


def test_another_root_is_refused(path: Path) -> None:
    with pytest.raises(SignatureError, match="not signed by the root key"):
        read_directory(path, identity("another-root").public()[0].signing.hex())


def test_parties_of_a_process_share_what_they_read_of_one_file(tmp_path: Path) -> None:
    """Thousands of synthetic devices in a process: half a MiB each for a roster of a thousand would fill the memory."""
    parties = []
    for name in DEVICES[:3]:
        identity(name).save(tmp_path / f"{name}.key")
        write_directory(tmp_path / f"{name}.json", directory(), ROOT)
        files = PartySettings(str(tmp_path / f"{name}.key"), str(tmp_path / f"{name}.json"), KEY)
        parties.append(Party.load(files, Role.DEVICE))
    assert len({id(party.directory) for party in parties}) == 1
    newer = sign_directory(directory(version=2), ROOT)
    for party in parties:
        assert party.adopt(bytes(bytearray(newer)))  # each gets its own bytes
    assert len({id(party.directory) for party in parties}) == 1
    name = (KEY, hashlib.sha256(newer).digest())
    assert name in directory_module._in_use
    del party
    parties.clear()
    gc.collect()
    assert name not in directory_module._in_use, "what nobody holds is kept by nobody"


def test_what_one_root_has_signed_is_read_for_no_other(path: Path) -> None:
    held = read_directory(path, KEY)
    with pytest.raises(SignatureError, match="not signed by the root key"):
        read_directory(path, identity("another-root").public()[0].signing.hex())
    assert read_directory(path, KEY) is held


def test_a_changed_byte_is_refused(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"version":1', b'"version":9'))
    with pytest.raises(SignatureError):
        read_directory(path, KEY)


@pytest.mark.parametrize("content", [b"", b"{}\n{}", b'{"signature": 5}\n{}', b'{"signature": "zz"}\n{}'])
def test_what_is_no_directory_is_named(tmp_path: Path, content: bytes) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(content)
    with pytest.raises(SettingsError, match="no signature line"):
        read_directory(wrong, KEY)


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        read_directory(tmp_path / "nowhere", KEY)


def test_a_huge_one_is_not_read(tmp_path: Path) -> None:
    wrong = tmp_path / "huge"
    with open(wrong, "wb") as file:
        file.truncate(MAX_DIRECTORY_BYTES + 1)
    with pytest.raises(SettingsError, match="larger than"):
        read_directory(wrong, KEY)


def test_floors_below_three_cannot_be_written_in(tmp_path: Path) -> None:
    wrong = tmp_path / "low"
    write_directory(wrong, directory(min_devices=2), ROOT)
    with pytest.raises(SettingsError, match="min_devices"):
        read_directory(wrong, KEY)


def test_keys_are_found_by_role() -> None:
    made = directory()
    own = identity(DEVICES[0]).public()[0]
    assert made.signing_key(Role.DEVICE, DEVICES[0], own.key_id, 0.0) == own.signing
    for role, name in ((Role.AGGREGATOR, AGGREGATORS[0]), (Role.COORDINATOR, "coordinator")):
        assert made.sealing_keys(role, name, 0.0) == identity(name).public()[0]
    for role, name in ((Role.AGGREGATOR, DEVICES[0]), (Role.DEVICE, "coordinator"), (Role.COORDINATOR, "device-00")):
        with pytest.raises(SignatureError, match=f"'{name}' is no {role}"):
            made.signing_key(role, name, own.key_id, 0.0)


def test_a_party_whose_key_is_not_the_directorys_does_not_start(path: Path, tmp_path: Path) -> None:
    settings = PartySettings(key_file=str(tmp_path / "key"), directory=str(path), root_key=KEY)
    identity(DEVICES[0]).save(tmp_path / "key")
    assert Party.load(settings, Role.DEVICE).ident == DEVICES[0]
    Identity.generate(DEVICES[0]).save(tmp_path / "key")
    with pytest.raises(SettingsError, match="does not hold the key"):
        Party.load(settings, Role.DEVICE)

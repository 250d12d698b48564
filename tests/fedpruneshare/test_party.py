"""A party at work: the directory in force, newer ones, rotation, revocation, clocks (docs/protocol.md §7.1)."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity, keys

from fedpruneshare import party as party_module
from fedpruneshare import trust
from fedpruneshare.directory import (
    DeviceEntry,
    Directory,
    Service,
    party_keys,
    read_directory,
    sign_directory,
    write_directory,
)
from fedpruneshare.errors import ProtocolError, SettingsError, SignatureError, StoreError
from fedpruneshare.keys import Identity
from fedpruneshare.link import Delivery
from fedpruneshare.messages import Decline, DirectoryChunk, Hello, digest
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.process import serve
from fedpruneshare.topics import Role
from fedpruneshare.trust import DirectoryWatcher

ROOT = Identity.generate("root")
ROOT_KEY = ROOT.public()[0].signing.hex()
NAME = AGGREGATORS[0]
NOW = 1_800_000_000.0


@pytest.fixture
def settings(tmp_path: Path) -> PartySettings:
    """An aggregator with files: directory version 1."""
    identity(NAME).save(tmp_path / "key.json")
    write_directory(tmp_path / "directory.json", directory(), ROOT)
    (tmp_path / "store").mkdir()
    return PartySettings(
        str(tmp_path / "key.json"), str(tmp_path / "directory.json"), ROOT_KEY, keep=str(tmp_path / "store")
    )


def newer(version: int = 2, **changes: Any) -> bytes:
    return sign_directory(directory(version=version, **changes), ROOT)


def test_a_newer_directory_comes_into_force_and_stays(settings: PartySettings) -> None:
    party, heard = Party.load(settings, Role.AGGREGATOR), []
    party.on_change(lambda: heard.append(party.directory.version))
    assert party.adopt(newer(5))
    assert not party.adopt(newer(5))
    assert heard == [5]
    assert Party.load(settings, Role.AGGREGATOR).directory.version == 5


def test_who_wants_to_hear_no_more_may_say_so_twice(settings: PartySettings) -> None:
    """A service that is stopped again after a stop was cut short."""
    party, heard = Party.load(settings, Role.AGGREGATOR), []
    forget = party.on_change(lambda: heard.append(1))
    party.on_change(lambda: heard.append(2))
    forget()
    forget()
    assert party.adopt(newer(5))
    assert heard == [2]


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (newer(1, min_devices=4), ProtocolError, "another directory of version 1"),
        (sign_directory(directory(version=2), Identity.generate("root")), SignatureError, "not signed by the root"),
        (newer(2, federation="other"), ProtocolError, "federation 'other', expected 'lab'"),
        (newer(2)[:-1], SignatureError, "not signed"),
        (b"", SettingsError, "no signature line"),
        (b"[" * 100_000, SettingsError, "no signature line"),
    ],
    ids=["same version", "other root", "other federation", "cut", "empty", "deep"],
)
def test_what_is_no_newer_directory_is_refused(
    settings: PartySettings, data: bytes, error: type[Exception], text: str
) -> None:
    party = Party.load(settings, Role.AGGREGATOR)
    with pytest.raises(error, match=text):
        party.adopt(data)
    assert party.directory == directory()
    assert Party.load(settings, Role.AGGREGATOR).directory == directory()


def test_there_is_no_way_back_also_after_a_restart(settings: PartySettings) -> None:
    party = Party.load(settings, Role.AGGREGATOR)
    party.adopt(newer(3))
    with pytest.raises(ProtocolError, match="version 2, expected 3 or later"):
        party.adopt(newer(2))
    Path(settings.directory).write_bytes(newer(2))
    assert Party.load(settings, Role.AGGREGATOR).directory.version == 3
    with pytest.raises(ProtocolError, match="version 2, expected 3 or later"):
        party_that_reloads = Party.load(settings, Role.AGGREGATOR)
        party_that_reloads.adopt(newer(2))


def test_there_is_no_way_back_behind_what_a_service_has_started_with(settings: PartySettings) -> None:
    Path(settings.directory).write_bytes(newer(5))
    party = Party.load(settings, Role.AGGREGATOR)

    async def work() -> int:
        return 0

    assert serve(work, party) == 0
    Path(settings.directory).write_bytes(newer(4))
    assert Party.load(settings, Role.AGGREGATOR).directory.version == 5


def test_a_file_that_is_put_in_place_counts_after_a_reload(settings: PartySettings) -> None:
    party = Party.load(settings, Role.AGGREGATOR)
    assert not party.reload()
    Path(settings.directory).write_bytes(newer(2))
    assert party.reload()
    assert party.directory.version == 2


def test_a_reload_that_fails_changes_nothing(settings: PartySettings) -> None:
    """Neither to another party's name, nor to a new key beside an old directory."""
    party = Party.load(settings, Role.AGGREGATOR)
    before = party.identity
    identity(AGGREGATORS[1]).save(Path(settings.key_file))
    with pytest.raises(SettingsError, match=f"holds keys of '{AGGREGATORS[1]}', expected those of '{NAME}'"):
        party.reload()
    before.rotated().save(Path(settings.key_file))
    party.directory = directory(version=3)  # newer than the files
    with pytest.raises(ProtocolError, match="version 1, expected 3 or later"):
        party.reload()
    assert party.identity is before


def test_a_kept_directory_that_cannot_be_looked_for_is_named(
    settings: PartySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may enter every folder, so this one refuses by itself."""

    def refusing(real: Any) -> Any:
        def call(path: Any, *rest: Any) -> Any:
            if str(path).startswith(settings.keep):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path, *rest)

        return call

    monkeypatch.setattr(party_module.Path, "exists", refusing(Path.exists))
    monkeypatch.setattr("builtins.open", refusing(open))
    with pytest.raises(SettingsError, match=r"directory-in-force-key\.json: Permission denied"):
        Party.load(settings, Role.AGGREGATOR)


def rotated(old: Identity) -> tuple[Identity, Directory]:
    """The aggregator with a second key, and the directory that lists both."""
    both = old.rotated()
    service = msgspec.structs.replace(
        directory().aggregators[NAME], keys=tuple(party_keys(public) for public in both.public())
    )
    return both, directory(version=2, aggregators={**directory().aggregators, NAME: service})


def test_a_new_key_signs_once_the_directory_lists_it(settings: PartySettings) -> None:
    old = identity(NAME)
    both, listed = rotated(old)
    party = Party.load(settings, Role.AGGREGATOR)
    both.save(Path(settings.key_file))
    assert party.reload()
    hello = Hello("0.1.0", 0)
    used = lambda: msgspec.msgpack.decode(party.sign(hello))[3]  # noqa: E731
    assert used() == old.public()[0].key_id
    party.adopt(sign_directory(listed, ROOT))
    assert used() == both.public()[0].key_id
    assert party.sealing_keys(Role.AGGREGATOR, NAME) == both.public()[0]


def test_unknown_expired_and_revoked_keys_are_refused_by_name() -> None:
    own = identity(DEVICES[0]).public()[0]
    name = own.key_id.hex()
    ask = (Role.DEVICE, DEVICES[0], own.key_id)
    assert directory().signing_key(*ask, NOW) == own.signing
    with pytest.raises(SignatureError, match=f"key {'00' * 8} is none of 'device-00', expected {name}"):
        directory().signing_key(Role.DEVICE, DEVICES[0], bytes(8), NOW)
    with pytest.raises(SignatureError, match=f"key {name} of 'device-00' is revoked, in version 1"):
        directory(revoked={name: DEVICES[0]}).signing_key(*ask, NOW)
    ends = DeviceEntry((party_keys(own, int(NOW)),))
    late = directory(devices={DEVICES[0]: ends})
    assert late.signing_key(*ask, NOW - 1) == own.signing
    with pytest.raises(SignatureError, match=r"expired at 2027-01-15 08:00:00 UTC, now it is 2027-01-15 08:00:01 UTC"):
        late.signing_key(*ask, NOW + 1)


def test_seals_go_to_the_newest_key_in_force() -> None:
    both, listed = rotated(identity(NAME))
    new, old = both.public()
    assert listed.sealing_keys(Role.AGGREGATOR, NAME, NOW) == new
    revoked = msgspec.structs.replace(listed, revoked={new.key_id.hex(): NAME})
    assert revoked.sealing_keys(Role.AGGREGATOR, NAME, NOW) == old
    assert not revoked.is_revoked(Role.AGGREGATOR, NAME)
    none = msgspec.structs.replace(listed, revoked={key.key_id.hex(): NAME for key in both.public()})
    assert none.is_revoked(Role.AGGREGATOR, NAME)
    with pytest.raises(SignatureError, match="every key of 'aggregator-1' is revoked"):
        none.sealing_keys(Role.AGGREGATOR, NAME, NOW)
    expired = Service((party_keys(new, int(NOW) - 5),), "127.0.0.1", 1)
    with pytest.raises(SignatureError, match="expired at"):
        directory(aggregators={NAME: expired}).sealing_keys(Role.AGGREGATOR, NAME, NOW)


def test_a_party_knows_that_it_was_revoked(settings: PartySettings) -> None:
    party = Party.load(settings, Role.AGGREGATOR)
    assert party.is_current()
    key = keys(NAME)[0].raw().key_id.hex()
    party.adopt(newer(2, revoked={key: NAME}))
    assert not party.is_current()
    with pytest.raises(SettingsError, match="does not hold the key"):
        Party.load(settings, Role.AGGREGATOR)


def test_a_retained_message_on_a_channel_that_keeps_nothing_is_refused(settings: PartySettings) -> None:
    """No broker can forbid its writer to leave one there, where it would meet every reader for ever."""
    reader = Party.load(settings, Role.AGGREGATOR)
    writer = Party(identity(DEVICES[0]), directory(), Role.DEVICE)
    payload = writer.sign(Decline(1, bytes(32), "busy"))
    topic = reader.topics.name("decline", DEVICES[0])
    assert reader.take("decline", Delivery(topic, payload)) is not None
    assert reader.take("decline", Delivery(topic, payload, retained=True)) is None


def test_no_clock_is_before_the_directory() -> None:
    made = directory(issued_at=int(NOW))
    assert Party(identity(NAME), made, Role.AGGREGATOR, clock=lambda: 0.0).now() == NOW
    assert Party(identity(NAME), made, Role.AGGREGATOR, clock=lambda: NOW + 5).now() == NOW + 5


# --------------------------------------------------------------------------- on the wire


def chunks(data: bytes, version: int, count: int = 3) -> list[DirectoryChunk]:
    size = -(-len(data) // count)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [DirectoryChunk(version, digest(data), index, count, piece) for index, piece in enumerate(pieces)]


async def deliver(party: Party, parts: list[DirectoryChunk]) -> None:
    coordinator, watcher = Party(identity("coordinator"), directory(), Role.COORDINATOR), DirectoryWatcher(party)
    for part in parts:
        await watcher.on_chunk(Delivery(f"fps/v1/lab/directory/{part.chunk}", coordinator.sign(part), True))


async def test_chunks_in_any_order_make_a_directory(settings: PartySettings) -> None:
    party = Party.load(settings, Role.AGGREGATOR)
    old, new = chunks(newer(2), 2), chunks(newer(3), 3)
    await deliver(party, [old[0], new[2], old[1], new[0], new[0], old[2], new[1]])
    assert party.directory.version == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda parts: parts[:-1],
        lambda parts: [*parts[:-1], msgspec.structs.replace(parts[-1], data=b"{}")],
        lambda parts: [msgspec.structs.replace(part, digest=bytes(32)) for part in parts],
        lambda parts: [msgspec.structs.replace(part, chunk=part.chunk + 3) for part in parts],
    ],
    ids=["a chunk missing", "another chunk", "another digest", "beyond the last"],
)
async def test_spoilt_chunks_change_nothing(settings: PartySettings, spoil: Any) -> None:
    party = Party.load(settings, Role.AGGREGATOR)
    await deliver(party, spoil(chunks(newer(2), 2)))
    assert party.directory == directory()
    await deliver(party, chunks(newer(2), 2))
    assert party.directory.version == 2
    assert read_directory(Path(settings.keep) / "directory-in-force-key.json", ROOT_KEY).version == 2


async def test_a_directory_that_a_full_disk_does_not_take_comes_into_force_when_there_is_room(
    settings: PartySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_FULL_DISK_PAUSE_S", 0.01)
    with monkeypatch.context() as full:

        def no_room(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(party_module, "write_atomically", no_room)
        party = Party.load(settings, Role.AGGREGATOR)
        with pytest.raises(StoreError, match=r"directory-in-force-key\.json: No space left on device, expected a disk"):
            party.adopt(newer(2))
        await deliver(party, chunks(newer(2), 2))
        assert party.directory == directory()
    in_force = asyncio.Event()
    party.on_change(in_force.set)
    await asyncio.wait_for(in_force.wait(), 60)
    assert Party.load(settings, Role.AGGREGATOR).directory.version == 2

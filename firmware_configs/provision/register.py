"""What the root's folder holds beside its keys: the federation's settings, and the register of everybody in it.

`federation.toml` is the operator's to edit; `fedpruneshare provision directory` then signs what it says.
`register.json` is this program's own: public keys, serial numbers, revocations. Nothing in either file is secret.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedpruneshare.directory import (
    DeviceEntry,
    Directory,
    HexKeyId,
    KeysOfParty,
    Service,
    Time,
)
from fedpruneshare.errors import Fault, SettingsError
from fedpruneshare.floors import LOWEST_FLOOR
from fedpruneshare.messages import MAX_AGGREGATORS, MAX_DEVICES, Identifier
from fedpruneshare.topics import Role
from firmware_configs.brokers.mosquitto import CONTROL

DAY_S: Final = 86_400
DEFAULT_COHORT: Final = 24
HexSerial = Annotated[str, Meta(pattern="^[0-9a-f]{1,40}$")]
HexDigest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Floor = Annotated[int, Meta(ge=LOWEST_FLOOR, le=MAX_DEVICES)]
Days = Annotated[float, Meta(gt=0, le=3650)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all tables."""


class Profile(StrEnum):
    """How many aggregators hold shares, and how many of them open a sum: k of n."""

    SMALL = "small"
    STANDARD = "standard"
    CAREFUL = "careful"

    @property
    def threshold(self) -> int:
        """How many open a sum; one fewer learn nothing."""
        return {"small": 2, "standard": 3, "careful": 4}[self.value]

    @property
    def aggregators(self) -> int:
        """How many there are."""
        return {"small": 3, "standard": 5, "careful": 5}[self.value]


# --------------------------------------------------------------------------- federation.toml


class Place(_Table, frozen=True):
    """Where a party's broker listens, and who runs it. `listen`: the address it binds, `host` where that is empty."""

    host: Annotated[str, Meta(min_length=1, max_length=253, pattern="^[A-Za-z0-9.:-]+$")]
    port: Annotated[int, Meta(ge=1, le=65_535)]
    listen: Annotated[str, Meta(max_length=253, pattern="^[A-Za-z0-9.:-]*$")] = ""
    operator: Annotated[str, Meta(max_length=100)] = ""


class FederationSettings(_Table, frozen=True):
    """The whole of federation.toml.

    `threshold` of the aggregators open a sum, `min_devices` and `min_devices_segment` are the floors, `task` and
    `task_parts` what devices train and into how many parts its data are dealt, `rounds` of up to `cohort` devices what
    the coordinator's settings begin with. `certificate_days`: how long
    certificates last; `overlap_days`: how long a key still counts after it was rotated; `directory_days`: how long a
    directory is good, 0 for ever.
    """

    federation: Identifier
    aggregators: Annotated[dict[Identifier, Place], Meta(min_length=1, max_length=MAX_AGGREGATORS)]
    coordinator: Place
    threshold: Annotated[int, Meta(ge=2, le=MAX_AGGREGATORS)]
    coordinator_id: Identifier = "coordinator"
    min_devices: Floor = 8
    min_devices_segment: Floor = LOWEST_FLOOR
    task: Annotated[str, Meta(min_length=1, max_length=200)] = "hapt"
    task_parts: Annotated[int, Meta(ge=1, le=MAX_DEVICES)] = 10
    rounds: Annotated[int, Meta(ge=1)] = 20
    cohort: Annotated[int, Meta(ge=LOWEST_FLOOR, le=MAX_DEVICES)] = DEFAULT_COHORT
    post_quantum: bool = False
    certificate_days: Days = 90
    overlap_days: Days = 7
    directory_days: Annotated[float, Meta(ge=0, le=3650)] = 0

    def faults(self, path: str) -> Iterator[Fault]:
        """Checks across keys."""
        count = len(self.aggregators)
        if not self.threshold <= count < 2 * self.threshold:
            expected = f"more than half of the {count} aggregators, and no more than there are"
            yield Fault(f"{path}.threshold", str(self.threshold), expected, "with fewer, two different sums could open")
        if self.cohort < self.min_devices:
            yield Fault(f"{path}.cohort", str(self.cohort), f"at least min_devices = {self.min_devices}")
        if CONTROL in self.aggregators:
            yield Fault(f"{path}.aggregators", repr(CONTROL), "another name: the coordinator's broker goes by it")
        if self.coordinator_id in self.aggregators:
            yield Fault(f"{path}.coordinator_id", repr(self.coordinator_id), "a name that no aggregator has")
        places = Counter((place.host, place.port) for place in (self.coordinator, *self.aggregators.values()))
        for (host, port), times in places.items():
            if times > 1:
                yield Fault(f"{path}.aggregators", f"{host}:{port} {times} times", "a broker of its own for everybody")


# --------------------------------------------------------------------------- register.json


class Card(_Table, frozen=True):
    """A certificate that was issued: serial number (hex) and when it ends (seconds since 1970)."""

    serial: HexSerial
    not_after: Time


class Record(_Table, frozen=True):
    """One party. `part`: which part of a task's data is a device's. `home`: where its files lie on its own machine.

    `is_enrolled`: its keys were made where it runs, and nobody else has them. `broker`: certificates of its broker;
    `broker_user`: who the broker runs as, empty for who starts it.
    """

    role: Role
    keys: KeysOfParty
    cards: tuple[Card, ...]
    broker: tuple[Card, ...] = ()
    part: int = 0
    home: str = ""
    broker_user: str = ""
    is_enrolled: bool = False
    revoked_at: Time = 0

    def key_ids(self) -> tuple[str, ...]:
        """Ids of its keys, hex, newest first."""
        return tuple(keys.raw().key_id.hex() for keys in self.keys)


class Register(_Table, frozen=True):
    """The whole of register.json: what the commands so far have done.

    `version` of the newest directory, 0 before the first. `requests`: digests of enrolment requests that were answered,
    so that none is answered twice. `pending`: bundles that this version of the register put under way, by where they
    lie and where they belong.
    """

    root_key: str
    version: Annotated[int, Meta(ge=0, lt=2**48)] = 0
    round_epoch: Annotated[int, Meta(ge=0, lt=2**16)] = 0
    parties: dict[Identifier, Record] = {}
    revoked_keys: dict[HexKeyId, Identifier] = {}
    revoked_serials: dict[HexSerial, Time] = {}
    requests: tuple[HexDigest, ...] = ()
    pending: dict[str, str] = {}

    def party(self, name: str) -> Record:
        """The record of a party. Raises `SettingsError` for an unknown name."""
        if name not in self.parties:
            known = ", ".join(list(self.parties)[:5]) or "nobody"
            raise SettingsError(f"{name!r} is not in the register, expected one of its parties ({known} …)")
        return self.parties[name]

    def with_party(self, name: str, record: Record) -> Register:
        """The register with one record added or replaced."""
        return msgspec.structs.replace(self, parties={**self.parties, name: record})

    def active(self, role: Role) -> dict[str, Record]:
        """All parties of a role that are not revoked."""
        return {name: one for name, one in self.parties.items() if one.role is role and not one.revoked_at}

    def without(self, name: str, now: int) -> Register:
        """The register with a party's keys and certificates revoked; its name stays taken."""
        record = self.party(name)
        keys = dict.fromkeys(record.key_ids(), name)
        serials = {card.serial: now for card in (*record.cards, *record.broker) if card.not_after > now}
        revoked = msgspec.structs.replace(record, revoked_at=now)
        return msgspec.structs.replace(
            self.with_party(name, revoked),
            revoked_keys={**self.revoked_keys, **keys},
            revoked_serials={**serials, **self.revoked_serials},
        )


def missing_services(settings: FederationSettings, register: Register) -> list[str]:
    """Aggregators and coordinator that have no keys yet: without them there is no directory."""
    there = register.active(Role.AGGREGATOR) | register.active(Role.COORDINATOR)
    return [name for name in (*settings.aggregators, settings.coordinator_id) if name not in there]


def make_directory(settings: FederationSettings, register: Register, now: int) -> Directory:
    """The directory that settings and register stand for, as the version after the register's.

    Raises `SettingsError` while an aggregator or the coordinator has no keys.
    """
    missing = missing_services(settings, register)
    if missing:
        raise SettingsError(f"no directory yet: {', '.join(missing)} without keys, expected a bundle made for each")

    def service(name: str, place: Place) -> Service:
        return Service(_current(register.parties[name], now), place.host, place.port, True, place.operator)

    devices = register.active(Role.DEVICE).items()
    return Directory(
        federation=settings.federation,
        version=register.version + 1,
        coordinator_id=settings.coordinator_id,
        coordinator=service(settings.coordinator_id, settings.coordinator),
        aggregators={name: service(name, place) for name, place in settings.aggregators.items()},
        devices={name: DeviceEntry(_current(record, now)) for name, record in devices},
        min_devices=settings.min_devices,
        min_devices_segment=settings.min_devices_segment,
        issued_at=now,
        expires_at=int(now + settings.directory_days * DAY_S) if settings.directory_days else 0,
        round_epoch=register.round_epoch,
        revoked=register.revoked_keys,
        post_quantum=settings.post_quantum,
        privacy_threshold=settings.threshold - 1,
    )


def _current(record: Record, now: int) -> KeysOfParty:
    """The keys that have not expired."""
    return tuple(keys for keys in record.keys if not 0 < keys.expires_at <= now)

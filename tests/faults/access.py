"""The access matrix: who may do what on which topic, by the table; and a federation's brokers and clients to try it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from certificates import Certificates
from faults.mqtt_client import Client, Will, hostile_context

from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.topics import TABLE, Channel, Role, Topics
from fedpruneshare.topics import Broker as Kind
from firmware_configs.brokers import Broker
from firmware_configs.brokers.mosquitto import CONTROL, mosquitto_broker, shipped_settings

DEVICES, AGGREGATORS, COORDINATOR = ("pi-01", "pi-02"), ("north", "south"), "head"


@dataclass(frozen=True)
class Party:
    """Somebody with a certificate of the federation's authority. `federation` and `role` are what it says."""

    ident: str
    role: Role
    federation: str = "lab"

    @property
    def is_member(self) -> bool:
        """Whether the directory has this name in this role."""
        names = {Role.DEVICE: DEVICES, Role.AGGREGATOR: AGGREGATORS, Role.COORDINATOR: (COORDINATOR,)}
        return self.federation == "lab" and self.ident in names[self.role]


@dataclass(frozen=True)
class Place:
    """A topic: its channel, and whose it is where the channel has a level for a party."""

    channel: Channel
    owner: str
    topic: str

    def may_write(self, party: Party) -> bool:
        """By the table: the channel's writer, on its own topic where there is one for each."""
        return self._is_known(party) and party.role is self.channel.writer and self._is_no_others(party)

    def may_read(self, party: Party) -> bool:
        """By the table: its readers; a topic for one party is that party's, unless its own role writes there."""
        is_for_all = party.role is self.channel.writer
        return (
            self._is_known(party) and party.role in self.channel.readers and (is_for_all or self._is_no_others(party))
        )

    def _is_known(self, party: Party) -> bool:
        """An aggregator's broker knows the devices and that aggregator."""
        is_at_home = party.role is Role.DEVICE or party.ident == AGGREGATORS[0]
        return party.is_member and (self.channel.broker is Kind.CONTROL or is_at_home)

    def _is_no_others(self, party: Party) -> bool:
        role = Role.DEVICE if self.owner in DEVICES else Role.AGGREGATOR
        return not self.owner or role is not party.role or self.owner == party.ident


def places(kind: Kind) -> list[Place]:
    """Every topic of a broker, once for each party that has one of its own. An aggregator's broker knows no other."""
    owners = {"{device}": DEVICES, "{aggregator}": AGGREGATORS}
    found: list[Place] = []
    for channel in TABLE:
        if channel.broker is not kind:
            continue
        place = next((part for part in channel.pattern.split("/") if part in owners), "")
        for owner in owners.get(place, ("",)):
            levels = [owner if part in owners else 0 for part in channel.pattern.split("/") if part.startswith("{")]
            found.append(Place(channel, owner, Topics("lab").name(channel.name, *levels)))
    return found


@dataclass
class Site:
    """One broker of a federation as it ships, with a certificate for whoever asks."""

    certificates: Certificates
    broker: Broker
    kind: Kind
    _issued: dict[Party, TlsSettings] = field(default_factory=dict)

    def certificate(self, party: Party) -> TlsSettings:
        """What a party connects with, issued once."""
        if party not in self._issued:
            authority = self.certificates.authority
            issued = authority.issue_client(party.ident, party.role)
            self._issued[party] = self.certificates.files(f"{party.federation}-{party.role}-{party.ident}", issued)
        return self._issued[party]

    def client(self, party: Party, will: Will | None = None) -> Client:
        """A connection of a party; the one it had is taken over by the broker."""
        context = hostile_context(self.certificate(party), str(self.certificates.ca_file))
        client = Client(self.broker.address, context, will)
        assert client.login == "Success"
        return client


@dataclass(frozen=True)
class Names:
    """The federation's roster."""

    federation: str
    coordinator_id: str = COORDINATOR
    aggregators: Sequence[str] = AGGREGATORS
    devices: Sequence[str] = DEVICES


@contextmanager
def site(folder: Path, kind: Kind, certificates: Certificates | None = None) -> Iterator[Site]:
    """The coordinator's broker or that of `north`, while the block lasts."""
    certificates = certificates or Certificates(folder / "tls")
    name = CONTROL if kind is Kind.CONTROL else AGGREGATORS[0]
    settings = shipped_settings(folder / name, Names(certificates.federation), name, certificates.server(name=name))
    with mosquitto_broker(settings) as broker:
        yield Site(certificates, broker, kind)


class Crowd:
    """Every member of the federation, and every impostor, connected to one broker and reading all that it can get."""

    def __init__(self, at: Site, stack: ExitStack) -> None:
        self.at = at
        self.places = places(at.kind)
        self.clients: dict[Party, Client] = {}
        self._joined: list[tuple[Party, Client]] = []
        self._stack = stack
        for party in EVERYBODY:
            self.join(party)

    def join(self, party: Party) -> Client:
        """Connect, for the first time or again, and subscribe to every topic by name and by wildcards."""
        self.clients[party] = client = self.at.client(party)
        self._joined.append((party, client))
        self._stack.callback(client.close)
        client.subscribe(*(place.topic for place in self.places), *WILDCARDS)
        return client

    def writer(self, place: Place) -> Client:
        """Who may write a topic."""
        return self.clients[next(party for party in MEMBERS if place.may_write(party))]

    def readers(self, place: Place) -> set[Party]:
        """Who may read a topic."""
        return {party for party in MEMBERS if place.may_read(party)}

    def arrivals(self) -> dict[bytes, set[Party]]:
        """Who has got each payload so far. What was published before this call is with its readers."""
        self.settle()
        found: dict[bytes, set[Party]] = {}
        for party, client in self._joined:
            for got in client.got:
                found.setdefault(got.payload, set()).add(party)
        return found

    def settle(self) -> None:
        """Wait until every client has all that was on its way: the answer to a request stands behind it."""
        for client in self.clients.values():
            if not client.is_lost:
                client.unsubscribe("fps/v1/lab/none")


MEMBERS = (
    *(Party(ident, Role.DEVICE) for ident in DEVICES),
    *(Party(ident, Role.AGGREGATOR) for ident in AGGREGATORS),
    Party(COORDINATOR, Role.COORDINATOR),
)
#: Certificates of the federation's authority that name nobody it knows: a device as an aggregator or the coordinator,
#: an aggregator as a device, names made of wildcards.
IMPOSTORS = (
    Party("north", Role.DEVICE),
    Party("head", Role.DEVICE),
    Party("pi-01", Role.AGGREGATOR),
    Party("#", Role.DEVICE),
    Party("+", Role.AGGREGATOR),
)
EVERYBODY = (*MEMBERS, *IMPOSTORS)
#: What somebody subscribes to who wants everything. A shared subscription would take messages away from others.
WILDCARDS = ("#", "+/#", "fps/v1/lab/#", "fps/+/+/+/+", "fps/v1/+/up/+", "$SYS/#", "$share/thieves/fps/v1/lab/#")

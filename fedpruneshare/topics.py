"""Topic names, and who may write and read each (docs/protocol.md §2). Broker access lists are rendered from `TABLE`.

A topic is `fps/v1/<federation>/<channel>[/<party>…]`. Nothing secret stands in a topic. Every channel carries a fixed
set of message kinds; a payload of another kind is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "fps/v1"


class Broker(StrEnum):
    """Which broker a channel lives on: the coordinator's, or each aggregator's own."""

    CONTROL = "control"
    OWN = "own"


class Role(StrEnum):
    """The three parties."""

    DEVICE = "device"
    AGGREGATOR = "aggregator"
    COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Channel:
    """One row of the topic table. `pattern` holds `{device}`, `{aggregator}`, `{segment}`, `{chunk}` levels."""

    name: str
    pattern: str
    broker: Broker
    kinds: tuple[str, ...]
    writer: Role
    readers: tuple[Role, ...]
    retained: bool = False


_D, _A, _C = Role.DEVICE, Role.AGGREGATOR, Role.COORDINATOR

TABLE: Final[tuple[Channel, ...]] = (
    Channel("round", "round", Broker.CONTROL, ("round-plan",), _C, (_D, _A), retained=True),
    Channel("model", "model/{segment}/{chunk}", Broker.CONTROL, ("model-chunk",), _C, (_D,), retained=True),
    Channel("seed", "seed/{device}", Broker.CONTROL, ("checksum-seed",), _C, (_D,), retained=True),
    Channel("directory", "directory/{chunk}", Broker.CONTROL, ("directory-chunk",), _C, (_D, _A), retained=True),
    Channel("hello", "hello/{device}", Broker.CONTROL, ("hello",), _D, (_C,), retained=True),
    Channel("heartbeat", "heartbeat/{device}", Broker.CONTROL, ("heartbeat",), _D, (_C,)),
    Channel("decline", "decline/{device}", Broker.CONTROL, ("decline",), _D, (_C, _A)),
    Channel("up", "up/{device}", Broker.OWN, ("share-upload",), _D, (_A,)),
    Channel("ack", "ack/{device}", Broker.OWN, ("receipt", "missing"), _A, (_D,)),
    Channel("attendance", "attendance/{aggregator}", Broker.CONTROL, ("attendance", "refusal"), _A, (_C,)),
    Channel("check", "check", Broker.CONTROL, ("dealer-check",), _C, (_A,)),
    Channel("checked", "checked/{aggregator}", Broker.CONTROL, ("check-reply",), _A, (_C,)),
    Channel("accepted", "accepted/{aggregator}", Broker.CONTROL, ("acceptance",), _A, (_A, _C)),
    Channel("freeze", "freeze", Broker.CONTROL, ("freeze",), _C, (_A,)),
    Channel("sum", "sum/{aggregator}", Broker.CONTROL, ("sum-share", "refusal"), _A, (_C,)),
    Channel("outcome", "outcome", Broker.CONTROL, ("outcome",), _C, (_D, _A), retained=True),
)
CHANNELS: Final = {channel.name: channel for channel in TABLE}

#: kind -> the role that alone may send it.
WRITER_OF_KIND: Final[dict[str, Role]] = {kind: channel.writer for channel in TABLE for kind in channel.kinds}


@dataclass(frozen=True)
class Topics:
    """Topic names of one federation."""

    federation: str

    def name(self, channel: str, *levels: str | int) -> str:
        """The topic of a channel, e.g. `name("up", "device-03")`; levels fill the placeholders in order."""
        pattern = CHANNELS[channel].pattern.split("/")
        given = iter(levels)
        filled = [str(next(given)) if part.startswith("{") else part for part in pattern]
        return "/".join([PREFIX, self.federation, *filled])

    def every(self, channel: str) -> str:
        """The filter that matches a channel for all parties, e.g. `fps/v1/lab/up/+`."""
        parts = CHANNELS[channel].pattern.split("/")
        return "/".join([PREFIX, self.federation, *("+" if part.startswith("{") else part for part in parts)])

    def segment(self, segment: int) -> str:
        """The filter that matches all chunks of one model segment."""
        return "/".join([PREFIX, self.federation, "model", str(segment), "+"])

    def party(self, channel: str, topic: str) -> str:
        """The party named in a topic of a channel with one party level; empty if the topic is not of that form."""
        head = self.every(channel)[: -len("+")]
        rest = topic[len(head) :] if topic.startswith(head) else ""
        return rest if "/" not in rest else ""


@dataclass(frozen=True)
class AccessRule:
    """One line of a broker's access list: `party` may `read` or `write` the filter."""

    party: str
    action: str
    topic_filter: str


def access_rules(federation: str, broker: Broker, parties: dict[str, Role]) -> list[AccessRule]:
    """The whole access list of one broker, derived from `TABLE` (docs/protocol.md §2.2).

    `parties` maps each user name of that broker to its role. A placeholder of the writer's own role is filled
    with its name, so a device writes only its own topics and reads only its own receipts. What parties of one role say
    to each other all of them read.
    """
    topics = Topics(federation)
    rules: list[AccessRule] = []
    for party, role in parties.items():
        for channel in TABLE:
            if channel.broker is not broker:
                continue
            every = topics.every(channel.name)
            own = topics.name(channel.name, party) if f"{{{role}}}" in channel.pattern else every
            if role is channel.writer:
                rules.append(AccessRule(party, "write", own))
            if role in channel.readers:
                rules.append(AccessRule(party, "read", every if role is channel.writer else own))
    return rules

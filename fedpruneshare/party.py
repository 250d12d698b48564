"""A party of a federation at work: its identity, the directory it trusts, and its signed messages.

All three services start from the same `[party]` table of their settings file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from fedpruneshare.directory import Directory, HexKey, read_directory
from fedpruneshare.errors import PeerError, SettingsError
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.messages import Message
from fedpruneshare.sealing import Identity, Opened, open_message, sign_message
from fedpruneshare.topics import CHANNELS, Role, Topics

_log = structlog.get_logger()


class PartySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who this service is: its key file, the signed directory, and the root key that must have signed it (hex)."""

    key_file: str
    directory: str
    root_key: HexKey


class LinkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the broker connections, and the certificate for those that speak TLS (docs/protocol.md §3.1)."""

    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 60
    connect_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    publish_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    reconnect_max_s: Annotated[float, Meta(gt=0)] = 30.0
    payload_bytes: Annotated[int, Meta(ge=4096, le=1_000_000)] = 256 * 1024
    tls: TlsSettings | None = None

    def limits(self) -> LinkLimits:
        """As the link takes them."""
        return LinkLimits(
            payload_bytes=self.payload_bytes,
            keepalive_s=self.keepalive_s,
            connect_timeout_s=self.connect_timeout_s,
            publish_timeout_s=self.publish_timeout_s,
            reconnect_max_s=self.reconnect_max_s,
        )


@dataclass(frozen=True)
class Party:
    """One party: identity, directory and topics, ready to sign and to open messages."""

    identity: Identity
    directory: Directory
    role: Role

    @classmethod
    def load(cls, settings: PartySettings, role: Role) -> Party:
        """Read key file and directory. Raises `SettingsError` if they do not belong together."""
        identity = Identity.load(Path(settings.key_file))
        directory = read_directory(Path(settings.directory), settings.root_key)
        if directory.signing_key(role, identity.ident) != identity.public().signing:
            raise SettingsError(
                f"key file {settings.key_file} does not hold the key the directory has for {identity.ident!r}"
            )
        return cls(identity, directory, role)

    @property
    def ident(self) -> str:
        """The party's name."""
        return self.identity.ident

    @property
    def topics(self) -> Topics:
        """Topic names of the federation."""
        return Topics(self.directory.federation)

    def sign(self, message: Message) -> bytes:
        """A message -> the signed payload to publish."""
        return sign_message(self.identity, self.directory.federation, message)

    def open(self, channel: str, payload: bytes) -> Opened:
        """A payload that came on a channel -> the authentic message. Raises `MessageError` or `SignatureError`."""
        return open_message(payload, self.directory.federation, self.directory.signing_key, CHANNELS[channel].kinds)

    def take(self, channel: str, delivery: Delivery) -> Opened | None:
        """As `open` for a handler, which goes on with the next message: what is refused is logged and gives None."""
        if not delivery.payload:  # the broker's eraser of a retained message, not a message (docs/protocol.md §1.3)
            return None
        try:
            return self.open(channel, delivery.payload)
        except PeerError as error:
            _log.warning("message-refused", topic=delivery.topic, reason=str(error))
            return None

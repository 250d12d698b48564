"""Who said it, and who may read it: Ed25519 over exact bytes, HPKE to one party (docs/protocol.md §7).

Every message travels as the body of a signed `Envelope`; every share and sum chunk inside it is sealed to one party.
There is no unsigned and no unsealed mode. The keys themselves stand in `fedpruneshare.keys`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedpruneshare import PROTOCOL_VERSION
from fedpruneshare.errors import MessageError, SignatureError
from fedpruneshare.keys import Identity, KeyPair, PublicKeys, seal, verify
from fedpruneshare.messages import KIND_OF, KINDS, Identifier, KeyId, Message, Suite, decode, digest, encode
from fedpruneshare.topics import WRITER_OF_KIND, Role

#: What an envelope adds to a body, at most (docs/protocol.md §7.2).
ENVELOPE_BYTES: Final = 168
_SIGN_DOMAIN: Final = b"fedpruneshare/sign/1"


# --------------------------------------------------------------------------- envelopes


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What travels: kind, sender and body, signed together with the sender's key that `key` names."""

    protocol: int
    kind: Annotated[str, Meta(max_length=32)]
    sender: Identifier
    key: KeyId
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    body: bytes


@dataclass(frozen=True)
class Opened:
    """An authentic message: who sent it, what it says, the digest of its exact body bytes, and the id of the key."""

    sender: str
    message: Message
    digest: bytes
    body: bytes = field(repr=False)
    key: bytes


#: (role, sender, key id) -> raw Ed25519 public key; raises `SignatureError` for a stranger, or for a key that is not,
#: or no longer, one of the sender's (`Directory.signing_key`).
KeyLookup = Callable[[Role, str, bytes], bytes]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)
_LARGEST: Final = max(limit for _, limit in KINDS.values()) + ENVELOPE_BYTES


def _signed_bytes(federation: str, kind: str, sender: str, body: bytes) -> bytes:
    # Identifiers hold no NUL, so the fields cannot run into each other.
    head = "\0".join([str(PROTOCOL_VERSION), federation, kind, sender]).encode()
    return _SIGN_DOMAIN + b"\0" + head + b"\0" + body


def sign_message(identity: Identity, federation: str, message: Message) -> bytes:
    """A message -> the signed payload to publish."""
    return sign_body(identity, federation, KIND_OF[type(message)], encode(message))


def sign_body(identity: Identity, federation: str, kind: str, body: bytes, key_id: bytes | None = None) -> bytes:
    """As `sign_message` for body bytes already at hand. `key_id`: with which key; the newest by default."""
    name = key_id or identity.public()[0].key_id
    signature = identity.sign(_signed_bytes(federation, kind, identity.ident, body), name)
    return _encoder.encode(Envelope(PROTOCOL_VERSION, kind, identity.ident, name, signature, body))


def open_message(payload: bytes, federation: str, keys: KeyLookup, kinds: tuple[str, ...]) -> Opened:
    """Check and decode a payload that must be of one of `kinds` (those of its channel, docs/protocol.md §2).

    Order: size, envelope, version, kind, signature over the exact bytes received, body. The key comes from the
    role that alone may send this kind, so a device cannot speak as an aggregator.
    Raises `MessageError` or `SignatureError`, both naming the kind.
    """
    envelope = _read_envelope(payload, kinds)
    key = keys(WRITER_OF_KIND[envelope.kind], envelope.sender, envelope.key)
    if not verify(key, _signed_bytes(federation, envelope.kind, envelope.sender, envelope.body), envelope.signature):
        raise SignatureError(f"{envelope.kind} in the name of {envelope.sender!r}: the signature does not verify")
    message, name = decode(envelope.kind, envelope.body), digest(envelope.body)
    return Opened(envelope.sender, message, name, envelope.body, envelope.key)


def read_unverified(payload: bytes, kind: str) -> Message:
    """The message of an envelope whoever signed it: only for what proves itself, as a directory does by its root.

    Raises `MessageError`.
    """
    return decode(kind, _read_envelope(payload, (kind,)).body)


def _read_envelope(payload: bytes, kinds: tuple[str, ...]) -> Envelope:
    if len(payload) > _LARGEST:
        raise MessageError(f"payload of {len(payload)} bytes, expected at most {_LARGEST}")
    try:
        envelope = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"{' or '.join(kinds)}: not a signed envelope: {error}") from None
    if envelope.protocol != PROTOCOL_VERSION:
        raise MessageError(f"protocol version {envelope.protocol}, expected {PROTOCOL_VERSION}")
    if envelope.kind not in kinds:
        found = re.sub(r"[^a-z0-9-]", "?", envelope.kind)
        raise MessageError(f"message kind {found!r}, expected {' or '.join(kinds)}")
    return envelope


# --------------------------------------------------------------------------- seal contexts (§7.3)


#: Where a chunk of a share belongs: (upload id, x, rung, keystream algorithm, chunk, chunks).
SharePosition = tuple[bytes, int, int, str, int, int]


def share_context(federation: str, plan: bytes, parties: tuple[str, str], position: SharePosition) -> bytes:
    """Context of a share chunk. `parties` = (device, aggregator)."""
    return _context(b"share", federation.encode(), plan, *_texts(parties), position[0], *_texts(position[1:]))


def sum_context(federation: str, freeze: bytes, parties: tuple[str, str], position: tuple[int, int, int]) -> bytes:
    """Context of a sum chunk. `parties` = (aggregator, coordinator), `position` = (x, chunk, chunks)."""
    return _context(b"sum", federation.encode(), freeze, *_texts(parties), *_texts(position))


def checksum_seed_context(federation: str, plan: bytes, parties: tuple[str, str]) -> bytes:
    """Context of the seed of the hidden checksum. `parties` = (coordinator, device)."""
    return _context(b"checksum-seed", federation.encode(), plan, *_texts(parties))


def _texts(parts: Iterable[int | str]) -> list[bytes]:
    return [str(part).encode() for part in parts]


def _context(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


__all__ = [
    "ENVELOPE_BYTES", "Envelope", "Identity", "KeyLookup", "KeyPair", "Opened", "PublicKeys", "SharePosition", "Suite",
    "checksum_seed_context", "open_message", "read_unverified", "seal", "share_context", "sign_body", "sign_message",
    "sum_context", "verify",
]  # fmt: skip

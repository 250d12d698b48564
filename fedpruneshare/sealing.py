"""Who said it, and who may read it: Ed25519 over exact bytes, HPKE to one party (docs/protocol.md §7).

Every message travels as the body of a signed `Envelope`; every share and sum chunk inside it is sealed to one party.
There is no unsigned and no unsealed mode. All of it is pycryptodome (RFC 8032, RFC 9180), so a device needs no
second crypto library.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec
from Crypto.Protocol import HPKE
from Crypto.Protocol.DH import import_x25519_public_key
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa
from msgspec import Meta

from fedpruneshare import PROTOCOL_VERSION
from fedpruneshare.errors import MessageError, SealError, SettingsError, SignatureError
from fedpruneshare.messages import KIND_OF, KINDS, Identifier, Message, decode, digest, encode
from fedpruneshare.topics import WRITER_OF_KIND, Role

#: What an envelope adds to a body, at most (docs/protocol.md §7.2).
ENVELOPE_BYTES: Final = 160
_SIGN_DOMAIN: Final = b"fedpruneshare/sign/1"
_SEAL_DOMAIN: Final = b"fedpruneshare/seal/1"
_ENC_BYTES: Final = 32


@dataclass(frozen=True)
class PublicKeys:
    """The public half of an identity: Ed25519 and X25519, 32 raw bytes each."""

    signing: bytes
    sealing: bytes


@dataclass(frozen=True)
class Identity:
    """A party's name and private keys. `repr` shows the name only."""

    ident: str
    _signing: ECC.EccKey = field(repr=False)
    _sealing: ECC.EccKey = field(repr=False)

    @classmethod
    def generate(cls, ident: str) -> Identity:
        """Fresh keys from the operating system's generator."""
        return cls(ident, ECC.generate(curve="Ed25519"), ECC.generate(curve="Curve25519"))

    def public(self) -> PublicKeys:
        """The public keys, raw."""
        return PublicKeys(
            self._signing.public_key().export_key(format="raw"), self._sealing.public_key().export_key(format="raw")
        )

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature (64 bytes) over `data`."""
        return eddsa.new(self._signing, "rfc8032").sign(data)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """Open what `seal` made for this identity and exactly this context. Raises `SealError`."""
        if len(sealed) <= _ENC_BYTES:
            raise SealError(f"sealed payload of {len(sealed)} bytes, expected more than {_ENC_BYTES}")
        try:
            opener = HPKE.new(
                receiver_key=self._sealing,
                aead_id=HPKE.AEAD.CHACHA20_POLY1305,
                enc=bytes(sealed[:_ENC_BYTES]),
                info=_SEAL_DOMAIN,
            )
            return opener.unseal(bytes(sealed[_ENC_BYTES:]), auth_data=context)
        except (ValueError, HPKE.DeserializeError):
            raise SealError(f"sealed payload of {len(sealed)} bytes does not open for {self.ident!r} here") from None

    def save(self, path: Path) -> None:
        """Write both private keys to a file only its owner can read (mode 0600), atomically."""
        body = {"id": self.ident, "signing": self._signing.seed.hex(), "sealing": self._sealing.seed.hex()}
        partial = path.with_name(path.name + ".part")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(body, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file. Raises `SettingsError` if it is missing, readable by others, or not a key file."""
        try:
            mode = path.stat().st_mode & 0o077
            body = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"key file {path}: {type(error).__name__}, expected a readable key file") from None
        if mode:
            raise SettingsError(f"key file {path} is open to others (mode {mode:03o}), expected 0600: chmod 600 {path}")
        try:
            ident, signing, sealing = body["id"], bytes.fromhex(body["signing"]), bytes.fromhex(body["sealing"])
            return cls(
                str(ident),
                ECC.construct(curve="Ed25519", seed=signing),
                ECC.construct(curve="Curve25519", seed=sealing),
            )
        except (KeyError, TypeError, ValueError):
            raise SettingsError(f"key file {path} does not hold an id and two 32-byte keys") from None


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is an Ed25519 signature of `data` under the raw public key."""
    try:
        eddsa.new(eddsa.import_public_key(public_key), "rfc8032").verify(data, signature)
    except ValueError:
        return False
    return True


def seal(public_sealing_key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """HPKE base mode (X25519, HKDF-SHA256, ChaCha20-Poly1305): encapsulated key ‖ ciphertext ‖ tag, +48 bytes.

    `context` is bound as associated data: the seal opens only for the same context.
    """
    sealer = HPKE.new(
        receiver_key=import_x25519_public_key(public_sealing_key),
        aead_id=HPKE.AEAD.CHACHA20_POLY1305,
        info=_SEAL_DOMAIN,
    )
    ciphertext: bytes = sealer.seal(plaintext, auth_data=context)
    return bytes(sealer.enc) + ciphertext


# --------------------------------------------------------------------------- envelopes


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What travels: kind, sender and body, signed together."""

    protocol: int
    kind: Annotated[str, Meta(max_length=32)]
    sender: Identifier
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    body: bytes


@dataclass(frozen=True)
class Opened:
    """An authentic message: who sent it, what it says, and the digest of its exact body bytes."""

    sender: str
    message: Message
    digest: bytes
    body: bytes = field(repr=False)


#: (role, sender) -> raw Ed25519 public key; raises `SignatureError` for a stranger (`Directory.signing_key`).
KeyLookup = Callable[[Role, str], bytes]

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


def sign_body(identity: Identity, federation: str, kind: str, body: bytes) -> bytes:
    """As `sign_message` for body bytes already at hand (so that what was persisted is re-sent unchanged)."""
    signature = identity.sign(_signed_bytes(federation, kind, identity.ident, body))
    return _encoder.encode(Envelope(PROTOCOL_VERSION, kind, identity.ident, signature, body))


def open_message(payload: bytes, federation: str, keys: KeyLookup, kinds: tuple[str, ...]) -> Opened:
    """Check and decode a payload that must be of one of `kinds` (those of its channel, docs/protocol.md §2).

    Order: size, envelope, version, kind, signature over the exact bytes received, body. The key comes from the
    role that alone may send this kind, so a device cannot speak as an aggregator.
    Raises `MessageError` or `SignatureError`, both naming the kind.
    """
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
    key = keys(WRITER_OF_KIND[envelope.kind], envelope.sender)
    if not verify(key, _signed_bytes(federation, envelope.kind, envelope.sender, envelope.body), envelope.signature):
        raise SignatureError(f"{envelope.kind} in the name of {envelope.sender!r}: the signature does not verify")
    return Opened(envelope.sender, decode(envelope.kind, envelope.body), digest(envelope.body), envelope.body)


# --------------------------------------------------------------------------- seal contexts (§7.3)


#: Where a chunk of a share belongs: (upload id, x, rung, keystream algorithm, chunk, chunks).
SharePosition = tuple[bytes, int, int, str, int, int]


def share_context(plan: bytes, sender: str, receiver: str, position: SharePosition) -> bytes:
    """Context of a share chunk."""
    return _context(b"share", plan, sender.encode(), receiver.encode(), position[0], *_texts(position[1:]))


def sum_context(freeze: bytes, sender: str, receiver: str, position: tuple[int, int, int]) -> bytes:
    """Context of a sum chunk. `position` = (x, chunk, chunks)."""
    return _context(b"sum", freeze, sender.encode(), receiver.encode(), *_texts(position))


def _texts(parts: Iterable[int | str]) -> list[bytes]:
    return [str(part).encode() for part in parts]


def _context(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

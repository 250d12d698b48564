"""The keys of a party: Ed25519 to sign, X25519 or X-Wing to be sealed to, and HPKE itself (docs/protocol.md §7).

A party has one key, or two while it goes from one to the next. A key is known by its id, the first bytes of SHA-256
over its public halves. All of it is pycryptodome (RFC 8032, RFC 9180), so a device needs no second crypto library.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from Crypto.Protocol import HPKE
from Crypto.Protocol.DH import import_x25519_public_key
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

from fedpruneshare.errors import SealError, SettingsError
from fedpruneshare.storage import refuse_open_file, write_atomically
from fedpruneshare.wire_types import KEY_ID_BYTES, Suite

_SEAL_DOMAIN: Final = b"fedpruneshare/seal/1"
#: Keys a party may hold at a time: the newest, and the one before while others still use it.
MAX_KEYS: Final = 2
_MAX_KEY_FILE_BYTES: Final = 16 * 1024


@dataclass(frozen=True)
class PublicKeys:
    """The public half of one key: Ed25519 and X25519, 32 raw bytes each; X-Wing, 1216 bytes or none."""

    signing: bytes
    sealing: bytes
    hybrid: bytes = field(default=b"", repr=False)

    @property
    def key_id(self) -> bytes:
        """What messages call this key by (8 bytes)."""
        return hashlib.sha256(self.signing + self.sealing + self.hybrid).digest()[:KEY_ID_BYTES]


@dataclass(frozen=True)
class KeyPair:
    """One key of a party, private halves included. `repr` shows the id only."""

    _signing: ECC.EccKey
    _sealing: ECC.EccKey
    _hybrid: bytes | None = None
    """Seed of the X-Wing key."""
    public: PublicKeys = field(init=False)

    def __post_init__(self) -> None:
        hybrid = b"" if self._hybrid is None else bytes(_xwing(seed=self._hybrid)._pk)
        signing, sealing = (key.public_key().export_key(format="raw") for key in (self._signing, self._sealing))
        object.__setattr__(self, "public", PublicKeys(signing, sealing, hybrid))

    def __repr__(self) -> str:
        return f"KeyPair({self.public.key_id.hex()})"

    @classmethod
    def generate(cls, *, hybrid: bool = False) -> KeyPair:
        """A fresh key from the operating system's generator."""
        signing, sealing = ECC.generate(curve="Ed25519"), ECC.generate(curve="Curve25519")
        return cls(signing, sealing, os.urandom(32) if hybrid else None)

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature (64 bytes)."""
        return eddsa.new(self._signing, "rfc8032").sign(data)

    def unseal(self, sealed: bytes, context: bytes, suite: Suite) -> bytes:
        """Open what `seal` made for this key. Raises `SealError`."""
        if suite.is_hybrid and self._hybrid is None:
            raise SealError(f"payload sealed with {suite}, but key {self.public.key_id.hex()} has no hybrid half")
        receiver = self._sealing if self._hybrid is None or not suite.is_hybrid else _xwing(seed=self._hybrid)
        if len(sealed) <= suite.seal_bytes:
            raise SealError(f"sealed payload of {len(sealed)} bytes, expected more than {suite.seal_bytes}")
        try:
            opener = HPKE.new(
                receiver_key=receiver,
                aead_id=_aead(suite),
                enc=bytes(sealed[: suite.enc_bytes]),
                info=_info(suite, self.public.key_id),
            )
            return opener.unseal(bytes(sealed[suite.enc_bytes :]), auth_data=context)
        except (ValueError, HPKE.DeserializeError):
            raise SealError(f"sealed payload of {len(sealed)} bytes does not open") from None

    def stored(self) -> dict[str, str]:
        """As a key file holds it."""
        whole = {"signing": self._signing.seed.hex(), "sealing": self._sealing.seed.hex()}
        return whole if self._hybrid is None else whole | {"hybrid": self._hybrid.hex()}

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> KeyPair:
        """From a key file. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        signing, sealing = bytes.fromhex(stored["signing"]), bytes.fromhex(stored["sealing"])
        hybrid = bytes.fromhex(stored["hybrid"]) if "hybrid" in stored else None
        if hybrid is not None and len(hybrid) != 32:
            raise ValueError("hybrid seed, expected 32 bytes")
        return cls(
            ECC.construct(curve="Ed25519", seed=signing), ECC.construct(curve="Curve25519", seed=sealing), hybrid
        )


@dataclass(frozen=True)
class Identity:
    """A party's name and its keys, newest first. `repr` shows the name only."""

    ident: str
    keys: tuple[KeyPair, ...] = field(repr=False)

    @classmethod
    def generate(cls, ident: str, *, hybrid: bool = False) -> Identity:
        """One fresh key from the operating system's generator."""
        return cls(ident, (KeyPair.generate(hybrid=hybrid),))

    def rotated(self, *, hybrid: bool = False) -> Identity:
        """The same party with a fresh key in front of its newest; older ones are dropped."""
        return Identity(self.ident, (KeyPair.generate(hybrid=hybrid), *self.keys[: MAX_KEYS - 1]))

    def public(self) -> tuple[PublicKeys, ...]:
        """The public keys, newest first."""
        return tuple(key.public for key in self.keys)

    def sign(self, data: bytes, key_id: bytes | None = None) -> bytes:
        """Ed25519 signature (64 bytes) over `data` by the newest key, or the one named."""
        return (self.keys[0] if key_id is None else self._key(key_id)).sign(data)

    def unseal(self, sealed: bytes, context: bytes, suite: Suite, key_id: bytes) -> bytes:
        """Open what `seal` made for this key of this party and exactly this context. Raises `SealError`."""
        try:
            return self._key(key_id).unseal(sealed, context, suite)
        except SealError as error:
            raise SealError(f"{error} for {self.ident!r}") from None

    def _key(self, key_id: bytes) -> KeyPair:
        for key in self.keys:
            if key.public.key_id == key_id:
                return key
        held = ", ".join(key.public.key_id.hex() for key in self.keys)
        raise SealError(f"sealed to key {key_id.hex()}, expected {held}")

    def save(self, path: Path) -> None:
        """Write the private keys to a file only its owner can read (mode 0600), atomically."""
        body = {"id": self.ident, "keys": [key.stored() for key in self.keys]}
        write_atomically(path, json.dumps(body).encode(), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file. Raises `SettingsError` if it is missing, readable by others, or not a key file."""
        refuse_open_file(path)
        try:
            with open(path, "rb") as file:
                body = json.loads(file.read(_MAX_KEY_FILE_BYTES))
        except OSError as error:
            raise SettingsError(f"key file {path}: {error.strerror}, expected one that this user can read") from None
        except (ValueError, RecursionError) as error:  # JSON's own message would quote the file
            raise SettingsError(f"key file {path}: {type(error).__name__}, expected a whole key file") from None
        try:
            keys = tuple(KeyPair.restored(stored) for stored in body["keys"])
            if not 1 <= len(keys) <= MAX_KEYS or not isinstance(body["id"], str):
                raise ValueError("wrong number of keys")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SettingsError(f"key file {path} does not hold an id and 1 to {MAX_KEYS} keys") from None
        return cls(body["id"], keys)


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is an Ed25519 signature of `data` under the raw public key."""
    try:
        eddsa.new(eddsa.import_public_key(public_key), "rfc8032").verify(data, signature)
    except ValueError:
        return False
    return True


def seal(to: PublicKeys, plaintext: bytes, context: bytes, suite: Suite) -> bytes:
    """HPKE base mode: encapsulated key ‖ ciphertext ‖ tag, `suite.seal_bytes` longer than the plaintext.

    `context` is bound as associated data, suite and key id as info: the seal opens only for the same three. Raises
    `SealError` for a hybrid suite and a key without a hybrid half.
    """
    if suite.is_hybrid and not to.hybrid:
        raise SealError(f"{suite} for key {to.key_id.hex()}, which has no hybrid half")
    receiver = _xwing(pk=to.hybrid) if suite.is_hybrid else import_x25519_public_key(to.sealing)
    sealer = HPKE.new(receiver_key=receiver, aead_id=_aead(suite), info=_info(suite, to.key_id))
    ciphertext: bytes = sealer.seal(plaintext, auth_data=context)
    return bytes(sealer.enc) + ciphertext


def _info(suite: Suite, key_id: bytes) -> bytes:
    return b"\0".join([_SEAL_DOMAIN, suite.encode(), key_id])


def _aead(suite: Suite) -> HPKE.AEAD:
    return HPKE.AEAD.CHACHA20_POLY1305 if suite.endswith("chacha20-poly1305") else HPKE.AEAD.AES256_GCM


def _xwing(**half: bytes) -> Any:
    """The X-Wing key of a seed or a public key. Raises `SettingsError` where the library is too old to have it."""
    try:
        from Crypto.PublicKey import Hybrid
    except ImportError:
        raise SettingsError("hybrid keys need pycryptodome 4.4 or later, which is not installed") from None
    return Hybrid.HybridKey(param_set=Hybrid.MLKEM768_X25519, **half)

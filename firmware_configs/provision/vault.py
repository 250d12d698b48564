"""The root's two private keys, in one file that a passphrase opens: the directory's and the certificate authority's.

scrypt makes the key, ChaCha20-Poly1305 seals the file; what the file says of itself is bound as associated data. The
passphrase comes from a prompt or a file, never from the command line, where everybody on the machine could read it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedpruneshare.errors import SettingsError
from fedpruneshare.keys import Identity, KeyPair
from fedpruneshare.storage import refuse_open_file, write_atomically

ROOT_FILE: Final = "root.key"
SHORTEST_PASSPHRASE: Final = 12
#: 32 MiB and about a fifth of a second a try (OWASP's second choice for scrypt).
_COST: Final = {"n": 2**15, "r": 8, "p": 3}
_MAX_BYTES: Final = 64 * 1024


def seal_root(path: Path, root: Identity, authority_key: bytes, passphrase: str) -> None:
    """Write both keys, encrypted (mode 0600). Raises `SettingsError` for a passphrase that is too short."""
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise SettingsError(
            f"passphrase of {len(passphrase)} characters, expected at least {SHORTEST_PASSPHRASE}: four random words"
        )
    head: dict[str, Any] = {"format": 1, "salt": os.urandom(16).hex(), **_COST}
    nonce = os.urandom(12)
    body = json.dumps({"root": root.keys[0].stored(), "authority": authority_key.decode()}).encode()
    sealed = ChaCha20Poly1305(_key(head, passphrase)).encrypt(nonce, body, _bound(head))
    whole = {**head, "nonce": nonce.hex(), "sealed": sealed.hex()}
    write_atomically(path, json.dumps(whole).encode(), mode=0o600)


def open_root(path: Path, passphrase: str) -> tuple[Identity, bytes]:
    """The root's identity and the authority's key (PEM). Raises `SettingsError`, also for a wrong passphrase."""
    refuse_open_file(path)
    try:
        whole = json.loads(path.read_bytes()[:_MAX_BYTES])
        head = {key: whole[key] for key in ("format", "salt", *_COST)}
        nonce, sealed = bytes.fromhex(whole["nonce"]), bytes.fromhex(whole["sealed"])
        if {key: head[key] for key in _COST} != _COST or head["format"] != 1:
            raise ValueError("another format")
        key = _key(head, passphrase)
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"{path}: not the file of a root's keys, expected what `provision init` wrote") from None
    try:
        body = json.loads(ChaCha20Poly1305(key).decrypt(nonce, sealed, _bound(head)))
    except (InvalidTag, ValueError):
        raise SettingsError(f"{path} does not open: wrong passphrase, or the file is damaged") from None
    return Identity("root", (KeyPair.restored(body["root"]),)), body["authority"].encode()


def _key(head: dict[str, Any], passphrase: str) -> bytes:
    return Scrypt(bytes.fromhex(head["salt"]), 32, head["n"], head["r"], head["p"]).derive(passphrase.encode())


def _bound(head: dict[str, Any]) -> bytes:
    return b"fedpruneshare/root/1\0" + json.dumps(head, sort_keys=True).encode()

"""Messages, envelopes, seals and directories, written from docs/protocol.md §1, §2, §5.11 and §7 alone.

It imports nothing of the product, and other libraries than the product does: `cryptography` for the curves and ciphers,
HPKE (RFC 9180) and MessagePack by hand. `python tests/reference/wire_reference.py` writes the vectors anew; a test
checks that they have not drifted. What is sealed with X-Wing is random, so those vectors stand in a file of their own,
made once; `open_sealed` opens them.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from reference.sharing_reference import FIELDS, field_elements

FEDERATION = "lab"
SUITES = {
    "x25519/chacha20-poly1305": (0x0020, 3, ChaCha20Poly1305), "x25519/aes-256-gcm": (0x0020, 2, AESGCM),
    "xwing/chacha20-poly1305": (0x647A, 3, ChaCha20Poly1305), "xwing/aes-256-gcm": (0x647A, 2, AESGCM),
}  # fmt: skip


# --------------------------------------------------------------------------- MessagePack


def pack(value: Any) -> bytes:
    """The shortest coding of plain values."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return _head(len(data), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + data
    if isinstance(value, bytes):
        return _head(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, (list, tuple)):
        return _head(len(value), 0x90, 16, (0, 0xDC, 0xDD)) + b"".join(map(pack, value))
    return _head(len(value), 0x80, 16, (0, 0xDE, 0xDF)) + b"".join(pack(k) + pack(value[k]) for k in sorted(value))


def _head(size: int, fixed: int, below: int, longer: tuple[int, int, int]) -> bytes:
    if size < below:
        return bytes([fixed | size])
    for tag, form, limit in zip(longer, (">B", ">H", ">I"), (2**8, 2**16, 2**32), strict=True):
        if tag and size < limit:
            return bytes([tag]) + struct.pack(form, size)
    raise ValueError(size)


def _number(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value) if value < 0 else bytes([value])
    forms = ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"))
    signed = ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"))
    for tag, form in forms if value >= 0 else signed:
        try:
            return bytes([tag]) + struct.pack(form, value)
        except struct.error:
            continue
    raise ValueError(value)


# --------------------------------------------------------------------------- keys, §7.1


class Key:
    """One key of a party, from seeds that are hashes of its name."""

    def __init__(self, name: str, number: int = 1) -> None:
        self.name = name
        self.signing_seed, self.sealing_seed = (
            hashlib.sha256(f"{name} {number} {half}".encode()).digest() for half in ("signing", "sealing")
        )
        self.signing = Ed25519PrivateKey.from_private_bytes(self.signing_seed)
        self.sealing = X25519PrivateKey.from_private_bytes(self.sealing_seed)

    @property
    def public(self) -> tuple[bytes, bytes]:
        return self.signing.public_key().public_bytes_raw(), self.sealing.public_key().public_bytes_raw()

    @property
    def key_id(self) -> bytes:
        return hashlib.sha256(b"".join(self.public)).digest()[:8]


NAMES = ("coordinator", "aggregator-1", "aggregator-2", "aggregator-3", "device-01", "device-02", "device-03")
KEYS = {name: Key(name) for name in NAMES}
OLD = {"aggregator-1": Key("aggregator-1", 0), "device-02": Key("device-02", 0), "device-03": Key("device-03", 0)}
STRANGER, ROOT = Key("device-99"), Key("root")


# --------------------------------------------------------------------------- envelopes, §1.3 and §7.2


def sign(key: Key, kind: str, body: bytes, federation: str = FEDERATION) -> bytes:
    head = "\0".join(["fedpruneshare/sign/1", "1", federation, kind, key.name]).encode()
    return key.signing.sign(head + b"\0" + body)


def envelope(signer: Key, kind: str, content: bytes, **other: Any) -> bytes:
    """A signed payload; `other` replaces fields after signing, and `federation` before."""
    signature = sign(signer, kind, content, other.pop("federation", FEDERATION))
    fields = {"protocol": 1, "kind": kind, "sender": signer.name, "key": signer.key_id, "signature": signature}
    return pack(list({**fields, "body": content, **other}.values()))


# --------------------------------------------------------------------------- HPKE, RFC 9180 §5 and §7


def _extract(salt: bytes, label: bytes, material: bytes, suite: bytes) -> bytes:
    return hmac.new(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256").digest()


def _expand(key: bytes, label: bytes, info: bytes, size: int, suite: bytes) -> bytes:
    labelled, out, block, number = struct.pack(">H", size) + b"HPKE-v1" + suite + label + info, b"", b"", 1
    while len(out) < size:
        block = hmac.new(key, block + labelled + bytes([number]), "sha256").digest()
        out, number = out + block, number + 1
    return out[:size]


def _shared_by_x25519(exchanged: bytes, enc: bytes, public: bytes) -> bytes:
    suite = b"KEM" + struct.pack(">H", 0x0020)
    return _expand(_extract(b"", b"eae_prk", exchanged, suite), b"shared_secret", enc + public, 32, suite)


def _shared_by_xwing(seed: bytes, enc: bytes) -> bytes:
    """draft-connolly-cfrg-xwing-kem: ML-KEM-768 and X25519 under SHA3-256."""
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

    expanded = hashlib.shake_256(seed).digest(96)
    lattice, curve = (
        MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
        X25519PrivateKey.from_private_bytes(expanded[64:]),
    )
    first, second = lattice.decapsulate(enc[:1088]), curve.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    public = curve.public_key().public_bytes_raw()
    return hashlib.sha3_256(first + second + enc[1088:] + public + rb"\.//^\\"[:6]).digest()


def _cipher(suite: str, shared: bytes, info: bytes) -> tuple[Any, bytes]:
    """(AEAD, nonce of the first message) in base mode."""
    kem, aead, cipher = SUITES[suite]
    name = b"HPKE" + struct.pack(">HHH", kem, 1, aead)
    context = b"\0" + _extract(b"", b"psk_id_hash", b"", name) + _extract(b"", b"info_hash", info, name)
    secret = _extract(shared, b"secret", b"", name)
    return cipher(_expand(secret, b"key", context, 32, name)), _expand(secret, b"base_nonce", context, 12, name)


def _info(suite: str, key_id: bytes) -> bytes:
    return b"\0".join([b"fedpruneshare/seal/1", suite.encode(), key_id])


def seal(to: Key, plaintext: bytes, context: bytes, suite: str, secret: bytes) -> bytes:
    """With the ephemeral key of 32 secret bytes, as only a test may."""
    ephemeral = X25519PrivateKey.from_private_bytes(secret)
    enc, public = ephemeral.public_key().public_bytes_raw(), to.public[1]
    shared = _shared_by_x25519(ephemeral.exchange(X25519PublicKey.from_public_bytes(public)), enc, public)
    aead, nonce = _cipher(suite, shared, _info(suite, to.key_id))
    return enc + aead.encrypt(nonce, plaintext, context)


def open_sealed(suite: str, key: dict[str, str], sealed: bytes, context: bytes) -> bytes:
    """What a vector's key opens; `key` holds hex seeds and the key id."""
    size = 1120 if suite.startswith("xwing/") else 32
    enc = sealed[:size]
    if size == 32:
        own = X25519PrivateKey.from_private_bytes(bytes.fromhex(key["sealing"]))
        public = own.public_key().public_bytes_raw()
        shared = _shared_by_x25519(own.exchange(X25519PublicKey.from_public_bytes(enc)), enc, public)
    else:
        shared = _shared_by_xwing(bytes.fromhex(key["hybrid"]), enc)
    aead, nonce = _cipher(suite, shared, _info(suite, bytes.fromhex(key["key_id"])))
    return aead.decrypt(nonce, sealed[size:], context)


def context(*parts: bytes | str | int) -> bytes:
    """Length-prefixed parts (docs/protocol.md §7.3)."""
    data = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"".join(struct.pack(">I", len(part)) + part for part in data)


# --------------------------------------------------------------------------- messages, §4

D, U, K = bytes(range(32)), bytes(range(16)), bytes(range(8))
SUITE = "x25519/chacha20-poly1305"
CONTRIBUTION = ["device-01", U, 1]
PLAN = [
    7, 1, "hapt", D, D, [3, 2, 1, "F31", 0, "sum"], {"aggregator-1": 2, "aggregator-2": 3, "aggregator-3": 1},
    [4, 16, [0.5, 0.25], [0.125], 512, 10, 3, "mixed"],
    [[1200, 20, 300, 0.25, D, 4000, D, 1.0], [900, 0, 200, 1.0, D, 2000, D, 1.0]],
    [0, 1], [2, 32, 0.0625, 0.5, 0.0, 0.0, 1.0], ["device-01", "device-02", "device-03"], 3, 3, 60.0, 65_536,
    ["global", 0, False], 41, [SUITE, "x25519/aes-256-gcm"], 0, D, 0,
]  # fmt: skip
MESSAGES: dict[str, tuple[str, list[Any]]] = {
    "round-plan": ("coordinator", PLAN),
    "model-chunk": ("coordinator", [1, D, 2, 3, b"data"]),
    "checksum-seed": ("coordinator", [7, D, SUITE, K, bytes(80)]),
    "directory-chunk": ("coordinator", [2, D, 0, 1, b"data"]),
    "hello": ("device-01", ["0.1.0", 2]),
    "heartbeat": ("device-01", [3, 1, "plan", 1.5, 0.25, 10_000, 20_000]),
    "decline": ("device-01", [3, D, "too hot"]),
    "share-upload": ("device-01", [3, D, U, 2, 1, "chacha20", 0, 4, SUITE, K, bytes(60)]),
    "receipt": ("aggregator-1", [3, U, "accepted", ""]),
    "missing": ("aggregator-1", [3, U, b"\x05"]),
    "attendance": ("aggregator-1", [3, D, [CONTRIBUTION], ["device-02"]]),
    "dealer-check": ("coordinator", [3, D, D, ["aggregator-1", "aggregator-2"], [CONTRIBUTION]]),
    "check-reply": ("aggregator-1", [3, D, 2, bytes(8)]),
    "acceptance": ("aggregator-1", [3, D]),
    "sum-share": ("aggregator-1", [3, D, 2, 0, 1, SUITE, K, bytes(60)]),
    "refusal": ("aggregator-1", [3, D, "below the floor"]),
    "freeze": ("coordinator", [3, D, ["aggregator-1", "aggregator-2"], [CONTRIBUTION], [0, 1]]),
    "outcome": ("coordinator", [3, "APPLIED", ""]),
}
UPLOAD = MESSAGES["share-upload"][1]


def body(kind: str) -> bytes:
    return pack(MESSAGES[kind][1])


def changed(values: list[Any], *path_and_value: Any) -> bytes:
    """The coding of a message with one field other, by its path."""
    made = copy.deepcopy(values)
    node, (*path, last, value) = made, path_and_value
    for step in path:
        node = node[step]
    node[last] = value
    return pack(made)


# --------------------------------------------------------------------------- the directory, §7.1


def entry(*keys: Key, expires_at: int = 0) -> list[dict[str, Any]]:
    return [
        {"signing": key.public[0].hex(), "sealing": key.public[1].hex(), "hybrid": "", "expires_at": expires}
        for key, expires in zip(keys, (0, expires_at), strict=False)
    ]


def service(*keys: Key) -> dict[str, Any]:
    return {"keys": entry(*keys), "host": "127.0.0.1", "port": 8883, "tls": True, "operator": "somebody"}


DIRECTORY: dict[str, Any] = {
    "federation": FEDERATION, "version": 3, "coordinator_id": "coordinator",
    "coordinator": service(KEYS["coordinator"]),
    "aggregators": {
        "aggregator-1": service(KEYS["aggregator-1"], OLD["aggregator-1"]),
        "aggregator-2": service(KEYS["aggregator-2"]), "aggregator-3": service(KEYS["aggregator-3"]),
    },
    "devices": {
        "device-01": {"keys": entry(KEYS["device-01"])},
        "device-02": {"keys": entry(KEYS["device-02"], OLD["device-02"], expires_at=1_000)},
        "device-03": {"keys": entry(KEYS["device-03"], OLD["device-03"])},
    },
    "min_devices": 3, "min_devices_segment": 3, "plain_updates": False, "issued_at": 1_000_000,
    "expires_at": 2_000_000_000, "round_epoch": 0, "post_quantum": False,
    "revoked": {OLD["device-03"].key_id.hex(): "device-03"},
}  # fmt: skip


def directory_file(content: Any, root: Key = ROOT) -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
    signature = root.signing.sign(b"fedpruneshare/directory/1\0" + data)
    return json.dumps({"signature": signature.hex()}).encode() + b"\n" + data


def directory_with(*path_and_value: Any) -> bytes:
    made = copy.deepcopy(DIRECTORY)
    node, (*path, last, value) = made, path_and_value
    for step in path:
        node = node[step]
    node[last] = value
    return directory_file(made)


# --------------------------------------------------------------------------- the vectors

POSITION = (U, 2, 1, "chacha20", 0, 4)
SHARE = context("share", FEDERATION, D, "device-01", "aggregator-1", *POSITION)
SUM = context("sum", FEDERATION, D, "aggregator-1", "coordinator", 2, 0, 1)
SEED = context("checksum-seed", FEDERATION, D, "coordinator", "device-01")


def good() -> dict[str, Any]:
    """Everything here is accepted, and means what it says."""
    return {
        "keys": [_key(key) for key in (*KEYS.values(), *OLD.values())],
        "root": {"signing": ROOT.public[0].hex()},
        "messages": [{"kind": kind, "body": body(kind).hex()} for kind in MESSAGES],
        "envelopes": [_envelope(kind, KEYS[sender]) for kind, (sender, _) in MESSAGES.items()]
        + [_envelope("receipt", OLD["aggregator-1"])],
        "seals": _seals(),
        "directories": [
            {"file": directory_file(DIRECTORY).hex(), "version": 3},
            {"file": directory_with("version", 4).hex(), "version": 4},
            {"file": directory_with("devices", {}).hex(), "version": 3},
        ],
        "checksums": _checksums(),
    }


def _key(key: Key) -> dict[str, str]:
    halves = dict(zip(("signing_public", "sealing_public"), (half.hex() for half in key.public), strict=True))
    seeds = {"signing": key.signing_seed.hex(), "sealing": key.sealing_seed.hex()}
    return {"name": key.name, **seeds, **halves, "key_id": key.key_id.hex()}


def _envelope(kind: str, key: Key) -> dict[str, str]:
    data = body(kind)
    digest = hashlib.sha256(data).hexdigest()
    return {"kind": kind, "sender": key.name, "payload": envelope(key, kind, data).hex(), "digest": digest}


def _seals() -> list[dict[str, str]]:
    made = []
    for receiver, bound in (("aggregator-1", SHARE), ("coordinator", SUM), ("device-01", SEED)):
        for suite in ("x25519/chacha20-poly1305", "x25519/aes-256-gcm"):
            for plaintext in (b"\x07", bytes(range(200))):
                secret = hashlib.sha256(f"{receiver} {suite} {len(plaintext)}".encode()).digest()
                sealed = seal(KEYS[receiver], plaintext, bound, suite, secret)
                made.append(
                    {
                        "to": receiver, "suite": suite, "context": bound.hex(), "plaintext": plaintext.hex(),
                        "sealed": sealed.hex(),
                    }
                )  # fmt: skip
    return made


def _checksums() -> list[dict[str, Any]]:
    made = []
    for field, rows in (("F31", 3), ("F61", 2)):
        p = FIELDS[field][0]
        for segment, count in ((0, 1), (0, 9), (3, 40)):
            seed = hashlib.sha256(f"{field} {segment} {count}".encode()).digest()
            words = [int.from_bytes(hashlib.sha256(seed + bytes([i])).digest()[:8], "big") % p for i in range(count)]
            sums = []
            for row in range(rows):
                drawn = field_elements(field, "chacha20", seed, b"checksum segment %d row %d" % (segment, row), count)
                sums.append(sum(r * w for r, w in zip(drawn, words, strict=True)) % p)
            commitment = hashlib.sha256(b"fedpruneshare/checksum/1\0" + seed).hexdigest()
            made.append(
                {
                    "field": field, "segment": segment, "seed": seed.hex(), "words": words, "checksum": sums,
                    "commitment": commitment,
                }
            )  # fmt: skip
    return made


def bad() -> list[dict[str, Any]]:
    """Everything here is refused, by an error of this name. `now` is when the envelope is opened."""
    return [*_bad_messages(), *_bad_envelopes(), *_bad_seals(), *_bad_directories()]


def _bad_messages() -> list[dict[str, Any]]:
    sound = {kind: values for kind, (_, values) in MESSAGES.items()}
    cases = {
        "a digest too short": ("decline", changed(sound["decline"], 1, bytes(31))),
        "a digest too long": ("decline", changed(sound["decline"], 1, bytes(33))),
        "a digest as text": ("decline", changed(sound["decline"], 1, "00" * 16)),
        "x = 0": ("share-upload", changed(UPLOAD, 3, 0)),
        "x above n": ("share-upload", changed(UPLOAD, 3, 17)),
        "x below 0": ("sum-share", changed(sound["sum-share"], 2, -1)),
        "x as a fraction": ("share-upload", changed(UPLOAD, 3, 1.5)),
        "round 0": ("outcome", changed(sound["outcome"], 0, 0)),
        "round 2^48": ("outcome", changed(sound["outcome"], 0, 2**48)),
        "a rung below 0": ("hello", changed(sound["hello"], 1, -1)),
        "rung 16": ("share-upload", changed(UPLOAD, 4, 16)),
        "no chunks": ("share-upload", changed(UPLOAD, 7, 0)),
        "chunk 65,536": ("model-chunk", changed(sound["model-chunk"], 2, 65_536)),
        "an unknown keystream": ("share-upload", changed(UPLOAD, 5, "rc4")),
        "an unknown suite": ("share-upload", changed(UPLOAD, 8, "none")),
        "a key id of seven bytes": ("share-upload", changed(UPLOAD, 9, bytes(7))),
        "a seal without content": ("share-upload", changed(UPLOAD, 10, bytes(48))),
        "an unknown verdict": ("receipt", changed(sound["receipt"], 2, "maybe")),
        "an upload id too short": ("missing", changed(sound["missing"], 1, bytes(15))),
        "an empty bitmap": ("missing", changed(sound["missing"], 2, b"")),
        "a name in capitals": ("attendance", changed(sound["attendance"], 2, 0, 0, "Device-01")),
        "a name with a wildcard": ("attendance", changed(sound["attendance"], 3, 0, "+")),
        "a name of 33 letters": ("attendance", changed(sound["attendance"], 3, 0, "d" * 33)),
        "an unknown phase": ("outcome", changed(sound["outcome"], 1, "MAYBE")),
        "a reason of 501 letters": ("refusal", changed(sound["refusal"], 2, "x" * 501)),
        "no contributors": ("freeze", changed(sound["freeze"], 3, [])),
        "no segments": ("freeze", changed(sound["freeze"], 4, [])),
        "a clip of 0": ("round-plan", changed(PLAN, 7, 2, 0, 0.0)),
        "a clip that is no number": ("round-plan", changed(PLAN, 7, 2, 0, float("nan"))),
        "a momentum of 1": ("round-plan", changed(PLAN, 10, 3, 1.0)),
        "an empty cohort": ("round-plan", changed(PLAN, 11, [])),
        "an unknown field of numbers": ("round-plan", changed(PLAN, 5, 3, "F7")),
        "a point twice as text": ("round-plan", changed(PLAN, 6, "aggregator-1", "2")),
        "chunks of 1 MiB": ("round-plan", changed(PLAN, 15, 2**20)),
        "nothing": ("hello", b""),
        "a byte behind the end": ("hello", body("hello") + b"\0"),
        "a byte missing": ("hello", body("hello")[:-1]),
        "a field missing": ("hello", pack(["0.1.0"])),
        "a field too many": ("hello", pack(["0.1.0", 2, 3])),
        "a map": ("hello", pack({"rung_limit": 2, "software": "0.1.0"})),
        "text that is none": ("hello", b"\x92\xa2\xff\xfe\x02"),
        "a length of gigabytes": ("hello", b"\x92\xdb\xff\xff\xff\xff"),
        "arrays in arrays": ("hello", b"\x91" * 2000),
    }
    return [
        {"call": "message", "error": "MessageError", "why": why, "kind": kind, "data": data.hex()}
        for why, (kind, data) in cases.items()
    ]


def _bad_envelopes() -> list[dict[str, Any]]:
    key, kind, data = KEYS["device-01"], "hello", body("hello")
    right = envelope(key, kind, data)
    signed = sign(key, kind, data)
    cases: dict[str, tuple[str, str, bytes]] = {
        "another protocol": ("MessageError", kind, envelope(key, kind, data, protocol=2)),
        "another kind than expected": ("MessageError", "decline", right),
        "an unknown kind": ("MessageError", kind, envelope(key, "pickle", data)),
        "no signature": ("MessageError", kind, envelope(key, kind, data, signature=b"")),
        "a signature of 63 bytes": ("MessageError", kind, envelope(key, kind, data, signature=signed[:63])),
        "a byte behind the end": ("MessageError", kind, right + b"\0"),
        "a byte missing": ("MessageError", kind, right[:-1]),
        "five fields": ("MessageError", kind, pack([1, kind, key.name, signed, data])),
        "a name in capitals": ("MessageError", kind, envelope(key, kind, data, sender="Device-01")),
        "a body that is text": ("MessageError", kind, envelope(key, kind, data, body="x")),
        "nothing": ("MessageError", kind, b""),
        "a signed body of another kind": ("MessageError", "hello", envelope(key, "hello", body("decline"))),
        "a bit of the body": ("SignatureError", kind, envelope(key, kind, data, body=data[:-1] + b"\x03")),
        "a bit of the signature": ("SignatureError", kind, envelope(key, kind, data, signature=_flipped(signed))),
        "signature of zeros": ("SignatureError", kind, envelope(key, kind, data, signature=bytes(64))),
        "S above the group order": ("SignatureError", kind, envelope(key, kind, data, signature=_malleable(signed))),
        "another federation": ("SignatureError", kind, envelope(key, kind, data, federation="lab2")),
        "another sender": ("SignatureError", kind, envelope(key, kind, data, sender="device-02")),
        "another's key id": ("SignatureError", kind, envelope(key, kind, data, key=KEYS["device-02"].key_id)),
        "another sender and its key id": (
            "SignatureError", kind, envelope(key, kind, data, sender="device-02", key=KEYS["device-02"].key_id),
        ),
        "an unknown key id": ("SignatureError", kind, envelope(key, kind, data, key=bytes(8))),
        "a stranger": ("SignatureError", kind, envelope(STRANGER, kind, data)),
        "an expired key": ("SignatureError", kind, envelope(OLD["device-02"], kind, data)),
        "a revoked key": ("SignatureError", kind, envelope(OLD["device-03"], kind, data)),
        "a device as an aggregator": ("SignatureError", "receipt", envelope(key, "receipt", body("receipt"))),
        "an aggregator as the coordinator": (
            "SignatureError", "outcome", envelope(KEYS["aggregator-1"], "outcome", body("outcome")),
        ),
        "the coordinator as a device": ("SignatureError", "hello", envelope(KEYS["coordinator"], "hello", data)),
    }  # fmt: skip
    return [
        {"call": "envelope", "error": error, "why": why, "kind": expected, "data": payload.hex()}
        for why, (error, expected, payload) in cases.items()
    ]


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _malleable(signature: bytes) -> bytes:
    order = 2**252 + 27742317777372353535851937790883648493
    return signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")


def _bad_seals() -> list[dict[str, Any]]:
    key, secret = KEYS["aggregator-1"], hashlib.sha256(b"ephemeral").digest()
    right = seal(key, bytes(40), SHARE, SUITE, secret)

    def of(*parts: Any) -> bytes:
        return context("share", *parts)

    contexts = {
        "another federation": of("lab2", D, "device-01", "aggregator-1", *POSITION),
        "another plan": of(FEDERATION, bytes(32), "device-01", "aggregator-1", *POSITION),
        "another device": of(FEDERATION, D, "device-02", "aggregator-1", *POSITION),
        "another aggregator": of(FEDERATION, D, "device-01", "aggregator-2", *POSITION),
        "another upload": of(FEDERATION, D, "device-01", "aggregator-1", bytes(16), *POSITION[1:]),
        "another point": of(FEDERATION, D, "device-01", "aggregator-1", U, 3, *POSITION[2:]),
        "another rung": of(FEDERATION, D, "device-01", "aggregator-1", U, 2, 0, *POSITION[3:]),
        "another keystream": of(FEDERATION, D, "device-01", "aggregator-1", U, 2, 1, "aes-256-ctr", 0, 4),
        "another chunk": of(FEDERATION, D, "device-01", "aggregator-1", *POSITION[:4], 1, 4),
        "other chunks": of(FEDERATION, D, "device-01", "aggregator-1", *POSITION[:4], 0, 5),
        "a sum's place": SUM,
        "no place": b"",
        "parts that run together": SHARE[4:],
    }
    cases = [
        (f"sealed for {why}", SUITE, key, seal(key, bytes(40), bound, SUITE, secret)) for why, bound in contexts.items()
    ]
    cases += [
        ("a bit of the tag", SUITE, key, _flipped(right)),
        ("a bit of the ciphertext", SUITE, key, right[:40] + bytes([right[40] ^ 1]) + right[41:]),
        ("a bit of the encapsulated key", SUITE, key, bytes([right[0] ^ 1]) + right[1:]),
        ("a byte missing", SUITE, key, right[:-1]),
        ("a byte more", SUITE, key, right + b"\0"),
        ("no ciphertext", SUITE, key, right[:32]),
        ("nothing", SUITE, key, b""),
        ("an encapsulated key of order 1", SUITE, key, bytes(32) + right[32:]),
        ("another suite", "x25519/aes-256-gcm", key, right),
        ("a hybrid suite for a key that is none", "xwing/aes-256-gcm", key, right),
        ("the older key", SUITE, OLD["aggregator-1"], right),
        ("another party's key", SUITE, KEYS["aggregator-2"], right),
    ]  # fmt: skip
    return [
        {
            "call": "seal", "error": "SealError", "why": why, "suite": suite, "to": "aggregator-1",
            "key_id": own.key_id.hex(), "context": SHARE.hex(), "data": data.hex(),
        }
        for why, suite, own, data in cases
    ]  # fmt: skip


def _bad_directories() -> list[dict[str, Any]]:
    right = directory_file(DIRECTORY)
    key = DIRECTORY["devices"]["device-01"]["keys"][0]
    cases = {
        "signed by another root": ("SignatureError", directory_file(DIRECTORY, KEYS["coordinator"])),
        "a bit of it": ("SignatureError", right[:-2] + bytes([right[-2] ^ 1]) + right[-1:]),
        "a line end more": ("SignatureError", right + b"\n"),
        "no signature": ("SettingsError", json.dumps(DIRECTORY).encode()),
        "an empty signature": ("SignatureError", b'{"signature": ""}\n' + right.partition(b"\n")[2]),
        "nothing": ("SettingsError", b""),
        "not JSON": ("SettingsError", directory_file(b"directory")),
        "text that is none": (
            "SettingsError", directory_file(json.dumps(DIRECTORY).encode().replace(b"lab", b"l\xffb")),
        ),
        "arrays in arrays": ("SettingsError", directory_file(b"[" * 3_000)),
        "version 0": ("SettingsError", directory_with("version", 0)),
        "version 2^63": ("SettingsError", directory_with("version", 2**63)),
        "a surplus field": ("SettingsError", directory_with("surplus", 1)),
        "no aggregators": ("SettingsError", directory_with("aggregators", {})),
        "a floor of 2": ("SettingsError", directory_with("min_devices", 2)),
        "a name in capitals": ("SettingsError", directory_with("devices", "Device-01", {"keys": [key]})),
        "a device without keys": ("SettingsError", directory_with("devices", "device-01", {"keys": []})),
        "a device with three keys": ("SettingsError", directory_with("devices", "device-01", {"keys": [key] * 3})),
        "a key in capitals": (
            "SettingsError", directory_with("devices", "device-01", "keys", 0, "signing", key["signing"].upper()),
        ),
        "a key too short": ("SettingsError", directory_with("devices", "device-01", "keys", 0, "signing", "00" * 31)),
        "port 0": ("SettingsError", directory_with("coordinator", "port", 0)),
        "port 65,536": ("SettingsError", directory_with("coordinator", "port", 65_536)),
        "no host": ("SettingsError", directory_with("coordinator", "host", "")),
        "a revoked key id too short": ("SettingsError", directory_with("revoked", {"ab": "device-03"})),
    }  # fmt: skip
    return [
        {"call": "directory", "error": error, "why": why, "data": data.hex()} for why, (error, data) in cases.items()
    ]


def write(folder: Path) -> None:
    """Write both files."""
    for name, content in (("wire.json", good()), ("wire_bad.json", bad())):
        (folder / name).write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "vectors")

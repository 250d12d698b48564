"""Who said it and who may read it (docs/protocol.md §7)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity
from hypothesis import given
from hypothesis import strategies as st
from message_examples import EXAMPLES

from fedpruneshare.errors import MessageError, PeerError, SealError, SettingsError, SignatureError
from fedpruneshare.messages import KINDS, encode
from fedpruneshare.sealing import (
    ENVELOPE_BYTES,
    Identity,
    Suite,
    open_message,
    seal,
    share_context,
    sign_body,
    sign_message,
    sum_context,
)
from fedpruneshare.topics import WRITER_OF_KIND, Role

HONEST = {Role.DEVICE: DEVICES[1], Role.AGGREGATOR: AGGREGATORS[0], Role.COORDINATOR: "coordinator"}
each_kind = pytest.mark.parametrize("kind", list(KINDS))
SUITE = Suite.X25519_CHACHA20


def KEYS(role: Role, name: str, key_id: bytes) -> bytes:
    return directory().signing_key(role, name, key_id, 0.0)


def signed(kind: str, by: Identity | None = None, federation: str = "lab") -> bytes:
    return sign_message(by or identity(HONEST[WRITER_OF_KIND[kind]]), federation, EXAMPLES[kind])


def with_field(payload: bytes, place: int, value: object) -> bytes:
    fields = msgspec.msgpack.decode(payload)
    fields[place] = value
    return msgspec.msgpack.encode(fields)


@each_kind
def test_signed_and_opened(kind: str) -> None:
    payload = signed(kind)
    opened = open_message(payload, "lab", KEYS, (kind,))
    assert (opened.sender, opened.message) == (HONEST[WRITER_OF_KIND[kind]], EXAMPLES[kind])
    assert opened.body == encode(EXAMPLES[kind])
    assert len(payload) - len(opened.body) <= ENVELOPE_BYTES


@each_kind
def test_unsigned_is_refused_by_name(kind: str) -> None:
    with pytest.raises(SignatureError, match=kind):
        open_message(with_field(signed(kind), 4, bytes(64)), "lab", KEYS, (kind,))
    with pytest.raises(MessageError, match=f"{kind}: not a signed envelope"):
        open_message(encode(EXAMPLES[kind]), "lab", KEYS, (kind,))
    with pytest.raises(MessageError, match=f"{kind}: not a signed envelope"):
        open_message(with_field(signed(kind), 4, b""), "lab", KEYS, (kind,))


@each_kind
def test_signed_by_anybody_else_is_refused_by_name(kind: str) -> None:
    owner = HONEST[WRITER_OF_KIND[kind]]
    for other in (DEVICES[0], AGGREGATORS[1], "coordinator"):
        if other == owner:
            continue
        # In the owner's name, with the other's key: by that key's id, and by the owner's.
        forged = sign_body(Identity(owner, identity(other).keys), "lab", kind, encode(EXAMPLES[kind]))
        with pytest.raises(SignatureError, match=f"is none of '{owner}'"):
            open_message(forged, "lab", KEYS, (kind,))
        forged = with_field(forged, 3, identity(owner).public()[0].key_id)
        with pytest.raises(SignatureError, match=f"{kind} in the name of '{owner}'"):
            open_message(forged, "lab", KEYS, (kind,))
        if not _may_send(other, kind):
            with pytest.raises(SignatureError, match=f"'{other}' is no {WRITER_OF_KIND[kind]}"):
                open_message(signed(kind, identity(other)), "lab", KEYS, (kind,))


def _may_send(name: str, kind: str) -> bool:
    role = WRITER_OF_KIND[kind]
    return (role is Role.DEVICE and name in DEVICES) or (role is Role.AGGREGATOR and name in AGGREGATORS)


@each_kind
def test_a_signature_serves_one_kind_federation_and_sender(kind: str) -> None:
    payload = signed(kind)
    with pytest.raises(SignatureError):
        open_message(payload, "other-lab", KEYS, (kind,))
    for other in KINDS:
        if other != kind and WRITER_OF_KIND[other] is WRITER_OF_KIND[kind]:
            with pytest.raises(SignatureError, match=other):
                open_message(with_field(payload, 1, other), "lab", KEYS, (other,))
        if other != kind:
            with pytest.raises(MessageError, match=f"message kind '{kind}', expected {other}"):
                open_message(payload, "lab", KEYS, (other,))
    with pytest.raises(MessageError, match="protocol version 2, expected 1"):
        open_message(with_field(payload, 0, 2), "lab", KEYS, (kind,))
    with pytest.raises(SignatureError):
        open_message(with_field(payload, 5, encode(EXAMPLES[kind]) + b"\0"), "lab", KEYS, (kind,))


def test_too_much_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(MessageError, match="payload of 1000000 bytes, expected at most"):
        open_message(bytes(1_000_000), "lab", KEYS, ("hello",))


@given(st.sampled_from(list(KINDS)), st.data())
def test_damaged_envelopes_are_never_accepted(kind: str, data: st.DataObject) -> None:
    payload = bytearray(signed(kind))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerError):
        open_message(bytes(payload), "lab", KEYS, (kind,))


# --------------------------------------------------------------------------- seals

POSITION = (bytes(16), 2, 1, "chacha20", 0, 3)


def context(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "federation": "lab",
        "plan": bytes(32),
        "sender": "device-01",
        "receiver": "aggregator-1",
        "place": POSITION,
    }
    fields |= changes
    parties = fields["sender"], fields["receiver"]
    return share_context(fields["federation"], fields["plan"], parties, fields["place"])  # type: ignore[arg-type]


def unsealed(receiver: Identity, sealed: bytes, bound: bytes) -> bytes:
    return receiver.unseal(sealed, bound, SUITE, receiver.public()[0].key_id)


@pytest.mark.parametrize("size", [1, 32, 65_536])
def test_a_seal_opens_for_its_receiver_and_context(size: int) -> None:
    receiver, plaintext = identity("aggregator-1"), os.urandom(size)
    sealed = seal(receiver.public()[0], plaintext, context(), SUITE)
    assert len(sealed) == size + 48
    assert unsealed(receiver, sealed, context()) == plaintext
    assert seal(receiver.public()[0], plaintext, context(), SUITE) != sealed
    with pytest.raises(SealError):
        unsealed(identity("aggregator-2"), sealed, context())


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "lab2"},
        {"plan": b"\1" * 32},
        {"sender": "device-02"},
        {"receiver": "aggregator-2"},
        {"place": (b"\1" * 16, *POSITION[1:])},
        {"place": (bytes(16), 3, 1, "chacha20", 0, 3)},
        {"place": (bytes(16), 2, 0, "chacha20", 0, 3)},
        {"place": (bytes(16), 2, 1, "aes-256-ctr", 0, 3)},
        {"place": (bytes(16), 2, 1, "chacha20", 1, 3)},
        {"place": (bytes(16), 2, 1, "chacha20", 0, 2)},
        {"sender": "device-0", "receiver": "1aggregator-1"},
    ],
    ids=str,
)
def test_another_context_does_not_open(changes: dict[str, object]) -> None:
    receiver = identity("aggregator-1")
    sealed = seal(receiver.public()[0], b"share", context(), SUITE)
    assert context(**changes) != context()
    with pytest.raises(SealError):
        unsealed(receiver, sealed, context(**changes))


def test_a_sum_is_no_share() -> None:
    assert sum_context("lab", bytes(32), ("a", "b"), (1, 0, 1)) != share_context(
        "lab", bytes(32), ("a", "b"), (b"", 1, 0, "chacha20", 1, 0)
    )


@pytest.mark.parametrize("place", [0, 31, 32, 40, -1])
def test_a_changed_byte_does_not_open(place: int) -> None:
    receiver = identity("aggregator-1")
    sealed = bytearray(seal(receiver.public()[0], b"share", context(), SUITE))
    sealed[place] ^= 1
    with pytest.raises(SealError):
        unsealed(receiver, bytes(sealed), context())
    with pytest.raises(SealError):
        unsealed(receiver, bytes(place % 32), context())


# --------------------------------------------------------------------------- keys


def test_keys_are_kept_from_others(tmp_path: Path) -> None:
    made, path = Identity.generate("device-01"), tmp_path / "key"
    made.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path).public() == made.public()
    secret = json.loads(path.read_text())["keys"][0]["signing"]
    assert secret not in repr(made) + str(made)
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        Identity.load(path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": "a", "signing": "00", "sealing": "11"}', "\xff"])
def test_a_file_that_is_no_key_is_refused_without_its_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content, "latin-1")
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="key file") as raised:
        Identity.load(path)
    assert "1111" not in str(raised.value)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        Identity.load(tmp_path / "nowhere")

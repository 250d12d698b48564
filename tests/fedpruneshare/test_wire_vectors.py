"""What travels, against vectors of a reference that shares neither code nor libraries with the product."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import wire_reference as reference

from fedpruneshare import errors
from fedpruneshare.directory import Directory, parse_directory
from fedpruneshare.keys import Identity, KeyPair
from fedpruneshare.messages import Suite, decode, encode
from fedpruneshare.sealing import Opened, open_message, share_context
from fedpruneshare.sharing.checksum import checksum, commitment, is_checksum_right
from fedpruneshare.sharing.field import FIELDS
from fedpruneshare.topics import Role

VECTORS = Path(__file__).parents[1] / "vectors"
GOOD: dict[str, Any] = json.loads((VECTORS / "wire.json").read_text())
BAD: list[dict[str, Any]] = json.loads((VECTORS / "wire_bad.json").read_text())
HYBRID: list[dict[str, Any]] = json.loads((VECTORS / "wire_hybrid.json").read_text())
#: What a release has published as a vector holds for ever: new cases go into new files.
FOR_EVER = {
    "wire.json": "43a13b79bfaab742",
    "wire_bad.json": "59eddd4d8b1080c7",
    "wire_hybrid.json": "099d9863a6ce7dd6",
}
NOW = 1_000_000.0
PAIRS = {key["key_id"]: KeyPair.restored(key) for key in GOOD["keys"]}
NAMED = {key["name"]: key["key_id"] for key in reversed(GOOD["keys"])}


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


def directory() -> Directory:
    return parse_directory(raw(GOOD["directories"][0]["file"]), GOOD["root"]["signing"])


def opened(kind: str, payload: bytes) -> Opened:
    def key(role: Role, ident: str, key_id: bytes) -> bytes:
        return directory().signing_key(role, ident, key_id, NOW)

    return open_message(payload, "lab", key, (kind,))


def test_the_vectors_are_those_of_the_reference(tmp_path: Path) -> None:
    reference.write(tmp_path)
    for name in ("wire.json", "wire_bad.json"):
        assert (tmp_path / name).read_bytes() == (VECTORS / name).read_bytes(), name
    for name, start in FOR_EVER.items():
        assert hashlib.sha256((VECTORS / name).read_bytes()).hexdigest().startswith(start), name
    assert sum(len(cases) for cases in GOOD.values()) >= 40
    assert len(BAD) >= 100
    assert {case["call"] for case in BAD} == set(CALLS)


@pytest.mark.parametrize("case", GOOD["keys"], ids=lambda case: f"{case['name']} {case['key_id']}")
def test_keys(case: dict[str, str]) -> None:
    public = PAIRS[case["key_id"]].public
    found = (public.signing.hex(), public.sealing.hex(), public.key_id.hex())
    assert found == (case["signing_public"], case["sealing_public"], case["key_id"])


@pytest.mark.parametrize("case", GOOD["messages"], ids=lambda case: case["kind"])
def test_messages(case: dict[str, str]) -> None:
    """One message has one coding."""
    assert encode(decode(case["kind"], raw(case["body"]))) == raw(case["body"])


@pytest.mark.parametrize("case", GOOD["envelopes"], ids=lambda case: f"{case['kind']} {case['digest'][:4]}")
def test_envelopes(case: dict[str, str]) -> None:
    found = opened(case["kind"], raw(case["payload"]))
    assert (found.sender, found.digest.hex()) == (case["sender"], case["digest"])


@pytest.mark.parametrize("case", GOOD["seals"], ids=lambda case: f"{case['to']} {case['suite']}")
def test_seals(case: dict[str, str]) -> None:
    pair = PAIRS[NAMED[case["to"]]]
    assert pair.unseal(raw(case["sealed"]), raw(case["context"]), Suite(case["suite"])) == raw(case["plaintext"])


@pytest.mark.parametrize("case", HYBRID, ids=lambda case: case["suite"])
def test_hybrid_seals(case: dict[str, Any]) -> None:
    """Opened by the product, and by the reference with another implementation of ML-KEM."""
    key, suite, sealed, bound = case["key"], Suite(case["suite"]), raw(case["sealed"]), raw(case["context"])
    pair = KeyPair.restored({name: key[name] for name in ("signing", "sealing", "hybrid")})
    assert pair.public.key_id.hex() == key["key_id"]
    assert pair.unseal(sealed, bound, suite) == raw(case["plaintext"])
    assert reference.open_sealed(case["suite"], key, sealed, bound) == raw(case["plaintext"])


def test_contexts() -> None:
    position = (bytes(range(16)), 2, 1, "chacha20", 0, 4)
    found = share_context("lab", bytes(range(32)), ("device-01", "aggregator-1"), position)
    assert found.hex() == GOOD["seals"][0]["context"]


@pytest.mark.parametrize("case", GOOD["directories"], ids=lambda case: f"version {case['version']}")
def test_directories(case: dict[str, Any]) -> None:
    found = parse_directory(raw(case["file"]), GOOD["root"]["signing"])
    assert (found.federation, found.version) == ("lab", case["version"])


@pytest.mark.parametrize("case", GOOD["checksums"], ids=lambda case: f"{case['field']} {len(case['words'])}")
def test_checksums(case: dict[str, Any]) -> None:
    field, seed, rows = FIELDS[case["field"]], raw(case["seed"]), len(case["checksum"])
    words = np.array(case["words"], dtype=field.word_type)
    assert commitment(seed).hex() == case["commitment"]
    assert checksum(words, seed, case["segment"], rows, field).tolist() == case["checksum"]
    whole = np.array([*case["words"], *case["checksum"]], dtype=field.word_type)
    assert is_checksum_right(whole, seed, case["segment"], rows, field)
    assert not is_checksum_right(whole, seed, case["segment"] + 1, rows, field)


# --------------------------------------------------------------------------- bad ones


def bad_seal(case: dict[str, Any]) -> bytes:
    identity = Identity(case["to"], tuple(PAIRS[key["key_id"]] for key in GOOD["keys"] if key["name"] == case["to"]))
    return identity.unseal(raw(case["data"]), raw(case["context"]), Suite(case["suite"]), raw(case["key_id"]))


CALLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "message": lambda case: decode(case["kind"], raw(case["data"])),
    "envelope": lambda case: opened(case["kind"], raw(case["data"])),
    "seal": bad_seal,
    "directory": lambda case: parse_directory(raw(case["data"]), GOOD["root"]["signing"]),
}


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case['call']}: {case['why']}")
def test_bad_ones_are_refused_by_name(case: dict[str, Any]) -> None:
    with pytest.raises(errors.FedPruneShareError) as raised:
        CALLS[case["call"]](case)
    assert type(raised.value).__name__ == case["error"]
    assert str(raised.value)

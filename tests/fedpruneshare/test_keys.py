"""Keys with ids: rotation, hybrid seals, key files (docs/protocol.md §7.1, §7.3)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedpruneshare.errors import SealError, SettingsError
from fedpruneshare.keys import Identity, KeyPair, seal, verify
from fedpruneshare.wire_types import Suite

each_suite = pytest.mark.parametrize("suite", list(Suite))
HALVES = {"signing": "11" * 32, "sealing": "22" * 32}
OLD = Identity.generate("aggregator-1", hybrid=True)


@each_suite
@pytest.mark.parametrize("size", [1, 20_000])
def test_every_suite_seals_to_one_key_and_context(suite: Suite, size: int) -> None:
    public, plaintext = OLD.public()[0], os.urandom(size)
    sealed = seal(public, plaintext, b"context", suite)
    assert len(sealed) == size + suite.seal_bytes
    assert OLD.unseal(sealed, b"context", suite, public.key_id) == plaintext
    for other in set(Suite) - {suite}:
        with pytest.raises(SealError):
            OLD.unseal(sealed, b"context", other, public.key_id)
    with pytest.raises(SealError, match="for 'aggregator-1'"):
        OLD.unseal(sealed, b"another", suite, public.key_id)


def test_after_a_rotation_both_keys_open_and_after_two_the_first_does_not() -> None:
    suite, context = Suite.X25519_AES256, b"context"
    sealed, old = seal(OLD.public()[0], b"share", context, suite), OLD.public()[0].key_id
    once = OLD.rotated()
    twice = once.rotated()
    assert once.unseal(sealed, context, suite, old) == b"share"
    fresh = once.public()[0]
    assert once.unseal(seal(fresh, b"new", context, suite), context, suite, fresh.key_id) == b"new"
    with pytest.raises(SealError, match=f"sealed to key {old.hex()}, expected"):
        twice.unseal(sealed, context, suite, old)


def test_a_seal_names_its_key_also_inside() -> None:
    """Opened by the right key under another key's name it would be one that was never asked for."""
    both = OLD.rotated()
    first, second = both.public()
    sealed = seal(first, b"share", b"", Suite.X25519_CHACHA20)
    with pytest.raises(SealError):
        both.unseal(sealed, b"", Suite.X25519_CHACHA20, second.key_id)


def test_either_key_signs_when_asked() -> None:
    both = OLD.rotated()
    for public in both.public():
        assert verify(public.signing, b"data", both.sign(b"data", public.key_id))
    assert verify(both.public()[0].signing, b"data", both.sign(b"data"))


def test_hybrid_seals_need_a_hybrid_key() -> None:
    plain = Identity.generate("aggregator-1")
    with pytest.raises(SealError, match="no hybrid half"):
        seal(plain.public()[0], b"share", b"", Suite.XWING_AES256)
    with pytest.raises(SealError, match="no hybrid half"):
        plain.unseal(bytes(1200), b"", Suite.XWING_AES256, plain.public()[0].key_id)


def test_key_ids_follow_from_every_public_half() -> None:
    one = OLD.public()[0]
    assert len(one.key_id) == 8
    assert len(one.hybrid) == 1216
    assert one.key_id != type(one)(one.signing, one.sealing).key_id


def test_a_key_file_holds_both_keys(tmp_path: Path) -> None:
    both, path = OLD.rotated(hybrid=True), tmp_path / "keys.json"
    both.save(path)
    assert Identity.load(path).public() == both.public()
    stored = json.loads(path.read_text())
    for secret in (half for key in stored["keys"] for half in key.values()):
        assert secret not in repr(both) + repr(both.keys[0])


@pytest.mark.parametrize(
    "content",
    [
        '{"id": "a", "keys": []}',
        json.dumps({"id": 3, "keys": [HALVES]}),
        json.dumps({"id": "a", "keys": [HALVES | {"hybrid": "33"}]}),
        '{"id": "a", "keys": {"signing": 1}}',
        json.dumps({"id": "a", "keys": [KeyPair.generate().stored()] * 3}),
        "[" * 10_000,
    ],
    ids=["none", "name", "short hybrid", "no list", "three", "deep"],
)
def test_what_is_no_key_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="key file"):
        Identity.load(path)

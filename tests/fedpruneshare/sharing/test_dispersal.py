"""Short secret sharing: every k-subset rebuilds, what is wrong is named (docs/protocol.md §5.8)."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from Crypto.Protocol.SecretSharing import Shamir
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dispersal_reference as reference

from fedpruneshare import errors
from fedpruneshare.errors import DispersalError, PlanError
from fedpruneshare.sharing import dispersal
from fedpruneshare.sharing.dispersal import KEY_BYTES, disperse, fragment_bytes, rebuild
from fedpruneshare.sharing.reed_solomon import decode, encode

VECTORS = Path(__file__).parents[2] / "vectors"
GOOD: list[dict[str, Any]] = json.loads((VECTORS / "dispersal.json").read_text())
BAD: list[dict[str, Any]] = json.loads((VECTORS / "dispersal_bad.json").read_text())
#: As those of sharing: for ever.
FOR_EVER = {"dispersal.json": "43757f217757bae4", "dispersal_bad.json": "f9fc7295dd005201"}


def fragments_of(case: dict[str, Any]) -> dict[int, bytes]:
    return {int(x): bytes.fromhex(fragment) for x, fragment in case["fragments"].items()}


# --------------------------------------------------------------------------- vectors


def test_the_vectors_are_those_of_the_reference(tmp_path: Path) -> None:
    reference.write(tmp_path)
    for name, pinned in FOR_EVER.items():
        assert (tmp_path / name).read_bytes() == (VECTORS / name).read_bytes(), name
        assert hashlib.sha256((VECTORS / name).read_bytes()).hexdigest().startswith(pinned), name
    assert len(GOOD) >= 12
    assert len(BAD) >= 20


@pytest.mark.parametrize("case", GOOD, ids=lambda case: f"({case['n']},{case['k']}) {len(case['blob']) // 2} bytes")
def test_good(case: dict[str, Any]) -> None:
    n, k, blob, context = case["n"], case["k"], bytes.fromhex(case["blob"]), bytes.fromhex(case["context"])
    assert disperse(blob, n, k, context, bytes.fromhex(case["key"])) == fragments_of(case)
    subsets = list(itertools.combinations(fragments_of(case).items(), k))
    for subset in subsets[:: max(1, len(subsets) // 40)]:
        rebuilt = rebuild(dict(subset), len(blob), n, k, context)
        assert (rebuilt.blob, rebuilt.wrong) == (blob, ())


@pytest.mark.parametrize("case", BAD, ids=lambda case: case["why"])
def test_bad(case: dict[str, Any]) -> None:
    arguments = (fragments_of(case), case["size"], case["n"], case["k"], bytes.fromhex(case["context"]))
    if not case["error"]:
        assert list(rebuild(*arguments).wrong) == case["wrong"]
        return
    with pytest.raises(errors.FedPruneShareError) as raised:
        rebuild(*arguments)
    assert type(raised.value).__name__ == case["error"]
    if isinstance(raised.value, DispersalError):
        assert list(raised.value.suspects) == case["wrong"]


# --------------------------------------------------------------------------- for all inputs


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_k_fragments_rebuild_and_the_rest_may_be_anything(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 8))
    k = data.draw(st.integers(2, n))
    size = data.draw(st.sampled_from([0, 1, k - 1, k, k + 1, 255, 4095, 4096, 4097]))
    blob = os.urandom(size)
    fragments = disperse(memoryview(blob), n, k, b"context")
    assert {len(fragment) for fragment in fragments.values()} == {fragment_bytes(size, n, k)}
    kept = data.draw(st.sets(st.sampled_from(sorted(fragments)), min_size=k))
    given_fragments = {x: fragment if x in kept else os.urandom(len(fragment)) for x, fragment in fragments.items()}
    rebuilt = rebuild(given_fragments, size, n, k, b"context")
    assert rebuilt.blob == blob
    assert set(rebuilt.wrong) == set(fragments) - kept


def test_fragments_have_a_kth_of_the_blob() -> None:
    for n, k in ((3, 2), (5, 3), (16, 9)):
        for size in (0, 1, 1000, 10**6):
            assert fragment_bytes(size, n, k) <= size / k + 36 + 16 * n + 17
            assert fragment_bytes(size, n, k) - -(-size // k) <= 512


def test_with_one_key_the_fragments_are_the_same() -> None:
    key = os.urandom(KEY_BYTES)
    assert disperse(b"blob", 3, 2, b"c", key) == disperse(b"blob", 3, 2, b"c", key)
    assert disperse(b"blob", 3, 2, b"c") != disperse(b"blob", 3, 2, b"c")
    with pytest.raises(DispersalError, match="key of 31 bytes, expected 32"):
        disperse(b"blob", 3, 2, b"c", key[:-1])


def dealt_apart(kind: str) -> dict[int, bytes]:
    """Fragments of a (4, 2) dealer whose digests hold for pieces, key shares or padding of no one blob."""
    fragments, head = disperse(bytes(39), 4, 2, b"c"), fragment_bytes(39, 4, 2) - 28
    place = {"piece": head, "key share": 4, "padding": -1}[kind]
    point = 2 if kind == "padding" else 4
    changed = bytearray(fragments[point])
    changed[place] ^= 1
    fragments[point] = bytes(changed)
    digests = b"".join(dispersal._digest(x, part[4:36], part[head:]) for x, part in fragments.items())
    return {x: part[:36] + digests + part[head:] for x, part in fragments.items()}


@pytest.mark.parametrize("kind", ["piece", "key share", "padding"])
def test_no_subset_opens_what_another_would_open_otherwise(kind: str) -> None:
    """Exactly k fragments are as strict as all of them: a dealer cannot give two coordinators two blobs."""
    fragments = dealt_apart(kind)
    for count in (2, 3, 4):
        for subset in itertools.combinations(fragments, count):
            with pytest.raises(DispersalError):
                rebuild({x: fragments[x] for x in subset}, 39, 4, 2, b"c")


def test_two_complete_dispersals_are_refused() -> None:
    one, other = (disperse(blob, 5, 2, b"c") for blob in (b"one", b"two"))
    for points in ((3, 4), (3, 4, 5)):
        mixed = {**{x: one[x] for x in (1, 2)}, **{x: other[x] for x in points}}
        with pytest.raises(DispersalError, match="several dispersals are complete") as raised:
            rebuild(mixed, 3, 5, 2, b"c")
        assert raised.value.suspects == ()


def test_a_view_of_words_is_dispersed_as_its_bytes() -> None:
    words = memoryview(bytes(range(40))).cast("I")
    assert rebuild(disperse(words, 3, 2, b"c"), 40, 3, 2, b"c").blob == bytes(range(40))


def test_a_key_used_again_for_another_blob_gives_another_keystream() -> None:
    """Else the XOR of two fragments of one aggregator would be that of the plaintexts."""
    one, other = bytes(64), b"\x55" * 64
    for context in (b"c", b"d"):
        a, b = (disperse(blob, 2, 2, context, bytes(32))[1][-40:-8] for blob in (one, other))
        assert bytes(x ^ y for x, y in zip(a, b, strict=True)) != b"\x55" * 32
    a, b = (disperse(one, 2, 2, context, bytes(32))[1] for context in (b"c", b"d"))
    assert a[-40:-8] != b[-40:-8]


@pytest.mark.parametrize(("n", "k"), [(2, 1), (3, 4), (17, 2), (0, 0)])
def test_impossible_schemes_are_refused(n: int, k: int) -> None:
    for call in (lambda: disperse(b"", n, k, b""), lambda: fragment_bytes(1, n, k), lambda: rebuild({}, 1, n, k, b"")):
        with pytest.raises(PlanError, match="expected 2 <= k <= n <= 16"):
            call()


def test_nothing_secret_is_shown() -> None:
    blob = b"a secret blob of some length"
    rebuilt = rebuild(disperse(blob, 3, 2, b"c"), len(blob), 3, 2, b"c")
    assert "secret" not in repr(rebuilt)
    parsed = dispersal._parse(1, disperse(blob, 3, 2, b"c", bytes(32))[1], len(blob), 3, 2)
    assert parsed is not None
    assert parsed.key_share.hex() not in repr(parsed)
    assert repr(parsed.key_share) not in repr(parsed)


# --------------------------------------------------------------------------- the parts


def test_the_key_is_shared_as_pycryptodome_shares_it() -> None:
    """`Shamir.combine` opens our shares, and our evaluation gives `Shamir.split`'s shares of the same polynomial."""
    key = os.urandom(32)
    shares = dispersal._share_key(key, os.urandom(32), 7, 4)
    for subset in itertools.combinations(shares, 4):
        halves = [Shamir.combine([(x, shares[x][at : at + 16]) for x in subset]) for at in (0, 16)]
        assert b"".join(halves) == key
    theirs = {x: share for x, share in Shamir.split(2, 5, key[:16])}
    slope = reference.block_product(
        int.from_bytes(theirs[1], "big") ^ int.from_bytes(key[:16], "big"), reference.block_inverse(1)
    )
    for x, share in theirs.items():
        assert dispersal._evaluate([slope, int.from_bytes(key[:16], "big")], x).to_bytes(16, "big") == share


def test_k_minus_one_key_shares_fit_every_key() -> None:
    """For any two shares of three and any key there is exactly one polynomial: they say nothing."""
    shares = dispersal._share_key(os.urandom(32), os.urandom(32), 5, 3)
    for key in (bytes(32), b"\xff" * 32, os.urandom(32)):
        for x, y in itertools.combinations(shares, 2):
            missing = next(z for z in shares if z not in (x, y))
            third = b""
            for at in (0, 16):  # the value at `missing` of the polynomial through (0, key), x and y
                points = {0: key[at : at + 16], x: shares[x][at : at + 16], y: shares[y][at : at + 16]}
                value = 0
                for own, share in points.items():
                    term = int.from_bytes(share, "big")
                    for other in points:
                        if other != own:
                            factor = reference.block_product(missing ^ other, reference.block_inverse(own ^ other))
                            term = reference.block_product(term, factor)
                    value ^= term
                third += value.to_bytes(16, "big")
            assert dispersal._combine_key({x: shares[x], y: shares[y], missing: third}) == key


@pytest.mark.parametrize(("n", "k"), [(3, 2), (5, 3), (6, 6), (16, 2), (16, 8), (16, 15)])
def test_any_k_pieces_give_the_data_back(n: int, k: int) -> None:
    data = os.urandom(3 * 256 * 1024 + 7) if k == 2 else os.urandom(1001)
    pieces = encode(data, n, k)
    size = -(-len(data) // k)
    assert {len(piece) for piece in pieces.values()} == {size}
    subsets = list(itertools.combinations(pieces, k))
    for subset in subsets[:: max(1, len(subsets) // 25)]:
        assert decode({x: pieces[x] for x in subset}, k)[: len(data)] == data


@pytest.mark.parametrize("kind", ["blob", "context", "key"])
def test_everything_is_bound(kind: str) -> None:
    base: dict[str, bytes] = {"blob": b"a blob", "context": b"c", "key": bytes(32)}
    one = disperse(base["blob"], 3, 2, base["context"], base["key"])
    changed = {**base, kind: base[kind][:-1] + b"\x07"}
    other = disperse(changed["blob"], 3, 2, changed["context"], changed["key"])
    assert all(one[x] != other[x] for x in one)

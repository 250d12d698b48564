"""Dispersal in slow, plain integers, written from docs/protocol.md §5.8 alone: the judge of the fast code.

It imports nothing of the product. `python tests/reference/dispersal_reference.py` writes the vectors anew; a test
checks that they have not drifted.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from Crypto.Cipher import AES, ChaCha20

LABEL = b"fedpruneshare/dispersal/1"


def multiply(a: int, b: int, degree: int, polynomial: int) -> int:
    """Product in GF(2^degree): carry-less multiplication, then reduction from the top."""
    product = 0
    for bit in range(degree):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(2 * degree - 2, degree - 1, -1):
        if product >> bit & 1:
            product ^= polynomial << (bit - degree)
    return product


def byte_product(a: int, b: int) -> int:
    return multiply(a, b, 8, 0x11D)


def byte_inverse(a: int) -> int:
    """By trying all."""
    return next(b for b in range(256) if byte_product(a, b) == 1)


def block_product(a: int, b: int) -> int:
    return multiply(a, b, 128, (1 << 128) | 0x87)


@lru_cache
def block_inverse(a: int) -> int:
    """a^(2^128 − 2), by square and multiply."""
    result, power = 1, a
    for _ in range(127):
        power = block_product(power, power)
        result = block_product(result, power)
    return result


# --------------------------------------------------------------------------- the parts


def key_shares(key: bytes, coins: bytes, n: int, k: int) -> dict[int, bytes]:
    """Two Shamir sharings over GF(2^128): f(0) is a half of the key, the highest coefficient is drawn first."""
    drawn = ChaCha20.new(key=coins, nonce=bytes(12)).encrypt(bytes(32 * (k - 1)))
    shares = {x: b"" for x in range(1, n + 1)}
    for half in (0, 1):
        own = slice(16 * half, 16 * half + 16)
        coefficients = [int.from_bytes(drawn[32 * i : 32 * i + 32][own], "big") for i in range(k - 1)]
        for x in shares:
            value = int.from_bytes(key[own], "big")
            power = 1
            for coefficient in reversed(coefficients):
                power = block_product(power, x)
                value ^= block_product(coefficient, power)
            shares[x] += value.to_bytes(16, "big")
    return shares


def open_key(shares: dict[int, bytes]) -> bytes:
    """Lagrange interpolation at 0, half by half."""
    key = b""
    for half in (0, 1):
        total = 0
        for x, share in shares.items():
            term = int.from_bytes(share[16 * half : 16 * half + 16], "big")
            for other in shares:
                if other != x:
                    term = block_product(term, block_product(other, block_inverse(x ^ other)))
            total ^= term
        key += total.to_bytes(16, "big")
    return key


def pieces(data: bytes, n: int, k: int) -> dict[int, bytes]:
    """The data in k pieces, then n − k sums with the factors 1/((x − 1) ⊕ j) for data piece j = 0…k−1."""
    size = -(-len(data) // k)
    padded = data + bytes(k * size - len(data))
    own = [padded[j * size : (j + 1) * size] for j in range(k)]
    result = dict(enumerate(own, 1))
    for x in range(k + 1, n + 1):
        factors = [byte_inverse((x - 1) ^ j) for j in range(k)]
        result[x] = bytes(_column(own, factors, i) for i in range(size))
    return result


def _column(own: list[bytes], factors: list[int], i: int) -> int:
    total = 0
    for piece, factor in zip(own, factors, strict=True):
        total ^= byte_product(piece[i], factor)
    return total


def disperse(blob: bytes, n: int, k: int, context: bytes, key: bytes) -> dict[int, bytes]:
    """Version, n, k, x; key share; digests of all fragments; piece."""

    bound = bytes([n, k]) + len(blob).to_bytes(8, "big") + hashlib.sha256(context).digest()

    def derived(purpose: bytes) -> bytes:
        return hashlib.sha256(LABEL + b"\0" + purpose + b"\0" + key + bound + hashlib.sha256(blob).digest()).digest()

    cipher = AES.new(derived(b"key"), AES.MODE_GCM, nonce=bytes(12))
    cipher.update(LABEL + b"\0" + bound)
    ciphertext, tag = cipher.encrypt_and_digest(blob)
    own, shares = pieces(ciphertext + tag, n, k), key_shares(derived(b"key"), derived(b"coefficients"), n, k)
    digests = b"".join(
        hashlib.sha256(LABEL + b"\0fragment\0" + bytes([x]) + b"\0" + shares[x] + own[x]).digest()[:16] for x in own
    )
    for subset in (list(shares)[:k], list(shares)[-k:]):
        assert open_key({x: shares[x] for x in subset}) == derived(b"key")
    return {x: bytes([1, n, k, x]) + shares[x] + digests + own[x] for x in own}


# --------------------------------------------------------------------------- vectors

_CASES = ((3, 2, 0), (3, 2, 1), (3, 2, 17), (3, 3, 5), (5, 3, 16), (5, 3, 100), (2, 2, 3), (4, 3, 8), (6, 2, 9),
          (5, 5, 31), (7, 4, 64), (16, 9, 40), (16, 2, 6))  # fmt: skip


def good_vectors() -> list[dict[str, Any]]:
    """What the product must reproduce, byte for byte."""
    cases = []
    for place, (n, k, size) in enumerate(_CASES):
        rng = random.Random(20400 + place)
        blob, context, key = rng.randbytes(size), rng.randbytes(place % 4), rng.randbytes(32)
        fragments = disperse(blob, n, k, context, key)
        cases.append({"n": n, "k": k, "context": context.hex(), "key": key.hex(), "blob": blob.hex(),
                      "fragments": {str(x): fragment.hex() for x, fragment in fragments.items()}})  # fmt: skip
    return cases


def bad_vectors() -> list[dict[str, Any]]:
    """What must be refused, and what must be rebuilt with the wrong fragments named (`error` is empty)."""
    rng = random.Random(20430)
    blob, key, other_key = rng.randbytes(40), rng.randbytes(32), rng.randbytes(32)
    three, five = disperse(blob, 3, 2, b"c", key), disperse(blob, 5, 3, b"c", key)
    other = disperse(blob, 3, 2, b"c", other_key)
    return [*_tampered(five), *_unusable(three, five, other), *_parameters(three), _inconsistent(key, blob)]


def _case(why: str, error: str, fragments: dict[int, bytes], wrong: list[int], **changes: Any) -> dict[str, Any]:
    return {"why": why, "error": error, "wrong": wrong, "n": 5, "k": 3, "size": 40, "context": b"c".hex(),
            "fragments": {str(x): fragment.hex() for x, fragment in fragments.items()}, **changes}  # fmt: skip


def _flipped(fragment: bytes, place: int) -> bytes:
    return fragment[:place] + bytes([fragment[place] ^ 1]) + fragment[place + 1 :]


def _tampered(five: dict[int, bytes]) -> list[dict[str, Any]]:
    places = {"version": 0, "n": 1, "k": 2, "x": 3, "key share": 4, "end of the key share": 35, "own digest": 36 + 16,
              "another's digest": 36, "last digest": 36 + 79, "piece": 116, "end of the piece": -1}  # fmt: skip
    cases = [
        _case(f"{what} of fragment 2 altered", "", {**five, 2: _flipped(five[2], place % len(five[2]))}, [2])
        for what, place in places.items()
    ]
    return [
        *cases,
        _case("two fragments swapped", "", {**five, 1: five[4], 4: five[1]}, [1, 4]),
        _case("a fragment cut short", "", {**five, 5: five[5][:-1]}, [5]),
        _case("a fragment too long", "", {**five, 5: five[5] + b"\0"}, [5]),
        _case("an empty fragment", "", {**five, 3: b""}, [3]),
    ]


def _unusable(three: dict[int, bytes], five: dict[int, bytes], other: dict[int, bytes]) -> list[dict[str, Any]]:
    error, small = "DispersalError", {"n": 3, "k": 2}
    damaged = {x: _flipped(five[x], -1 % len(five[x])) for x in (1, 2, 3)}
    return [
        _case("none", error, {}, []),
        _case("k - 1 fragments", error, {x: five[x] for x in (1, 5)}, []),
        _case("three of five altered", error, {**five, **damaged}, [1, 2, 3]),
        _case("one of three is another blob's", "", {**three, 3: other[3]}, [3], **small),
        _case("one of two is another blob's", error, {1: three[1], 2: other[2]}, [2], **small),
        _case("another context", error, three, [], context=b"d".hex(), **small),
        _case("no context", error, three, [], context="", **small),
        _case("another size", error, three, [1, 2, 3], size=50, **small),
        _case("another size of the same fragments", error, three, [], size=39, **small),
        _case("another threshold", error, three, [1, 2, 3], n=3, k=3),
        _case("x = 0", error, {0: three[1], 1: three[1]}, [0], **small),
        _case("x above n", error, {3: three[3], 4: three[2]}, [4], **small),
    ]


def _parameters(three: dict[int, bytes]) -> list[dict[str, Any]]:
    wrong = {"k above n": (3, 4), "k of 1": (3, 1), "17 fragments": (17, 2), "k below 0": (3, -1)}
    return [_case(why, "PlanError", three, [], n=n, k=k) for why, (n, k) in wrong.items()]


def _inconsistent(key: bytes, blob: bytes) -> dict[str, Any]:
    """A dealer that signs digests of pieces which fit no one blob: two subsets would rebuild two blobs."""
    dealt = disperse(blob, 3, 2, b"c", key)
    head = 4 + 32 + 3 * 16
    piece = _flipped(dealt[3][head:], 5)
    own = hashlib.sha256(LABEL + b"\0fragment\0" + bytes([3]) + b"\0" + dealt[3][4:36] + piece).digest()[:16]
    digests = dealt[3][36 : head - 16] + own
    again = {x: dealt[x][:36] + digests + (piece if x == 3 else dealt[x][head:]) for x in dealt}
    return _case("pieces of no one blob", "DispersalError", again, [], n=3, k=2)


def write(folder: Path) -> None:
    """Write both files."""
    for name, content in (("dispersal.json", good_vectors()), ("dispersal_bad.json", bad_vectors())):
        (folder / name).write_text(json.dumps(content, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "vectors")

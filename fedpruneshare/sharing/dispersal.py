"""Short secret sharing of blobs (docs/protocol.md §5.8): Krawczyk, "Secret sharing made short", CRYPTO '93.

The blob is encrypted under a fresh key; the ciphertext is dispersed by a systematic Reed-Solomon code over GF(256),
the key shared by Shamir over GF(2^128). Any k of n fragments rebuild, k − 1 tell nothing but the size, and a fragment
has 1/k of the blob. Every fragment carries digests of all of them, so wrong ones are named. What is dispersed cannot
be added up: this is for blobs, `shamir` is for sums.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from Crypto.Cipher import AES, ChaCha20
from Crypto.Protocol.SecretSharing import Shamir

from fedpruneshare.errors import DispersalError, PlanError
from fedpruneshare.sharing.reed_solomon import decode, encode
from fedpruneshare.sharing.shamir import MAX_SHARES

KEY_BYTES: Final = 32
_VERSION: Final = 1
_TAG_BYTES: Final = 16
_DIGEST_BYTES: Final = 16
_HEAD_BYTES: Final = 4
_LABEL: Final = b"fedpruneshare/dispersal/1"


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt blob, and the points of fragments that were tampered with, swapped, or of another dispersal."""

    blob: bytes = field(repr=False)
    wrong: tuple[int, ...]


def fragment_bytes(size_bytes: int, n: int, k: int) -> int:
    """Exact bytes of each of the n fragments of a blob of so many bytes. Raises `PlanError` unless 2 ≤ k ≤ n ≤ 16."""
    return _head_bytes(n, k) + _piece_bytes(size_bytes, k)


def disperse(blob: bytes | memoryview, n: int, k: int, context: bytes, key: bytes | None = None) -> dict[int, bytes]:
    """A blob -> its fragment for each point 1…n, all of `fragment_bytes`.

    They rebuild only under the same `context`. `key`: 32 fresh secret bytes, by default from the operating system; with
    the same key the fragments of the same blob are the same. Raises `PlanError` unless 2 ≤ k ≤ n ≤ 16.
    """
    _check_scheme(n, k)
    master = os.urandom(KEY_BYTES) if key is None else key
    if len(master) != KEY_BYTES:
        raise DispersalError(f"key of {len(master)} bytes, expected {KEY_BYTES}")
    plaintext = bytes(blob)
    bound = _bound(len(plaintext), n, k, context) + hashlib.sha256(plaintext).digest()
    cipher_key = _derived(master, b"key", bound)
    pieces = encode(_encrypt(plaintext, n, k, context, cipher_key), n, k)
    key_shares = _share_key(cipher_key, _derived(master, b"coefficients", bound), n, k)
    digests = b"".join(_digest(x, key_shares[x], pieces[x]) for x in range(1, n + 1))
    return {x: bytes([_VERSION, n, k, x]) + key_shares[x] + digests + pieces[x] for x in range(1, n + 1)}


def rebuild(fragments: Mapping[int, bytes], size_bytes: int, n: int, k: int, context: bytes) -> Rebuilt:
    """The blob of so many bytes from its fragments by point; at least k must be right.

    Raises `DispersalError` where fewer are, with the suspects, where they do not decrypt, or where the dealer's
    fragments fit no one blob; `PlanError` unless 2 ≤ k ≤ n ≤ 16.
    """
    _check_scheme(n, k)
    parsed = {x: _parse(x, data, size_bytes, n, k) for x, data in sorted(fragments.items())}
    good = _largest_group({x: found for x, found in parsed.items() if found is not None}, k)
    wrong = tuple(x for x in parsed if x not in good)
    if len(good) < k:
        others = f"; not those of points {list(wrong)}" if wrong else ""
        raise DispersalError(f"{len(good)} fragments fit together, expected at least k = {k}{others}", wrong)
    chosen = sorted(good)[:k]
    cipher_key = _combine_key({x: good[x].key_share for x in chosen})
    ciphertext = decode({x: good[x].piece for x in chosen}, k)[: size_bytes + _TAG_BYTES]
    blob = _decrypt(ciphertext, n, k, context, cipher_key)
    _check_dealer({x: good[x].key_share for x in chosen}, ciphertext, good[chosen[0]].digests, n)
    return Rebuilt(blob, wrong)


def _check_dealer(key_shares: Mapping[int, bytes], ciphertext: bytes, digests: bytes, n: int) -> None:
    """Whoever holds other k fragments must get the same blob, so all n digests must be those that this one gives.

    The k key shares fix the others and the ciphertext fixes the pieces: k fragments show as much as n.
    """
    pieces = encode(ciphertext, n, len(key_shares))
    shares = {x: key_shares.get(x) or _combine_key(key_shares, x) for x in pieces}
    if digests != b"".join(_digest(x, shares[x], pieces[x]) for x in pieces):
        raise DispersalError("the fragments are of no one blob, expected all to rebuild the same")


# --------------------------------------------------------------------------- fragments


@dataclass(frozen=True)
class _Fragment:
    key_share: bytes = field(repr=False)
    digests: bytes
    piece: bytes = field(repr=False)


def _parse(x: int, data: bytes, size_bytes: int, n: int, k: int) -> _Fragment | None:
    """A fragment that is whole, at its own point, and has the digest it says it has; None otherwise."""
    if (
        not 1 <= x <= n
        or len(data) != fragment_bytes(size_bytes, n, k)
        or data[:_HEAD_BYTES] != bytes([_VERSION, n, k, x])
    ):
        return None
    start = _HEAD_BYTES + KEY_BYTES
    found = _Fragment(data[_HEAD_BYTES:start], data[start : _head_bytes(n, k)], data[_head_bytes(n, k) :])
    own = found.digests[(x - 1) * _DIGEST_BYTES : x * _DIGEST_BYTES]
    return found if own == _digest(x, found.key_share, found.piece) else None


def _largest_group(fragments: Mapping[int, _Fragment], k: int) -> dict[int, _Fragment]:
    """The most fragments that agree on all digests. Raises `DispersalError` where k others agree on other ones."""
    groups: dict[bytes, dict[int, _Fragment]] = defaultdict(dict)
    for x, fragment in fragments.items():
        groups[fragment.digests][x] = fragment
    if sum(len(group) >= k for group in groups.values()) > 1:
        raise DispersalError("the fragments of several dispersals are complete, expected one")
    return max(groups.values(), key=len, default={})


def _digest(x: int, key_share: bytes, piece: bytes) -> bytes:
    return hashlib.sha256(b"\0".join([_LABEL, b"fragment", bytes([x]), key_share + piece])).digest()[:_DIGEST_BYTES]


def _check_scheme(n: int, k: int) -> None:
    if not 2 <= k <= n <= MAX_SHARES:
        raise PlanError(f"k = {k} of n = {n}, expected 2 <= k <= n <= {MAX_SHARES}")


def _head_bytes(n: int, k: int) -> int:
    _check_scheme(n, k)
    return _HEAD_BYTES + KEY_BYTES + n * _DIGEST_BYTES


def _piece_bytes(size_bytes: int, k: int) -> int:
    return -(-(size_bytes + _TAG_BYTES) // k)


# --------------------------------------------------------------------------- encryption


def _derived(master: bytes, purpose: bytes, bound: bytes) -> bytes:
    """A key for exactly one blob, scheme and context, whatever `master` is used for besides."""
    return hashlib.sha256(b"\0".join([_LABEL, purpose, master + bound])).digest()


def _bound(size_bytes: int, n: int, k: int, context: bytes) -> bytes:
    return bytes([n, k]) + size_bytes.to_bytes(8, "big") + hashlib.sha256(context).digest()


def _cipher(size_bytes: int, n: int, k: int, context: bytes, key: bytes) -> Any:
    # A key encrypts one blob only, so the nonce may be constant.
    cipher = AES.new(key, AES.MODE_GCM, nonce=bytes(12))
    cipher.update(_LABEL + b"\0" + _bound(size_bytes, n, k, context))
    return cipher


def _encrypt(blob: bytes, n: int, k: int, context: bytes, key: bytes) -> bytes:
    cipher = _cipher(len(blob), n, k, context, key)
    return bytes(cipher.encrypt(blob) + cipher.digest())


def _decrypt(ciphertext: bytes, n: int, k: int, context: bytes, key: bytes) -> bytes:
    body, tag = ciphertext[:-_TAG_BYTES], ciphertext[-_TAG_BYTES:]
    try:
        return bytes(_cipher(len(body), n, k, context, key).decrypt_and_verify(body, tag))
    except ValueError:
        raise DispersalError("the fragments do not decrypt, expected those of this blob and context") from None


# --------------------------------------------------------------------------- the key: Shamir over GF(2^128)

#: x^128 + x^7 + x^2 + x + 1, the field and encoding of `Crypto.Protocol.SecretSharing`.
_POLYNOMIAL: Final = (1 << 128) | 0x87


def _share_key(key: bytes, coefficient_key: bytes, n: int, k: int) -> dict[int, bytes]:
    """Both halves of a key as `Shamir.split` shares them, with coefficients from a keystream instead of fresh ones."""
    drawn = ChaCha20.new(key=coefficient_key, nonce=bytes(12)).encrypt(bytes(KEY_BYTES * (k - 1)))
    halves = []
    for half in range(2):
        rows = [drawn[start : start + 16] for start in range(16 * half, len(drawn), 32)]
        halves.append([int.from_bytes(row, "big") for row in (*rows, key[16 * half : 16 * (half + 1)])])
    return {
        x: b"".join(_evaluate(coefficients, x).to_bytes(16, "big") for coefficients in halves) for x in range(1, n + 1)
    }


def _evaluate(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in coefficients:  # the highest first
        value = _multiply128(value, x) ^ coefficient
    return value


def _multiply128(element: int, x: int) -> int:
    product = 0
    while x:
        if x & 1:
            product ^= element
        x >>= 1
        element <<= 1
        if element >> 128:
            element ^= _POLYNOMIAL
    return product


def _combine_key(shares: Mapping[int, bytes], at: int = 0) -> bytes:
    """Value at a point, by default the key. The value at `at` is that at 0 with all points moved by XOR with it."""
    return b"".join(
        Shamir.combine([(x ^ at, share[start : start + 16]) for x, share in shares.items()]) for start in (0, 16)
    )

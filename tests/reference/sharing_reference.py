"""Sharing in slow, plain integers, written from docs/protocol.md §5 alone: the judge of the fast code.

It imports nothing of the product. `python tests/reference/sharing_reference.py` writes the vectors anew; a test
checks that they have not drifted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

from Crypto.Cipher import AES, ChaCha20

P = 2**31 - 1
P61 = 2**61 - 1
#: field -> (p, bits, bytes of a word, number of its first stream)
FIELDS = {"F31": (P, 31, 4, 0), "F61": (P61, 61, 8, 2)}
ALGORITHMS = ("chacha20", "aes-256-ctr")
GEOMETRIES = ((2, 2), (3, 2), (3, 3), (5, 3), (5, 4))


# --------------------------------------------------------------------------- §5.2 keystream elements


def keystream(algorithm: str, seed: bytes, domain: bytes, stream: int, size: int) -> bytes:
    """The first `size` bytes of one stream."""
    head = b"fedpruneshare/prg/1" + b"\0" + algorithm.encode() + b"\0" + bytes([stream])
    key = hashlib.sha256(head + seed + domain).digest()
    if algorithm == "chacha20":
        return ChaCha20.new(key=key, nonce=bytes(12)).encrypt(bytes(size))
    return AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt(bytes(size))


def elements(algorithm: str, seed: bytes, domain: bytes, count: int) -> list[int]:
    """Uniform elements: words of stream 0 below 2^31, each that equals p replaced in order from stream 1."""
    return replace_rejected(
        words_of(keystream(algorithm, seed, domain, 0, 4 * count)),
        iter(words_of(keystream(algorithm, seed, domain, 1, 4096))),
    )


def field_elements(field: str, algorithm: str, seed: bytes, domain: bytes, count: int) -> list[int]:
    """As `elements`, in a named field."""
    p, bits, size, first = FIELDS[field]

    def candidates(stream: int, words: int) -> list[int]:
        data = keystream(algorithm, seed, domain, stream, size * words)
        return [int.from_bytes(data[i : i + size], "little") % 2**bits for i in range(0, len(data), size)]

    spare = iter(candidates(first + 1, 1024))
    return [next(word for word in spare if word != p) if value == p else value for value in candidates(first, count)]


def words_of(data: bytes) -> list[int]:
    """Little-endian words without their top bit."""
    return [int.from_bytes(data[i : i + 4], "little") & P for i in range(0, len(data), 4)]


def replace_rejected(candidates: list[int], spare: Any) -> list[int]:
    """Replace every p, in ascending order of position, by the next spare word that is not p."""
    return [next(word for word in spare if word != P) if value == P else value for value in candidates]


# --------------------------------------------------------------------------- §5.3 digits


def digits_per_word(bits: int, devices: int) -> int:
    """The most digits whose largest packed sum stays below p."""
    radix, count = devices * (2**bits - 1) + 1, 0
    while radix ** (count + 1) - 1 < P:
        count += 1
    return count


def pack(values: list[int], bits: int, devices: int) -> list[int]:
    """Planar digits: digit j of word i is value j·h + i."""
    radix, per_word = devices * (2**bits - 1) + 1, digits_per_word(bits, devices)
    height = -(-len(values) // per_word)
    padded = values + [0] * (per_word * height - len(values))
    return [sum(padded[j * height + i] * radix**j for j in range(per_word)) for i in range(height)]


def unpack(words: list[int], count: int, bits: int, devices: int) -> list[int]:
    """Digit sums of packed words."""
    radix, per_word = devices * (2**bits - 1) + 1, digits_per_word(bits, devices)
    height = len(words)
    values = [0] * (per_word * height)
    for i, word in enumerate(words):
        rest = word
        for j in range(per_word):
            rest, values[j * height + i] = divmod(rest, radix)
    return values[:count]


def segment(weight: int, vectors: list[int], values: list[int], coding: dict[str, int]) -> list[int]:
    """Words of one segment (docs/protocol.md §6.4): weight, packed vector elements, packed values, tail."""
    devices = coding["max_devices"]
    packed = pack(vectors, coding["vector_bits"], devices) + pack(values, coding["value_bits"], devices)
    return [weight, *packed, *[0] * coding["tail_words"]]


def packing(bits: int, devices: int, weight: int, is_power_of_two: bool, p: int) -> tuple[int, int]:
    """(radix, digits per word): the most digits whose largest sums, packed, stay below p."""
    largest = devices * weight * (2**bits - 1)
    radix = 2 ** largest.bit_length() if is_power_of_two else largest + 1
    count = 0
    while sum(largest * radix**j for j in range(count + 1)) < p:
        count += 1
    return radix, count


def pack_by(values: list[int], radix: int, per_word: int) -> list[int]:
    """Planar digits of a radix: digit j of word i is value j·h + i."""
    height = -(-len(values) // per_word)
    padded = values + [0] * (per_word * height - len(values))
    return [sum(padded[j * height + i] * radix**j for j in range(per_word)) for i in range(height)]


# --------------------------------------------------------------------------- §5.4, §5.5 Shamir


def interpolate(points: dict[int, int], at: int, p: int = P) -> int:
    """Value at `at` of the lowest-degree polynomial through the points, mod p."""
    total = 0
    for x, y in points.items():
        term = y
        for other in points:
            if other != x:
                term = term * (at - other) * pow(x - other, -1, p) % p
        total += term
    return total % p


def split(secret: list[int], n: int, k: int, seed_shares: dict[int, list[int]]) -> dict[int, list[int]]:
    """All n shares: points 1…k−1 as given, the others from the polynomial through them and the secret at 0."""
    shares = dict(seed_shares)
    for x in range(k, n + 1):
        shares[x] = [
            interpolate({0: secret[i], **{s: seed_shares[s][i] for s in seed_shares}}, x) for i in range(len(secret))
        ]
    return shares


def split_ramp(
    words: list[int], scheme: tuple[int, int, int], seed_shares: dict[int, list[int]], p: int
) -> dict[int, list[int]]:
    """All n shares of a (n, k, t) scheme: word j·h + i is the value at −j of polynomial i, zero beyond the last."""
    n, k, t = scheme
    height = -(-len(words) // (k - t))
    padded = words + [0] * ((k - t) * height - len(words))
    shares = {x: [0] * height for x in range(1, n + 1)}
    for i in range(height):
        known = {-j: padded[j * height + i] for j in range(k - t)}
        known |= {x: seed_shares[x][i] for x in range(1, t + 1)}
        for x in range(1, n + 1):
            shares[x][i] = interpolate(known, x, p)
    return shares


def open_ramp(shares: dict[int, list[int]], scheme: tuple[int, int, int], count: int, p: int) -> list[int]:
    """The first `count` words from exactly the shares given."""
    _, k, t = scheme
    height = len(next(iter(shares.values())))
    at = [
        [interpolate({x: share[i] for x, share in shares.items()}, -j, p) for i in range(height)] for j in range(k - t)
    ]
    return [word for row in at for word in row][:count]


# --------------------------------------------------------------------------- §5.7 dealer check


def combine(share: list[int], challenge: bytes, checks: int, field: str) -> list[int]:
    """z of each check: mask and the elements before the masks, each times its coefficient."""
    p = FIELDS[field][0]
    body, masks = share[: len(share) - checks], share[len(share) - checks :]
    results = []
    for check in range(checks):
        row = field_elements(field, "chacha20", challenge, b"dealer check %d" % check, len(body))
        results.append((masks[check] + sum(r * y for r, y in zip(row, body, strict=True))) % p)
    return results


def lies_on_one_polynomial(values: dict[int, int], k: int, p: int) -> bool:
    """Whether the values of more than k points lie on a polynomial of degree < k."""
    points = sorted(values)
    first = {x: values[x] for x in points[:k]}
    return all(interpolate(first, x, p) == values[x] for x in points[k:])


def open_shares(shares: dict[int, list[int]]) -> list[int]:
    """Secret from exactly the shares given."""
    length = len(next(iter(shares.values())))
    return [interpolate({x: share[i] for x, share in shares.items()}, 0) for i in range(length)]


# --------------------------------------------------------------------------- vectors


def make_vectors() -> dict[str, Any]:
    """All vectors by file name."""
    return {"sharing.json": good_vectors(), "sharing_bad.json": bad_vectors()}


def good_vectors() -> dict[str, Any]:
    """What the product must reproduce."""
    rng = random.Random(20261)
    return {
        "keystream": [_keystream_case(rng, algorithm) for algorithm in ALGORITHMS for _ in range(6)],
        "digits": [_digits_case(rng, *case) for case in _DIGIT_CASES],
        "sharing": [_sharing_case(rng, n, k, a, m) for n, k in GEOMETRIES for a in ALGORITHMS for m in (1, 7)],
        "segments": [_segment_case(random.Random(20263 + i), *case) for i, case in enumerate(_SEGMENT_CASES)],
        "keystream_f61": [_keystream61_case(random.Random(20270 + i), a) for i, a in enumerate(ALGORITHMS * 3)],
        "packing": [_packing_case(random.Random(20280 + i), *case) for i, case in enumerate(_PACKING_CASES)],
        "schemes": [_scheme_case(random.Random(20300 + i), *case) for i, case in enumerate(_SCHEME_CASES)],
        "dealer_check": [_dealer_case(random.Random(20340 + i), *case) for i, case in enumerate(_DEALER_CASES)],
    }


_DIGIT_CASES = ((4, 10, 9), (4, 24, 10), (4, 68, 1), (8, 128, 5), (8, 10, 12), (2, 341, 7), (16, 24, 3), (1, 127, 13),
                (16, 4096, 2), (4, 10, 0))  # fmt: skip


#: value bits, vector bits, max devices, max weight, tail words, vector elements, values
_SEGMENT_CASES = (
    (4, 8, 10, 100, 0, 5, 9), (4, 8, 10, 100, 0, 0, 9), (4, 8, 10, 100, 3, 5, 0), (2, 16, 341, 1, 1, 7, 15),
    (8, 8, 127, 16_777_215, 2, 3, 3), (16, 2, 24, 4096, 0, 31, 1), (2, 2, 1, 1, 16, 0, 0),
)  # fmt: skip


def _segment_case(rng: random.Random, *numbers: int) -> dict[str, Any]:
    names = ("value_bits", "vector_bits", "max_devices", "max_weight", "tail_words")
    coding, (vectors, values) = dict(zip(names, numbers[:5], strict=True)), numbers[5:]
    uploads = [
        {
            "weight": rng.choice((1, coding["max_weight"])),
            "vectors": [rng.randrange(2 ** coding["vector_bits"]) for _ in range(vectors)],
            "values": [rng.randrange(2 ** coding["value_bits"]) for _ in range(values)],
        }
        for _ in range(min(3, coding["max_devices"]))
    ]
    packed = [segment(u["weight"], u["vectors"], u["values"], coding) for u in uploads]
    return {
        "coding": coding, "uploads": uploads, "words": packed,
        "sum": [sum(column) for column in zip(*packed, strict=True)],
        "weight": sum(u["weight"] for u in uploads),
        "vectors": [sum(column) for column in zip(*(u["vectors"] for u in uploads), strict=True)],
        "values": [sum(column) for column in zip(*(u["values"] for u in uploads), strict=True)],
    }  # fmt: skip


def _keystream_case(rng: random.Random, algorithm: str) -> dict[str, Any]:
    seed, domain, count = rng.randbytes(32), rng.randbytes(rng.choice((0, 5, 70))), rng.choice((1, 17, 40))
    values = elements(algorithm, seed, domain, count)
    return {"algorithm": algorithm, "seed": seed.hex(), "domain": domain.hex(), "elements": values}


def _digits_case(rng: random.Random, bits: int, devices: int, count: int) -> dict[str, Any]:
    top = 2**bits - 1
    each = [[rng.choice((0, top, rng.randint(0, top))) for _ in range(count)] for _ in range(3)]
    packed = [pack(values, bits, devices) for values in each]
    sums = [sum(column) for column in zip(*packed, strict=True)]
    most = [devices * word for word in pack([top] * count, bits, devices)]
    return {
        "bits": bits, "devices": devices, "digits": digits_per_word(bits, devices), "values": each, "packed": packed,
        "sum": sums, "unpacked": unpack(sums, count, bits, devices), "most": most,
    }  # fmt: skip


def _sharing_case(rng: random.Random, n: int, k: int, algorithm: str, count: int) -> dict[str, Any]:
    domain = rng.randbytes(9)
    secrets = [[rng.choice((0, 1, P - 1, rng.randrange(P))) for _ in range(count)] for _ in range(2)]
    dealers = []
    for secret in secrets:
        seeds = {x: rng.randbytes(32) for x in range(1, k)}
        shares = split(secret, n, k, {x: elements(algorithm, s, domain, count) for x, s in seeds.items()})
        for subset in itertools.combinations(shares, k):
            assert open_shares({x: shares[x] for x in subset}) == secret
        dealers.append({"secret": secret, "seeds": {str(x): s.hex() for x, s in seeds.items()},
                        "shares": {str(x): s for x, s in shares.items()}})  # fmt: skip
    sums = {
        x: [(a + b) % P for a, b in zip(dealers[0]["shares"][x], dealers[1]["shares"][x], strict=True)]
        for x in dealers[0]["shares"]
    }
    total = [(a + b) % P for a, b in zip(*secrets, strict=True)]
    return {"n": n, "k": k, "algorithm": algorithm, "domain": domain.hex(), "dealers": dealers, "sums": sums,
            "sum": total}  # fmt: skip


#: bits, devices, weight, whether a power of two, field, values
_PACKING_CASES = (
    (8, 128, 1, True, "F31", 5), (4, 68, 1, True, "F31", 7), (1, 127, 1, True, "F31", 9), (16, 24, 1, True, "F31", 3),
    (4, 10, 1, True, "F31", 9), (8, 4112, 1, True, "F61", 7), (10, 1025, 1, False, "F61", 4),
    (16, 24, 1, False, "F61", 5), (4, 10, 512, False, "F31", 6), (8, 100, 1000, True, "F61", 5),
    (4, 24, 1, False, "F61", 0),
)  # fmt: skip


def _packing_case(rng: random.Random, *case: Any) -> dict[str, Any]:
    bits, devices, weight, is_power_of_two, field, count = case
    radix, digits = packing(bits, devices, weight, is_power_of_two, FIELDS[field][0])
    values = [rng.choice((0, 2**bits - 1, rng.randrange(2**bits))) for _ in range(count)]
    packed = pack_by(values, radix, digits)
    largest = devices * weight * (2**bits - 1)
    return {
        "bits": bits, "devices": devices, "weight": weight, "is_power_of_two": is_power_of_two, "field": field,
        "radix": radix, "digits": digits, "values": values, "packed": packed, "largest": largest,
        "most": pack_by([largest] * count, radix, digits),
    }  # fmt: skip


def _keystream61_case(rng: random.Random, algorithm: str) -> dict[str, Any]:
    seed, domain, count = rng.randbytes(32), rng.randbytes(rng.choice((0, 5, 70))), rng.choice((1, 17, 40))
    values = field_elements("F61", algorithm, seed, domain, count)
    return {"algorithm": algorithm, "seed": seed.hex(), "domain": domain.hex(), "elements": values}


#: (n, k, t), field, algorithm, words
_SCHEME_CASES = tuple(
    (scheme, field, algorithm, count)
    for scheme, field, count in (
        ((4, 3, 1), "F31", 6), ((4, 3, 1), "F31", 7), ((5, 3, 1), "F31", 1), ((5, 4, 2), "F31", 5),
        ((7, 5, 1), "F31", 9),
        ((3, 2, 1), "F61", 4), ((5, 3, 2), "F61", 3), ((4, 3, 1), "F61", 7), ((4, 4, 1), "F61", 8),
    )
    for algorithm in ALGORITHMS
)  # fmt: skip


def _scheme_case(
    rng: random.Random, scheme: tuple[int, int, int], field: str, algorithm: str, count: int
) -> dict[str, Any]:
    p, domain, height = FIELDS[field][0], rng.randbytes(9), -(-count // (scheme[1] - scheme[2]))
    dealers = []
    for _ in range(2):
        words = [rng.choice((0, 1, p - 1, rng.randrange(p))) for _ in range(count)]
        seeds = {x: rng.randbytes(32) for x in range(1, scheme[2] + 1)}
        streams = {x: field_elements(field, algorithm, seed, domain, height) for x, seed in seeds.items()}
        shares = split_ramp(words, scheme, streams, p)
        for subset in itertools.combinations(shares, scheme[1]):
            assert open_ramp({x: shares[x] for x in subset}, scheme, count, p) == words
        dealers.append({"words": words, "seeds": {str(x): s.hex() for x, s in seeds.items()},
                        "shares": {str(x): s for x, s in shares.items()}})  # fmt: skip
    total = [(a + b) % p for a, b in zip(*(dealer["words"] for dealer in dealers), strict=True)]
    return {"scheme": scheme, "field": field, "algorithm": algorithm, "domain": domain.hex(), "dealers": dealers,
            "sum": total}  # fmt: skip


#: (n, k, t), field, checks, elements before the masks, how much is added to the share of the last point at element 1
_DEALER_CASES = (
    ((3, 2, 1), "F31", 1, 5, 0), ((3, 2, 1), "F31", 2, 4, 1), ((5, 3, 2), "F31", 2, 7, 0),
    ((5, 3, 2), "F61", 1, 3, P61 - 1),
    ((4, 3, 1), "F31", 1, 6, 0), ((4, 3, 1), "F31", 3, 6, 77), ((4, 3, 1), "F61", 2, 2, 0),
)  # fmt: skip


def _dealer_case(
    rng: random.Random, scheme: tuple[int, int, int], field: str, checks: int, elements: int, error: int
) -> dict[str, Any]:
    (n, k, t), p, challenge = scheme, FIELDS[field][0], rng.randbytes(32)
    drawn = [[rng.randrange(p) for _ in range(k)] for _ in range(elements + checks)]
    shares = {
        x: [interpolate({at - k + t + 1: value for at, value in enumerate(row)}, x, p) for row in drawn]
        for x in range(1, n + 1)
    }
    shares[n][1] = (shares[n][1] + error) % p
    answers = {x: combine(share, challenge, checks, field) for x, share in shares.items()}
    verdicts = {lies_on_one_polynomial({x: z[c] for x, z in answers.items()}, k, p) for c in range(checks)}
    assert verdicts == {not error}
    return {"scheme": scheme, "field": field, "challenge": challenge.hex(), "checks": checks,
            "shares": {str(x): s for x, s in shares.items()}, "answers": {str(x): z for x, z in answers.items()},
            "is_consistent": not error}  # fmt: skip


def bad_vectors() -> list[dict[str, Any]]:
    """What the product must refuse, and with which error."""
    rng = random.Random(20262)
    return [*_bad_parameters(), *_bad_digits(), *_bad_words(), *_bad_splits(), *_bad_openings(rng),
            *_bad_consistency(rng), *_bad_segments(), *_bad_schemes(), *_bad_fields(), *_bad_packings(),
            *_bad_dealings(random.Random(20360))]  # fmt: skip


def _bad_schemes() -> list[dict[str, Any]]:
    cases = {"t of k": (5, 3, 3), "t above k": (5, 3, 4), "t below 0": (5, 3, -1), "t of 0 in ramp": (5, 4, 0),
             "k above n in ramp": (4, 5, 1), "17 shares in ramp": (17, 5, 2)}  # fmt: skip
    shares = split_ramp([5, 6, 7], (4, 3, 1), {1: [8, 9]}, P)
    given = {str(x): shares[x] for x in (1, 2, 4)}
    opened = {"padding that is not zero": 2, "more words than they carry": 5, "fewer words than they carry": 1}
    shifted = split_ramp([5, 6, 7, 1], (4, 3, 1), {1: [8, 9]}, P)
    return [
        *(_bad("scheme", "PlanError", why, n=n, k=k, t=t) for why, (n, k, t) in cases.items()),
        *(_bad("open_ramp", "SharingError", why, scheme=[4, 3, 1], shares=given, words=words)
          for why, words in opened.items()),
        _bad("open_ramp", "SharingError", "a word behind the last", scheme=[4, 3, 1], words=3,
             shares={str(x): shifted[x] for x in (2, 3, 4)}),
        _bad("open_ramp", "SharingError", "t + 1 shares where k are needed", scheme=[4, 3, 1], words=3,
             shares={str(x): shares[x] for x in (1, 2)}),
    ]  # fmt: skip


def _bad_fields() -> list[dict[str, Any]]:
    words = {"p of F61": [0, P61], "top bit": [2**63], "bit 61": [2**61], "all ones": [2**64 - 1]}
    return [
        *(_bad("add_f61", "SharingError", why, words=values, dtype="<u8") for why, values in words.items()),
        _bad("add_f61", "SharingError", "words of F31 in a sum of F61", words=[1, 2], dtype="<u4"),
        _bad("add_f31", "SharingError", "words of F61 in a sum of F31", words=[1, 2], dtype="<u8"),
        _bad("split_f61", "SharingError", "secret of F31", words=[1], dtype="<u4"),
        _bad("split_f61", "SharingError", "secret of p", words=[P61], dtype="<u8"),
        _bad("from_bytes_f61", "SharingError", "four bytes", data="00000000", count=1),
        _bad("from_bytes_f61", "SharingError", "two words of F31 for two of F61", data="0000000000000000", count=2),
    ]


def _bad_packings() -> list[dict[str, Any]]:
    cases = {
        "weights reach p": (4, 10, 2**24, False, "F31"), "a power of two above p": (30, 3, 1, True, "F31"),
        "60 bits twice": (60, 2, 2, False, "F61"), "no weight": (4, 10, 0, False, "F31"),
        "no devices, power of two": (4, 0, 1, True, "F31"),
    }  # fmt: skip
    return [
        *(_bad("packing_of", "PlanError", why, bits=b, devices=d, weight=w, is_power_of_two=two, field=f)
          for why, (b, d, w, two, f) in cases.items()),
        _bad("unpack_two", "SharingError", "bit 30 beside three digits of ten bits", bits=4, devices=68, words=[2**30],
             count=3),
        _bad("unpack_two", "SharingError", "in the padding", bits=4, devices=68, words=[2**20], count=2),
        _bad("unpack_two", "SharingError", "p itself", bits=4, devices=68, words=[P], count=3),
        _bad("shift", "SharingError", "one above Q", bits=4, values=[0, 8]),
        _bad("shift", "SharingError", "one below -Q", bits=4, values=[-8, 7]),
        _bad("shift", "SharingError", "far below", bits=2, values=[-(2**31)]),
    ]  # fmt: skip


def _bad_dealings(rng: random.Random) -> list[dict[str, Any]]:
    """Combinations of five points of (5, 3), for three dealers: what cannot be judged."""

    def answers(wrong: dict[int, set[int]]) -> dict[str, list[int]]:
        dealt = [[rng.randrange(P) for _ in range(3)] for _ in range(3)]
        values = {x: [sum(c * x**i for i, c in enumerate(row)) % P for row in dealt] for x in range(1, 6)}
        for dealer, points in wrong.items():
            for x in points:
                values[x][dealer] = (values[x][dealer] + 1 + x * x * x * x) % P
        return {str(x): z for x, z in values.items()}

    error, none = "InconsistentSharesError", answers({})
    return [
        _bad("judge", error, "two of three dealers fit nothing", answers=answers({0: {1, 2}, 1: {3, 4}})),
        _bad("judge", error, "all dealers fit nothing", answers=answers({d: {1, 2, 3} for d in range(3)})),
        _bad("judge", "SharingError", "k answers only", answers={x: none[x] for x in ("1", "2", "5")}),
        _bad("judge", "SharingError", "a value of p", answers={**none, "2": [P, 0, 0]}),
        _bad(
            "locate",
            error,
            "two wrong of five",
            shares={x: [z[0] + int(x) ** 3 if x in "14" else z[0]] for x, z in none.items()},
        ),
        _bad("locate", "SharingError", "k shares", shares={x: none[x] for x in ("1", "2", "3")}),
        _bad(
            "check",
            error,
            "one wrong of four",
            shares={x: [z[0], z[1] - (x == "3")] for x, z in none.items() if x != "5"},
        ),
    ]


def _bad(call: str, error: str, why: str, **arguments: Any) -> dict[str, Any]:
    return {"call": call, "error": error, "why": why, **arguments}


def _bad_parameters() -> list[dict[str, Any]]:
    schemes = {"k above n": (3, 4, 3), "k below 2": (3, 1, 0), "too many shares": (17, 2, 1),
               "t above k - 1": (3, 2, 2), "t of 0": (3, 2, 0), "n below 0": (-3, 2, 1)}  # fmt: skip
    digits = {"one digit reaches p": (16, 32_769), "no devices": (4, 0), "no bits": (0, 10), "31 bits twice": (31, 2),
              "12 bits for half a million": (12, 600_000)}  # fmt: skip
    return [
        *(_bad("scheme", "PlanError", why, n=n, k=k, t=t) for why, (n, k, t) in schemes.items()),
        *(_bad("packing", "PlanError", why, bits=b, devices=d) for why, (b, d) in digits.items()),
    ]


def _bad_digits() -> list[dict[str, Any]]:
    radix = 10 * 15 + 1
    return [
        _bad("pack", "SharingError", "one above the range", bits=4, devices=10, values=[0, 16, 3]),
        _bad("pack", "SharingError", "far above the range", bits=2, devices=5, values=[4_000_000_000]),
        _bad("unpack", "SharingError", "a word too many", bits=4, devices=10, words=[0, 0, 0], count=5),
        _bad("unpack", "SharingError", "a word too few", bits=4, devices=10, words=[0], count=5),
        _bad("unpack", "SharingError", "beyond the last digit", bits=4, devices=10, words=[radix**4], count=4),
        _bad("unpack", "SharingError", "in the padding", bits=4, devices=10, words=[0, radix**3], count=7),
    ]


def _bad_segments() -> list[dict[str, Any]]:
    coding = {"value_bits": 4, "vector_bits": 8, "max_devices": 10, "max_weight": 100, "tail_words": 1}
    packed = segment(3, [1, 2], [4, 5, 6], coding)
    layouts = {
        "sum of weights is p": {"max_devices": 1, "max_weight": P},
        "sum of weights above p": {"max_devices": 1024, "max_weight": 2**24 - 1},
        "a value alone carries": {"value_bits": 16, "max_devices": 32_769},
        "a vector element alone carries": {"vector_bits": 16, "max_devices": 32_769},
        "no devices": {"max_devices": 0},
    }
    uploads = {
        "weight of 0": {"weight": 0}, "weight below 0": {"weight": -1}, "weight above the plan's": {"weight": 101},
        "value out of range": {"values": [4, 16, 6]}, "vector element out of range": {"vectors": [256, 2]},
    }  # fmt: skip
    sums = {
        "a word too few": packed[:-1], "a word too many": [*packed, 0], "nothing": [],
        "values beyond the last digit": [*packed[:2], 151**4, *packed[3:]],
        "vectors in the padding": [packed[0], 2551**2 + 1, *packed[2:]],
    }  # fmt: skip
    return [
        *(_bad("layout", "PlanError", why, coding={**coding, **change}) for why, change in layouts.items()),
        *(_bad("segment", "SharingError", why, coding=coding,
               upload={"weight": 3, "vectors": [1, 2], "values": [4, 5, 6], **change})
          for why, change in uploads.items()),
        *(_bad("segment_sum", "SharingError", why, coding=coding, words=words, vectors=2, values=3)
          for why, words in sums.items()),
    ]  # fmt: skip


def _bad_words() -> list[dict[str, Any]]:
    shares = {"p itself": [0, P], "top bit": [2**31, 1], "all ones": [2**32 - 1], "p at the end": [1, 2, 3, P]}
    return [
        *(_bad("add", "SharingError", why, words=words, length=len(words)) for why, words in shares.items()),
        _bad("add", "SharingError", "shorter than the sum", words=[1, 2], length=3),
        _bad("add", "SharingError", "longer than the sum", words=[1, 2, 3, 4], length=3),
        _bad("add", "SharingError", "nothing for something", words=[], length=1),
        _bad("from_bytes", "SharingError", "half a word", data="00000000ff", count=1),
        _bad("from_bytes", "SharingError", "a word too many", data="0000000000000000", count=1),
        _bad("seed", "SharingError", "31 bytes", data="11" * 31),
        _bad("seed", "SharingError", "33 bytes", data="11" * 33),
        _bad("seed", "SharingError", "no bytes", data=""),
    ]


def _bad_splits() -> list[dict[str, Any]]:
    return [
        _bad("split", "SharingError", "secret of p", n=3, k=2, words=[P], seed_points=[1]),
        _bad("split", "SharingError", "secret with its top bit", n=3, k=2, words=[0, 2**31], seed_points=[1]),
        _bad("split", "SharingError", "no seed", n=3, k=2, words=[1], seed_points=[]),
        _bad("split", "SharingError", "a seed too many", n=3, k=2, words=[1], seed_points=[1, 2]),
        _bad("split", "SharingError", "a seed at 0", n=3, k=2, words=[1], seed_points=[0]),
        _bad("split", "SharingError", "a seed missing in the middle", n=5, k=4, words=[1], seed_points=[1, 3]),
    ]


def _bad_openings(rng: random.Random) -> list[dict[str, Any]]:
    secret = [rng.randrange(P) for _ in range(4)]
    shares = split(secret, 3, 2, {1: [rng.randrange(P) for _ in secret]})
    altered = {**shares, 2: [(shares[2][0] + 1) % P, *shares[2][1:]]}
    swapped = {1: shares[2], 2: shares[1], 3: shares[3]}
    other = split([0] * 4, 3, 2, {1: [rng.randrange(P) for _ in secret]})
    cases = {
        "too few": ("SharingError", {1: shares[1]}),
        "none": ("SharingError", {}),
        "x = 0": ("SharingError", {0: secret, 1: shares[1]}),
        "x above n": ("SharingError", {1: shares[1], 4: shares[2]}),
        "x = p + 1, which is 1 again": ("SharingError", {1: shares[1], P + 1: shares[1]}),
        "negative x": ("SharingError", {1: shares[1], -1: shares[2]}),
        "unequal lengths": ("SharingError", {1: shares[1], 2: shares[2][:3]}),
        "a word of p": ("SharingError", {1: shares[1], 2: [P, *shares[2][1:]]}),
        "one altered word of three": ("InconsistentSharesError", altered),
        "two shares swapped": ("InconsistentSharesError", swapped),
        "a share of another dealing": ("InconsistentSharesError", {**shares, 3: other[3]}),
        "the last word altered": ("InconsistentSharesError", {**shares, 3: [*shares[3][:3], (shares[3][3] + 5) % P]}),
    }
    return [
        _bad("open", error, why, n=3, k=2, shares={str(x): share for x, share in given.items()})
        for why, (error, given) in cases.items()
    ]


def _bad_consistency(rng: random.Random) -> list[dict[str, Any]]:
    """(5, 3): more sums than needed, one of them wrong, wherever it lies; and arrays that hold no words at all."""
    secret = [rng.randrange(P) for _ in range(3)]
    shares = split(secret, 5, 3, {x: [rng.randrange(P) for _ in secret] for x in (1, 2)})
    error = "InconsistentSharesError"
    cases = []
    for points in ((1, 2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 5)):
        for x in points:
            share = [*shares[x][:1], (shares[x][1] + 1 + rng.randrange(P - 1)) % P, *shares[x][2:]]
            given = {str(point): share if point == x else shares[point] for point in points}
            cases.append(_bad("open", error, f"x = {x} altered in {points}", n=5, k=3, shares=given))
    given = {str(x): shares[x] for x in (1, 2, 3)}
    for dtype in ("<u8", "<i4", ">u4", "<f8"):
        cases += [
            _bad("open", "SharingError", f"shares of {dtype}", n=5, k=3, shares=given, dtype=dtype),
            _bad("add", "SharingError", f"share of {dtype}", words=[1, 2], length=2, dtype=dtype),
            _bad("split", "SharingError", f"secret of {dtype}", n=3, k=2, words=[1], seed_points=[1], dtype=dtype),
            _bad("unpack", "SharingError", f"sum of {dtype}", bits=4, devices=10, words=[1], count=4, dtype=dtype),
        ]
    cases += [
        _bad("pack", "SharingError", "below 0", bits=4, devices=10, values=[3, -1], dtype="<i8"),
        _bad("pack", "SharingError", "fractions", bits=4, devices=10, values=[1.5, 2.5], dtype="<f8"),
    ]
    return cases


def write(folder: Path) -> None:
    """Write both files."""
    for name, content in make_vectors().items():
        (folder / name).write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "vectors")

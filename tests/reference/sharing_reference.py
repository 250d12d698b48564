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


# --------------------------------------------------------------------------- §5.4, §5.5 Shamir


def interpolate(points: dict[int, int], at: int) -> int:
    """Value at `at` of the lowest-degree polynomial through the points, mod p."""
    total = 0
    for x, y in points.items():
        term = y
        for other in points:
            if other != x:
                term = term * (at - other) * pow(x - other, -1, P) % P
        total += term
    return total % P


def split(secret: list[int], n: int, k: int, seed_shares: dict[int, list[int]]) -> dict[int, list[int]]:
    """All n shares: points 1…k−1 as given, the others from the polynomial through them and the secret at 0."""
    shares = dict(seed_shares)
    for x in range(k, n + 1):
        shares[x] = [
            interpolate({0: secret[i], **{s: seed_shares[s][i] for s in seed_shares}}, x) for i in range(len(secret))
        ]
    return shares


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


def bad_vectors() -> list[dict[str, Any]]:
    """What the product must refuse, and with which error."""
    rng = random.Random(20262)
    return [*_bad_parameters(), *_bad_digits(), *_bad_words(), *_bad_splits(), *_bad_openings(rng),
            *_bad_consistency(rng), *_bad_segments()]  # fmt: skip


def _bad(call: str, error: str, why: str, **arguments: Any) -> dict[str, Any]:
    return {"call": call, "error": error, "why": why, **arguments}


def _bad_parameters() -> list[dict[str, Any]]:
    schemes = {"k above n": (3, 4, 3), "k below 2": (3, 1, 0), "too many shares": (17, 2, 1),
               "t above k - 1": (3, 2, 2), "ramp": (4, 3, 1), "t of 0": (3, 2, 0), "n below 0": (-3, 2, 1)}  # fmt: skip
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

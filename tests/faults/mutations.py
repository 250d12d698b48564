"""Damage to bytes: flips, cuts, splices, growth, numbers that lie; and to the fields of a MessagePack array."""

from __future__ import annotations

import random
from typing import Any

import msgspec

_NUMBERS = (0, 1, 127, 128, 2**15, 2**31 - 1, 2**31, 2**32, 2**48, 2**53, 2**63 - 1, 2**64 - 1)
#: First bytes of MessagePack values that say a length: what follows may be short of it by gigabytes.
_LENGTHS = (
    b"\xc4\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
)


def flip(data: bytes, rng: random.Random) -> bytes:
    """One bit other."""
    out = bytearray(data)
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end is missing, or a piece within."""
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.5 else data[:at] + data[at + rng.randint(1, 40) :]


def grow(data: bytes, rng: random.Random) -> bytes:
    """Bytes more: at the end, or within."""
    at = len(data) if rng.random() < 0.5 else rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one and the end of another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def lie(data: bytes, rng: random.Random) -> bytes:
    """A length of gigabytes, or an array in an array in an array."""
    at = rng.randrange(min(len(data), 120))
    return data[:at] + (rng.choice(_LENGTHS) if rng.random() < 0.7 else b"\x91" * rng.choice([100, 5000])) + data[at:]


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One or two of these."""
    for _ in range(rng.randint(1, 2)):
        blow = rng.randrange(5)
        if not data:
            return b""
        data = splice(data, other, rng) if blow == 3 else (flip, cut, grow, grow, lie)[blow](data, rng)
    return data


def hostile_value(rng: random.Random) -> Any:
    """A value that a field is unlikely to expect."""
    return rng.choice(
        [
            None, True, -1, rng.choice(_NUMBERS), -(2**63), float("nan"), float("inf"), -0.0, "", "../../etc/passwd",
            "a" * 33, "device-00\0", "#", "+", "\ud7ff", b"", bytes(7), bytes(32), bytes(33), [], [[]] * 40, {},
            {"a": 1},            {1: 2}, list(range(50)), "DEVICE-00", rng.randbytes(rng.randint(0, 80)), rng.random(),
            rng.getrandbits(63),
        ]
    )  # fmt: skip


def other_field(data: bytes, rng: random.Random) -> bytes:
    """A well-formed array with one field, somewhere inside, replaced, left out, doubled or swapped with another."""
    tree = msgspec.msgpack.decode(data)
    node = tree
    while rng.random() < 0.5:
        inner = [value for value in (node.values() if isinstance(node, dict) else node) if value and _is_branch(value)]
        if not inner:
            break
        node = rng.choice(inner)
    _change(node, rng)
    return msgspec.msgpack.encode(tree)


def _is_branch(value: Any) -> bool:
    return isinstance(value, (list, dict))


def _change(node: Any, rng: random.Random) -> None:
    place = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    blow = rng.randrange(5)
    if blow <= 1 or isinstance(node, dict):
        node[place] = hostile_value(rng)
    elif blow == 2:
        del node[place]
    elif blow == 3:
        node.insert(place, node[place])
    else:
        other = rng.randrange(len(node))
        node[place], node[other] = node[other], node[place]

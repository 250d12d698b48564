"""Peers that share one value or block at a time: shamirs, tno, pycryptodome (`testbed.benchmarks.peers`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir

from fedpruneshare.sharing.field import F31, Words
from testbed.benchmarks.packages import load

P: Final = F31.p
_BLOCK_BYTES: Final = 16


class Shamirs:
    """shamirs: one object a share."""

    adds: ClassVar[bool] = True

    def __init__(self, n: int, k: int, _rng: np.random.Generator) -> None:
        self._shamirs = load("shamirs")
        self._n, self._k = n, k

    def take(self, words: Words) -> Any:
        """Python integers."""
        return words.tolist()

    def split(self, secrets: list[int]) -> Any:
        """A list of share objects for each value."""
        shares = self._shamirs.shares
        return [shares(value, self._n, modulus=P, threshold=self._k) for value in secrets]

    def column(self, shares: Any, x: int) -> Any:
        """Share objects."""
        return [row[x - 1] for row in shares]

    def pick(self, shares: Any, points: Sequence[int]) -> Any:
        """Share objects of k points for each value."""
        return [[row[x - 1] for x in points] for row in shares]

    def open(self, picked: Any) -> list[int]:
        """Python integers."""
        interpolate = self._shamirs.interpolate
        return [interpolate(row, threshold=self._k) for row in picked]

    def sum_of(self, columns: Sequence[Any]) -> Any:
        """Share objects."""
        total = [self._shamirs.share(item.index, 0, P) for item in columns[0]]
        for column in columns:
            total = [a + b for a, b in zip(total, column, strict=True)]
        return total

    def numbers(self, vector: Any) -> Words:
        """Plain words."""
        return np.array([item if isinstance(item, int) else item.value for item in vector], dtype=F31.dtype)


class Tno:
    """tno.mpc.encryption_schemes.shamir: one object a value."""

    adds: ClassVar[bool] = True

    def __init__(self, n: int, k: int, _rng: np.random.Generator) -> None:
        module = load("tno.mpc.encryption_schemes.shamir.shamir")
        self._scheme: Any = module.ShamirSecretSharingScheme(P, n, k - 1)
        self._shares: Any = module.ShamirShares

    def take(self, words: Words) -> Any:
        """Python integers."""
        return words.tolist()

    def split(self, secrets: list[int]) -> Any:
        """An object with all shares for each value."""
        return [self._scheme.share_secret(value) for value in secrets]

    def column(self, shares: Any, x: int) -> Any:
        """Objects with the share of one point."""
        return self.pick(shares, (x,))

    def pick(self, shares: Any, points: Sequence[int]) -> Any:
        """Objects with the shares of k points."""
        return [self._shares(self._scheme, {x: row.shares[x] for x in points}) for row in shares]

    def open(self, picked: Any) -> list[int]:
        """Python integers."""
        return [row.reconstruct_secret() for row in picked]

    def sum_of(self, columns: Sequence[Any]) -> Any:
        """Objects with the sum."""
        total = [self._shares(self._scheme, dict.fromkeys(item.shares, 0)) for item in columns[0]]
        for column in columns:
            total = [a + b for a, b in zip(total, column, strict=True)]
        return total

    def numbers(self, vector: Any) -> Words:
        """Plain words; the package leaves shares above p."""
        values = [item if isinstance(item, int) else next(iter(item.shares.values())) % P for item in vector]
        return np.array(values, dtype=F31.dtype)


class Pycryptodome:
    """pycryptodome, one value in a block of GF(2^128). Sums of its shares open to the XOR, so they are no use here."""

    adds: ClassVar[bool] = False
    values_in_block: ClassVar[int] = 1

    def __init__(self, n: int, k: int, _rng: np.random.Generator) -> None:
        self._n, self._k = n, k

    def take(self, words: Words) -> list[bytes]:
        """Blocks; the number of words must be a multiple of those in a block."""
        rows = words.reshape(-1, self.values_in_block)
        return [row.tobytes().ljust(_BLOCK_BYTES, b"\0") for row in rows]

    def split(self, secrets: list[bytes]) -> Any:
        """(point, block) pairs for each block."""
        return [Shamir.split(self._k, self._n, block) for block in secrets]

    def column(self, shares: Any, x: int) -> Any:
        """Blocks."""
        return [row[x - 1][1] for row in shares]

    def pick(self, shares: Any, points: Sequence[int]) -> Any:
        """For each block, (point, block) pairs of k points."""
        return [[row[x - 1] for x in points] for row in shares]

    def open(self, picked: Any) -> list[bytes]:
        """Blocks."""
        return [Shamir.combine(row) for row in picked]

    def sum_of(self, columns: Sequence[Any]) -> Any:
        """Never asked for."""
        raise NotImplementedError("sums of these shares do not open to the sum")

    def numbers(self, vector: list[bytes]) -> Words:
        """The words in the blocks."""
        blocks = np.frombuffer(b"".join(vector), dtype=F31.dtype).reshape(len(vector), -1)
        return blocks[:, : self.values_in_block].reshape(-1)


class PycryptodomePacked(Pycryptodome):
    """pycryptodome, four values in a block."""

    values_in_block: ClassVar[int] = 4

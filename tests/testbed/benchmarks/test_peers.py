"""Every adapter that can run here shares rightly, and the check that says so notices each way of doing it wrongly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedpruneshare.errors import RunError
from fedpruneshare.sharing.field import F31
from fedpruneshare.sharing.prg import Prg
from testbed.benchmarks.packages import ONE_THREAD, installed_version, load, why_not
from testbed.benchmarks.peer_scalars import Pycryptodome, PycryptodomePacked
from testbed.benchmarks.peer_vectors import HandWritten, ReducedOnce
from testbed.benchmarks.peers import OFFERS, Offer, Ours, available, verify

SCHEMES = [(3, 2), (5, 3)]
ALWAYS = {"hand-written numpy", "numpy, one % at the end", "pycryptodome, 1 packed", "pycryptodome, 4 packed"}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize(("n", "k"), SCHEMES)
@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: offer.name)
def test_every_peer_that_is_installed_shares_rightly(
    offer: Offer, n: int, k: int, rng: np.random.Generator, recwarn: pytest.WarningsRecorder
) -> None:
    reason = why_not(offer.module)
    if reason and offer.name not in ALWAYS:
        pytest.skip(f"{offer.package}: {reason}")
    verify(offer.name, offer.make(n, k, rng), (n, k), offer.is_in_field, rng)


@pytest.mark.parametrize(("n", "k"), SCHEMES)
@pytest.mark.parametrize("prg", list(Prg))
def test_ours_shares_rightly_in_the_same_shape(prg: Prg, n: int, k: int, rng: np.random.Generator) -> None:
    verify("ours", Ours(n, k, prg), (n, k), True, rng)


def test_our_columns_and_picks_outlive_the_next_split() -> None:
    ours = Ours(3, 2, Prg.CHACHA20)
    first = np.arange(50, dtype=F31.word_type)
    shares = ours.split(first)
    picked, column = ours.pick(shares, (2, 3)), ours.column(shares, 2)
    ours.split(first[::-1].copy())
    assert np.array_equal(ours.open(picked), first)
    assert np.array_equal(column, picked[2])


def test_one_percent_at_the_end_survives_the_largest_numbers() -> None:
    class Largest:
        def integers(self, low: int, high: int, size: int, dtype: type) -> Any:
            return np.full(size, high - 1, dtype=dtype)

    peer = ReducedOnce(5, 3, Largest())  # type: ignore[arg-type]
    words = np.full(4, F31.p - 1, dtype=F31.word_type)
    shares = peer.split(peer.take(words))
    assert [int(shares[x][0]) for x in (1, 5)] == [-3 % F31.p, -(1 + 5 + 25) % F31.p]
    assert np.array_equal(peer.open(peer.pick(shares, (3, 4, 5))), words)


@pytest.mark.parametrize("make", [Pycryptodome, PycryptodomePacked])
def test_blocks_hold_as_many_values_as_they_say(make: type[Pycryptodome], rng: np.random.Generator) -> None:
    peer = make(3, 2, rng)
    blocks = peer.take(np.arange(8, dtype=F31.word_type))
    assert len(blocks) == 8 // peer.values_in_block
    assert {len(block) for block in blocks} == {16}
    assert peer.numbers(blocks).tolist() == list(range(8))


# --------------------------------------------------------------------------- the check notices


class WrongSecret(HandWritten):
    def open(self, picked: Any) -> Any:
        opened = super().open(picked)
        opened[7] ^= 1
        return opened


class NotAPolynomial(HandWritten):
    """Shares that its own opening knows how to undo."""

    def split(self, secrets: Any) -> Any:
        return {x: secrets for x in range(1, self._n + 1)}

    def open(self, picked: Any) -> Any:
        return picked[0][1]

    def column(self, shares: Any, x: int) -> Any:
        return shares[x] + x * x * x


class WrongSum(HandWritten):
    def sum_of(self, columns: Sequence[Any]) -> Any:
        return super().sum_of(columns[:-1])


class TooShort(HandWritten):
    def open(self, picked: Any) -> Any:
        return super().open(picked)[:-1]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (WrongSecret, r"opening from points \[1, 2\] is wrong in 1 of 16"),
        (NotAPolynomial, r"the shares of points \[1, 2\]"),
        (WrongSum, "the sum of three shares"),
        (TooShort, "opening from points"),
    ],
)
def test_a_peer_that_shares_wrongly_is_never_timed(
    make: Callable[[int, int, np.random.Generator], HandWritten], complaint: str, rng: np.random.Generator
) -> None:
    with pytest.raises(RunError, match=f"^faulty: {complaint}"):
        verify("faulty", make(3, 2, rng), (3, 2), True, rng)


# --------------------------------------------------------------------------- what is installed


def test_a_missing_package_is_named_with_its_reason(rng: np.random.Generator) -> None:
    absent = Offer("nobody", "no-such-package", "no_such_package.deep", HandWritten)
    present, missing = available([absent, OFFERS[2]])
    assert [offer.name for offer in present] == ["hand-written numpy"]
    assert missing == {"nobody": "not installed"}
    assert installed_version("no-such-package") is None
    assert installed_version("numpy") == np.__version__


def test_a_package_that_does_not_import_is_not_called_missing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fps_needs_more.py").write_text("import no_such_dependency")
    (tmp_path / "fps_is_broken.py").write_text("raise ImportError('of another version')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert why_not("fps_needs_more") == "installed, but without no_such_dependency"
    assert why_not("fps_is_broken") == "installed, but does not import: of another version"


def test_packages_see_no_command_line_of_ours_and_one_thread(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fps_looks_around.py").write_text("import os, sys\nseen = list(sys.argv), dict(os.environ)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["fps", "--version"])
    for name in ONE_THREAD:
        monkeypatch.setenv(name, "8")
    arguments, environment = load("fps_looks_around").seen
    assert arguments == ["fps", "--no-log"]
    assert environment.items() >= ONE_THREAD.items()
    assert sys.argv == ["fps", "--version"]


def test_the_command_line_loads_no_peer() -> None:
    code = (
        "import sys, testbed.cli; print([m for m in ('numba', 'galois', 'mpyc', 'shamirs', 'tno') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=True)
    assert ran.stdout.strip() == "[]"

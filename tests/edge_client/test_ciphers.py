"""A device takes of the suites a plan allows the one whose cipher its processor is quicker at."""

from __future__ import annotations

from functools import partial

import pytest

from edge_client.ciphers import Ciphers, own_ciphers, quickest, quickest_prg
from fedpruneshare.messages import Suite
from fedpruneshare.sharing.prg import Prg

HYBRID = (Suite.XWING_CHACHA20, Suite.XWING_AES256)
CLASSIC = (Suite.X25519_CHACHA20, Suite.X25519_AES256)


@pytest.mark.parametrize(
    ("aead", "allowed", "taken"),
    [
        ("aes-256-gcm", CLASSIC, Suite.X25519_AES256),
        ("chacha20-poly1305", CLASSIC, Suite.X25519_CHACHA20),
        ("aes-256-gcm", HYBRID, Suite.XWING_AES256),
        ("aes-256-gcm", (*CLASSIC, *HYBRID), Suite.X25519_AES256),
        ("aes-256-gcm", (Suite.XWING_CHACHA20,), Suite.XWING_CHACHA20),
    ],
)
def test_the_plan_allows_and_the_processor_chooses(aead: str, allowed: tuple[Suite, ...], taken: Suite) -> None:
    assert Ciphers(Prg.CHACHA20, aead).suite(allowed) is taken


class Machine:
    """Two works and the seconds they take; every third timing is interrupted, from the start."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.calls = 0.0, 0
        self.works = {name: partial(self._work, value) for name, value in seconds.items()}

    def _work(self, seconds: float) -> None:
        self.calls += 1
        self.now += seconds + (50.0 if self.calls % 3 == 1 else 0.0)


@pytest.mark.parametrize(
    ("chacha", "aes", "taken"),
    [(3.0, 1.0, "aes"), (1.0, 3.0, "chacha"), (1.3, 1.0, "aes"), (1.2, 1.0, "chacha"), (1.0, 1.0, "chacha")],
)
def test_the_clearly_quicker_work_whatever_interrupts_it(chacha: float, aes: float, taken: str) -> None:
    machine = Machine(chacha=chacha, aes=aes)
    assert quickest(machine.works, lambda: machine.now) == taken


def test_a_device_that_starts_anew_chooses_the_same() -> None:
    chosen = set()
    for _ in range(20):
        quickest_prg.cache_clear()
        chosen.add(own_ciphers("auto"))
    assert len(chosen) == 1


def test_a_named_keystream_is_taken_and_its_cipher_seals() -> None:
    assert own_ciphers("chacha20") == Ciphers(Prg.CHACHA20, "chacha20-poly1305")
    assert own_ciphers("aes-256-ctr") == Ciphers(Prg.AES_256_CTR, "aes-256-gcm")

"""A device takes of the suites a plan allows the one whose cipher its processor is quicker at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_client import ciphers
from edge_client.ciphers import Ciphers, own_ciphers, quickest_aead
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


@pytest.mark.parametrize("quick", ["aes-256-gcm", "chacha20-poly1305"])
def test_the_quicker_cipher_is_measured(monkeypatch: pytest.MonkeyPatch, quick: str) -> None:
    now = [0.0]

    class Cipher:
        def __init__(self, name: str) -> None:
            self.seconds = 1.0 if name == quick else 2.0

        def encrypt_and_digest(self, block: bytes) -> None:
            now[0] += self.seconds

    def clock() -> float:
        return now[0]

    stopped: Callable[[], float] = clock
    monkeypatch.setattr(ciphers, "_cipher", Cipher)
    assert quickest_aead(stopped) == quick


def test_a_named_keystream_is_taken() -> None:
    assert own_ciphers("chacha20").prg is Prg.CHACHA20
    assert own_ciphers("auto").prg in tuple(Prg)

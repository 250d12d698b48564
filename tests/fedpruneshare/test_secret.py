"""Secrets show length and digest, and nothing else, by any road."""

from __future__ import annotations

import copy
import hashlib
import pickle
from dataclasses import dataclass

import pytest

from fedpruneshare.secret import SecretBytes

RAW = b"\x01correct horse battery staple 99!"
SHOWN = f"<secret: {len(RAW)} bytes, sha256 {hashlib.sha256(RAW).hexdigest()[:8]}>"


@dataclass(frozen=True)
class Holder:
    seed: SecretBytes


def test_every_text_form_shows_length_and_digest_only() -> None:
    secret = SecretBytes(RAW)
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{[secret]}", repr(Holder(secret))):
        assert SHOWN in text
        assert "horse" not in text


def test_reveal_gives_the_bytes() -> None:
    assert SecretBytes(RAW).reveal() == RAW
    assert len(SecretBytes(RAW)) == len(RAW)


def test_a_later_change_of_the_source_does_not_reach_the_secret() -> None:
    source = bytearray(RAW)
    secret = SecretBytes(source)
    source[0] = 0
    assert secret.reveal() == RAW


def test_equality_is_by_content_and_only_among_secrets() -> None:
    assert SecretBytes(RAW) == SecretBytes(RAW)
    assert SecretBytes(RAW) != SecretBytes(RAW[:-1])
    assert SecretBytes(RAW) != RAW
    with pytest.raises(TypeError):
        hash(SecretBytes(RAW))


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy, bytes, vars])
def test_it_cannot_leave_by_pickling_copying_or_converting(copier: object) -> None:
    with pytest.raises(TypeError):
        copier(SecretBytes(RAW))  # type: ignore[operator]

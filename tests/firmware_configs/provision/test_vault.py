"""The root's key file: what opens it, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpruneshare.errors import SettingsError
from fedpruneshare.keys import Identity
from firmware_configs.provision.authority import Authority
from firmware_configs.provision.vault import open_root, seal_root

WORDS = "four random words here"


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, Identity, bytes]:
    path, identity, key = tmp_path / "root.key", Identity.generate("root"), Authority.create("lab").key_pem()
    seal_root(path, identity, key, WORDS)
    return path, identity, key


def test_the_passphrase_opens_both_keys(sealed: tuple[Path, Identity, bytes]) -> None:
    path, identity, key = sealed
    found, found_key = open_root(path, WORDS)
    assert (found.public(), found_key) == (identity.public(), key)
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_key_stands_in_the_file(sealed: tuple[Path, Identity, bytes]) -> None:
    path, identity, key = sealed
    text = path.read_text()
    assert "PRIVATE" not in text
    assert identity.keys[0].stored()["signing"] not in text
    assert key.decode().splitlines()[1] not in text


@pytest.mark.parametrize("wrong", ["", "four random words her", WORDS + " ", WORDS.upper()])
def test_a_wrong_passphrase_opens_nothing(sealed: tuple[Path, Identity, bytes], wrong: str) -> None:
    with pytest.raises(SettingsError, match="wrong passphrase"):
        open_root(sealed[0], wrong)


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected at least 12"):
        seal_root(tmp_path / "root.key", Identity.generate("root"), b"", "short")
    assert not (tmp_path / "root.key").exists()


@pytest.mark.parametrize("field", ["salt", "nonce", "sealed"])
def test_a_changed_file_does_not_open(sealed: tuple[Path, Identity, bytes], field: str) -> None:
    path = sealed[0]
    whole = json.loads(path.read_text())
    whole[field] = ("1" if whole[field][0] == "0" else "0") + whole[field][1:]
    path.write_text(json.dumps(whole))
    with pytest.raises(SettingsError, match="does not open"):
        open_root(path, WORDS)


@pytest.mark.parametrize("change", [{"n": 2}, {"n": 2**40}, {"p": "many"}, {"format": 2}, {"salt": "x"}, {"nonce": 1}])
def test_another_cost_or_format_is_refused_before_any_work(
    sealed: tuple[Path, Identity, bytes], change: dict[str, object]
) -> None:
    path = sealed[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SettingsError, match="not the file of a root's keys"):
        open_root(path, WORDS)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '"text"', "{", "\xff"])
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "root.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="not the file of a root's keys"):
        open_root(path, WORDS)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_file_that_is_open_to_others_is_refused(sealed: tuple[Path, Identity, bytes], mode: int) -> None:
    sealed[0].chmod(mode)
    with pytest.raises(SettingsError, match="open to others"):
        open_root(sealed[0], WORDS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"root\.key"):
        open_root(tmp_path / "root.key", WORDS)

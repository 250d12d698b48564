"""One provisioned root, made once; every test gets a copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from provisioned import Root, copied, fill, make_root

from firmware_configs.provision import vault

#: scrypt at a cost that tests can pay often.
CHEAP = {"n": 16, "r": 8, "p": 1}


@pytest.fixture(scope="session", autouse=True)
def cheap_passphrases() -> None:
    vault._COST.update(CHEAP)


@pytest.fixture(scope="session")
def original(cheap_passphrases: None, tmp_path_factory: pytest.TempPathFactory) -> Root:
    return fill(make_root(tmp_path_factory.mktemp("federation") / "root"))


@pytest.fixture
def root(original: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Root:
    return copied(original, tmp_path / "root", capsys)


@pytest.fixture
def empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Root:
    """A root with no bundles yet."""
    begun = make_root(tmp_path / "empty")
    capsys.readouterr()
    return Root(begun.folder, capsys)

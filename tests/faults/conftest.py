"""Fixtures of the fault tests, and the order they run in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import testbed.federation
from fedpruneshare.party import LinkSettings

_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 2 << 30
#: What these measure in seconds is to include the disk.
_MEASURED = {"test_f03_kills", "test_f10_crowd"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Many short ones of the same length last, so that no worker waits long for another at the end."""
    items.sort(key=lambda item: "test_two_thousand" in item.name)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """In memory where that has room: what is asked of a disk counts here, not how long it takes.

    What a test that fails has left is copied to where pytest keeps it.
    """
    has_room = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES
    if request.node.path.stem in _MEASURED or not has_room:
        yield tmp_path
        return
    failed = request.session.testsfailed
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="fps-faults-") as folder:
        yield Path(folder)
        if request.session.testsfailed > failed:
            shutil.copytree(folder, tmp_path, symlinks=True, dirs_exist_ok=True)


@pytest.fixture
def quick_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parties of the fleets of a test are back after at most half a second, and miss a silent peer in seconds."""
    link = LinkSettings(keepalive_s=5, publish_timeout_s=3.0, connect_timeout_s=3.0, reconnect_max_s=0.5)
    monkeypatch.setattr(testbed.federation, "_LINK", link)

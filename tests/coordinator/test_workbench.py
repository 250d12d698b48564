"""What the coordinator works on is checked before anything begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.settings import CodingSettings
from coordinator.workbench import Workbench
from fedpruneshare.errors import SettingsError


@pytest.mark.parametrize(("content", "found"), [(None, "cannot be read: No such file"), (b"x", "not a readable zip")])
def test_without_a_bundle_it_says_what_writes_one(tmp_path: Path, content: bytes | None, found: str) -> None:
    """A mistake of the operator's, exit code 2, and not a run that failed."""
    path = tmp_path / "task.bundle"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"{found}.*`fedpruneshare task export TASK --out {path}`"):
        Workbench.open(path, tmp_path / "store", CodingSettings())

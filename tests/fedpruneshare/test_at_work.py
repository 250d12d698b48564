"""A store is one process's (docs/protocol.md §9)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpruneshare.at_work import at_work, is_at_work
from fedpruneshare.errors import SettingsError

HOLDER = """
import sys
from pathlib import Path
from fedpruneshare.at_work import at_work
with at_work(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_store_is_one_process_s_and_free_again_when_that_is_killed(tmp_path: Path) -> None:
    """Two aggregators on one store would each remember another Freeze as the first one of the round."""
    store = tmp_path / "new" / "store"
    command = [sys.executable, "-c", HOLDER, str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        assert store.stat().st_mode & 0o077 == 0
        expected = f"in use by process {first.pid}, expected one service to a store"
        with pytest.raises(SettingsError, match=expected), at_work(store):
            pytest.fail("held twice")
        assert is_at_work(store)
        first.kill()
    assert not is_at_work(store)
    with at_work(store):
        pass


@pytest.mark.parametrize("role", ["aggregator", "coordinator", "device"])
def test_every_service_keeps_its_store_to_itself(tmp_path: Path, role: str) -> None:
    """Before it reads keys, or anything else of the store, and with the exit code of what an operator can mend."""
    more = {
        "aggregator": "",
        "coordinator": 'bundle = "none"',
        "device": '[task]\nname = "hapt"\nindex = 0\ndevices = 1',
    }
    party = f'[party]\nkey_file = "none"\ndirectory = "none"\nroot_key = "{"00" * 32}"'
    (tmp_path / "x.toml").write_text(f'store = "{tmp_path / "store"}"\n{more[role]}\n{party}\n')
    with at_work(tmp_path / "store"):
        command = [sys.executable, "-m", "fedpruneshare.cli", role, "run", "--config", str(tmp_path / "x.toml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 2
    assert f"is in use by process {os.getpid()}" in done.stderr

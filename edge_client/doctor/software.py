"""The doctor on this machine's software: Python, torch, onnxruntime, keystream libraries, threads.

torch and onnxruntime are tried in a child process: a build that does not suit the processor dies of an illegal
instruction, and would take the doctor along.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from edge_client.board.profiles import BoardProfile
from edge_client.ciphers import quickest_prg
from edge_client.doctor.findings import Check, Finding, Visit
from fedpruneshare.sharing.prg import BACKENDS

_PYTHON: Final = (3, 11)
#: A board that swaps its way through an import needs this long; nothing here waits longer.
_TRIAL_S: Final = 120.0

PYTHON: Final = Check("python", "torch, numpy and onnxruntime are built for 64-bit Python 3.11 and later only")
TORCH: Final = Check("torch", "training needs it, and some builds die of an illegal instruction on older boards")
ONNXRUNTIME: Final = Check("onnxruntime", "`device predict` runs the model with it; rounds do without")
KEYSTREAM: Final = Check(
    "keystream", "secret shares are keystream: how fast it is made bounds how fast a device shares"
)
THREADS: Final = Check("threads", "libraries start a thread a core each, which costs memory and slows small boards")


@dataclass(frozen=True)
class Library:
    """A library as installed: release (empty: not installed) and how its trial in a child process ended."""

    release: str
    exit_code: int | None = None
    complaint: str = ""


def software(visit: Visit) -> list[Finding]:
    """All findings on this machine's software."""
    if not visit.is_here:
        found = "a copied tree says nothing of this machine's software"
        return [check.skipped(found) for check in (PYTHON, TORCH, ONNXRUNTIME, KEYSTREAM, THREADS)]
    limits = visit.settings.limits if visit.settings else None
    return [
        python_finding(sys.version_info[:2], platform.machine(), sys.maxsize.bit_length() + 1),
        torch_finding(visit.profile, tried("torch", "a = torch.ones(8, 8); float((a @ a).sum())")),
        onnxruntime_finding(visit.profile, tried("onnxruntime", "onnxruntime.get_available_providers()")),
        keystream_finding(visit.profile, BACKENDS, limits.prg if limits else "auto"),
        threads_finding(visit.profile, os.environ, limits.torch_threads if limits else 1),
    ]


def tried(name: str, use: str) -> Library:
    """Import a library and use it, in a child process with one thread and bounded time."""
    try:
        release = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Library("")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import {name}; {use}"]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TRIAL_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return Library(release, None, f"still importing after {_TRIAL_S:.0f} s")
    except OSError as error:
        return Library(release, None, f"could not be tried: {error.strerror}")
    last = ended.stderr.strip().splitlines()[-1:] if ended.returncode else []
    return Library(release, ended.returncode, "".join(last)[:200])


# --------------------------------------------------------------------------- the checks


def python_finding(version: tuple[int, ...], arch: str, bits: int) -> Finding:
    """Whether the interpreter is new enough, 64-bit and of an architecture that libraries are built for."""
    found = f"Python {version[0]}.{version[1]}, {bits} bits, {arch}"
    if arch.lower() not in ("aarch64", "arm64", "x86_64", "amd64"):
        return PYTHON.failed(found, "install a 64-bit system (on a Raspberry Pi: Raspberry Pi OS 64-bit)")
    if bits != 64:
        return PYTHON.failed(found, "install a 64-bit system: the kernel is 64-bit, this Python is not")
    if version < _PYTHON:
        return PYTHON.failed(found, "install Python 3.11 or later (Debian 12, Ubuntu 24.04, or uv python install 3.12)")
    return PYTHON.ok(found)


def torch_finding(profile: BoardProfile | None, torch: Library) -> Finding:
    """Whether torch is there, works, and is not a build known to fail on this kind of processor."""
    if not torch.release:
        return TORCH.failed("not installed", "pip install 'fedpruneshare[edge]'")
    found = f"torch {torch.release}"
    older = 'pip install "torch>=2.5,<2.10"'
    if broken := _broken(TORCH, found, torch, older):
        return broken
    release = _release(torch.release)
    if _is_armv8_0(profile) and release in ((2, 10), (2, 4)):
        return TORCH.warning(f"{found}, reported to stop with an illegal instruction on a Raspberry Pi 4", older)
    if profile and profile.processor.arch == "aarch64" and not profile.processor.tensor_cores and release >= (2, 11):
        return TORCH.warning(f"{found}, whose aarch64 build brings gigabytes of CUDA along", older)
    return TORCH.ok(found)


def onnxruntime_finding(profile: BoardProfile | None, runtime: Library) -> Finding:
    """Whether onnxruntime is there, works, and is not the release known to fail on a Raspberry Pi 4."""
    other = 'pip install "onnxruntime>=1.18,!=1.21.0"'
    if not runtime.release:
        return ONNXRUNTIME.warning("not installed", other)
    found = f"onnxruntime {runtime.release}"
    if runtime.release == "1.21.0" and _is_armv8_0(profile):
        return ONNXRUNTIME.failed(f"{found}, which stops with an illegal instruction on a Raspberry Pi 4", other)
    return _broken(ONNXRUNTIME, found, runtime, other) or ONNXRUNTIME.ok(found)


def keystream_finding(profile: BoardProfile | None, backends: tuple[str, ...], chosen: str) -> Finding:
    """Which library makes keystream, and whether the chosen algorithm suits the processor."""
    quickest = quickest_prg()
    found = f"{backends[0]}; {quickest} is the quicker algorithm here, {chosen!r} is set"
    if chosen == "aes-256-ctr" and profile is not None and not profile.processor.aes:
        return KEYSTREAM.warning(f"{found}; {profile.title} has no AES instructions", 'set limits.prg = "auto"')
    if "cryptography" not in backends:
        return KEYSTREAM.warning(
            f"{found}; up to four times slower than it could be", "pip install 'fedpruneshare[fast]'"
        )
    return KEYSTREAM.ok(found)


_SMALL_MIB: Final = 1024
_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def threads_finding(profile: BoardProfile | None, environment: Mapping[str, str], torch_threads: int) -> Finding:
    """Whether thread counts are set where they matter, and within what the board has."""
    given = {name: environment[name] for name in _VARIABLES if name in environment}
    listed = ", ".join(f"{name}={value}" for name, value in given.items()) or f"{_VARIABLES[0]} is not set"
    found = f"{listed}; limits.torch_threads = {torch_threads}"
    cores = profile.processor.cores if profile else os.cpu_count() or 1
    if wrong := [name for name, value in given.items() if not value.isdecimal() or not 1 <= int(value) <= cores]:
        return THREADS.warning(f"{found}; {cores} cores", f"export {wrong[0]}=1")
    if torch_threads > cores:
        return THREADS.warning(f"{found}; {cores} cores", f"set limits.torch_threads = {cores} or less")
    if not given and profile is not None and profile.ram_mib <= _SMALL_MIB:
        fix = "Environment=OMP_NUM_THREADS=1 in the service's unit"
        return THREADS.warning(f"{found}; {profile.title} has {profile.ram_mib} MiB", fix)
    return THREADS.ok(found)


# --------------------------------------------------------------------------- shared


def _broken(check: Check, found: str, library: Library, other: str) -> Finding | None:
    if library.exit_code == 0:
        return None
    if library.exit_code is None:
        return check.warning(f"{found}: {library.complaint}", "try it by hand: python -X importtime")
    if library.exit_code == -signal.SIGILL:
        return check.failed(f"{found} stops with an illegal instruction on this processor", other)
    if library.exit_code == -signal.SIGKILL:
        return check.failed(f"{found} was killed while it was imported, probably for lack of memory", "free memory")
    return check.failed(f"{found} does not work (exit code {library.exit_code}): {library.complaint}", other)


def _is_armv8_0(profile: BoardProfile | None) -> bool:
    """Whether the cores are of the first ARMv8 (A53, A57, A72), which some builds forget; half precision came later."""
    return profile is not None and profile.processor.arch == "aarch64" and not profile.processor.fp16


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("+")[0].split(".")[:2] if part.isdecimal())

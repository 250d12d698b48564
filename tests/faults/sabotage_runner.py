"""Runs tests with one defence at a time taken out: `python -m faults.sabotage_runner NAME…`; no name: none taken out.

Prints one JSON object a line: the name, pytest's exit code (1: a test failed), and what it said. Each runs in a fork of
this process, which has imported the product once.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import pytest
from faults.sabotage import BY_NAME, SABOTAGES, Sabotage

_OPTIONS = ["-q", "-x", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=60"]


class Saboteur:
    """Takes the defence out once all tests are collected, and so everything is imported."""

    def __init__(self, sabotage: Sabotage | None) -> None:
        self._sabotage = sabotage

    def pytest_collection_finish(self, session: Any) -> None:
        if self._sabotage is not None:
            self._sabotage.apply()


def preload() -> None:
    """Import what the defences are in, so that no fork has to."""
    for module in sorted({target.partition(":")[0] for sabotage in SABOTAGES for target, _ in sabotage.cuts}):
        importlib.import_module(module)


def in_a_fork(sabotage: Sabotage | None, tests: Iterable[str]) -> tuple[int, str]:
    """Exit code and output of pytest in a child."""
    with tempfile.TemporaryFile("w+") as output:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                code = int(pytest.main([*_OPTIONS, *tests], plugins=[Saboteur(sabotage)]))
            finally:
                with contextlib.suppress(ValueError):
                    sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def main(names: list[str]) -> int:
    """Run; always 0, the lines say what came of it."""
    preload()
    os.environ["FPS_SHRINK"] = "0"
    wanted = [BY_NAME[name] for name in names]
    runs: list[tuple[str, Sabotage | None, Iterable[str]]] = [(one.name, one, one.tests) for one in wanted]
    if not runs:
        runs = [("", None, sorted({test for one in SABOTAGES for test in one.tests}))]
    for name, sabotage, tests in runs:
        started = time.monotonic()
        code, said = in_a_fork(sabotage, tests)
        line = {"name": name, "code": code, "seconds": round(time.monotonic() - started, 2), "said": said[-2000:]}
        io.TextIOWrapper(os.fdopen(os.dup(1), "wb")).write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

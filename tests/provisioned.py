"""A provisioned federation to test with: one root, made once, copied for every test that changes it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fedpruneshare import cli

PASSPHRASE = "correct horse battery"


@contextmanager
def own_ports(count: int) -> Iterator[list[int]]:
    """Ports that nobody listens on, and that nobody is given: a broker, which is told its own, may listen there."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield [one.getsockname()[1] for one in sockets]


class Root:
    """A root's folder, with `fedpruneshare provision` to call on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.folder = folder
        self.passphrase = folder.with_name(f"{folder.name}.pass")
        self._capsys = capsys
        self.error = ""

    def bundle(self, name: str) -> Path:
        return self.folder / "bundles" / name

    def call(self, command: str, *rest: str | Path, code: int = 0) -> str:
        """Call `provision COMMAND FOLDER REST…`; returns what it printed, and leaves its complaints in `error`."""
        words = [*command.split(), str(self.folder), *map(str, rest), "--passphrase-file", str(self.passphrase)]
        return self.run(words, code)

    def run(self, words: Sequence[str | Path], code: int = 0) -> str:
        """Call `provision WORDS`."""
        found = cli.run(["provision", *map(str, words)])
        out, self.error = self._capsys.readouterr() if self._capsys else ("", "")
        assert found == code, out + self.error
        return out

    def refused(self, command: str, *rest: str | Path) -> str:
        """Call what must be refused as bad usage; returns the complaint."""
        self.call(command, *rest, code=2)
        assert "Traceback" not in self.error
        return self.error


def write_passphrase(root: Root, text: str = PASSPHRASE) -> None:
    root.passphrase.write_text(text + "\n")
    root.passphrase.chmod(0o600)


def make_root(folder: Path, *options: str, ports: Sequence[int] = (18830, 18831, 18832, 18833)) -> Root:
    """A federation `lab` with aggregators a, b, c and no bundles yet."""
    root = Root(folder)
    write_passphrase(root)
    control, *own = ports
    places = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip("abc", own, strict=True))
    words = ["--federation", "lab", "--aggregators", places, "--coordinator", f"127.0.0.1:{control}"]
    root.call("init", *words, *options)
    return root


def fill(root: Root, devices: int = 3) -> Root:
    """Bundles for all services, and for some devices."""
    root.call("aggregator", "a", "b", "c")
    root.call("coordinator")
    root.call("device", "--count", str(devices), "--prefix", "pi-")
    return root


def copied(root: Root, folder: Path, capsys: pytest.CaptureFixture[str]) -> Root:
    """A copy of a root to change. What its register says of homes stays that of the original."""
    shutil.copytree(root.folder, folder)
    copy = Root(folder, capsys)
    write_passphrase(copy)
    return copy

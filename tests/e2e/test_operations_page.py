"""docs/operations.md, followed to the letter: every shell block of its first part is run as it stands there.

Only the port numbers are others, which the kernel names. The quick test goes as far as the preflight; the whole page,
with ten devices, a device that is shut out in mid-run and a second federation, belongs to `make faults`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import click
import pytest
from message_examples import EXAMPLES
from provisioned import own_ports

from edge_client.settings import DeviceSettings
from fedpruneshare import cli
from fedpruneshare.directory import ROUNDS_PER_EPOCH
from fedpruneshare.errors import CertificateError, RefusedError
from fedpruneshare.link import BrokerAddress, Link
from fedpruneshare.party import LinkSettings, Party
from fedpruneshare.process import open_link
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
PORTS = sorted({int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", TEXT)})
#: Which block is which, by what no other holds.
MARKS = {
    "place": "mkdir -m 700 lab",
    "root": "init root --federation lab",
    "bundles": "mv root/bundles/*",
    "brokers": "mosquitto -c run/",
    "check": "check --config run/$name/*.toml",
    "run": "device run",
    "watch": "rounds.jsonl",
    "revoke": "provision revoke",
    "reload": "kill -HUP $(cat run/$name/broker.pid)\n",
    "other": "init root --federation other",
    "stop": "kill $(cat run/*/pid",
    "enrol": "enrol request run/pi-11",
    "tell": "for name in a b c coordinator",
    "renew": "renew root pi-01",
    "rotate": "renew root a --keys",
    "lost": "coordinator root --replace",
}
BLOCK_S = 120.0


class Shell:
    """One shell that runs block after block, as somebody would who copies them into a terminal."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self._ports = dict(zip(PORTS, ports, strict=True))
        programs = folder / "bin"
        programs.mkdir()
        program = programs / "fedpruneshare"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fedpruneshare.cli "$@"\n')
        program.chmod(0o755)
        self.output = folder / "output"
        path = f"{programs}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
        with self.output.open("wb") as log:
            self._bash = subprocess.Popen(
                ["bash", "-e"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        self._said = 0

    def run(self, name: str) -> str:
        """Run one block; returns what it printed."""
        (block,) = [block for block in BLOCKS if MARKS[name] in block]
        for port, own in self._ports.items():
            block = block.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}")
        done = f"block-{name}-is-done"
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{block}\necho {done}\n".encode())
        self._bash.stdin.flush()
        until(lambda: done in self._news() or self._bash.poll() is not None, f"the block {name!r}", BLOCK_S)
        said = self._news()
        assert done in said, said
        self._said += len(said.encode())
        return said

    def _news(self) -> str:
        return self.output.read_bytes()[self._said :].decode()

    def pid(self, path: str) -> int:
        return int((self.folder / path).read_text())

    def end(self) -> None:
        """Kill the shell and all it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait(60)


def until(is_so: Callable[[], Any], what: str, limit_s: float = 90.0) -> None:
    give_up_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < give_up_s, f"{what} did not come within {limit_s:g} s"
        time.sleep(0.05)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with own_ports(len(PORTS)) as ports:
        made = Shell(tmp_path, ports)
        try:
            yield made
        finally:
            made.end()


class Insider:
    """Somebody who holds the bundle of a device: its certificate, its keys, its directory."""

    def __init__(self, bundle: Path) -> None:
        before = Path.cwd()
        os.chdir(bundle)  # the second federation's bundles are run where they lie
        try:
            settings = load_settings("device.toml", DeviceSettings)
            self.party = Party.load(settings.party, Role.DEVICE)
            assert settings.link.tls is not None
            files = {
                name: str(Path(getattr(settings.link.tls, name)).absolute())
                for name in ("ca_file", "certificate", "key_file")
            }
        finally:
            os.chdir(before)
        self.link = LinkSettings(tls=type(settings.link.tls)(**files), connect_timeout_s=60.0)

    @property
    def brokers(self) -> dict[str, BrokerAddress]:
        directory = self.party.directory
        own = {name: service.address for name, service in directory.aggregators.items()}
        return {"control": directory.coordinator.address, **own}

    @asynccontextmanager
    async def connected(self, address: BrokerAddress) -> AsyncIterator[Link]:
        link = open_link(address, self.party.ident, self.link)
        try:
            await link.connect()
            yield link
        finally:
            await link.close()

    async def is_let_in(self, address: BrokerAddress) -> bool:
        """Whether a broker takes this certificate, and this party the broker's; no other reason counts."""
        try:
            async with self.connected(address):
                return True
        except CertificateError:
            return False


# --------------------------------------------------------------------------- the page


def test_every_block_has_its_place() -> None:
    assert [name for block in BLOCKS for name, mark in MARKS.items() if mark in block] == list(MARKS)


def test_every_provision_command_and_option_on_the_page_exists() -> None:
    flat = TEXT.replace("\\\n", " ")
    found = re.findall(r"(?:fedpruneshare |`)provision ((?:enrol )?[a-z]+)([^`\n#]*)", flat)
    assert len(found) > 20
    for name, rest in found:
        command: click.Command = cli.load_command("provision")
        for word in name.split():
            assert isinstance(command, click.Group)
            command = command.commands[word]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(--[a-z-]+)", rest)) <= options, f"{name}{rest}"


@pytest.mark.e2e
@pytest.mark.mosquitto
async def test_the_page_up_to_the_preflight(shell: Shell) -> None:
    for name in ("place", "root", "bundles", "brokers"):
        shell.run(name)
    assert shell.run("check").count("takes this party's own messages") == 3 * 2 + 1 + 4
    device = Insider(shell.folder / "lab" / "run" / "pi-02")
    assert [await device.is_let_in(address) for address in device.brokers.values()] == [True] * 4


@pytest.mark.faults
@pytest.mark.mosquitto
@pytest.mark.timeout(600)
async def test_the_whole_page(shell: Shell) -> None:
    lab = shell.folder / "lab" / "run"
    for name in ("place", "root", "bundles", "brokers", "check", "run"):
        shell.run(name)
    until(lambda: len(rounds(lab)) >= 3, "three rounds", 240)
    assert [one["phase"] for one in rounds(lab)] == ["APPLIED"] * len(rounds(lab)), rounds(lab)
    assert {one["contributors"] for one in rounds(lab)} <= {8, 9, 10}
    assert "APPLIED" in shell.run("watch")

    for name in ("enrol", "tell", "renew", "rotate"):
        shell.run(name)
    assert await Insider(lab / "pi-11").is_let_in(Insider(lab / "pi-11").brokers["b"])
    until(lambda: log(lab, "pi-01").count("directory-in-force") >= 2, "the directory with a's new key")
    see_applied(lab, 3, 11)

    lose_the_plan_key(shell, lab)

    await shut_out(shell, lab)
    see_applied(lab, 2, 9)

    shell.run("other")
    await see_that_federations_are_strangers(shell, lab)

    see_all_end(shell, lab)


def lose_the_plan_key(shell: Shell, lab: Path) -> None:
    """Root and coordinator alone do something; everybody else follows by itself, and the next rounds are applied."""
    others = ("a", "b", "c", "pi-01", "pi-09")
    asked = {name: log(lab, name).count("reloaded") for name in others}
    shell.run("lost")
    see_applied(lab, 1, 11)
    assert rounds(lab)[-1]["round"] > ROUNDS_PER_EPOCH
    for name in others:
        assert "directory-of-unknown-sender" in log(lab, name)
        assert log(lab, name).count("reloaded") == asked[name]


def see_all_end(shell: Shell, lab: Path) -> None:
    """The last block ends every process of the first federation, but for the device whose process is gone already."""
    pids = {path: int(path.read_text()) for path in lab.glob("*/*pid") if path.parent.name != "pi-10"}
    running = {path: born(pid) for path, pid in pids.items()}
    assert all(running.values()), running
    shell.run("stop")

    def left() -> list[str]:
        return [f"{path.parent.name}/{path.name}" for path, pid in pids.items() if born(pid) == running[path]]

    give_up_s = time.monotonic() + 60
    while left():
        assert time.monotonic() < give_up_s, f"{left()} did not end"
        time.sleep(0.05)


def see_applied(lab: Path, count: int, most: int) -> None:
    """So many more rounds are applied, of at most so many devices. One was under way and may have had others."""
    before = len(rounds(lab)) + 1
    until(lambda: len(rounds(lab)) >= before + count, f"{count} rounds", 180)
    for one in rounds(lab)[before : before + count]:
        assert one["phase"] == "APPLIED", one
        assert one["contributors"] <= most
        assert one["aggregators"] == ["a", "b", "c"], one


def rounds(lab: Path) -> list[dict[str, Any]]:
    path = lab / "coordinator" / "store" / "rounds.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def born(pid: int) -> str:
    """When a process that lives began, by the kernel's clock; empty for one that has ended. Numbers come again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def log(lab: Path, name: str) -> str:
    return (lab / name / "log").read_text()


async def shut_out(shell: Shell, lab: Path) -> None:
    """The blocks of a revocation, against a device that does not mind them: its thief has its keys and a session."""
    thief = Insider(lab / "pi-10")
    pid = shell.pid("lab/run/pi-10/pid")
    when = born(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: born(pid) != when, "the end of the device")
    topic = thief.party.topics.name("up", "pi-10")
    share = thief.party.sign(EXAMPLES["share-upload"])
    async with thief.connected(thief.brokers["a"]) as session:
        known = log(lab, "a").count("directory-in-force")
        shell.run("revoke")
        until(lambda: log(lab, "a").count("directory-in-force") > known, "the new directory at the aggregator")
        # The session lives, the broker takes the message, the aggregator does not.
        await session.publish(topic, share)
        await eventually(lambda: "message-dropped" in log(lab, "a"), "the refusal at the aggregator")
        (line,) = [line for line in log(lab, "a").splitlines() if "message-dropped" in line]
        assert "device=pi-10" in line
        assert "not on the roster" in line
        assert await thief.is_let_in(thief.brokers["b"])

        shell.run("reload")

        async def is_refused() -> bool:
            try:
                await session.publish(topic, share)
            except RefusedError:
                return True
            return False

        give_up_s = time.monotonic() + 90
        while not await is_refused():
            assert time.monotonic() < give_up_s, "the broker still takes what a revoked device sends"
    for name, address in thief.brokers.items():  # each hears its own signal when it gets to it
        while await thief.is_let_in(address):
            assert time.monotonic() < give_up_s, f"the broker of {name} still lets in a revoked device"


async def eventually(is_so: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + 90
    while not is_so():
        assert time.monotonic() < give_up_s, f"{what} did not come"
        await asyncio.sleep(0.02)


async def see_that_federations_are_strangers(shell: Shell, lab: Path) -> None:
    """Neither federation's devices get into the other's brokers, also where they trust the other's authority."""
    ours = Insider(lab / "pi-02")
    theirs = Insider(shell.folder / "other" / "root" / "bundles" / "pi-02")
    assert ours.link.tls is not None
    assert theirs.link.tls is not None
    for who, whom in ((ours, theirs), (theirs, ours)):
        mine, others = who.link.tls, whom.link.tls
        assert mine is not None
        assert others is not None
        for ca_file in (mine.ca_file, others.ca_file):
            who.link = LinkSettings(tls=type(mine)(ca_file, mine.certificate, mine.key_file))
            for address in whom.brokers.values():
                assert not await who.is_let_in(address)
        who.link = LinkSettings(tls=mine)

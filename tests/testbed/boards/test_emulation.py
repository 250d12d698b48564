"""Boards over real processes: what a device is given, what happens to it, and what is said of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_client.device import measure
from fedpruneshare.errors import RunError, SettingsError
from testbed.boards import emulation, self_check
from testbed.boards.cgroups import ControlGroups
from testbed.boards.clocks import cpu_s
from testbed.boards.emulation import Boards, _parents_mib
from testbed.federation import RunFolder
from testbed.places import Place
from testbed.scenario import Scenario, load_scenario

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: processor clocks and signals")

PI = "{share = 1, board = 'raspberry-pi-4b'"
ZERO = "{share = 1, board = 'raspberry-pi-zero-2-w', power = 'battery', battery_wh = 0.01, battery_percent = 50.0}"


def scenario(*overrides: str) -> Scenario:
    return load_scenario("demo", ["fleet.devices=4", "rounds.cohort=4", "rounds.min_devices=3", *overrides])


def with_boards(tmp_path: Path, *overrides: str) -> Boards:
    folder = RunFolder(tmp_path)
    folder.create()
    return Boards(scenario(f"fleet.groups=[{PI}}}, {ZERO}]", *overrides), folder)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a crowded machine the self-check gets more tries; what it refuses stands in its own tests."""
    monkeypatch.setattr(self_check, "_TRIES", 12)


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as process:
        yield process
        process.kill()


def test_without_boards_nothing_is_emulated(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    with Boards(scenario(), folder) as boards:
        assert not boards.is_slowed
        assert (boards.cgroups("device-00"), boards.root("device-00")) == ((), Path("/"))
        boards.started("device-00", 1)
        assert boards.tick(0.0) == []
        assert boards.conditions() == {}


def test_boards_that_are_only_named_cost_joules_and_nothing_else(tmp_path: Path) -> None:
    with with_boards(tmp_path) as boards:
        said = boards.conditions()
        assert (said["time"], said["cpu"], said["memory"], said["batteries"]) == (
            "of this machine", "none", "of this machine", 2,
        )  # fmt: skip
        assert said["energy"].endswith("its time of work scaled")
        assert (boards.is_slowed, boards.root("device-00")) == (False, Path("/"))
        assert measure(boards.root("device-02")).battery_percent == 50


def test_a_slowed_device_is_held_throttled_and_let_go(tmp_path: Path, busy: subprocess.Popen[bytes]) -> None:
    """By the back end that every user has. A Zero 2 W gets a thirtieth of a core, which every machine has to spare."""
    with with_boards(tmp_path, "boards.cpu='duty-cycle'") as boards:
        assert boards.is_slowed
        said = boards.conditions()
        assert said["self_check"]["measured"] == pytest.approx(said["self_check"]["asked"], rel=0.1)
        assert said["cpu_shares"]["raspberry-pi-4b"] == pytest.approx(
            3 * said["cpu_shares"]["raspberry-pi-zero-2-w"], rel=0.01
        )
        assert boards.cgroups("device-02") == ()
        boards.started("device-02", busy.pid)
        share = said["cpu_shares"]["raspberry-pi-zero-2-w"]
        time.sleep(0.2)
        assert _is_seen(busy.pid, lambda used: used == pytest.approx(share, rel=0.35))
        boards.throttle("device-02", 0.3, "event 0")
        time.sleep(0.4)
        assert _is_seen(busy.pid, lambda used: used < 0.6 * share)
        boards.release()
        assert _is_seen(busy.pid, lambda used: used > 2 * share)


def test_devices_that_nobody_holds_any_more_end_the_run(tmp_path: Path, busy: subprocess.Popen[bytes]) -> None:
    with with_boards(tmp_path, "boards.cpu='duty-cycle'") as boards:
        boards.started("device-02", busy.pid)
        assert boards.tick(0.0) == []
        keeper = boards._processor._keeper._process  # type: ignore[union-attr]
        assert keeper is not None
        keeper.kill()
        keeper.wait()
        with pytest.raises(RunError, match="what held devices to their share has ended"):
            boards.tick(1.0)
        with pytest.raises(RunError, match="has ended"):
            boards.started("device-02", busy.pid)
        busy.kill()  # the keeper may have stopped it, and continues nothing any more


def test_with_control_groups_of_version_two_a_device_joins_one_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is in one of their groups: joining a second would take it out of the first."""

    def opened(wanted: list[str]) -> list[ControlGroups]:
        folder = tmp_path / "-".join(wanted)
        for name in ("device-02", "self-check"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        return [ControlGroups(name, "cgroup-v2", folder) for name in wanted]  # type: ignore[arg-type]

    monkeypatch.setattr("testbed.boards.emulation.open_groups", opened)
    monkeypatch.setattr("testbed.boards.processor.check_share", lambda _confine, share: share)
    with with_boards(tmp_path, "boards.cpu='cgroup'", "boards.memory=true") as boards:
        assert boards.cgroups("device-02") == (str(tmp_path / "cpu-memory/device-02"),)


def _is_seen(pid: int, is_right: Callable[[float], bool]) -> bool:
    """Whether one second of ten has the share it should have: a crowded machine spoils some of them."""
    return any(is_right(_used_in(pid, 1.0)) for _ in range(10))


def _used_in(pid: int, seconds: float) -> float:
    before, begun = cpu_s(pid) or 0.0, time.monotonic()
    time.sleep(seconds)
    return ((cpu_s(pid) or 0.0) - before) / (time.monotonic() - begun)


def test_a_hot_board_is_slowed_down_and_says_so_where_its_device_looks(
    tmp_path: Path, busy: subprocess.Popen[bytes]
) -> None:
    """In air of 66 °C an idle Pi 4 has 80.9 °C, above its limit; a Zero 2 W has 78."""
    hot = ("boards.cpu='duty-cycle'", "boards.thermal=true", "boards.ambient_c=66.0", "boards.throttled_share=0.2")
    with with_boards(tmp_path, *hot) as boards:
        boards.started("device-00", busy.pid)
        assert boards.tick(0.0) == []
        assert measure(boards.root("device-00")).temperature_c == pytest.approx(80.9)
        assert measure(boards.root("device-00")).is_throttled is False
        news, other = boards.tick(0.3)
        assert other.ident == "device-01"
        assert news.text.startswith("device-00 throttled at 8")
        assert not news.is_gone
        assert measure(boards.root("device-00")).is_throttled is True
        assert measure(boards.root("device-02")).is_throttled is False
        time.sleep(0.3)
        assert _is_seen(busy.pid, lambda used: used < 0.05)  # of the 0.1 it had
        assert boards.conditions()["thermal"]["ambient_c"] == 66.0


def test_a_ledger_drains_the_battery_until_the_board_goes_dark(tmp_path: Path) -> None:
    with with_boards(tmp_path) as boards:
        ledger = RunFolder(tmp_path).ledger("device-02")
        ledger.parent.mkdir(parents=True)
        ledger.write_text(json.dumps({"energy": {"train": {"joules": 9.0}}}) + "\n")
        assert boards.tick(0.0) == []
        assert measure(boards.root("device-02")).battery_percent == 25
        ledger.write_text(ledger.read_text() * 3)
        assert boards.tick(0.1) == []  # looked at a moment ago
        (news,) = boards.tick(1.0)
        assert (news.ident, news.is_gone) == ("device-02", True)
        assert boards.tick(2.0) == []


def test_what_a_device_shares_is_the_anonymous_memory_of_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        own = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert own is not None
        assert _parents_mib(child.pid) == pytest.approx(int(own[1]) >> 10, abs=16)
        child.communicate(b"\n")


def test_memory_that_is_exceeded_is_told_with_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "_parents_mib", lambda _pid: 60)  # the test's own process may be of any size
    try:
        boards = with_boards(tmp_path, "boards.memory=true").__enter__()
    except SettingsError as error:
        pytest.skip(f"needs control groups that this user may make: {error}")
    try:
        (folder,) = boards.cgroups("device-02")
        wait_then_grow = "import sys; sys.stdin.read(1); bytearray(b'x') * (600 << 20)"
        command = Place(cgroups=(folder,)).command([sys.executable, "-S", "-c", wait_then_grow])
        with subprocess.Popen(command, stdin=subprocess.PIPE) as device:
            boards.started("device-02", device.pid)
            assert boards.tick(0.0) == []
            device.communicate(b"!")
        assert device.returncode == -9
        (news,) = boards.tick(1.0)
        assert news.is_gone
        assert int(news.text.split("its ")[1].split()[0]) == 512 - 48 - 60
        assert "raspberry-pi-zero-2-w" in boards.conditions()["memory"]["limits_mib"]
    finally:
        boards.close()


def test_a_board_as_fast_as_this_machine_or_faster_is_refused(tmp_path: Path) -> None:
    boards = with_boards(tmp_path, "boards.cpu='duty-cycle'")
    boards._here = 50.0
    with pytest.raises(SettingsError, match=r"raspberry-pi-4b is 5 times as fast as this machine, expected slower"):
        boards.__enter__()


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (("boards.cpu='auto'",), "boards"),
        ((f"fleet.groups=[{PI}}}]", "boards.thermal=true"), "boards.thermal"),
        (("fleet.groups=[{power = 'battery', battery_wh = 1.0}]",), "fleet.groups.0.power"),
        ((f"fleet.groups=[{PI}, power = 'battery'}}]",), "fleet.groups.0.battery_wh"),
        ((f"fleet.groups=[{PI}, battery_wh = 1.0}}]",), "fleet.groups.0.battery_wh"),
        ((f"fleet.groups=[{PI}}}]", "boards.cpu='auto'", "fleet.engine='synthetic'"), "fleet.engine"),
    ],
)
def test_what_cannot_be_emulated_is_refused_with_its_place(overrides: tuple[str, ...], place: str) -> None:
    with pytest.raises(SettingsError) as caught:
        scenario(*overrides)
    assert place in [fault.path for fault in caught.value.faults]

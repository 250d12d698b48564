"""The boards of a fleet: what their profiles say is imposed on the devices that stand for them, as far as asked.

    with Boards(scenario, folder) as boards:     # back ends are there, and were measured
        place = boards.cgroups("device-03")      # what the device joins before it does anything
        boards.started("device-03", pid)
        for news in boards.tick(time.monotonic()): …

No thread: `tick` is called from the loop that watches the fleet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from edge_client.board.profiles import find_board, load_board
from fedpruneshare.errors import RunError, SettingsError
from testbed.boards.battery import Battery, SpentJoules
from testbed.boards.board import Board, News
from testbed.boards.cgroups import ControlGroups, Controller, open_groups
from testbed.boards.clocks import cpu_s
from testbed.boards.processor import CpuDutyCycle, CpuGroups, Processor, checked
from testbed.boards.sensors import BoardSensors
from testbed.boards.thermal import BoardHeat
from testbed.federation import RunFolder, device_ids

if TYPE_CHECKING:
    from testbed.scenario import DeviceGroup, Scenario

_log = structlog.get_logger()

_TICK_S: Final = 0.25
_KEEPER_LOG: Final = "duty-cycle.log"


class Boards:
    """What is emulated of a fleet's boards; a context manager. `root` of a device without sensors is this machine's."""

    def __init__(self, scenario: Scenario, folder: RunFolder) -> None:
        self._settings, self._folder = scenario.boards, folder
        self._groups = dict(zip(device_ids(scenario), scenario.fleet.members(), strict=True))
        self._boards: dict[str, Board] = {}
        self._sensors: dict[str, BoardSensors] = {}
        self._spent: dict[str, SpentJoules] = {}
        self._clocks: dict[str, tuple[int, float]] = {}
        self._limits_mib: dict[str, int] = {}
        self._processor: Processor | None = None
        self._kind = "none"
        self._memory: ControlGroups | None = None
        self._check: dict[str, float] = {}
        self._reasons: list[str] = []
        self._ticked_s: float | None = None
        self._load = 0.0
        self._closing = ExitStack()

    def __enter__(self) -> Boards:
        self._load = round(os.getloadavg()[0], 2)
        try:
            self._find_processor()
            self._find_memory()
            for ident, group in self._groups.items():
                if group.board:
                    self._boards[ident] = self._new_board(ident, group)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove control groups; to be called when the devices have ended. Idempotent."""
        self._closing.close()

    # ------------------------------------------------------------------ what there is

    @cached_property
    def _here(self) -> float:
        return find_board(Path("/")).train_scale

    def _share(self, board: str) -> float:
        """Of one core of this machine. Raises `SettingsError` for a board that is faster."""
        scale = load_board(board).train_scale / self._here
        if scale < 1.0:
            raise SettingsError(
                f"boards.cpu: {board} is {1 / scale:.3g} times as fast as this machine, expected slower"
            )
        return 1.0 / scale

    def _find_processor(self) -> None:
        """The first back end that is allowed and holds. Raises `SettingsError` where one was insisted on."""
        cpu = self._settings.cpu
        if cpu == "none":
            return
        shares = [self._share(group.board) for group in self._groups.values() if group.board]
        log = self._folder.logs / _KEEPER_LOG
        makers: dict[str, Callable[[], Processor]] = {
            "cgroup": self._open_groups,
            "duty-cycle": lambda: CpuDutyCycle(log),
        }
        for name in makers if cpu == "auto" else (cpu,):
            try:
                self._processor, self._check = checked(makers[name], shares)
            except SettingsError as error:
                if self._memory is not None:
                    self._memory.close()
                    self._memory = None
                if cpu != "auto":
                    raise
                self._reasons.append(f"{name}: {error}")
                _log.warning("boards-not-slowed-by", how=name, reason=str(error))
            else:
                self._closing.callback(self._processor.close)
                self._kind = self._processor.kind
                return

    def _open_groups(self) -> CpuGroups:
        """Memory's along with the processor's where both are wanted: of version 2 a process is in one group alone."""
        wanted: list[Controller] = ["cpu", "memory"] if self._settings.memory else ["cpu"]
        found = {groups.controller: groups for groups in open_groups(wanted)}
        self._memory = found.get("memory")
        return CpuGroups(found["cpu"])

    def _find_memory(self) -> None:
        if not self._settings.memory:
            return
        if self._memory is None:
            (self._memory,) = open_groups(["memory"])
        self._closing.callback(self._memory.close)

    def _new_board(self, ident: str, group: DeviceGroup) -> Board:
        profile = load_board(group.board)
        heats = self._settings.thermal and self._processor is not None
        board = Board(
            ident,
            profile,
            self._share(group.board) if self._processor else 1.0,
            BoardHeat.idle(profile, self._settings) if heats else None,
            Battery(group.battery_wh, group.battery_percent) if group.power == "battery" else None,
        )
        if board.heat is not None or board.battery is not None:
            self._sensors[ident] = BoardSensors(self._folder.state / "boards" / ident, profile)
            self._spent[ident] = SpentJoules(self._folder.ledger(ident))
            self._show(board)
        return board

    # ------------------------------------------------------------------ what devices are given

    @property
    def is_slowed(self) -> bool:
        """Whether devices take as long as their boards would."""
        return self._kind != "none"

    def root(self, ident: str) -> Path:
        """Where a device reads its board's files."""
        return self._sensors[ident].root if ident in self._sensors else Path("/")

    def cgroups(self, ident: str) -> tuple[str, ...]:
        """Control groups that a device joins before it does anything; made new for each start."""
        board = self._boards.get(ident)
        folders: list[str] = []
        if board is None:
            return ()
        if self._processor is not None:
            folders += self._processor.prepare(ident, board.share_now)
        if self._memory is not None:
            folders.append(str(self._memory.add(ident)))
        return tuple(dict.fromkeys(folders))

    def started(self, ident: str, pid: int) -> None:
        """A device runs: hold it. Raises `SettingsError` where its board has no room for it, `RunError` as `tick`."""
        board = self._boards.get(ident)
        if board is None:
            return
        self._check_held()
        self._clocks[ident] = (pid, cpu_s(pid) or 0.0)
        if self._processor is not None:
            self._processor.hold(ident, pid, board.share_now)
        if self._memory is not None:
            self._limit_memory(board, pid)

    def _limit_memory(self, board: Board, pid: int) -> None:
        """What a device shares with the process it was forked from is charged there, so it comes off its limit."""
        assert self._memory is not None
        whole_mib = board.profile.ram_mib - board.profile.memory_reserve_mib
        limit_mib = whole_mib - _parents_mib(pid)
        if limit_mib <= 0:
            raise SettingsError(
                f"{board.ident}: {board.profile.name} leaves {whole_mib} MiB to a device, expected more than the "
                f"{_parents_mib(pid)} MiB it has before it starts"
            )
        self._limits_mib[board.ident] = limit_mib
        self._memory.limit_memory(board.ident, limit_mib)

    def throttle(self, ident: str, factor: float | None, because: str) -> None:
        """Slow a board down by a factor below 1, or (None) no longer for that reason."""
        board = self._boards[ident]
        if factor is None:
            board.slowed.pop(because, None)
        else:
            board.slowed[because] = factor
        self._hold(board)
        self._show(board)

    def release(self) -> None:
        """Let every device run as fast as it can, so that it ends in time when told to."""
        processor, self._processor = self._processor, None
        if processor is None:
            return
        for ident, (pid, _) in self._clocks.items():
            with suppress(OSError):  # the group, or the keeper, may be gone
                processor.release(ident, pid)

    # ------------------------------------------------------------------ while it runs

    def tick(self, now_s: float) -> list[News]:
        """Let time pass: warm and cool, drain, slow down. What happened; at most every quarter of a second.

        Raises `RunError` where devices are no longer held to their boards' speed: what is measured then is none of it.
        """
        if self._ticked_s is not None and now_s - self._ticked_s < _TICK_S:
            return []
        self._check_held()
        seconds = 0.0 if self._ticked_s is None else now_s - self._ticked_s
        self._ticked_s = now_s
        return [news for board in self._boards.values() for news in self._pass_time(board, seconds)]

    def _check_held(self) -> None:
        if self._processor is not None and not self._processor.is_alive:
            raise RunError(f"boards.cpu: what held devices to their share has ended, expected it to run: {_KEEPER_LOG}")

    def _pass_time(self, board: Board, seconds: float) -> Iterator[News]:
        was_throttled = board.is_throttled
        yield from board.warm(seconds, self._used_s(board.ident))
        if board.battery is not None:
            yield from board.drain(self._spent[board.ident].read())
        if board.ident in self._limits_mib and self._memory is not None:
            yield from board.count_kills(self._memory.memory_kills(board.ident), self._limits_mib[board.ident])
        if board.is_throttled != was_throttled:
            self._hold(board)
        self._show(board)

    def _used_s(self, ident: str) -> float:
        """Seconds of a core since the last look; none where the device does not run."""
        pid, before_s = self._clocks.get(ident, (0, 0.0))
        used_s = cpu_s(pid) if pid else None
        if used_s is None:
            return 0.0
        self._clocks[ident] = (pid, used_s)
        return max(0.0, used_s - before_s)

    def _hold(self, board: Board) -> None:
        if self._processor is not None and board.ident in self._clocks:
            with suppress(OSError):  # its group is made at its first start
                self._processor.hold(board.ident, self._clocks[board.ident][0], board.share_now)

    def _show(self, board: Board) -> None:
        sensors = self._sensors.get(board.ident)
        if sensors is None:
            return
        if board.heat is not None:
            sensors.show_temperature(board.heat.temperature_c)
        sensors.show_throttling(board.is_throttled)
        if board.battery is not None:
            sensors.show_battery(board.battery.percent)
        else:
            sensors.show_mains()

    # ------------------------------------------------------------------ what is said of it

    def conditions(self) -> dict[str, Any]:
        """For the run's summary: what of time, memory, heat and energy is emulated, and how; empty without boards."""
        if not self._boards:
            return {}
        scaled = "" if self.is_slowed else ", its time of work scaled"
        return {
            "time": "emulated" if self.is_slowed else "of this machine",
            "energy": f"emulated: the profile's model{scaled}",
            "profiles": sorted({board.profile.name for board in self._boards.values()}),
            **self._cpu_conditions(),
            "memory": self._memory_conditions(),
            "thermal": self._thermal_conditions(),
            "batteries": sum(board.battery is not None for board in self._boards.values()),
        }

    def _cpu_conditions(self) -> dict[str, Any]:
        shares = {board.profile.name: round(board.share, 4) for board in self._boards.values()}
        if not self.is_slowed:
            return {"cpu": "none", **({"cpu_reasons": self._reasons} if self._reasons else {})}
        asked, cores = sum(board.share for board in self._boards.values()), len(os.sched_getaffinity(0))
        found: dict[str, Any] = {"cpu": self._kind, "cpu_shares": shares, "self_check": self._check}
        if asked > cores:
            found["crowded"] = f"boards need {asked:.2f} cores at once, this machine has {cores}: some times are longer"
        return found | {"cores_needed": round(asked, 2), "cores": cores, "load_at_start": self._load}

    def _memory_conditions(self) -> str | dict[str, Any]:
        if self._memory is None:
            return "of this machine"
        limits = {self._boards[ident].profile.name: mib for ident, mib in sorted(self._limits_mib.items())}
        return {"kind": self._memory.version, "limits_mib": limits}

    def _thermal_conditions(self) -> str | dict[str, Any]:
        if not any(board.heat for board in self._boards.values()):
            return "not emulated"
        own = self._settings
        return {"ambient_c": own.ambient_c, "throttled_share": own.throttled_share, "hysteresis_c": own.hysteresis_c}


def _parents_mib(pid: int) -> int:
    """Anonymous memory of the process that `pid` was forked from, in MiB: shared with it, and not to be given back."""
    parent = re.search(r"^PPid:\s+(\d+)$", _status(pid), re.MULTILINE)
    found = re.search(r"^RssAnon:\s+(\d+) kB$", _status(int(parent[1])) if parent else "", re.MULTILINE)
    return int(found[1]) >> 10 if found else 0


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


__all__ = ["Boards", "News"]

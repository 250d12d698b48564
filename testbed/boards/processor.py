"""Holding devices to their board's share of one core: by control groups, else by a duty cycle; measured before use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal

from fedpruneshare.errors import SettingsError
from testbed.boards.cgroups import ControlGroups
from testbed.boards.duty_cycle import DutyCycle
from testbed.boards.self_check import check_share

Kind = Literal["cgroup-v1", "cgroup-v2", "duty-cycle"]
_CHECK: Final = "self-check"
#: Of smaller shares a check takes seconds; what holds at a tenth holds below (tests measure a thirtieth).
_LEAST_CHECKED: Final = 0.1


class CpuGroups:
    """Shares by control group. A device is in its group from its first instruction on."""

    def __init__(self, groups: ControlGroups) -> None:
        self._groups = groups
        self.kind: Kind = groups.version

    @property
    def is_alive(self) -> bool:
        """Whether it still holds: the kernel does."""
        return True

    def prepare(self, ident: str, share: float) -> tuple[str, ...]:
        """Make the group a device will join, and return its folder."""
        folder = self._groups.add(ident)
        self._groups.hold_cpu(ident, share)
        return (str(folder),)

    def hold(self, ident: str, pid: int, share: float) -> None:
        """Another share from now on; whatever process is in the group."""
        self._groups.hold_cpu(ident, share)

    def release(self, ident: str, pid: int) -> None:
        """No limit any more."""
        self._groups.release_cpu(ident)

    def check(self, share: float) -> float:
        """The share a child that only computes gets. Raises `SettingsError` if it is not the one asked for."""
        (folder,) = self.prepare(_CHECK, share)
        return check_share(lambda pid: _join(folder, pid), share)

    def close(self) -> None:
        """Remove the groups."""
        self._groups.close()


class CpuDutyCycle:
    """Shares by stopping and continuing: wherever signals are, root or not."""

    kind: Kind = "duty-cycle"

    def __init__(self, log: Path) -> None:
        self._keeper = DutyCycle(log)
        self._keeper.__enter__()

    @property
    def is_alive(self) -> bool:
        """Whether the process that stops and continues is there."""
        return self._keeper.is_alive

    def prepare(self, ident: str, share: float) -> tuple[str, ...]:
        """Nothing to join: a device is held as soon as it has started."""
        return ()

    def hold(self, ident: str, pid: int, share: float) -> None:
        """Hold a process from now on."""
        self._keeper.hold(pid, share)

    def release(self, ident: str, pid: int) -> None:
        """No limit any more."""
        self._keeper.hold(pid, None)

    def check(self, share: float) -> float:
        """As `CpuGroups.check`."""
        return check_share(lambda pid: self._keeper.hold(pid, share), share)

    def close(self) -> None:
        """Continue whatever is stopped."""
        self._keeper.close()


Processor = CpuGroups | CpuDutyCycle


def checked(make: Callable[[], Processor], shares: list[float]) -> tuple[Processor, dict[str, float]]:
    """A back end whose share was measured, and that measurement. Raises `SettingsError` where it does not hold."""
    asked = max(_LEAST_CHECKED, min(shares))
    with ExitStack() as undo:
        try:
            processor = make()
        except OSError as error:
            raise SettingsError(f"the processor's share cannot be held: {error}") from None
        undo.callback(processor.close)
        measured = processor.check(asked)
        undo.pop_all()
    return processor, {"asked": round(asked, 4), "measured": round(measured, 4)}


def _join(folder: str, pid: int) -> None:
    (Path(folder) / "cgroup.procs").write_text(str(pid))


__all__ = ["CpuDutyCycle", "CpuGroups", "Kind", "Processor", "checked"]

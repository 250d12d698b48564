"""Where a process of a run lives: a network namespace and control groups. `python -m testbed.places PLACE ARGV…`.

A `Place` is decided by the run (`testbed.links`, `testbed.boards`) and entered by the process itself, before it does
anything else: what it is then charged with, and what it can reach, is right from its first instruction.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fedpruneshare.errors import SettingsError
from firmware_configs.brokers.namespaces import enter_network


@dataclass(frozen=True)
class Place:
    """A network namespace (the file that names it, empty: this one) and folders of control groups."""

    namespace: str = ""
    cgroups: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.namespace or self.cgroups)

    def enter(self) -> None:
        """Move the calling process there. Raises `SettingsError` naming what could not be entered."""
        for folder in self.cgroups:
            try:
                (Path(folder) / "cgroup.procs").write_text(f"{os.getpid()}\n")
            except OSError as error:
                raise SettingsError(f"control group {folder}: {error}, expected one this process may join") from None
        if self.namespace:
            enter_network(self.namespace)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs `arguments` there, in the same process."""
        if not self:
            return list(arguments)
        return [sys.executable, "-m", "testbed.places", json.dumps(self.to_json()), *arguments]

    def to_json(self) -> dict[str, Any]:
        """As a command line or a message to the zygote carries it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Place:
        """The inverse of `to_json`."""
        return cls(value["namespace"], tuple(value["cgroups"]))


#: Where the run itself lives.
HERE: Final = Place()


def _main(place: str, *arguments: str) -> None:
    try:
        Place.from_json(json.loads(place)).enter()
    except SettingsError as error:
        sys.exit(str(error))
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    _main(*sys.argv[1:])

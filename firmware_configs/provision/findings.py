"""One finding of the preflight: a line that says what was looked at, what was found, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "FAILED"


@dataclass(frozen=True)
class Finding:
    """State, what was looked at, what was found, and what to do about it."""

    state: str
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.state:8}{self.what}: {' '.join(self.found.split())}"
        return f"{line}; {self.fix}" if self.fix else line

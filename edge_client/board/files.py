"""Small files of the kernel below a root, so that a copied tree will do; what cannot be read is noted with a reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

#: Far above any file read here; /proc/meminfo has about 1.5 KiB.
MAX_BYTES: Final = 65_536

_WHOLE: Final = re.compile(r"[+-]?\d{1,19}")


class BoardFiles:
    """Reads below `root` and collects in `unread` why a field has no value: "field: path: reason"."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # what `find` gives is joined to it again
        self.unread: list[str] = []

    def note(self, field: str, reason: str) -> None:
        """Say why `field` has no value."""
        self.unread.append(f"{field}: {reason}")

    def is_noted(self, field: str) -> bool:
        """Whether a reason for `field` has been given."""
        return any(text.startswith(f"{field}: ") for text in self.unread)

    def find(self, pattern: str) -> list[Path]:
        """Paths below the root that fit a glob pattern, sorted; none where a folder cannot be listed."""
        try:
            return sorted(self.root.glob(pattern), key=_by_number)
        except OSError:
            return []

    def text(self, field: str, path: Path | str) -> str | None:
        """The stripped text of a file; None where it is absent and, with a note, where it is unreadable or empty."""
        full = self.root / path
        try:
            with full.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.note(field, f"{self._named(full)}: {(error.strerror or 'cannot be read').lower()}")
            return None
        text = raw[:MAX_BYTES].decode("utf-8", "replace").replace("\0", " ").strip()
        if len(raw) > MAX_BYTES or not text:
            found = f"more than {MAX_BYTES} bytes" if len(raw) > MAX_BYTES else "empty"
            self.note(field, f"{self._named(full)}: {found}, expected a small text")
            return None
        return text

    def whole(self, field: str, path: Path | str, low: int, high: int, base: int = 10) -> int | None:
        """A whole number within [low, high]; None where the file is absent and, with a note, where it holds none."""
        text = self.text(field, path)
        if text is None:
            return None
        number = _hexadecimal(text) if base == 16 else int(text) if _WHOLE.fullmatch(text) else None
        if number is None or not low <= number <= high:
            self.note(field, f"{self._named(path)}: {text[:40]!r}, expected a number from {low} to {high}")
            return None
        return number

    def _named(self, path: Path | str) -> str:
        full = self.root / path
        return str(full.relative_to(self.root)) if full.is_relative_to(self.root) else str(full)


def _hexadecimal(text: str) -> int | None:
    found = re.fullmatch(r"(?:0[xX])?([0-9a-fA-F]{1,8})", text)
    return int(found[1], 16) if found else None


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts thermal_zone10 behind thermal_zone9."""
    parts = re.findall(r"\d+|\D+", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], str(path)

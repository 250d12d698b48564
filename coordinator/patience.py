"""How long to wait before the next round when one after the other has failed. No I/O.

What refuses every round refuses it at once, be it floors, a directory or a store that was put back: without a pause all
rounds of the settings would be used up in a minute, before anybody could mend it.
"""

from __future__ import annotations

from typing import Final

#: So many rounds in a row may fail by accident.
_BY_ACCIDENT: Final = 3
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0


class Patience:
    """Counts rounds that failed in a row, since this process began: a restart goes on at once."""

    def __init__(self) -> None:
        self.failed_in_a_row = 0
        self._last = 0

    def pause_s(self, round_id: int, has_failed: bool) -> float:
        """How long it has to be from the last round's beginning to the next one's: doubled with each that failed."""
        if round_id != self._last:
            self._last, self.failed_in_a_row = round_id, self.failed_in_a_row + 1 if has_failed else 0
        too_many = self.failed_in_a_row - _BY_ACCIDENT
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(too_many - 1, 16)) if too_many > 0 else 0.0

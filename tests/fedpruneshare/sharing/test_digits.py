"""What a refused digit may say (docs/protocol.md §5.3)."""

from __future__ import annotations

import numpy as np
import pytest

from fedpruneshare.errors import SharingError
from fedpruneshare.sharing.digits import DigitPacking


def test_a_refused_digit_is_named_by_its_place_alone() -> None:
    """The value is part of a device's update."""
    with pytest.raises(SharingError, match="digit 1 is out of range, expected 0 to 15") as raised:
        DigitPacking(4, 10).pack(np.array([3, 16, 777, 4242], dtype="<u4"))
    assert "777" not in str(raised.value)
    assert "4242" not in str(raised.value)

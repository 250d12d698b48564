"""Fixtures of the fault tests."""

from __future__ import annotations

import pytest

import testbed.federation
from fedpruneshare.party import LinkSettings


@pytest.fixture
def quick_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parties of the fleets of a test are back after at most half a second, and miss a silent peer in seconds."""
    link = LinkSettings(keepalive_s=5, publish_timeout_s=3.0, connect_timeout_s=3.0, reconnect_max_s=0.5)
    monkeypatch.setattr(testbed.federation, "_LINK", link)

"""Which back end makes the links: what a scenario asks for, held against what this machine has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fedpruneshare.errors import SettingsError
from firmware_configs.brokers.namespaces import call_in_thread, new_network
from testbed.links.settings import LinkEmulation, LinkProfile

#: A back end that was decided on.
Made = Literal["none", "netem", "tap", "htb", "application"]


@dataclass(frozen=True)
class Choice:
    """A back end, and why it was chosen over those before it (empty where it was asked for by name)."""

    backend: Made
    why: str = ""

    @property
    def has_namespaces(self) -> bool:
        """Whether each device has a network of its own."""
        return self.backend in ("netem", "tap", "htb")


def choose(emulation: LinkEmulation, used: Iterable[LinkProfile]) -> Choice:
    """The back end for the profiles in use. Raises `SettingsError` where one that is asked for cannot work here."""
    if emulation.backend == "none":
        return Choice("none")
    if emulation.backend == "application":
        return Choice("application")
    missing = why_no_namespaces()
    if emulation.backend == "auto":
        return _best(missing, list(used))
    if emulation.backend == "netem":
        missing = missing or why_no_netem()
    elif emulation.backend == "tap":
        missing = missing or why_no_tap()
    if missing:
        hint = "auto takes what there is, application needs no rights"
        raise SettingsError(f"links.backend: found {emulation.backend!r}, which cannot work here ({missing}); {hint}")
    return Choice(emulation.backend)


def _best(missing: str, used: list[LinkProfile]) -> Choice:
    if missing:
        return Choice("application", missing)
    no_netem = "outages and duty cycles are asked for" if any(map(_has_gaps, used)) else why_no_netem()
    if not no_netem:
        return Choice("netem")
    no_tap = why_no_tap()
    return Choice("application", f"{no_netem}; {no_tap}") if no_tap else Choice("tap", no_netem)


def _has_gaps(profile: LinkProfile) -> bool:
    return profile.has_gaps


def why_no_namespaces() -> str:
    """Why no network namespace can be made here, empty if one can."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, this is {sys.platform}"
    try:
        import pyroute2  # noqa: F401
    except ImportError:
        return "the package pyroute2 is not installed"
    try:
        call_in_thread(_try_namespace)
    except SettingsError as error:
        return str(error)
    return ""


def _try_namespace() -> None:
    """As the keeper makes them: a container may allow the namespace, and not that anything in it is set."""
    from pyroute2 import NetlinkError

    from testbed.links.interfaces import quieten

    new_network()
    try:
        quieten()
    except (OSError, NetlinkError) as error:
        raise SettingsError(f"in a network namespace of its own: {error}") from None


def why_no_tap() -> str:
    """Why no TAP device can be made here, empty if one can. Needs the right to make namespaces."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    return ""


def why_no_netem() -> str:
    """Why netem cannot be used here, empty if it can: tried in a namespace made for it."""
    from testbed.links.queueing import try_netem

    return call_in_thread(try_netem)

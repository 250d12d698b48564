"""Which back end is taken, and what the kernel's shapers are told; real probes where this machine allows them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fedpruneshare.errors import SettingsError
from testbed.links import backends
from testbed.links.backends import Choice, choose
from testbed.links.settings import LinkEmulation, LinkProfile

LOSSY = LinkProfile(up_kbit_s=2000, down_kbit_s=8000, delay_ms=40, jitter_ms=10, loss_percent=1.5)
GAPS = LinkProfile(outage_every_s=60, outage_s=2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what a machine lacks, in words: (namespaces, netem, tap)."""

    def lacks(namespaces: str = "", netem: str = "", tap: str = "") -> None:
        monkeypatch.setattr(backends, "why_no_namespaces", lambda: namespaces)
        monkeypatch.setattr(backends, "why_no_netem", lambda: netem)
        monkeypatch.setattr(backends, "why_no_tap", lambda: tap)

    return lacks


def auto(*profiles: LinkProfile) -> Choice:
    return choose(LinkEmulation("auto"), profiles)


def test_auto_takes_netem_then_tap_then_the_application(machine: Any) -> None:
    machine()
    assert auto(LOSSY) == Choice("netem")
    assert auto(LOSSY, GAPS) == Choice("tap", "outages and duty cycles are asked for")
    machine(netem="no netem")
    assert auto(LOSSY) == Choice("tap", "no netem")
    machine(netem="no netem", tap="no tun")
    assert auto(LOSSY) == Choice("application", "no netem; no tun")
    machine(namespaces="not root")
    assert auto(LOSSY) == Choice("application", "not root")


def test_what_is_asked_for_by_name_is_taken_or_refused(machine: Any) -> None:
    machine(namespaces="not root", netem="no netem", tap="no tun")
    assert choose(LinkEmulation("none"), [LOSSY]) == Choice("none")
    assert choose(LinkEmulation("application"), [LOSSY]) == Choice("application")
    with pytest.raises(SettingsError, match=r"found 'tap'.*not root.*application"):
        choose(LinkEmulation("tap"), [LOSSY])
    machine(netem="no netem", tap="no tun")
    with pytest.raises(SettingsError, match=r"found 'netem'.*no netem"):
        choose(LinkEmulation("netem"), [LOSSY])
    with pytest.raises(SettingsError, match=r"found 'tap'.*no tun"):
        choose(LinkEmulation("tap"), [LOSSY])
    assert choose(LinkEmulation("htb"), []).has_namespaces


def test_this_machine_is_probed_and_nothing_is_left_of_it() -> None:
    missing = backends.why_no_namespaces()
    if missing:
        pytest.skip(missing)
    why = backends.why_no_netem()
    print(f"netem: {why or 'works here'}")
    assert why == "" or why.startswith("the kernel refuses netem: ")
    assert backends.why_no_namespaces() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="netem and HTB are Linux's")
def test_what_netem_and_htb_are_told() -> None:
    pytest.importorskip("pyroute2")
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    from testbed.links import queueing

    told = queueing.netem_arguments(LOSSY, LOSSY.up_bit_s)
    assert told == {"limit": 1000, "delay": 40_000, "jitter": 10_000, "loss": 1.5, "rate": "2000000bit"}
    assert queueing.netem_arguments(LinkProfile(), 0.0) == {"limit": 1000, "delay": 0}

    message = queueing.netem_request(7, told)
    message.encode()
    sent = tcmsg(bytes(message.data))
    sent.decode()
    options = sent.get_attr("TCA_OPTIONS")
    assert (sent["index"], sent.get_attr("TCA_KIND")) == (7, "netem")
    assert sent.get_attr("TCA_RATE") is None
    assert options.get_attr("TCA_NETEM_RATE")["rate"] == 250_000  # bytes a second
    assert options["limit"] == 1000
    assert options["loss"] == int(0.015 * (2**32 - 1))
    assert options["delay"] == 4 * options["jitter"]  # in ticks, whose length is the kernel's
    assert queueing.htb_arguments(2e6) == {"rate": "2000000bit", "burst": 3028, "cburst": 3028}
    assert queueing.htb_arguments(2e7)["burst"] == 5000


@pytest.mark.skipif(bool(backends.why_no_namespaces()), reason="needs network namespaces")
def test_a_container_in_which_nothing_can_be_set_gets_the_application_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Docker with the right capabilities /proc/sys is read-only all the same."""

    def refused() -> None:
        raise OSError(30, "Read-only file system", "/proc/sys/net/ipv6/conf/all/disable_ipv6")

    monkeypatch.setattr("testbed.links.interfaces.quieten", refused)
    found = choose(LinkEmulation(backend="auto"), [])
    assert found.backend == "application"
    assert "Read-only file system" in found.why
    with pytest.raises(SettingsError, match="Read-only file system"):
        choose(LinkEmulation(backend="tap"), [])

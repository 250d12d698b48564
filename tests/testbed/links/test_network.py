"""Real namespaces with real links in them: made, measured, counted, refused where they are not what was asked, gone."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedpruneshare.errors import RunError
from firmware_configs.brokers.namespaces import call_in_network
from testbed.links import self_test
from testbed.links.backends import why_no_namespaces, why_no_netem, why_no_tap
from testbed.links.network import Network
from testbed.links.self_test import Probe
from testbed.links.settings import BackendName, LinkEmulation, LinkProfile

PROFILES = {
    "slow": LinkProfile(up_kbit_s=500, down_kbit_s=2000, delay_ms=30),
    "lossy": LinkProfile(up_kbit_s=4000, down_kbit_s=4000, delay_ms=10, jitter_ms=4, loss_percent=3),
}
RATES = {"slow": LinkProfile(up_kbit_s=500, down_kbit_s=2000)}
PAYLOAD_BYTES = 100_000
#: A crowded machine stalls a transfer now and then; a link that is wrong is wrong every time.
TRIES = 6

pytestmark = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces() or "-")


def network(
    folder: Path, backend: BackendName, profiles: dict[str, LinkProfile], *, is_tested: bool = False
) -> Network:
    emulation = LinkEmulation(backend, self_test=is_tested, profiles=profiles)
    links = {f"device-{index:02d}": name for index, name in enumerate([*profiles, ""])}
    return Network(emulation, links, 1, folder)


@pytest.fixture(scope="module")
def tap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if why_no_tap():
        pytest.skip(why_no_tap())
    with pytest.MonkeyPatch.context() as patient:
        patient.setattr(self_test, "_ATTEMPTS", TRIES)
        with network(tmp_path_factory.mktemp("tap"), "tap", PROFILES, is_tested=True) as made:
            yield made


def upload(links: Network, device: str, size_bytes: int) -> float:
    """Seconds a TCP upload takes until its last byte is there."""
    with call_in_network(links.services_place, lambda: socket.create_server((links.broker_host, 0))) as listener:
        where = listener.getsockname()
        got: list[float] = []

        def receive() -> None:
            with listener.accept()[0] as connection:
                left = size_bytes
                while left:
                    left -= len(connection.recv(65_536))
                got.append(time.monotonic())

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        with call_in_network(links.place(device), lambda: socket.create_connection(where, timeout=20)) as sender:
            began = time.monotonic()
            sender.sendall(bytes(size_bytes))
            thread.join(30)
        return got[0] - began


def check_upload(links: Network, device: str, expected_s: Callable[[int], float] | None = None) -> None:
    """An upload of as many bytes at the interface as framing explains, which took as long as it should."""
    for _ in range(TRIES):
        before = links.counters()
        assert before is not None
        seconds = upload(links, device, PAYLOAD_BYTES)
        after = links.counters()
        assert after is not None
        sent = after[device].up - before[device].up
        assert sent > 1.03 * PAYLOAD_BYTES
        assert after[device].down > before[device].down
        is_in_time = expected_s is None or seconds == pytest.approx(expected_s(sent), rel=0.15)
        if sent < 1.12 * PAYLOAD_BYTES and is_in_time:
            return
    pytest.fail(f"{TRIES} uploads took too long or too many bytes, the last one {seconds:.2f} s and {sent} bytes")


def test_links_are_measured_before_use_and_the_record_says_how_they_were_made(tap: Network) -> None:
    found = tap.conditions()
    assert (found["backend"], found["asked"], found["counted_at"]) == ("tap", "tap", "interface")
    assert found["congestion_control"] == {"asked": "cubic", "device": "cubic", "services": "cubic"}
    assert found["offloads"] == {"tso": False, "gso": False, "gro": False}
    assert found["profiles"]["slow"]["devices"] == 1
    slow, lossy = (found["self_test"][name] for name in ("slow", "lossy"))
    assert slow["up"]["kbit_s"] == pytest.approx(500, rel=0.1)
    assert slow["down"]["kbit_s"] == pytest.approx(2000, rel=0.1)
    assert slow["up"]["delay_ms"] == pytest.approx(30.96, abs=4.0)
    assert 0 < lossy["up"]["lost"] < 0.07 * lossy["up"]["packets"]
    assert found["self_test"][""]["up"]["kbit_s"] is None


def test_bytes_at_the_interface_are_payload_and_headers(tap: Network) -> None:
    before = tap.counters()
    check_upload(tap, "device-00", lambda sent: sent * 8 / 500_000 + 0.06)
    after = tap.counters()
    assert before is not None
    assert after is not None
    assert after["device-01"] == before["device-01"]
    packets = tap.conditions()["packets"]
    assert packets["slow"]["up"]["packets"] >= PAYLOAD_BYTES / 1448
    assert packets["slow"]["up"]["lost"] == packets["lossy"]["up"]["packets"] == 0


def test_losses_are_sent_again_and_counted(tap: Network) -> None:
    upload(tap, "device-01", PAYLOAD_BYTES)
    counters, packets = tap.counters(), tap.conditions()["packets"]["lossy"]["up"]
    assert counters is not None
    assert packets["lost"] > 0
    # What a radio sent in vain it has sent all the same.
    assert counters["device-01"].up > 1.05 * PAYLOAD_BYTES


def test_devices_do_not_reach_each_other_nor_the_machine(tap: Network) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        where = outside.getsockname()
        with pytest.raises(OSError, match="refused"):
            call_in_network(tap.place("device-00"), lambda: socket.create_connection(where, timeout=60))
    with pytest.raises(OSError, match="unreachable"):
        call_in_network(tap.place("device-00"), lambda: socket.create_connection(("10.77.1.2", 80), timeout=60))


def test_a_link_that_is_not_what_was_asked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why_no_tap():
        pytest.skip(why_no_tap())
    monkeypatch.setattr(self_test, "_ATTEMPTS", 1)
    wrong_rate_down = r"down: found [\d.]+ kbit/s"
    asked = LinkProfile(up_kbit_s=600, down_kbit_s=2000, delay_ms=20)
    with network(tmp_path, "tap", {"slow": PROFILES["slow"]}) as made:
        place = made._places["probe: slow"]
        for _ in range(TRIES):
            with pytest.raises(RunError) as refused:
                self_test.check([Probe("slow", asked, *place)], made.services_place, made.broker_host)
            text = str(refused.value)
            if not re.search(wrong_rate_down, text):
                break
    assert re.search(r"links\.profiles\.slow up: found (4[5-9]|5[0-3])\d(\.\d)? kbit/s, expected 600", text)
    assert "ms, expected 20.8 within" in text
    assert "down: found a delay of" in text
    assert not re.search(wrong_rate_down, text)  # that rate is right


@pytest.mark.parametrize(("backend", "profiles"), [("htb", RATES), ("netem", PROFILES)])
def test_the_kernels_own_shapers(
    backend: BackendName, profiles: dict[str, LinkProfile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "_ATTEMPTS", TRIES)
    if backend == "netem" and why_no_netem():
        pytest.skip(why_no_netem())
    with network(tmp_path, backend, profiles, is_tested=True) as made:
        found = made.conditions()
        assert found["self_test"]["slow"]["up"]["kbit_s"] == pytest.approx(500, rel=0.1)
        assert found["offloads"] == {"tso": False, "gso": False, "gro": False}
        check_upload(made, "device-00")


PARENT = """
import sys, time
from pathlib import Path
from testbed.links.network import Network
from testbed.links.settings import LinkEmulation
with Network(LinkEmulation(sys.argv[1], self_test=False), {"device-00": ""}, 1, Path(sys.argv[2])) as made:
    print(made.place("device-00"), made.services_place, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("victim", ["run", "keeper"])
def test_after_a_kill_no_namespace_is_left(victim: str, tmp_path: Path) -> None:
    """Nobody is in one and nobody holds one open, which is all that keeps a namespace without a name alive."""
    command = [sys.executable, "-c", PARENT, "htb", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        places = parent.stdout.readline().split()
        inodes = {os.stat(place).st_ino for place in places}
        assert len(inodes) == 2
        assert holders(inodes)
        keeper = int(places[0].split("/")[2])
        if victim == "run":
            parent.kill()
        else:
            os.kill(keeper, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(keeper) or psutil.Process(keeper).status() == psutil.STATUS_ZOMBIE)
        until(lambda: not holders(inodes))
        parent.kill()


def holders(inodes: set[int]) -> list[str]:
    """Processes that are in one of these namespaces or have it open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for entry in (process / "ns" / "net", *_listed(process / "fd")):
            try:
                if str(entry.readlink()).startswith("net:") and entry.stat().st_ino in inodes:
                    found.append(process.name)
            except OSError:
                continue
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_keeper_that_is_gone_is_an_error_of_the_run(tmp_path: Path) -> None:
    with network(tmp_path, "htb", RATES) as made:
        assert made._keeper is not None
        made._keeper.kill()
        made._keeper.wait()
        with pytest.raises(RunError, match="keeper of the links has ended"):
            made._ask("", 5.0)

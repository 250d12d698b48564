"""The links of one run: made before the fleet starts, measured, counted, and gone when the run is over."""

from __future__ import annotations

import json
import os
import platform
import selectors
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from fedpruneshare.errors import RunError
from fedpruneshare.rng import derived_seed
from firmware_configs.brokers import LOOPBACK
from testbed.links import self_test
from testbed.links.backends import Choice, choose
from testbed.links.counters import Counters, WayBytes
from testbed.links.self_test import Probe
from testbed.links.settings import LinkEmulation, LinkProfile
from testbed.links.shaped_link import Shaping
from testbed.orphans import bound_command
from testbed.processes import environment, tail

_BUILD_TIMEOUT_S: Final = 60.0
_ANSWER_TIMEOUT_S: Final = 10.0
_END_TIMEOUT_S: Final = 5.0
#: As `testbed.links.keeper` has them, which only Linux can import.
_SERVICES_ADDRESS: Final = "10.77.0.1"
_DEVICE_INTERFACE: Final = "radio0"
_PROBE: Final = "probe: "
_log = structlog.get_logger()


class Network:
    """Namespaces and links of a fleet; a context manager. With back end `none` or `application` there are none.

    `links` names each device's profile (empty: no limits). Raises on entry `SettingsError` for a back end that cannot
    work here, `RunError` for links that cannot be made or are not what was asked.
    """

    def __init__(self, emulation: LinkEmulation, links: Mapping[str, str], seed: int, logs: Path) -> None:
        self._emulation, self._links, self._seed, self._logs = emulation, dict(links), seed, logs
        self.choice = Choice("none")
        self._keeper: subprocess.Popen[bytes] | None = None
        self._places: dict[str, tuple[str, str]] = {}
        self._counters: Counters | None = None
        self._conditions: dict[str, Any] = {}
        self._pending = b""

    def __enter__(self) -> Network:
        used = {name: self._emulation.profile(name) for name in sorted(set(self._links.values()))}
        self.choice = choose(self._emulation, used.values())
        self._conditions = self._what_is_asked(used)
        if self.choice.has_namespaces:
            try:
                self._make(used)
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ what the fleet asks

    @property
    def broker_host(self) -> str:
        """The address every broker listens on."""
        return _SERVICES_ADDRESS if self._keeper else LOOPBACK

    @property
    def services_place(self) -> str:
        """The namespace of brokers, aggregators and coordinator; empty where they have none."""
        return self._places[""][0] if self._keeper else ""

    def place(self, device: str) -> str:
        """The namespace of a device; empty where it has none."""
        return self._places[device][0] if self._keeper else ""

    def profile(self, device: str) -> LinkProfile:
        """What a device's link is limited to."""
        return self._emulation.profile(self._links[device])

    def shaping(self, device: str) -> bytes:
        """What a device's own process shapes its links as, with back end `application`."""
        return Shaping(self.profile(device), derived_seed(self._seed, "link", device)).to_json()

    def counters(self) -> dict[str, WayBytes] | None:
        """Bytes at each device's interface since the start; None where devices have no interface of their own."""
        return self._counters.read() if self._counters else None

    def conditions(self) -> dict[str, Any]:
        """How the links were made, and what became of packets where this project's emulator carried them."""
        if self._keeper and self.choice.backend == "tap":
            return {**self._conditions, "packets": self._packets()}
        return dict(self._conditions)

    # ------------------------------------------------------------------ making

    def _what_is_asked(self, used: Mapping[str, LinkProfile]) -> dict[str, Any]:
        if self.choice.backend == "none":
            return {"backend": "none"}
        devices = list(self._links.values())
        return {
            "backend": self.choice.backend,
            "asked": self._emulation.backend,
            "why": self.choice.why,
            "kernel": platform.release(),
            "profiles": {
                name or "(no limits)": {**msgspec.to_builtins(profile), "devices": devices.count(name)}
                for name, profile in used.items()
            },
            "counted_at": "interface" if self.choice.has_namespaces else "payload",
        }

    def _make(self, used: Mapping[str, LinkProfile]) -> None:
        orders = {
            device: {
                "profile": msgspec.to_builtins(self.profile(device)),
                "seed": derived_seed(self._seed, "link", device),
            }
            for device in self._links
        }
        for name, profile in used.items():
            seed = derived_seed(self._seed, "probe", name)
            orders[_PROBE + name] = {"profile": msgspec.to_builtins(profile.steady()), "seed": seed}
        ready = self._start(orders)
        self._conditions |= {
            "congestion_control": {"asked": self._emulation.congestion_control},
            "offloads": ready["offloads"],
            "mtu_bytes": 1500,
            "priority": ready["priority"],
        }
        probes = [Probe(name, profile.steady(), *self._places[_PROBE + name]) for name, profile in used.items()]
        self._check(probes)
        self._counters = Counters({device: self.place(device) for device in self._links}, _DEVICE_INTERFACE)

    def _check(self, probes: list[Probe]) -> None:
        asked = self._emulation.congestion_control
        found = self_test.congestion_control(probes[0], self.services_place, _SERVICES_ADDRESS)
        self._conditions["congestion_control"] |= found
        if set(found.values()) != {asked}:
            raise RunError(f"links.congestion_control: found {found}, expected {asked!r} at both ends")
        if self._emulation.self_test:
            self._conditions["self_test"] = self_test.check(probes, self.services_place, _SERVICES_ADDRESS)
            _log.info("links-checked", backend=self.choice.backend, found=self._conditions["self_test"])

    def _start(self, orders: Mapping[str, Any]) -> dict[str, Any]:
        """Start the keeper and let it build; where the namespaces are goes to `_places`."""
        with open(self._logs / "links.log", "ab") as log:
            self._keeper = subprocess.Popen(
                bound_command([sys.executable, "-m", "testbed.links.keeper"]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(os.environ),
                start_new_session=True,
            )
        order = {
            "backend": self.choice.backend,
            "congestion_control": self._emulation.congestion_control,
            "links": orders,
        }
        answer = self._ask(json.dumps(order), _BUILD_TIMEOUT_S)
        if "error" in answer:
            raise RunError(f"links.backend {self.choice.backend}: {answer['error']}, expected links to be made")
        ready: dict[str, Any] = answer["ready"]
        at = f"/proc/{self._keeper.pid}/fd"
        self._places = {name: (f"{at}/{number}", address) for name, (number, address) in ready["links"].items()}
        self._places[""] = (f"{at}/{ready['services']}", _SERVICES_ADDRESS)
        return ready

    def _ask(self, line: str, timeout_s: float) -> dict[str, Any]:
        """Send one line to the keeper and read one. Raises `RunError` if it has ended or does not answer."""
        keeper = self._keeper
        assert keeper is not None and keeper.stdin is not None and keeper.stdout is not None
        try:
            keeper.stdin.write(line.encode() + b"\n")
            keeper.stdin.flush()
        except OSError:
            raise self._gone() from None
        with selectors.DefaultSelector() as selector:
            selector.register(keeper.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(timeout_s):
                    raise RunError(f"the keeper of the links did not answer in {timeout_s:g} s: see links.log")
                data = os.read(keeper.stdout.fileno(), 65_536)
                if not data:
                    raise self._gone()
                self._pending += data
        answer, _, self._pending = self._pending.partition(b"\n")
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def _gone(self) -> RunError:
        return RunError(f"the keeper of the links has ended:\n{tail(self._logs / 'links.log')}")

    def _packets(self) -> dict[str, dict[str, dict[str, int]]]:
        """Profile -> direction -> packets offered, lost by chance, in outages, and at a full queue."""
        sums: dict[str, dict[str, dict[str, int]]] = {}
        for device, ways in self._ask("", _ANSWER_TIMEOUT_S).items():
            if device.startswith(_PROBE):
                continue
            for way, counts in ways.items():
                total = sums.setdefault(self._links[device] or "(no limits)", {}).setdefault(way, {})
                for key, count in counts.items():
                    total[key] = total.get(key, 0) + count
        return sums

    # ------------------------------------------------------------------ ending

    def stop(self) -> None:
        """End the keeper, and with it the links and, once nobody is in them, the namespaces. Idempotent."""
        if self._counters is not None:
            self._counters.close()
            self._counters = None
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        try:
            keeper.communicate(timeout=_END_TIMEOUT_S)
        except (subprocess.TimeoutExpired, OSError, ValueError):
            keeper.kill()
            keeper.wait()

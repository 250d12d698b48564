"""What is read from a tree of a board is exactly what stands there; damage gives a reason, never a wrong number."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.board import clock as board_clock
from edge_client.board import heat as board_heat
from edge_client.board.clock import RELEASED
from edge_client.board.files import MAX_BYTES
from edge_client.device import Health, LinkState, measure

TREES = Path(__file__).parent / "trees"
BOARDS = sorted(path.name for path in TREES.iterdir() if path.is_dir())
FILES = sorted(path.relative_to(TREES) for path in TREES.rglob("*") if path.is_file() and path.name != "README.md")
NOW = RELEASED.timestamp() + 86_400

WLAN0 = LinkState("wlan0", "wifi", True, None)
EXPECTED: dict[str, dict[str, object]] = {
    "raspberry-pi-zero-2-w": {
        "cores": 4,
        "temperature_c": 82.74, "zone": "cpu-thermal", "is_throttled": True, "is_undervolted": False,
        "alarms": ("soft temperature limit", "clock capped since boot", "throttled since boot"),
        "cpu_mhz": 600.0, "cpu_max_mhz": 1000.0, "free_mib": 282, "total_mib": 427, "load_1min": 0.42,
        "clock": None, "links": (WLAN0,),
    },
    "raspberry-pi-4b": {
        "cores": 4,
        "temperature_c": 48.199, "zone": "cpu-thermal", "is_throttled": False, "is_undervolted": False,
        "alarms": ("undervoltage since boot", "throttled since boot"), "cpu_mhz": 1500.0, "cpu_max_mhz": 1800.0,
        "free_mib": 3332, "total_mib": 3795, "load_1min": 0.15,
        "clock": "ok", "links": (LinkState("eth0", "ethernet", False, None), WLAN0),
    },
    "raspberry-pi-5": {
        "cores": 4,
        "temperature_c": 55.15, "zone": "cpu-thermal", "is_throttled": False, "is_undervolted": False, "alarms": (),
        "cpu_mhz": 2400.0, "cpu_max_mhz": 2400.0, "load_1min": 1.02, "clock": "ok",
        "free_mib": (536870912 - (209715200 - 31457280)) >> 20, "total_mib": 512,
        "links": (LinkState("eth0", "ethernet", True, 1000), LinkState("wlan0", "wifi", False, None)),
    },
    "jetson-nano": {
        "cores": 2,
        "temperature_c": 34.0, "zone": "CPU-therm", "is_throttled": False, "is_undervolted": None, "alarms": (),
        "cpu_mhz": 918.0, "cpu_max_mhz": 1479.0, "load_1min": 0.61, "clock": None,
        "free_mib": (1073741824 - (314572800 - 52428800)) >> 20, "total_mib": 1024,
        "links": (LinkState("docker0", "other", False, None), LinkState("eth0", "ethernet", True, 100)),
    },
    "jetson-orin-nano": {
        "cores": 6,
        "temperature_c": 51.718, "zone": "cpu-thermal", "is_throttled": False, "is_undervolted": None, "alarms": (),
        "cpu_mhz": 1510.4, "cpu_max_mhz": 1728.0, "free_mib": 5979, "total_mib": 7620, "load_1min": 2.31,
        "clock": "ok",
        "links": (
            LinkState("can0", "other", False, None), LinkState("enP8p1s0", "ethernet", True, 1000),
            LinkState("wlP1p1s0", "wifi", False, None),
        ),
    },
    "generic-x86-64": {
        "cores": 4,
        "temperature_c": 61.0, "zone": "x86_pkg_temp", "is_throttled": False, "is_undervolted": None, "alarms": (),
        "cpu_mhz": 2800.0, "cpu_max_mhz": 4200.0, "free_mib": 9645, "total_mib": 15880, "load_1min": 0.98,
        "battery_percent": 83.0, "battery_status": "Discharging", "on_mains": False, "clock": "ok",
        "links": (
            LinkState("docker0", "other", True, None), LinkState("enp0s31f6", "ethernet", True, 1000),
            LinkState("wlp2s0", "wifi", False, None),
        ),
    },
}  # fmt: skip


def looked_at(root: Path) -> Health:
    return measure(root, arch="x86_64" if "x86" in str(root) else "aarch64", unix_s=NOW)


def copied(tmp_path: Path, board: str) -> Path:
    root = tmp_path / board
    shutil.copytree(TREES / board, root)
    return root


def put(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def reasons(health: Health, field: str) -> list[str]:
    return [reason for reason in health.unread if reason.startswith(f"{field}: ")]


# --------------------------------------------------------------------------- healthy trees


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_is_read_exactly(board: str) -> None:
    health = looked_at(TREES / board)
    absent = {"battery_percent": None, "battery_status": None, "on_mains": None}
    found = {name: getattr(health, name) for name in {**absent, **EXPECTED[board]}}
    assert found == {**absent, **EXPECTED[board]}
    assert health.board == board


@pytest.mark.parametrize("board", BOARDS)
def test_what_a_tree_does_not_tell_has_a_reason_and_nothing_else_has(board: str) -> None:
    health = looked_at(TREES / board)
    silent = {"temperature_c", "is_throttled", "free_mib", "load_1min", "battery_percent", "on_mains", "clock"}
    assert {reason.partition(":")[0] for reason in health.unread} == {
        name for name in silent if getattr(health, name) is None
    }


def test_a_root_may_be_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TREES)
    assert looked_at(Path("jetson-nano")) == looked_at(TREES / "jetson-nano")


def test_an_empty_tree_gives_reasons_only(tmp_path: Path) -> None:
    health = measure(tmp_path, arch="riscv64", unix_s=NOW)
    values = {field.name: getattr(health, field.name) for field in fields(health) if field.name != "unread"}
    assert set(values.values()) == {None, "", ()}
    assert len(health.unread) == 8 and reasons(health, "board")


def test_a_root_that_is_not_there_gives_reasons_only(tmp_path: Path) -> None:
    assert measure(tmp_path / "nowhere", arch="aarch64", unix_s=NOW).temperature_c is None


# --------------------------------------------------------------------------- damage


def agrees(health: Health, healthy: Health, name: str) -> bool:
    return getattr(health, name) in (None, getattr(healthy, name))


#: Files whose damage leaves another sensor of the same thing, or another way to tell the board.
STRICT = ("is_throttled", "is_undervolted", "free_mib", "load_1min", "battery_percent", "battery_status", "on_mains")


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"n/a\n", b"9" * 40])
@pytest.mark.parametrize("board", BOARDS)
def test_a_damaged_file_gives_none_and_a_reason_never_another_number(tmp_path: Path, board: str, damage: bytes) -> None:
    root = copied(tmp_path, board)
    healthy = looked_at(root)
    for relative in (path.relative_to(board) for path in FILES if path.parts[0] == board):
        whole = (root / relative).read_bytes()
        (root / relative).write_bytes(damage)
        health = looked_at(root)
        (root / relative).write_bytes(whole)
        wrong = [name for name in STRICT if not agrees(health, healthy, name)]
        assert not wrong, f"{relative}: {[getattr(health, name) for name in wrong]}"
        assert health.temperature_c in (None, healthy.temperature_c) or health.zone != healthy.zone
        lost = [name for name in STRICT if getattr(health, name) is None and getattr(healthy, name) is not None]
        assert all(reasons(health, name) for name in lost if name not in ("is_undervolted", "battery_status"))


@pytest.mark.parametrize(
    ("board", "name", "field"),
    [
        ("raspberry-pi-4b", "sys/class/thermal/thermal_zone0/temp", "temperature_c"),
        ("raspberry-pi-4b", "sys/devices/platform/soc/soc:firmware/get_throttled", "is_throttled"),
        ("raspberry-pi-4b", "proc/meminfo", "free_mib"),
        ("raspberry-pi-5", "sys/fs/cgroup/system.slice/fedpruneshare-device.service/memory.max", "free_mib"),
        ("raspberry-pi-5", "sys/fs/cgroup/system.slice/fedpruneshare-device.service/memory.current", "free_mib"),
        ("jetson-orin-nano", "sys/class/thermal/cooling_device1/cur_state", "is_throttled"),
        ("generic-x86-64", "sys/class/power_supply/BAT0/capacity", "battery_percent"),
        ("generic-x86-64", "proc/loadavg", "load_1min"),
    ],
)
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: str, name: str, field: str
) -> None:
    root = copied(tmp_path, board)
    opened = Path.open

    def refuse(self: Path, *args: object, **options: object) -> object:
        if self == root / name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    health = looked_at(root)
    assert getattr(health, field) is None
    assert reasons(health, field) == [f"{field}: {name}: permission denied"]


def test_a_folder_in_place_of_a_file_is_a_reason(tmp_path: Path) -> None:
    put(tmp_path, "proc/loadavg/odd", "x")
    assert reasons(looked_at(tmp_path), "load_1min") == ["load_1min: proc/loadavg: is a directory"]


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    put(tmp_path, "proc/loadavg", "0.10 0.10 0.10 1/2 3" + " " * MAX_BYTES)
    health = looked_at(tmp_path)
    assert health.load_1min is None
    assert "more than 65536 bytes" in reasons(health, "load_1min")[0]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(TREES, tmp_path_factory.mktemp("fuzzed") / "trees"))


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, len(FILES) - 1), content=st.binary(max_size=200))
def test_whatever_a_file_holds_nothing_is_raised_and_numbers_stay_believable(
    fuzzed: Path, index: int, content: bytes
) -> None:
    path = fuzzed / FILES[index]
    whole = path.read_bytes()
    path.write_bytes(content)
    health = looked_at(fuzzed / FILES[index].parts[0])
    path.write_bytes(whole)
    assert health.temperature_c is None or -40 <= health.temperature_c <= 150
    assert health.battery_percent is None or 0 <= health.battery_percent <= 100
    assert health.free_mib is None or health.total_mib is None or 0 <= health.free_mib <= health.total_mib
    assert health.cpu_mhz is None or health.cpu_mhz > 0


# --------------------------------------------------------------------------- heat and throttling


@pytest.mark.parametrize("reading", ["-256000", "45", "0", "151000", "48.2"])
def test_a_reading_that_is_no_temperature_is_refused(tmp_path: Path, reading: str) -> None:
    put(tmp_path, "sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", reading)
    health = looked_at(tmp_path)
    assert health.temperature_c is None
    assert len(reasons(health, "temperature_c")) == 1 and "thermal_zone0/temp" in reasons(health, "temperature_c")[0]


def test_the_hottest_of_two_packages_counts(tmp_path: Path) -> None:
    for number, reading in enumerate((51_000, 77_500)):
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/type", "x86_pkg_temp")
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/temp", reading)
    assert looked_at(tmp_path).temperature_c == 77.5


def test_an_unknown_board_is_read_by_a_zone_that_names_the_processor(tmp_path: Path) -> None:
    for number, (kind, reading) in enumerate({"gpu-thermal": 99_000, "bigcore0-cpu": 63_000}.items()):
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/type", kind)
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/temp", reading)
    health = looked_at(tmp_path)
    assert (health.temperature_c, health.zone) == (63.0, "bigcore0-cpu")


def test_a_processor_without_a_zone_has_a_sensor(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/thermal/thermal_zone0/type", "acpitz")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", 27_800)
    put(tmp_path, "sys/class/hwmon/hwmon2/name", "k10temp")
    put(tmp_path, "sys/class/hwmon/hwmon2/temp1_input", 58_250)
    assert (looked_at(tmp_path).temperature_c, looked_at(tmp_path).zone) == (58.25, "k10temp")


@pytest.mark.parametrize(
    ("bits", "throttled", "undervolted", "alarms"),
    [
        ("0", False, False, ()),
        ("1", False, True, ("undervoltage",)),
        ("2", True, False, ("clock capped",)),
        ("4", True, False, ("throttled",)),
        ("8", True, False, ("soft temperature limit",)),
        ("0x50005", True, True, ("undervoltage", "throttled")),
        ("f0000", False, False,
         ("undervoltage since boot", "clock capped since boot", "throttled since boot",
          "soft temperature limit since boot")),
    ],
)  # fmt: skip
def test_the_firmwares_bits(
    tmp_path: Path, bits: str, throttled: bool, undervolted: bool, alarms: tuple[str, ...]
) -> None:
    put(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", bits)
    health = looked_at(tmp_path)
    assert (health.is_throttled, health.is_undervolted, health.alarms) == (throttled, undervolted, alarms)


def test_the_kernels_voltage_alarm_counts_beside_the_firmwares_bits(tmp_path: Path) -> None:
    root = copied(tmp_path, "raspberry-pi-4b")
    put(root, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", 1)
    health = looked_at(root)
    assert health.is_undervolted is True
    assert health.alarms == ("undervoltage", "throttled since boot")
    (root / "sys/devices/platform/soc/soc:firmware/get_throttled").unlink()
    assert looked_at(root).is_undervolted is True


@pytest.mark.parametrize(("answer", "throttled"), [("throttled=0x4", True), ("throttled=0x50000", False), ("", None)])
def test_a_kernel_that_is_not_told_is_not_believed_on_a_raspberry_pi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, throttled: bool | None
) -> None:
    root = copied(tmp_path, "raspberry-pi-5")
    (root / "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled").unlink()
    health = looked_at(root)  # cpufreq shows full speed, whatever the firmware does
    assert health.is_throttled is None
    assert "no get_throttled" in reasons(health, "is_throttled")[0]
    monkeypatch.setattr(board_heat, "_vcgencmd", lambda: answer)
    monkeypatch.setattr(board_heat, "board_model", lambda root: "Raspberry Pi 5 Model B Rev 1.0")
    assert measure(Path("/"), unix_s=NOW).is_throttled is throttled


def test_a_missing_vcgencmd_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "vcgencmd" in board_heat._vcgencmd()


@pytest.mark.parametrize("device", [1, 2, 4, 5])
def test_a_cooling_device_that_is_on_throttles_and_a_fan_does_not(tmp_path: Path, device: int) -> None:
    root = copied(tmp_path, "jetson-orin-nano")
    put(root, f"sys/class/thermal/cooling_device{device}/cur_state", 1)
    health = looked_at(root)
    kind = (root / f"sys/class/thermal/cooling_device{device}/type").read_text().strip()
    assert (health.is_throttled, health.alarms) == (True, (kind,))
    put(root, f"sys/class/thermal/cooling_device{device}/cur_state", 0)
    put(root, "sys/class/thermal/cooling_device0/cur_state", 4)  # the fan at full speed
    assert looked_at(root).is_throttled is False


def test_without_anything_better_a_lower_limit_of_the_clock_counts(tmp_path: Path) -> None:
    put(tmp_path, "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", 1_200_000)
    put(tmp_path, "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", 1_400_000)
    assert (looked_at(tmp_path).is_throttled, looked_at(tmp_path).alarms) == (True, ("clock capped",))
    put(tmp_path, "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", 1_400_000)
    assert looked_at(tmp_path).is_throttled is False


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-5", 6), ("0,4-5", 3), ("3-0", None), ("all", None)])
def test_the_cores_that_are_on(tmp_path: Path, text: str, count: int | None) -> None:
    put(tmp_path, "sys/devices/system/cpu/online", text)
    health = looked_at(tmp_path)
    assert (health.cores, bool(reasons(health, "cores"))) == (count, count is None)


# --------------------------------------------------------------------------- memory


SERVICE = "sys/fs/cgroup/system.slice/fedpruneshare-device.service"


def test_the_limit_of_an_outer_group_counts_too(tmp_path: Path) -> None:
    root = copied(tmp_path, "raspberry-pi-5")
    put(root, "sys/fs/cgroup/system.slice/memory.max", 480 << 20)
    put(root, "sys/fs/cgroup/system.slice/memory.current", 400 << 20)
    assert (looked_at(root).free_mib, looked_at(root).total_mib) == (80, 480)


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    root = copied(tmp_path, "raspberry-pi-5")
    put(root, f"{SERVICE}/memory.current", 600 << 20)
    assert looked_at(root).free_mib == 0


def test_a_limit_above_what_the_system_has_changes_nothing(tmp_path: Path) -> None:
    root = copied(tmp_path, "raspberry-pi-5")
    put(root, f"{SERVICE}/memory.max", 1 << 40)
    assert (looked_at(root).free_mib, looked_at(root).total_mib) == (7_123_456 >> 10, 8_254_016 >> 10)


def test_the_group_of_a_container_is_found_at_the_mounts_root(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal:        4000000 kB\nMemAvailable:    3000000 kB")
    put(tmp_path, "proc/self/cgroup", "0::/../../kubepods/burstable")
    put(tmp_path, "sys/fs/cgroup/memory.max", 256 << 20)
    put(tmp_path, "sys/fs/cgroup/memory.current", 56 << 20)
    assert looked_at(tmp_path).free_mib == 200


def test_a_group_whose_use_is_missing_gives_no_figure(tmp_path: Path) -> None:
    root = copied(tmp_path, "raspberry-pi-5")
    (root / f"{SERVICE}/memory.current").unlink()
    health = looked_at(root)
    assert health.free_mib is None
    assert "memory.current: absent" in reasons(health, "free_mib")[0]


def test_more_available_than_there_is_is_not_believed(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal:        400000 kB\nMemAvailable:    3000000 kB")
    assert looked_at(tmp_path).free_mib is None


def test_a_kernel_too_old_to_tell_is_named(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal:        400000 kB\nMemFree:    300000 kB")
    assert "MemAvailable is none" in reasons(looked_at(tmp_path), "free_mib")[0]


# --------------------------------------------------------------------------- supply


def battery(root: Path, name: str, capacity: int, status: str, full: int | None = None) -> None:
    folder = f"sys/class/power_supply/{name}"
    put(root, f"{folder}/type", "Battery")
    put(root, f"{folder}/capacity", capacity)
    put(root, f"{folder}/status", status)
    if full is not None:
        put(root, f"{folder}/energy_full", full)


def charger(root: Path, name: str, kind: str, online: int) -> None:
    put(root, f"sys/class/power_supply/{name}/type", kind)
    put(root, f"sys/class/power_supply/{name}/online", online)


def test_two_batteries_count_by_their_size(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", 0, "Not charging", 20_000_000)
    battery(tmp_path, "BAT1", 90, "Discharging", 60_000_000)
    health = looked_at(tmp_path)
    assert (health.battery_percent, health.battery_status, health.on_mains) == (67.5, "Discharging", False)


def test_of_batteries_without_a_size_the_emptiest_counts(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", 40, "Full")
    battery(tmp_path, "BAT1", 90, "Full")
    assert looked_at(tmp_path).battery_percent == 40


@pytest.mark.parametrize(
    ("status", "online", "mains"),
    [("Charging", None, True), ("Discharging", None, False), ("Full", 1, True), ("Full", 0, False),
     ("Full", None, None), ("Unknown", None, None), ("Discharging", 1, True), ("Charging", 0, True)],
)  # fmt: skip
def test_outside_power(tmp_path: Path, status: str, online: int | None, mains: bool | None) -> None:
    battery(tmp_path, "BAT0", 50, status)
    if online is not None:
        charger(tmp_path, "usb", "USB_PD", online)
    assert looked_at(tmp_path).on_mains is mains


def test_a_charger_without_a_battery_is_outside_power(tmp_path: Path) -> None:
    charger(tmp_path, "ADP1", "Mains", 1)
    assert (looked_at(tmp_path).on_mains, looked_at(tmp_path).battery_percent) == (True, None)


def test_a_battery_that_has_been_taken_out_is_none(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", 0, "Unknown")
    put(tmp_path, "sys/class/power_supply/BAT0/present", 0)
    assert looked_at(tmp_path).battery_percent is None


# --------------------------------------------------------------------------- clock


@pytest.mark.parametrize("board", ["raspberry-pi-4b", "raspberry-pi-zero-2-w"])
def test_a_clock_before_the_release_has_not_been_set(board: str) -> None:
    assert measure(TREES / board, unix_s=RELEASED.timestamp() - 1).clock == "unset"
    assert measure(TREES / board, unix_s=0.0).clock == "unset"


@pytest.mark.parametrize(("state", "found"), [(0, "ok"), (1, "ok"), (5, "unsynchronised"), (-1, None)])
def test_the_kernel_is_asked_on_the_running_system_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: int, found: str | None
) -> None:
    class Libc:
        def adjtimex(self, buffer: object) -> int:
            return state

    monkeypatch.setattr(board_clock.ctypes, "CDLL", lambda name: Libc())
    monkeypatch.setattr(board_clock.os.path, "exists", lambda path: False)
    assert measure(Path("/"), unix_s=NOW).clock == found
    assert measure(tmp_path, unix_s=NOW).clock is None


def test_this_machine_can_be_looked_at() -> None:
    health = measure(Path("/"))
    assert health.board and health.free_mib and health.load_1min is not None

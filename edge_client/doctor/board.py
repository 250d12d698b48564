"""The doctor on the board: which it is, memory, heat, supply, clock, battery, power sensor, load, network."""

from __future__ import annotations

from typing import Final

from edge_client.doctor.findings import Check, Finding, Visit
from edge_client.energy.meters import find_meter
from fedpruneshare.errors import MeterError

#: Peak resident memory of a device process that trains LeNet-5 (docs/operations.md has the measurements).
NEEDED_MIB: Final = 270

BOARD: Final = Check("board", "its profile stands in for what has not been measured: watts, speed, temperature limit")
MEMORY: Final = Check(
    "memory", f"a device process takes about {NEEDED_MIB} MiB for a small model, and is killed without"
)
HEAT: Final = Check("heat", "a chip that is too hot slows down: rounds take longer and deadlines are missed")
SUPPLY: Final = Check("supply", "a weak power supply slows the processor down and destroys files on the card")
CLOCK: Final = Check("clock", "logs and records carry its time; rounds themselves measure durations only")
BATTERY: Final = Check("battery", "below its reserve a device takes part with the smallest model, or not at all")
SENSOR: Final = Check("sensor", "without a power sensor joules are modelled, not measured")
LOAD: Final = Check("load", "other work on the board makes training slower than calibrated")
NETWORK: Final = Check("network", "a device without a network takes part in nothing")

_RAPL_RULE: Final = (
    'echo \'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"\''
    " | sudo tee /etc/udev/rules.d/70-energy.rules, then reboot"
)


def board(visit: Visit) -> list[Finding]:
    """All findings on the board, from what `edge_client.device.measure` read."""
    return [
        _board(visit),
        _memory(visit),
        _heat(visit),
        _supply(visit),
        _clock(visit),
        _battery(visit),
        _sensor(visit),
        _load(visit),
        _network(visit),
    ]


def _reason(visit: Visit, field: str) -> str:
    """Why `field` could not be read."""
    return next((text.partition(": ")[2] for text in visit.health.unread if text.startswith(f"{field}: ")), "not known")


def _board(visit: Visit) -> Finding:
    if visit.profile_error:
        return BOARD.failed(visit.profile_error, "mend `board` in the settings, or leave it out")
    if visit.profile is None:
        return BOARD.failed(_reason(visit, "board"), "install a 64-bit system")
    model = visit.health.model
    found = f"{visit.profile.name} ({model or 'no device tree'})"
    if visit.settings and visit.settings.board:
        return BOARD.ok(f"{found}, as `board` in the settings says")
    if model and not visit.profile.match:
        return BOARD.warning(f"{found}: no profile of its own", "write one (docs/boards.md), then device calibrate")
    return BOARD.ok(found)


def _memory(visit: Visit) -> Finding:
    health, profile = visit.health, visit.profile
    if health.free_mib is None:
        return MEMORY.skipped(_reason(visit, "free_mib"))
    found = f"{health.free_mib} MiB free of {health.total_mib or 'an unknown number of'} MiB"
    limit = visit.settings.limits.memory_mib if visit.settings else None
    if limit is not None and limit < NEEDED_MIB:
        return MEMORY.warning(f"{found}, limits.memory_mib = {limit}", f"set limits.memory_mib to {NEEDED_MIB} or more")
    reserve = profile.memory_reserve_mib if profile else 0
    stop = "sudo systemctl disable --now what is not needed, or take a board with more"
    if health.free_mib < NEEDED_MIB:
        return MEMORY.failed(f"{found}, {NEEDED_MIB} needed", stop)
    if health.free_mib < NEEDED_MIB + reserve:
        return MEMORY.warning(f"{found}, {NEEDED_MIB} needed and {reserve} kept for the system", stop)
    return MEMORY.ok(found)


def _heat(visit: Visit) -> Finding:
    health, profile = visit.health, visit.profile
    since = [alarm for alarm in health.alarms if "since boot" in alarm and "voltage" not in alarm]
    now = [alarm for alarm in health.alarms if "since boot" not in alarm and "voltage" not in alarm]
    parts = [
        f"{health.temperature_c:.1f} C ({health.zone})" if health.temperature_c is not None else "temperature unknown",
        ", ".join(now) or {True: "throttled", False: "not throttled", None: "throttling unknown"}[health.is_throttled],
        *since,
    ]
    found = "; ".join(parts)
    cool = "give it a heat sink or a fan, or set limits.temperature_c lower"
    if health.temperature_c is None and health.is_throttled is None:
        return HEAT.skipped(_reason(visit, "temperature_c"))
    if health.is_throttled:
        return HEAT.warning(found, cool)
    if profile is not None and health.temperature_c is not None and health.temperature_c >= profile.thermal.limit_c:
        return HEAT.warning(f"{found}; the limit is {profile.thermal.limit_c:g} C", cool)
    if since and "undervoltage since boot" in health.alarms:
        return HEAT.warning(f"{found}; the weak supply may have been the cause", "mend the supply first")
    return HEAT.warning(found, cool) if since else HEAT.ok(found)


def _supply(visit: Visit) -> Finding:
    health = visit.health
    stronger = "use the power supply made for the board, and a short, thick cable"
    if health.is_undervolted is None:
        return SUPPLY.skipped("this board does not tell its supply's voltage")
    if health.is_undervolted:
        return SUPPLY.failed("undervoltage now", stronger)
    if "undervoltage since boot" in health.alarms:
        return SUPPLY.warning("undervoltage since boot", stronger)
    return SUPPLY.ok("no undervoltage since boot")


def _clock(visit: Visit) -> Finding:
    synchronise = "sudo timedatectl set-ntp true"
    state = visit.health.clock
    if state is None:
        return CLOCK.skipped(_reason(visit, "clock"))
    if state == "unset":
        return CLOCK.warning("shows a time before this software was released", synchronise)
    if state == "unsynchronised":
        return CLOCK.warning("set, but kept in step with no time source", synchronise)
    return CLOCK.ok("synchronised")


def _battery(visit: Visit) -> Finding:
    health = visit.health
    if health.battery_percent is None:
        return BATTERY.skipped(_reason(visit, "battery_percent"))
    reserve = visit.settings.limits.battery_reserve_percent if visit.settings else 20.0
    found = f"{health.battery_percent:.0f} %, {health.battery_status or 'status unknown'}"
    if not health.on_mains and health.battery_percent <= reserve:
        return BATTERY.warning(f"{found}; {reserve:g} % are its reserve", "charge it, or lower the reserve")
    return BATTERY.ok(found)


def _sensor(visit: Visit) -> Finding:
    kind = visit.profile.sensor if visit.profile else "none"
    if kind == "rpi5-pmic" and not visit.is_here:
        return SENSOR.skipped("the PMIC answers a command, which a copied tree cannot")
    try:
        source = find_meter(visit.root).source
    except MeterError as error:
        found = str(error)
        if "ermission denied" in found:
            return SENSOR.warning(found, _RAPL_RULE if "rapl" in found else "sudo usermod -aG video,i2c $USER")
        if kind == "none":
            return SENSOR.ok("this board has none; joules are modelled, or read from an external meter")
        return SENSOR.warning(found, "read an external meter: device power --csv FILE")
    return SENSOR.ok(f"{source.sensor}: {source.covers}")


def _load(visit: Visit) -> Finding:
    load, profile = visit.health.load_1min, visit.profile
    if load is None:
        return LOAD.skipped(_reason(visit, "load_1min"))
    cores = visit.health.cores or (profile.processor.cores if profile else 1)
    found = f"{load:.2f} on {cores} cores"
    if load > cores:
        return LOAD.warning(found, "see what runs: top -o %CPU")
    return LOAD.ok(found)


def _network(visit: Visit) -> Finding:
    links = visit.health.links
    if not links:
        return NETWORK.skipped("no interface to be seen")
    up = [link for link in links if link.is_up is not False]
    if not up:
        found = ", ".join(f"{link.name} ({link.kind}) is down" for link in links)
        return NETWORK.failed(found, "sudo nmcli device connect NAME, or plug the cable in")
    shown = (f"{link.name} ({link.kind}{_speed(link.speed_mbit_s)})" for link in up)
    return NETWORK.ok(", ".join(shown))


def _speed(speed_mbit_s: int | None) -> str:
    return f", {speed_mbit_s} Mbit/s" if speed_mbit_s else ""

"""Scenarios: what a fleet on one machine runs, as one TOML file whose keys `--set` reaches.

The tables of a round (`rounds`, `sharing`, `pruning`, `coding`, `training`) are the coordinator's own. All mistakes
of a file are reported at once, those between tables too.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, inspect

from coordinator.settings import (
    AveragingSettings,
    CodingSettings,
    PruningSettings,
    RoundSettings,
    SharingSettings,
    TrainingSettings,
    word_faults,
)
from edge_client.board.profiles import board_names
from edge_client.settings import SplitKind, SplitSettings
from fedpruneshare.errors import Fault, SettingsError
from fedpruneshare.messages import MAX_AGGREGATORS, MAX_DEVICES
from fedpruneshare.settings import load_settings
from fedpruneshare.settings_words import describe, sole_member
from firmware_configs.brokers import LOOPBACK
from testbed.boards.settings import BoardEmulation, board_faults
from testbed.engines import SYNTHETIC_TASK, EngineName
from testbed.engines.ray_settings import RAY, RaySettings, ray_faults
from testbed.events.settings import Churn, FleetEvent, event_faults
from testbed.links.settings import LinkEmulation, link_faults

SCENARIOS: Final = Path(__file__).parent / "scenarios"
#: Tasks that ship with the project, by name (`edge_client.tasks.BUILT_IN`, which only torch can import).
SHIPPED_TASKS: Final = ("cifar10", "fashion-mnist", "hapt", "mnist")
BrokerKind = Literal["embedded", "mosquitto"]
DataChoice = Literal["any", "full", "fixture"]
Seed = Annotated[int, Meta(ge=0, lt=2**31)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all tables."""


class ScenarioTask(_Table, frozen=True):
    """What is trained: a shipped task, a dotted module or a `.py` file.

    `data_dir` is the folder of the full data sets (empty: $FEDPRUNESHARE_DATA, else `data/`). `data` says which data
    must be used: `full`, `fixture`, or `any` (the full data where they are, else the fixture). `split` says how they
    are dealt to devices: in the task's own way (empty), `dirichlet` with `alpha`, `iid`, `shards` of the data sorted by
    class, `shards` to each device, or whole people (`person`).
    """

    name: str = "hapt"
    data_dir: str = ""
    data: DataChoice = "any"
    split: SplitKind = ""
    alpha: Annotated[float, Meta(gt=0, le=1e6)] = SplitSettings().alpha
    shards: Annotated[int, Meta(ge=1, le=1000)] = SplitSettings().shards


class DeviceGroup(_Table, frozen=True):
    """Devices alike. `share` is the group's part of the fleet in proportion to the other groups' shares.

    `board`: the profile of the board they stand for (docs/boards.md). Their joules are then those of its model; without
    one there are none, for a sensor of this machine would count all of its devices at once.

    `link`: the profile of `links.profiles` that lies between them and the brokers; empty for one without limits.

    `power`: a `battery` holds `battery_wh` when full and `battery_percent` of that at the start. It loses what the
    model says, and what is above the device's reserve is spread over `horizon_rounds` rounds (docs/emulated-boards.md).
    """

    share: Annotated[float, Meta(gt=0)] = 1.0
    rung_max: Annotated[int, Meta(ge=0, le=15)] = 15
    board: str = ""
    link: str = ""
    power: Literal["mains", "battery"] = "mains"
    battery_wh: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    battery_percent: Annotated[float, Meta(gt=0, le=100)] = 100.0
    horizon_rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = 10


class FleetSettings(_Table, frozen=True):
    """How many devices, and the groups they fall in (none: all devices may train every rung).

    `prg`: keystream algorithm of the devices' seed shares; `auto`: the one this machine is quicker at, for all of them.
    `adaptive`: devices take the rung that what they measure allows; if not, the highest that plan and group allow.
    `engine`: what runs the devices (docs/large-fleets.md). Synthetic ones upload random words for a model of
    `synthetic_values` weights, `synthetic_per_process` of them in a process.
    """

    devices: Annotated[int, Meta(ge=1, le=MAX_DEVICES)] = 24
    engine: EngineName = "process"
    ray: RaySettings = RaySettings()
    synthetic_values: Annotated[int, Meta(ge=100, le=10_000_000)] = 10_000
    synthetic_per_process: Annotated[int, Meta(ge=1, le=MAX_DEVICES)] = 1000
    prg: Literal["auto", "chacha20", "aes-256-ctr"] = "auto"
    adaptive: bool = True
    groups: Annotated[tuple[DeviceGroup, ...], Meta(max_length=16)] = ()

    def members(self) -> tuple[DeviceGroup, ...]:
        """The group of each device, group after group; parts of a device are given by largest remainder."""
        groups = self.groups or (DeviceGroup(),)
        total = sum(group.share for group in groups)
        exact = [self.devices * group.share / total for group in groups]
        counts = [int(part) for part in exact]
        by_remainder = sorted(range(len(groups)), key=lambda index: counts[index] - exact[index])
        for index in by_remainder[: self.devices - sum(counts)]:
            counts[index] += 1
        return tuple(group for group, count in zip(groups, counts, strict=True) for _ in range(count))

    def member_groups(self) -> tuple[int, ...]:
        """The number of each device's group."""
        return tuple(next((n for n, one in enumerate(self.groups) if one is mine), 0) for mine in self.members())


class AggregatorFleet(_Table, frozen=True):
    """How many aggregators, each with a broker of its own."""

    count: Annotated[int, Meta(ge=1, le=MAX_AGGREGATORS)] = 3


class BrokerSettings(_Table, frozen=True):
    """Which broker program every party of the fleet uses, and where it listens.

    Devices on other machines need a `host` that they can reach (docs/ray.md). With `tls` the brokers run as they ship:
    mutual TLS 1.3 with throw-away certificates, access lists, limits (Mosquitto only).
    """

    kind: BrokerKind = "embedded"
    host: str = LOOPBACK
    tls: bool = False


class Scenario(_Table, frozen=True):
    """The whole file. With several `seeds` the fleet runs once for each, one after the other."""

    name: Annotated[str, Meta(max_length=80)] = ""
    description: str = ""
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=100)] = (1,)
    max_failed_rounds: Annotated[int, Meta(ge=0)] = 0
    task: ScenarioTask = ScenarioTask()
    fleet: FleetSettings = FleetSettings()
    aggregators: AggregatorFleet = AggregatorFleet()
    brokers: BrokerSettings = BrokerSettings()
    rounds: RoundSettings = RoundSettings()
    sharing: SharingSettings = SharingSettings()
    pruning: PruningSettings = PruningSettings()
    coding: CodingSettings = CodingSettings()
    training: TrainingSettings = TrainingSettings()
    averaging: AveragingSettings = AveragingSettings()
    links: LinkEmulation = LinkEmulation()
    boards: BoardEmulation = BoardEmulation()
    churn: Churn = Churn()
    events: Annotated[tuple[FleetEvent, ...], Meta(max_length=1000)] = ()

    def faults(self, path: str) -> Iterator[Fault]:
        """Checks across tables."""
        yield from _task_faults(self)
        yield from _split_faults(self.task)
        yield from _count_faults(self)
        yield from word_faults(self.sharing, self.coding, self.rounds.cohort)
        yield from _group_faults(self)
        yield from _single_place_faults(self)
        yield from _tls_faults(self)
        yield from link_faults(self.links, [group.link for group in self.fleet.groups], self.fleet.engine)
        yield from board_faults(self)
        yield from ray_faults(self)
        yield from event_faults(self)


def _task_faults(scenario: Scenario) -> Iterator[Fault]:
    task, is_synthetic = scenario.task, scenario.fleet.engine == "synthetic"
    if is_synthetic != (task.name == SYNTHETIC_TASK):
        expected = SYNTHETIC_TASK if is_synthetic else f"a task to train, or {SYNTHETIC_TASK} with that engine"
        yield Fault("task.name", f"{task.name!r} with fleet.engine = {scenario.fleet.engine!r}", expected)
        return
    if is_synthetic or "." in task.name or task.name in SHIPPED_TASKS:
        return
    near = difflib.get_close_matches(task.name, SHIPPED_TASKS, n=1)
    expected = f"one of {', '.join(SHIPPED_TASKS)}, a dotted module or a .py file"
    yield Fault("task.name", f"the text {task.name!r}", expected, f"did you mean {near[0]!r}?" if near else "")


def _split_faults(task: ScenarioTask) -> Iterator[Fault]:
    if task.split == "person" and task.name in SHIPPED_TASKS and task.name != "hapt":
        yield Fault("task.split", f"person with task {task.name!r}", "dirichlet, iid or shards", "hapt has people")
    for key, kind, found in (("alpha", "dirichlet", task.alpha), ("shards", "shards", task.shards)):
        if task.split != kind and found != getattr(SplitSettings(), key):
            yield Fault(f"task.{key}", str(found), f"no such key without task.split = {kind!r}")


def _count_faults(scenario: Scenario) -> Iterator[Fault]:
    n, k, devices, rounds = (
        scenario.aggregators.count,
        scenario.sharing.threshold,
        scenario.fleet.devices,
        scenario.rounds,
    )
    if k > n:
        yield Fault("sharing.threshold", str(k), f"at most aggregators.count = {n}")
    if scenario.sharing.reveal == "plain":
        if n != 1:
            yield Fault("aggregators.count", str(n), "1 with sharing.reveal = plain")
    elif n < 2:
        yield Fault("aggregators.count", str(n), "at least 2 unless sharing.reveal = plain")
    if 2 * k <= n:
        yield Fault(
            "sharing.threshold",
            str(k),
            f"more than half of aggregators.count = {n}",
            "two disjoint sets could open two sums",
        )
    if rounds.cohort > devices:
        yield Fault("rounds.cohort", str(rounds.cohort), f"at most fleet.devices = {devices}")
    if 2 * k > n > k + scenario.sharing.t:
        expected, hint = f"at least n - threshold = {n - k}", "so many shares of one device could otherwise be had"
        yield Fault("sharing.privacy_threshold", str(scenario.sharing.t), expected, hint)
    if scenario.sharing.dealer_checks and k == n > 1:
        expected = f"0 with sharing.threshold = aggregators.count = {n}"
        yield Fault("sharing.dealer_checks", str(scenario.sharing.dealer_checks), expected, "k shares always agree")


def _tls_faults(scenario: Scenario) -> Iterator[Fault]:
    if scenario.brokers.tls and scenario.brokers.kind != "mosquitto":
        yield Fault("brokers.tls", "true", "false", 'the embedded broker speaks no TLS: brokers.kind = "mosquitto"')
    if scenario.brokers.tls and scenario.fleet.engine == RAY:
        yield Fault("brokers.tls", "true", f"false with fleet.engine = {RAY!r}", "certificates stay on this machine")


def _group_faults(scenario: Scenario) -> Iterator[Fault]:
    rungs = max(len(scenario.pruning.rungs) + bool(scenario.pruning.probe), scenario.rounds.strata)
    for index, group in enumerate(scenario.fleet.groups):
        if group.rung_max >= rungs and group.rung_max != DeviceGroup().rung_max:
            expected = f"below {rungs}, the number of pruning.rungs"
            yield Fault(f"fleet.groups.{index}.rung_max", str(group.rung_max), expected)
        if group.board and group.board not in board_names():
            near = difflib.get_close_matches(group.board, board_names(), n=1)
            expected, hint = f"one of {', '.join(board_names())}", f"did you mean {near[0]!r}?" if near else ""
            yield Fault(f"fleet.groups.{index}.board", group.board, expected, hint)


def _single_place_faults(scenario: Scenario) -> Iterator[Fault]:
    """Two keys of the coordinator's table that a scenario says elsewhere."""
    if scenario.rounds.seed:
        yield Fault(
            "rounds.seed", str(scenario.rounds.seed), "no such key in a scenario", "say seeds = [...] at the top"
        )
    if scenario.rounds.max_failed:
        hint = "say max_failed_rounds = ... at the top"
        yield Fault("rounds.max_failed", str(scenario.rounds.max_failed), "no such key in a scenario", hint)
    if len(set(scenario.seeds)) < len(scenario.seeds):
        yield Fault("seeds", str(list(scenario.seeds)), "each seed once")


# --------------------------------------------------------------------------- reading


def shipped_scenarios() -> dict[str, Path]:
    """Name -> file of each scenario that ships with the project, by name."""
    return {path.stem: path for path in sorted(SCENARIOS.glob("*.toml"))}


def load_scenario(name_or_path: str, overrides: Sequence[str] = ()) -> Scenario:
    """Read a shipped scenario by name, or a TOML file, with `a.b=value` overrides. An empty name becomes the file's.

    Raises `SettingsError` with every mistake found, within tables and between them.
    """
    path = find_scenario(name_or_path)
    try:
        scenario = load_settings(path, Scenario, overrides)
    except SettingsError as error:
        if not error.faults:
            raise
        further = _faults_between_tables(path, overrides, error.faults)
        if not further:
            raise
        count = len(error.faults) + len(further)
        raise SettingsError(f"{path}: {count} mistakes", (*error.faults, *further)) from None
    return msgspec.structs.replace(scenario, name=scenario.name or path.stem)


def scenario_keys() -> Iterator[tuple[str, str, str]]:
    """Every key `--set` takes: its path, what it accepts, and its default as TOML would write it, if any."""
    yield from (line for line in _keys_of(Scenario, "") if line[0] not in ("rounds.seed", "rounds.max_failed"))


def _keys_of(kind: type[Any], path: str) -> Iterator[tuple[str, str, str]]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        member = sole_member(field.type)
        here = f"{path}.{field.encode_name}" if path else field.encode_name
        if isinstance(member, inspect.StructType):
            yield from _keys_of(member.cls, here)
            continue
        yield here, describe(member), "" if field.required else msgspec.json.encode(_default_of(field)).decode()
        item = sole_member(member.item_type) if isinstance(member, inspect.VarTupleType) else None
        if isinstance(item, inspect.StructType):
            yield from _keys_of(item.cls, f"{here}.0")
        named = sole_member(member.value_type) if isinstance(member, inspect.DictType) else None
        if isinstance(named, inspect.StructType):
            yield from _keys_of(named.cls, f"{here}.NAME")


def _default_of(field: inspect.Field) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def find_scenario(name_or_path: str) -> Path:
    """The file of a shipped name or path. Raises `SettingsError` with the nearest shipped name."""
    shipped = shipped_scenarios()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    near = difflib.get_close_matches(name_or_path, shipped, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SettingsError(f"no scenario {name_or_path!r}, expected a TOML file or one of {', '.join(shipped)}{hint}")


def _faults_between_tables(path: Path, overrides: Sequence[str], faults: Sequence[Fault]) -> list[Fault]:
    """What else is wrong once every faulty key is taken out, so that one typing error does not hide it.

    Checks between tables need tables that convert; defaults stand in for what is faulty, and a complaint about a key
    that is already reported, or that is measured against one, is dropped.
    """
    known = {fault.path for fault in faults}
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return []
    for place in known:
        _take_out(data, place.split("."))
    sound = [text for text in overrides if not any(_concerns(text, place) for place in known)]
    try:
        load_settings(data, Scenario, sound)
    except SettingsError as error:
        return [
            fault for fault in error.faults if fault.path not in known and not any(p in fault.expected for p in known)
        ]
    return []


def _take_out(data: Any, keys: list[str]) -> None:
    """Remove the entry at a key path; a faulty entry of a list takes the list along, so that indices stay true."""
    *parents, last = keys
    for depth, key in enumerate(parents):
        if isinstance(data, list):
            return
        inner = data.get(key) if isinstance(data, dict) else None
        if isinstance(inner, list) and depth < len(keys) - 1:
            data.pop(key)
            return
        data = inner
    if isinstance(data, dict):
        data.pop(last.strip('"'), None)


def _concerns(override: str, place: str) -> bool:
    key = override.partition("=")[0].strip()
    return key == place or key.startswith(f"{place}.") or place.startswith(f"{key}.") or place == f"--set {override}"

"""Random schedules of faults for a simulated federation, their judgement, and how a bad one is made small.

A schedule is a setup and a list of operations, each with a draw of its own, so that leaving one out does not change
what the others do. All of it follows from one seed: `python -m simulators.schedules SEED` (with tests on the path)
runs it again.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from simulators.quick_crypto import identity
from simulators.sim_broker import SimWeather
from simulators.virtual_time import StuckError, VirtualLoop, run
from simulators.world import Setup, World

from fedpruneshare import crash_points
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import Freeze, digest, encode
from fedpruneshare.sealing import sign_body
from fedpruneshare.topics import Topics
from testbed.faults import checker
from testbed.faults.telling import contributor

TOPICS = Topics("lab")
CALM = SimWeather(delay_s=(0.0, 0.05))


@dataclass(frozen=True)
class Operation:
    """What happens `wait_s` after the one before; `draw` decides the particulars."""

    kind: str
    wait_s: float
    draw: int


@dataclass(frozen=True)
class Schedule:
    """A federation and what befalls it."""

    setup: Setup
    operations: tuple[Operation, ...]


# --------------------------------------------------------------------------- operations


def _roles(world: World) -> list[str]:
    return ["coordinator", *world.setup.aggregators, *world.setup.device_names]


def _some_role(world: World, rng: random.Random) -> str:
    kind = rng.choice(["coordinator", "aggregator", "aggregator", "device", "device"])
    names = {"coordinator": ("coordinator",), "aggregator": world.setup.aggregators, "device": world.setup.device_names}
    return rng.choice(names[kind])


def _later(world: World, rng: random.Random, call: Callable[[], None], most_s: float = 3.0) -> None:
    """The end of a fault; at the latest when all faults are over."""
    world.ends.append(call)

    def end() -> None:
        if call in world.ends:
            world.ends.remove(call)
            call()

    world.loop.call_later(rng.uniform(0.02, most_s) * (5.0 if rng.random() < 0.15 else 1.0), end)


def crash(world: World, rng: random.Random) -> None:
    """SIGKILL of a party, which comes back after a while."""
    name = _some_role(world, rng)
    world.cut(name)
    _later(world, rng, lambda: world.start(name))


def crash_at_a_point(world: World, rng: random.Random) -> None:
    """SIGKILL of a party at its next passing of a named point."""
    name = _some_role(world, rng)
    world.armed[name] = rng.choice(crash_points.POINTS[name.partition("-")[0]])


def stop(world: World, rng: random.Random) -> None:
    """SIGTERM of a party, which comes back after a while."""
    name = _some_role(world, rng)

    async def stop_and_start() -> None:
        await world.stop(name)
        _later(world, rng, lambda: world.start(name))

    world.loop.create_task(stop_and_start())


def bad_weather(world: World, rng: random.Random) -> None:
    """Loss, duplicates, delay and lateness on one broker for a while."""
    broker = rng.choice(list(world.brokers.values()))
    slow_s = rng.choice([0.05, 0.5, 3.0])
    broker.weather = SimWeather(
        loss=rng.choice([0.0, 0.1, 0.4]), duplication=rng.choice([0.0, 0.3]), delay_s=(0.0, slow_s),
        late=rng.choice([0.0, 0.1]),
    )  # fmt: skip

    def clear() -> None:
        broker.weather = CALM

    _later(world, rng, clear, 5.0)


def partition(world: World, rng: random.Random) -> None:
    """One party is cut off one broker, or off all of them."""
    name, brokers = _some_role(world, rng), list(world.brokers.values())
    for broker in brokers if rng.random() < 0.3 else [rng.choice(brokers)]:
        broker.cut(name)
        _later(world, rng, lambda broker=broker: broker.heal(name))  # type: ignore[misc]


def broker_restart(world: World, rng: random.Random) -> None:
    """A broker goes away with all connections, and comes back, with or without its memory."""
    broker = rng.choice(list(world.brokers.values()))
    clients = broker.everybody()
    for client in clients:
        broker.cut(client)
    if rng.random() < 0.5:
        broker.forget()

    def heal() -> None:
        for client in clients:
            broker.heal(client)

    _later(world, rng, heal)


def replay(world: World, rng: random.Random) -> None:
    """Old messages again, on their own topics; sometimes retained as they were."""
    for _ in range(rng.randint(1, 8)):
        if world.told.captured:
            broker, topic, payload, retain = rng.choice(world.told.captured)
            world.brokers[broker].inject(topic, payload, retain=retain and rng.random() < 0.5)


def invalid(world: World, rng: random.Random) -> None:
    """A message with a flipped bit, a cut end, on another's topic, or nothing but noise."""
    for _ in range(rng.randint(1, 4)):
        if not world.told.captured:
            return
        broker, topic, payload, _ = rng.choice(world.told.captured)
        data, how = bytearray(payload), rng.randrange(4)
        if how == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[rng.randrange(len(data)) :]
        elif how == 2:
            topic = rng.choice(world.told.captured)[1]
        else:
            data = bytearray(rng.randbytes(rng.randint(1, 200)))
        world.brokers[broker].inject(topic, bytes(data))


def decline(world: World, rng: random.Random) -> None:
    """A device will not take part in the next round it is asked to."""
    world.declining[rng.choice(world.setup.device_names)] = 1


def lose_outbox(world: World, rng: random.Random) -> None:
    """A device loses its upload and starts again: it must draw another id."""
    name = rng.choice(world.setup.device_names)
    world.cut(name)
    (world.folder / name / "outbox" / "upload.msgpack").unlink(missing_ok=True)
    _later(world, rng, lambda: world.start(name))


def full_disk(world: World, rng: random.Random) -> None:
    """An aggregator's disk takes no more shares for a while."""
    name = rng.choice(world.setup.aggregators)
    world.full.add(name)
    _later(world, rng, lambda: world.full.discard(name))


def wrong_clock(world: World, rng: random.Random) -> None:
    """A party starts again with a wall clock that is wrong: by minutes, a day, or half a century."""
    name = _some_role(world, rng)
    world.skews[name] = rng.choice([300.0, -300.0, 86_400.0, -86_400.0, -1_800_000_000.0 + 60, 3e8])
    world.cut(name)
    _later(world, rng, lambda: world.start(name))


def _spread_directory(world: World, rng: random.Random) -> None:
    """The coordinator passes the new version on; some operators put it in place themselves."""
    for name in _roles(world):
        if name == "coordinator" or rng.random() < 0.3:
            _later(world, rng, lambda name=name: _reload(world, name))  # type: ignore[misc]


def _reload(world: World, name: str) -> None:
    life = world.lives.get(name)
    if life is not None and name in world.parties:
        life.call(world.parties[name].reload)


def bump_directory(world: World, rng: random.Random) -> None:
    """A new version of the directory in which nothing is new."""
    world.sign_directory()
    _spread_directory(world, rng)


def revoke(world: World, rng: random.Random) -> None:
    """A device is shut out; enough are left."""
    left = [name for name in world.setup.device_names if name not in world.revoked]
    if len(left) <= 4:
        return
    name = rng.choice(left)
    world.revoked.add(name)
    ids = {key.raw().key_id.hex(): name for key in world.directory.devices[name].keys}
    world.sign_directory(revoked=world.directory.revoked | ids)
    _spread_directory(world, rng)


def rotate(world: World, rng: random.Random) -> None:
    """A party gets a new key; the directory lists it beside the old one."""
    name = _some_role(world, rng)
    if name in world.revoked:
        return
    world.keys[name] += 1
    public, directory = world.public(name), world.directory
    if name == "coordinator":
        world.sign_directory(coordinator=msgspec.structs.replace(directory.coordinator, keys=public))
    elif name in directory.aggregators:
        service = msgspec.structs.replace(directory.aggregators[name], keys=public)
        world.sign_directory(aggregators=directory.aggregators | {name: service})
    else:
        entry = msgspec.structs.replace(directory.devices[name], keys=public)
        world.sign_directory(devices=directory.devices | {name: entry})
    _later(world, rng, lambda: _reload(world, name), 1.0)
    _spread_directory(world, rng)


def equivocate(world: World, rng: random.Random) -> None:
    """Somebody with the coordinator's key has some aggregators sum another set."""
    if not world.told.attendances or world.told.plan is None:
        return
    plan, name = world.told.plan
    attended = [a for a in world.told.attendances.values() if a.plan == name and a.uploads]
    if not attended:
        return
    uploads = {upload.device_id: upload for upload in rng.choice(attended).uploads}
    chosen = sorted(rng.sample(sorted(uploads), rng.randint(1, len(uploads))))
    contributors = tuple(uploads[device] for device in chosen)
    floors = plan.min_devices, plan.min_devices_segment
    segments = open_segments([c.rung for c in contributors], len(plan.segments), *floors) or (0,)
    names = tuple(sorted(rng.sample(sorted(plan.points), rng.randint(plan.sharing.k, plan.sharing.n))))
    body = encode(Freeze(plan.round_id, name, names, contributors, segments))
    if digest(body) not in world.told.freezes:
        who = [contributor(c) for c in contributors]
        world.note_once(
            ("freeze", digest(body)), "freeze-signed", round=plan.round_id, freeze=digest(body),
            aggregators=list(names), contributors=who, segments=list(segments), forged=True,
        )  # fmt: skip
    payload = sign_body(identity("coordinator", world.keys["coordinator"]), "lab", "freeze", body)
    for aggregator in world.setup.aggregators:
        if rng.random() < 0.6:
            world.brokers["control"].inject_to(aggregator, TOPICS.name("freeze"), payload)


def second_plan(world: World, rng: random.Random) -> None:
    """Somebody with the coordinator's key sends aggregators another plan of the open round."""
    if world.told.plan is None:
        return
    plan = msgspec.structs.replace(world.told.plan[0], deadline_s=world.setup.deadline_s + rng.randint(1, 50))
    payload = sign_body(identity("coordinator", world.keys["coordinator"]), "lab", "round-plan", encode(plan))
    for aggregator in world.setup.aggregators:
        if rng.random() < 0.5:
            world.brokers["control"].inject_to(aggregator, TOPICS.name("round"), payload)


def wait(world: World, rng: random.Random) -> None:
    """Nothing happens."""


#: Operation -> how often it is drawn.
OPERATIONS: dict[Callable[[World, random.Random], None], int] = {
    crash: 6,
    crash_at_a_point: 8,
    stop: 2,
    bad_weather: 6,
    partition: 5,
    broker_restart: 2,
    replay: 6,
    invalid: 4,
    decline: 3,
    lose_outbox: 2,
    full_disk: 2,
    wrong_clock: 1,
    bump_directory: 1,
    revoke: 1,
    rotate: 2,
    equivocate: 3,
    second_plan: 1,
    wait: 3,
}
BY_NAME = {operation.__name__: operation for operation in OPERATIONS}


# --------------------------------------------------------------------------- schedules


def draw(seed: int) -> Schedule:
    """The schedule of a seed: at least 30 operations on (2, 3) or (3, 5) with 3 to 20 devices."""
    rng = random.Random(f"schedule {seed}")
    n, k = rng.choice([(3, 2), (3, 2), (3, 2), (5, 3)])
    reveal = "each" if rng.random() < 0.05 else "sum"
    setup = Setup(
        seed,
        n,
        k,
        devices=rng.choice([3, 3, 4, 4, 5, 6]) if rng.random() < 0.95 else rng.randint(7, 20),
        field=rng.choice(["F31", "F31", "F61"]),
        reveal=reveal,
        dealer_checks=int(reveal == "sum" and rng.random() < 0.15),
        freeze_quorum=(n + k - 1) // 2 + 1 if rng.random() < 0.15 else 0,
        liar="aggregator-2" if rng.random() < 0.1 else "",
        real_crypto=rng.random() < 0.01,
    )
    kinds = rng.choices(
        [operation.__name__ for operation in OPERATIONS], list(OPERATIONS.values()), k=rng.randint(30, 40)
    )
    pace_s = rng.choice([0.1, 0.2, 0.4])
    return Schedule(setup, tuple(Operation(kind, rng.expovariate(1 / pace_s), rng.randrange(2**32)) for kind in kinds))


def simulate(schedule: Schedule, keep: Path | None = None) -> list[str]:
    """Run a schedule; what it violated. `keep`: write its history there."""
    folder = Path(tempfile.mkdtemp(prefix="fps-sim-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    loop = VirtualLoop()
    world = World(schedule.setup, folder, loop)
    try:
        with world.laws():
            _begin(world)
            try:
                run(loop, _live(world, schedule))
            except StuckError as error:
                world.faults.append(f"stuck: {error}")
        world.note("end")
        world.loop.bury([*world.over, *world.lives.values()])
        errors = [f"{e.get('message')}: {e.get('exception')!r}" for e in loop.errors]
        return checker.judge(world.history) + [f"L: {fault}" for fault in (*world.faults, *errors)]
    finally:
        if keep is not None:
            keep.write_text("".join(json.dumps(event) + "\n" for event in world.history))
        shutil.rmtree(folder, ignore_errors=True)


def _begin(world: World) -> None:
    setup = world.setup
    for broker in world.brokers.values():
        broker.weather = CALM
    # A coordinator that comes back has the time-outs of its phases again.
    patience_s = 4 * setup.grace_s + 3 * setup.sum_timeout_s + 10.0
    world.note(
        "begin", format=1, seed=setup.seed, grace_s=12 * patience_s,
        one_hot={device: place for place, device in enumerate(setup.device_names)},
        floors={name: [3, 3] for name in setup.aggregators}, dishonest=[setup.liar] if setup.liar else [],
    )  # fmt: skip


async def _live(world: World, schedule: Schedule) -> None:
    for name in _roles(world):
        world.start(name)
    for operation in schedule.operations:
        await _wait_and_mend(world, operation.wait_s)
        BY_NAME[operation.kind](world, random.Random(operation.draw))
    await _heal(world)
    try:
        await asyncio.wait_for(world.round_closed.wait(), 20 * world.setup.deadline_s)
    except TimeoutError:
        phases = [f"{e['round']} {e['phase']} {e['reason']}" for e in world.history if e["event"] == "outcome"]
        world.faults.append(f"no round was applied when all faults were over: {phases[-3:]}")
    for name in list(world.lives):
        world.cut(name)


async def _wait_and_mend(world: World, wait_s: float) -> None:
    """Wait; who was cut at a point comes back after a second or two."""
    await asyncio.sleep(wait_s)
    for name, _ in world.cut_at:
        world.loop.call_later(world.rng.uniform(0.05, 2.0), world.start, name)
    world.cut_at.clear()


async def _heal(world: World) -> None:
    """End of all faults: what was begun is over now, and everybody is there with the newest directory."""
    world.armed.clear()
    await _wait_and_mend(world, 2.0)
    for end in world.ends:
        end()
    world.ends.clear()
    world.declining.clear()
    for broker in world.brokers.values():
        broker.weather = CALM
        for client in broker.everybody():
            broker.heal(client)
    for name in _roles(world):
        world.skews.pop(name, None)
        life = world.lives.get(name)
        if life is not None and life.skew_s:
            world.cut(name)
        world.start(name)
    await asyncio.sleep(1.0)
    for name in _roles(world):
        _reload(world, name)
    world.is_healthy_since = world.loop.now_s


# --------------------------------------------------------------------------- making a failure small


def shrink(schedule: Schedule, is_bad: Callable[[Schedule], bool], tries: int = 200) -> Schedule:
    """A smaller schedule that is as bad: pieces of the list are left out as long as that goes (delta debugging)."""
    operations, size = schedule.operations, max(1, len(schedule.operations) // 2)
    while size and tries > 0:
        start, is_smaller = 0, False
        while start < len(operations) and tries > 0:
            left = _without(operations, start, size)
            tries -= 1
            if is_bad(replace(schedule, operations=left)):
                operations, is_smaller = left, True
            else:
                start += size
        size = size if is_smaller and size > 1 else size // 2
    return replace(schedule, operations=operations)


def _without(operations: tuple[Operation, ...], start: int, size: int) -> tuple[Operation, ...]:
    """Leave some out; those after them keep their times."""
    gone = sum(operation.wait_s for operation in operations[start : start + size])
    rest = list(operations[start + size :])
    if rest:
        rest[0] = replace(rest[0], wait_s=rest[0].wait_s + gone)
    return (*operations[:start], *rest)


def report(schedule: Schedule, violations: list[str]) -> str:
    """A failure as text: what to run again, and what is left of it when it is small."""
    kinds = {violation.split()[0] for violation in violations}
    small = shrink(schedule, lambda tried: bool(kinds & {v.split()[0] for v in simulate(tried)}))
    lines = [f"seed {schedule.setup.seed}: {len(violations)} violations", *violations[:10], "", repr(small.setup)]
    return "\n".join([*lines, *(repr(operation) for operation in small.operations)])


def main(arguments: list[str]) -> int:
    """Run the schedules of some seeds: `SEED`, or `FROM TO`."""
    first, last = int(arguments[0]), int(arguments[-1])
    bad = 0
    for seed in range(first, last + 1):
        schedule = draw(seed)
        violations = simulate(schedule, Path(tempfile.gettempdir(), f"history-{seed}.jsonl") if first == last else None)
        if violations:
            bad += 1
            sys.stdout.write(report(schedule, violations) + "\n\n")
    sys.stdout.write(f"{last - first + 1} schedules, {bad} bad\n")
    return 1 if bad else 0


__all__ = ["Any", "Operation", "Schedule", "draw", "main", "report", "shrink", "simulate"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

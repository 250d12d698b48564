"""What a store is asked to keep, step by step: run here, or in a process whose disk fails (F09).

As a program, `python -m faults.store_scripts FOLDER LIMIT_BYTES…`: for each limit on the size of files (0 for none) and
each store a process of its own, whose folder is FOLDER/ROLE-LIMIT and whose words stand in a `.log` beside it. It says
the number of each step once the store has said that it is kept; a step that fails by name is tried again, after the
limit is lifted. Exit code 3: the store did not open, and said so by name.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.store import NewChunk, ShareStore, SumGiven
from aggregator.uploads import Attempt
from coordinator.planning import ModelState
from coordinator.store import RoundStore
from fedpruneshare.errors import SettingsError, StoreError

ROUND, BUNDLE = 7, bytes(range(32))
DEVICES = ("device-00", "device-01", "device-02")
ABOUT = {"aggregator": "shares.sqlite", "coordinator": "rounds.sqlite"}
Step = Callable[[Any], object]
_TRIES = 4


def data_of(device: str, chunk: int, size: int = 6000) -> bytes:
    """Bytes that are nobody else's."""
    return hashlib.shake_256(f"{device} {chunk}".encode()).digest(size)


def attempt(device: str) -> Attempt:
    return Attempt(device, device.encode().ljust(16, b"\0"), 1, "chacha20", 2)


# --------------------------------------------------------------------------- the aggregator's


def aggregator_steps() -> list[Step]:
    """A round from plan to close, and the next one."""
    steps: list[Step] = [lambda store: store.open_round(ROUND, data_of("plan", 0, 700), 5.0)]
    for device in DEVICES:
        for chunk in (0, 1):
            new = NewChunk(attempt(device), chunk, data_of(device, chunk), bytes(8))
            steps.append(lambda store, new=new: store.add_chunks(ROUND, [new]))
    given = SumGiven(ROUND, 3, bytes(64), data_of("freeze", 0, 300))
    return [
        *steps,
        lambda store: store.decline(ROUND, "device-09"),
        lambda store: store.attend(ROUND, data_of("attendance", 0, 900)),
        lambda store: store.note_check(ROUND, bytes(32)),
        lambda store: store.freeze(ROUND, given.freeze, hashlib.sha256(given.freeze).digest()),
        lambda store: store.note_acceptance(ROUND, bytes(32), "aggregator-2"),
        lambda store: store.note_sum(given),
        lambda store: store.burn(ROUND, data_of("sum", 0, 9000)),
        lambda store: store.close_round(ROUND),
        lambda store: store.open_round(ROUND + 1, data_of("plan", 1, 700), 9.0),
    ]  # fmt: skip


def aggregator_state(store: ShareStore) -> Any:
    """All that a restart would find."""
    latest = store.latest()
    if latest is None:
        return None
    attempts = store.attempts(latest.round_id)
    return (
        latest,
        sorted((one.device_id, one.upload_id, one.rung, one.prg, tuple(sorted(one.stored))) for one in attempts),
        [
            store.share(latest.round_id, one.device_id, one.upload_id)
            for one in sorted(attempts, key=lambda a: a.device_id)
        ],
        store.declined(latest.round_id),
        store.acceptances(latest.round_id),
        store.sums_given(latest.round_id + 1, 3, 8),
    )


# --------------------------------------------------------------------------- the coordinator's


def model(applied: int) -> ModelState:
    rng = np.random.default_rng(applied)
    coded, vectors = rng.integers(0, 2**15, 3000).astype(np.uint16), rng.normal(size=40).astype(np.float32)
    return ModelState(coded, vectors, (0.5,), (0.25,), applied)


def coordinator_steps() -> list[Step]:
    """Two rounds: one applied, one failed."""
    return [
        lambda store: store.save_first_model(model(0)),
        lambda store: store.greet(dict.fromkeys(DEVICES, 2)),
        lambda store: store.begin(1, data_of("plan", 0, 3000), 5.0, bytes(32)),
        lambda store: store.note_check(1, data_of("check", 0, 300)),
        lambda store: store.note_judgement(1, "{}"),
        lambda store: store.freeze(1, data_of("freeze", 0, 300)),
        lambda store: store.finish(1, {"round": 1, "phase": "APPLIED"}, model(1)),
        lambda store: store.write_journal(),
        lambda store: store.note_round(DEVICES, {DEVICES[0]}),
        lambda store: store.note_rung(DEVICES[1], 1),
        lambda store: store.begin(2, data_of("plan", 1, 3000), 6.0),
        lambda store: store.finish(2, {"round": 2, "phase": "FAILED"}, None),
        lambda store: store.write_journal(),
        lambda store: store.note("epoch", 4),
        lambda store: store.begin(3, data_of("plan", 2, 3000), 7.0, bytes(32)),
    ]


def coordinator_state(store: RoundStore) -> Any:
    """All that a restart would find."""
    found = store.model()
    return (
        store.open_round(),
        None if found is None else (found.applied, found.coded.tobytes(), found.vectors.tobytes(), found.weight_clips),
        store.outcomes(),
        store.next_round_id(),
        store.fleet(5),
        store.noted("epoch"),
    )


SCRIPTS: dict[str, tuple[Callable[[Path], Any], list[Step], Callable[[Any], Any]]] = {
    "aggregator": (lambda folder: ShareStore(folder, 1 << 30), aggregator_steps(), aggregator_state),
    "coordinator": (lambda folder: RoundStore(folder, BUNDLE), coordinator_steps(), coordinator_state),
}


def states(role: str, folder: Path) -> list[Any]:
    """What a whole store holds after no step, the first, the second …"""
    make, steps, state = SCRIPTS[role]
    store = make(folder)
    found = [state(store)]
    for step in steps:
        step(store)
        found.append(state(store))
    store.close()
    return found


def run(role: str, folder: Path, limit_bytes: int) -> int:
    """Run a script, and say what is kept."""
    make, steps, _ = SCRIPTS[role]
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        store = make(folder)
    except (SettingsError, StoreError) as error:
        print(f"stop {error}", flush=True)
        return 3
    for number, step in enumerate(steps, 1):
        for turn in range(_TRIES):
            try:
                step(store)
                break
            except StoreError as error:
                print(f"again {error}", flush=True)
                if turn + 1 == _TRIES:
                    return 4
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(f"kept {number}", flush=True)
    store.close()
    return 0


def main(folder: Path, limits: list[int]) -> None:
    """Each case in a fork, so that only the first has to load numpy."""
    for limit in limits:
        for role in SCRIPTS:
            case = folder / f"{role}-{limit}"
            child = os.fork()
            if child == 0:
                log = os.open(f"{case}.log", os.O_WRONLY | os.O_CREAT)
                os.dup2(log, 1)
                os.dup2(log, 2)
                code = 1  # an error without a name: its traceback stands in the log
                try:
                    code = run(role, case, limit)
                finally:
                    sys.stderr.flush()
                    os._exit(code if sys.exception() is None else _told(case))
            status = os.waitpid(child, 0)[1]
            Path(f"{case}.code").write_text(str(os.waitstatus_to_exitcode(status)))


def _told(case: Path) -> int:
    traceback.print_exc()
    sys.stderr.flush()
    return 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(limit) for limit in sys.argv[2:]])

"""A federation in one process, at a time of its own: every service and rule is the product's (docs/histories.md).

Simulated are the brokers and the network, the clocks, the disks (databases in memory, files on tmpfs), training, and
the score of models. `World` starts and ends the parties and keeps the history; what befalls them is in `schedules`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import structlog
from simulators.quick_crypto import Connection, KeptDatabase, databases_in_memory, identity, quick_crypto, replaced
from simulators.sim_broker import SimBroker, SimLink
from simulators.sim_device import Habits, SimDevice
from simulators.virtual_time import Life, PowerCutError, VirtualLoop, current_life

from aggregator.service import Aggregator
from aggregator.settings import AggregatorFloors, AggregatorSettings
from aggregator.store import ShareStore
from aggregator.summing import answer_freeze
from coordinator import opening
from coordinator.evaluation import Evaluation
from coordinator.ledger import RoundLedger
from coordinator.planning import ModelState, TaskFacts
from coordinator.service import Coordinator
from coordinator.settings import CodingSettings, CoordinatorSettings, PruningSettings, RoundSettings, SharingSettings
from coordinator.store import RoundStore
from fedpruneshare import crash_points
from fedpruneshare.directory import DeviceEntry, Directory, PartyKeys, Service, party_keys, sign_directory
from fedpruneshare.errors import LinkError, SealError
from fedpruneshare.keys import Identity
from fedpruneshare.link import inbox
from fedpruneshare.messages import Attendance, Freeze, Receipt, RoundPlan, SumShare, decode, digest, encode
from fedpruneshare.party import Party, PartySettings, _newest_directory
from fedpruneshare.sealing import Envelope, sum_context
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.sparse.parameters import Parameter, ParameterTable
from fedpruneshare.sparse.parameters import Role as ArrayRole
from fedpruneshare.sparse.support import code_values
from fedpruneshare.topics import Role
from testbed.faults.history import checked
from testbed.faults.telling import KINDS, contributor, told, values_of

ROOT = identity("root", 0)
ROOT_KEY = ROOT.public()[0].signing.hex()
#: The disk that takes no more has so much room.
_NO_ROOM = 0
_CAPTURED = 300
_envelopes = msgspec.msgpack.Decoder(Envelope)


@dataclass(frozen=True)
class Setup:
    """What a federation is: `n` aggregators of which `k` open, so many devices, and the coordinator's settings."""

    seed: int
    n: int = 3
    k: int = 2
    devices: int = 4
    field: str = "F31"
    reveal: str = "sum"
    dealer_checks: int = 0
    freeze_quorum: int = 0
    checksum: bool = True
    liar: str = ""
    """An aggregator whose sums are wrong."""
    differencing_rounds: int = 0
    """At the coordinator and at every aggregator."""
    real_crypto: bool = False
    deadline_s: float = 20.0
    grace_s: float = 2.0
    sum_timeout_s: float = 15.0

    @property
    def aggregators(self) -> tuple[str, ...]:
        return tuple(f"aggregator-{index + 1}" for index in range(self.n))

    @property
    def device_names(self) -> tuple[str, ...]:
        return tuple(f"device-{index:02}" for index in range(self.devices))


@dataclass(frozen=True)
class TinyBench:
    """The coordinator's workbench with nothing to evaluate."""

    folder: Path
    table: ParameterTable

    @property
    def bundle(self) -> Any:
        return SimpleNamespace(manifest=SimpleNamespace(metric="accuracy"))

    @property
    def facts(self) -> TaskFacts:
        return TaskFacts("simulated", bytes(32), self.table)

    def first_model(self) -> ModelState:
        size, vectors = self.table.weight_count, self.table.vector_count
        coded = code_values(np.linspace(-1.0, 1.0, size, dtype=np.float32))
        return ModelState(coded, np.zeros(vectors, dtype=np.float32), (0.1,), (0.1,), 0)

    def score(self, model: ModelState) -> Evaluation:
        return Evaluation(0.5, 1.0)

    def render(self, model: ModelState) -> None:
        (self.folder / "model.onnx").write_bytes(model.coded.tobytes())


@dataclass
class Told:
    """What the world remembers of what was said, for those who repeat or twist it."""

    captured: list[tuple[str, str, bytes, bool]] = field(default_factory=list)
    plan: tuple[RoundPlan, bytes] | None = None
    attendances: dict[str, Attendance] = field(default_factory=dict)
    freezes: dict[bytes, Freeze] = field(default_factory=dict)


class World:
    """One federation and its history, to be used within `laws`."""

    def __init__(self, setup: Setup, folder: Path, loop: VirtualLoop) -> None:
        self.setup, self.folder, self.loop = setup, folder, loop
        self.rng = random.Random(f"world {setup.seed}")
        self.history: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.lives: dict[str, Life] = {}
        self.over: list[Life] = []
        self.parties: dict[str, Party] = {}
        self.links: dict[Life, list[SimLink]] = {}
        self.connections: dict[Life, list[Connection]] = {}
        self.databases: dict[Path, KeptDatabase] = {}
        self.keys: Counter[str] = Counter()
        self.skews: dict[str, float] = {}
        self.armed: dict[str, str] = {}
        self.cut_at: list[tuple[str, str]] = []
        self.full: set[str] = set()
        self.ends: list[Callable[[], None]] = []
        self.declining: dict[str, int] = {}
        self.told = Told()
        self.revoked: set[str] = set()
        self.round_closed = asyncio.Event()
        self.is_healthy_since: float | None = None
        self._noted: set[Any] = set()
        self._left_out: dict[bytes, dict[str, str]] = {}
        self.directory = self._first_directory()
        self.brokers = {
            name: SimBroker(name, random.Random(f"{setup.seed} {name}"), loop.time, self._heard)
            for name in ("control", *setup.aggregators)
        }
        size = max(32, 2 * setup.devices)
        self.table = ParameterTable((Parameter("w", (size,), ArrayRole.WEIGHT), Parameter("b", (3,), ArrayRole.VECTOR)))

    # ------------------------------------------------------------------ history

    def note(self, event: str, **fields: Any) -> None:
        """Put an event into the history; bytes become hex as in a file."""
        plain = {key: value.hex() if isinstance(value, bytes) else value for key, value in fields.items()}
        self.history.append({"at": self.loop.now_s, **checked(event, plain)})

    def note_once(self, key: Any, event: str, **fields: Any) -> None:
        """As `note`, unless this was noted before."""
        if key not in self._noted:
            self._noted.add(key)
            self.note(event, **fields)

    def _heard(self, broker: str, client: str, topic: str, payload: bytes, retain: bool) -> None:
        if not payload:
            return
        if len(self.told.captured) < _CAPTURED:
            self.told.captured.append((broker, topic, payload, retain))
        elif self.rng.random() < 0.2:
            self.told.captured[self.rng.randrange(_CAPTURED)] = broker, topic, payload, retain
        envelope = _envelopes.decode(payload)
        if envelope.kind == "receipt":
            receipt = decode("receipt", envelope.body)
            assert isinstance(receipt, Receipt)
            device, verdict = topic.rpartition("/")[2], str(receipt.verdict)
            self.note(
                "receipt", round=receipt.round_id, aggregator=envelope.sender, device=device,
                upload=receipt.upload_id, verdict=verdict,
            )  # fmt: skip
        elif envelope.kind in KINDS:
            self._tell(envelope)

    def _tell(self, envelope: Envelope) -> None:
        message, name = decode(envelope.kind, envelope.body), digest(envelope.body)
        event, fields = told(envelope.sender, message, name)
        if isinstance(message, RoundPlan):
            self.told.plan = message, name
        elif isinstance(message, Attendance):
            self.told.attendances[envelope.sender] = message
        elif isinstance(message, Freeze):
            self.told.freezes[name] = message
            fields["left_out"] = self._left_out.get(name, {})
        elif isinstance(message, SumShare):
            if message.chunk:
                return
            fields["digest"] = hashlib.sha256(self._unseal(envelope.sender, message)).hexdigest()
        self.note_once((event, envelope.sender, name), event, **fields)

    def _unseal(self, sender: str, message: SumShare) -> bytes:
        position = message.x, message.chunk, message.chunks
        context = sum_context("lab", message.freeze, (sender, "coordinator"), position)
        for number in range(self.keys["coordinator"], -1, -1):
            try:
                return identity("coordinator", number).unseal(message.sealed, context, message.suite, message.key)
            except SealError:
                continue
        return b"sealed to nobody"

    # ------------------------------------------------------------------ directory

    def _first_directory(self) -> Directory:
        services = {
            name: Service(self.public(name), host="127.0.0.1", port=1883)
            for name in ("coordinator", *self.setup.aggregators)
        }
        return Directory(
            federation="lab",
            version=1,
            coordinator_id="coordinator",
            coordinator=services.pop("coordinator"),
            aggregators=services,
            devices={name: DeviceEntry(self.public(name)) for name in self.setup.device_names},
            min_devices=3,
            min_devices_segment=3,
        )

    def public(self, name: str) -> tuple[PartyKeys, ...]:
        """A party's public keys as the directory lists them."""
        return tuple(party_keys(public) for public in identity(name, self.keys[name]).public())

    def sign_directory(self, **changes: Any) -> None:
        """The root signs the next version. Operators put it where the coordinator reads it; who else, is up to them."""
        self.directory = msgspec.structs.replace(self.directory, version=self.directory.version + 1, **changes)
        self._write_directory()
        self.note("directory", version=self.directory.version, revoked=sorted(self.revoked))

    def _write_directory(self) -> None:
        self.signed_directory = sign_directory(self.directory, ROOT)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "directory.json").write_bytes(self.signed_directory)

    def party(self, name: str, role: Role) -> Party:
        """A party as it is after a start: its newest keys, the newest directory it knows."""
        keep = self.folder / name
        keep.mkdir(parents=True, exist_ok=True)
        files = PartySettings(str(keep / f"{name}.json"), str(self.folder / "directory.json"), ROOT_KEY, str(keep))
        life = current_life()
        skew_s = life.skew_s if life else 0.0
        clock = lambda: self.loop.now_s + 1_800_000_000.0 + skew_s  # noqa: E731
        party = Party(identity(name, self.keys[name]), _newest_directory(files), role, files, clock)
        party.on_change(lambda: self._adopted(party))
        self.parties[name] = party
        return party

    def _adopted(self, party: Party) -> None:
        revoked = [name for name in self.setup.device_names if party.directory.is_revoked(Role.DEVICE, name)]
        self.note("directory", version=party.directory.version, revoked=revoked, party=party.ident)

    # ------------------------------------------------------------------ lives

    def start(self, name: str) -> None:
        """Start a party, for the first time or again from what it has stored."""
        if name in self.lives:
            return
        life = Life(name, self.skews.get(name, 0.0))
        self.lives[name], self.links[life], self.connections[life] = life, [], []
        work = {"c": self._coordinate, "a": self._aggregate, "d": self._take_part}[name[0]]
        main = self.loop.begin(life, work(name))
        main.add_done_callback(lambda task: self._ended(life, task), context=None)

    def _ended(self, life: Life, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, PowerCutError) and not life.is_over:
            self.faults.append(f"{life.name} ended with {type(error).__name__}: {error}")

    def cut(self, name: str) -> None:
        """SIGKILL: nothing of the party runs any more, and its connections fall."""
        life = self.lives.pop(name, None)
        if life is None:
            return
        self.loop.cut(life)
        self.parties.pop(name, None)
        self.over.append(life)
        for connection in self.connections[life]:
            connection.close()
        for link in self.links[life]:
            link.broker.drop(link)
        self.note("restart", party=name)

    async def stop(self, name: str) -> None:
        """SIGTERM: the party ends by itself."""
        life = self.lives.get(name)
        if life is None:
            return
        main = life.tasks[0]
        main.cancel()
        await asyncio.wait([main], timeout=5.0)
        if not main.done() and self.lives.get(name) is life:
            self.faults.append(f"{name} did not end within 5 s of SIGTERM")
        if self.lives.get(name) is life:
            self.cut(name)

    def link(self, broker: str, name: str) -> SimLink:
        """A link of the life whose step this is."""
        life = current_life()
        assert life is not None
        self.links[life].append(SimLink(self.brokers[broker], name))
        return self.links[life][-1]

    async def _aggregate(self, name: str) -> None:
        party = self.party(name, Role.AGGREGATOR)
        settings = AggregatorSettings(
            party=PartySettings("", "", "0" * 64),
            store=str(self.folder / name),
            floors=AggregatorFloors(
                allow_reveal_each=self.setup.reveal == "each", differencing_rounds=self.setup.differencing_rounds
            ),
        )
        service = Aggregator(party, settings, self.link(name, name), self.link("control", name))
        self._note_stored(name, service._store)
        try:
            await service.start()
            await asyncio.Event().wait()
        finally:
            await service.stop()

    def _note_stored(self, name: str, store: ShareStore) -> None:
        """What was committed just before the power went is a fact all the same."""
        stored = store.latest()
        if stored is not None and stored.freeze_digest is not None:
            frozen = {"round": stored.round_id, "freeze": stored.freeze_digest, "aggregator": name}
            self.note_once(("accepted", name, stored.freeze_digest), "freeze-accepted", **frozen)

    async def _coordinate(self, name: str) -> None:
        party, folder = self.party(name, Role.COORDINATOR), self.folder / name
        service = Coordinator(party, self._settings(), self.link("control", name), TinyBench(folder, self.table))  # type: ignore[arg-type]
        self._note_outcome(service._store)
        try:
            await service.run()
        finally:
            await service.stop()

    def _settings(self) -> CoordinatorSettings:
        setup = self.setup
        rounds = RoundSettings(
            count=10**6, cohort=32, deadline_s=setup.deadline_s, grace_s=setup.grace_s,
            sum_timeout_s=setup.sum_timeout_s, wait_for_devices_s=5.0, max_failed=10**6,
            differencing_rounds=setup.differencing_rounds,
        )  # fmt: skip
        return CoordinatorSettings(
            party=PartySettings("", "", "0" * 64),
            bundle="",
            store="",
            rounds=rounds,
            sharing=SharingSettings(
                threshold=setup.k, field=setup.field, dealer_checks=setup.dealer_checks, reveal=setup.reveal,
                checksum=setup.checksum, freeze_quorum=setup.freeze_quorum,
            ),
            pruning=PruningSettings(rungs=(0.75, 1.0), dense_rounds=1000, final_round=2000),
            coding=CodingSettings(chunk_bytes=1024),
        )  # fmt: skip

    async def _take_part(self, name: str) -> None:
        place, setup = self.setup.device_names.index(name), self.setup
        party = self.party(name, Role.DEVICE)
        links = self.link("control", name), {other: self.link(other, name) for other in setup.aggregators}
        train_s = random.Random(f"{setup.seed} {name}").uniform(0.0, 3.0)
        habits = Habits(place, setup.devices, int(place % 3 > 0), train_s, list(Prg)[place % 2])
        await SimDevice(party, self.folder / name, habits, links, self).run()

    def declines(self, device: str) -> bool:
        """Whether a device declines the round it is asked to take part in."""
        self.declining[device] = self.declining.get(device, 0) - 1
        return self.declining[device] >= 0

    # ------------------------------------------------------------------ what the stores say

    def _note_outcome(self, store: RoundStore) -> None:
        for line in store.outcomes()[-1:]:
            reason = line.get("reason") or ""
            self.note("outcome", round=line["round"], phase=line["phase"], reason=reason)
            model = store.model()
            if line["phase"] == "APPLIED" and model is not None:
                self.note("model-applied", round=line["round"], version=model.applied)
            began = next((e["at"] for e in self.history if e["event"] == "plan" and e["round"] == line["round"]), -1.0)
            if line["phase"] == "APPLIED" and self.is_healthy_since is not None and began >= self.is_healthy_since:
                self.round_closed.set()

    @contextmanager
    def laws(self) -> Iterator[None]:
        """Everything that is not the product's own: clocks are the loop's already; keys, disks, ears, power."""
        freeze, burn, finish = ShareStore.freeze, ShareStore.burn, RoundStore.finish
        answer_honestly = answer_freeze
        has_room, choose, decode_sums = ShareStore.has_room_for, RoundLedger.choose_freeze, opening.decode_sums

        def freezing(store: ShareStore, round_id: int, body: bytes, name: bytes, *rest: Any) -> None:
            freeze(store, round_id, body, name, *rest)
            life = current_life()
            assert life is not None
            frozen = {"round": round_id, "freeze": name, "aggregator": life.name}
            self.note_once(("accepted", life.name, name), "freeze-accepted", **frozen)

        def burning(store: ShareStore, round_id: int, *rest: Any) -> None:
            burn(store, round_id, *rest)
            life = current_life()
            assert life is not None
            self.note("burned", round=round_id, aggregator=life.name)

        def finishing(store: RoundStore, *rest: Any) -> None:
            finish(store, *rest)
            self._note_outcome(store)

        def room(store: ShareStore, size: int) -> bool:
            life = current_life()
            return not (life and life.name in self.full) and has_room(store, size)

        def choosing(ledger: RoundLedger) -> Any:
            chosen = choose(ledger)
            if isinstance(chosen, Freeze):
                left_out = dict.fromkeys(ledger.lone_devices, "lone-rung")
                left_out |= dict.fromkeys(ledger.judgement.dealers if ledger.judgement else (), "dealer")
                self._left_out[digest(encode(chosen))] = left_out
            return chosen

        def decoding(current: Any, bench: Any, opened: Any, *rest: Any) -> Any:
            sums = decode_sums(current, bench, opened, *rest)
            self._note_opened(current.ledger, opened)
            return sums

        def answering(*arguments: Any) -> bytes:
            answer = answer_honestly(*arguments)
            life = current_life()
            if life is not None and life.name == self.setup.liar:
                place = self.rng.randrange(len(answer))
                answer = answer[:place] + bytes([answer[place] ^ 1]) + answer[place + 1 :]
            return answer

        with ExitStack() as stack:
            enter = stack.enter_context
            if not self.setup.real_crypto:
                enter(quick_crypto())
            enter(databases_in_memory(self.databases, self._opened))
            for kind, method, wrapper in (
                (ShareStore, "freeze", freezing), (ShareStore, "burn", burning), (ShareStore, "has_room_for", room),
                (RoundStore, "finish", finishing), (RoundLedger, "choose_freeze", choosing),
            ):  # fmt: skip
                enter(patch.object(kind, method, wrapper))
            enter(replaced(decode_sums, decoding))
            enter(replaced(answer_freeze, answering))
            enter(replaced(inbox.matches, _matches))
            enter(patch.object(Identity, "load", self._load_identity))
            enter(patch.object(os, "urandom", self.rng.randbytes))
            enter(patch.object(random, "Random", self._random))
            crash_points.observe(self._reached)
            stack.callback(crash_points.observe, None)
            enter(self._log())
            self._write_directory()
            yield

    def _note_opened(self, ledger: RoundLedger, opened: Any) -> None:
        rungs = [c.rung for c in opened.contributors]
        counts = {index: sum(rung >= index for rung in rungs) for index in opened.words}
        values = values_of(ledger.view, opened.words, counts)
        self.note(
            "opened", round=ledger.view.plan.round_id, freeze=digest(encode(ledger.frozen)),
            contributors=[contributor(c) for c in opened.contributors],
            values={str(index): segment for index, segment in values.items()},
            left_out=list(opened.left_out_devices),
        )  # fmt: skip

    def _opened(self, connection: Connection) -> None:
        life = current_life()
        assert life is not None
        self.connections[life].append(connection)

    def _load_identity(self, path: Path) -> Identity:
        name = Path(path).stem
        return identity(name, self.keys[name])

    def _random(self, *seed: Any) -> random.Random:
        return _Random(*(seed or (self.rng.random(),)))

    def _reached(self, point: str) -> None:
        life = current_life()
        if life is not None and self.armed.get(life.name) == point:
            del self.armed[life.name]
            self.cut_at.append((life.name, point))
            self.cut(life.name)
            raise PowerCutError(point)

    @contextmanager
    def _log(self) -> Iterator[None]:
        """Only what nobody expected is kept: an exception that a handler let through."""

        def keep(_logger: Any, _method: str, event: dict[str, Any]) -> Any:
            error = event.get("exc_info")
            if error is True:
                import sys

                error = sys.exc_info()[1]
            life = current_life()
            is_over = life is not None and life.is_over
            is_repeated = isinstance(error, LinkError)  # by whatever comes after the next connect
            if error and not is_over and not is_repeated and not isinstance(error, sqlite3.ProgrammingError):
                self.faults.append(f"{life.name if life else '-'}: {event['event']}: {error!r}")
            raise structlog.DropEvent

        before = structlog.get_config()
        structlog.configure(
            processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(40), cache_logger_on_first_use=False
        )
        try:
            yield
        finally:
            structlog.configure(**before)


_Random = random.Random
_matches = lru_cache(maxsize=100_000)(inbox.matches)

"""Settings of `fedpruneshare coordinator run`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fedpruneshare.errors import Fault
from fedpruneshare.floors import KEPT_SETS, LOWEST_FLOOR
from fedpruneshare.messages import MAX_AGGREGATORS, MAX_CHUNK_BYTES, MAX_DEVICES, MAX_SEGMENTS
from fedpruneshare.party import LinkSettings, PartySettings
from fedpruneshare.sharing.checksum import CHECKSUM_WORDS
from fedpruneshare.sharing.field import FIELDS

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1, le=MAX_DEVICES)]
Density = Annotated[float, Meta(gt=0, le=1)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all tables."""


class RoundSettings(_Table, frozen=True):
    """How many rounds, of whom, and how long. `cohort` devices are drawn for each round (all if fewer are there).

    `strata`: draw them as if there were so many rungs, by what devices say they may take, whatever the plan offers and
    is expected of them: so different settings draw the same devices. 0: by the plan (docs/protocol.md §8.2).

    `differencing_rounds`: at least the largest of the aggregators' `floors.differencing_rounds`. Sets are then chosen
    so that no aggregator refuses one for differing by few devices from any of its last so many sums (§4.4): where
    devices come and go, others wait until as many as the floor can come back together.
    """

    count: Annotated[int, Meta(ge=1)] = 20
    cohort: Count = 24
    min_devices: Annotated[int, Meta(ge=LOWEST_FLOOR, le=MAX_DEVICES)] = LOWEST_FLOOR
    min_devices_segment: Annotated[int, Meta(ge=LOWEST_FLOOR, le=MAX_DEVICES)] = LOWEST_FLOOR
    deadline_s: Positive = 60.0
    grace_s: Positive = 3.0
    sum_timeout_s: Positive = 60.0
    wait_for_devices_s: Annotated[float, Meta(ge=0)] = 30.0
    max_failed: Annotated[int, Meta(ge=0)] = 0
    seed: Annotated[int, Meta(ge=0)] = 0
    strata: Annotated[int, Meta(ge=0, le=MAX_SEGMENTS)] = 0
    differencing_rounds: Annotated[int, Meta(ge=0, le=KEPT_SETS)] = 0

    def faults(self, path: str) -> Iterator[Fault]:
        """Cross-field checks."""
        if self.cohort < self.min_devices:
            yield Fault(f"{path}.cohort", str(self.cohort), f"at least min_devices = {self.min_devices}")


class SharingSettings(_Table, frozen=True):
    """Any `threshold` of the directory's aggregators open a sum (docs/protocol.md §5.4).

    `privacy_threshold`: t, how many of them together learn nothing; 0 stands for threshold − 1, less gives shorter
    shares (ramp sharing). `dealer_checks`: linear checks of every device's dealing (§5.7). `reveal`: `sum`, or `each`
    to have every single update shown to the coordinator (§5.9), which aggregators must allow, or `plain` to share
    nothing (§5.10), with one aggregator and a threshold of 1, which the directory must allow.

    `checksum`: the hidden checksum, by which a wrong sum is noticed also with exactly `threshold` answers (§5.11; with
    reveal = sum only). `suite`: what shares, sums and seeds are sealed with; `auto` is X25519, or the hybrid with
    ML-KEM where the directory says `post_quantum`; `hybrid` in any case.

    `freeze_quorum`: how many aggregators must have accepted one and the same Freeze before any of them shows its sum
    (§4.5), so that a coordinator in league with aggregators cannot have two sets summed; 0 for none. It costs a message
    and availability. n, threshold: safe without it against so many aggregators in league, aggregators that may be down;
    quorum against threshold − 1 in league, aggregators that may be down then:

        n = 3, 2: against 0, down 1; quorum 3, down 0      n = 5, 4: against 2, down 1; quorum 5, down 0
        n = 4, 2: never,     down 2; quorum 3, down 1      n = 7, 4: against 0, down 3; quorum 6, down 1
        n = 4, 3: against 1, down 1; quorum 4, down 0      n = 7, 5: against 2, down 2; quorum 6, down 1
        n = 5, 3: against 0, down 2; quorum 4, down 1      any: 2·threshold − league > n, or 2·quorum − league > n
    """

    threshold: Annotated[int, Meta(ge=1, le=MAX_AGGREGATORS)] = 2
    privacy_threshold: Annotated[int, Meta(ge=0, lt=MAX_AGGREGATORS)] = 0
    field: Literal["F31", "F61"] = "F31"
    dealer_checks: Annotated[int, Meta(ge=0, le=4)] = 0
    reveal: Literal["sum", "each", "plain"] = "sum"
    checksum: bool = True
    suite: Literal["auto", "hybrid"] = "auto"
    freeze_quorum: Annotated[int, Meta(ge=0, le=MAX_AGGREGATORS)] = 0

    @property
    def has_checksum(self) -> bool:
        """Whether rounds have the hidden checksum: not where single updates are shown anyway."""
        return self.checksum and self.reveal == "sum"

    @property
    def tail_words(self) -> int:
        """Words that the checksum takes at the end of every segment."""
        return CHECKSUM_WORDS[self.field] if self.has_checksum else 0

    @property
    def t(self) -> int:
        """How many aggregators together learn nothing."""
        return self.privacy_threshold or self.threshold - 1

    def faults(self, path: str) -> Iterator[Fault]:
        """Cross-field checks."""
        if self.reveal == "plain":
            yield from self._plain_faults(path)
            return
        if self.threshold < 2:
            yield Fault(f"{path}.threshold", str(self.threshold), "at least 2 unless reveal = plain")
        elif self.t >= self.threshold:
            yield Fault(f"{path}.privacy_threshold", str(self.t), f"below threshold = {self.threshold}")
        if self.reveal == "each" and self.t < self.threshold - 1:
            yield Fault(f"{path}.privacy_threshold", str(self.t), "threshold - 1 (or 0) with reveal = each")
        if self.reveal == "each" and self.dealer_checks:
            yield Fault(f"{path}.dealer_checks", str(self.dealer_checks), "0 with reveal = each")
        if 0 < self.freeze_quorum < self.threshold:
            expected = f"0, or at least threshold = {self.threshold}"
            yield Fault(
                f"{path}.freeze_quorum", str(self.freeze_quorum), expected, "see the table of docs/protocol.md §4.5"
            )

    def _plain_faults(self, path: str) -> Iterator[Fault]:
        """What goes with no sharing at all."""
        for name, found, expected in (
            ("threshold", self.threshold, 1),
            ("privacy_threshold", self.privacy_threshold, 0),
            ("field", self.field, "F31"),
            ("dealer_checks", self.dealer_checks, 0),
            ("freeze_quorum", self.freeze_quorum, 0),
        ):
            if found != expected:
                yield Fault(f"{path}.{name}", str(found), f"{expected} with reveal = plain")


class PruningSettings(_Table, frozen=True):
    """Nested supports: rung j of round r keeps `rungs[j]` times that round's density (docs/protocol.md §6.2, §6.3).

    `widths`: kept share of the channels at each rung (none: all of them everywhere), so that weak devices train a
    physically smaller model (§6.7). `allocation`: one order of magnitudes over the whole model, or `erk` quotas by
    layer. `churn_tolerance`: a weight or channel must be larger by this share to take another's place in a rung.
    `probe`: share of all coordinates drawn anew every `probe_every` rounds and trained by the strongest devices, so
    that pruned ones can come back; until `probe_until` rounds are applied (0: three quarters of them).
    """

    rungs: Annotated[tuple[Density, ...], Meta(min_length=1, max_length=15)] = (0.5, 1.0)
    widths: Annotated[tuple[Density, ...], Meta(max_length=15)] = ()
    start_density: Density = 1.0
    target_density: Density = 0.1
    dense_rounds: Annotated[int, Meta(ge=0)] = 1
    final_round: Annotated[int, Meta(ge=1)] = 14
    allocation: Literal["global", "erk"] = "global"
    churn_tolerance: Annotated[float, Meta(ge=0, le=10)] = 0.0
    probe: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    probe_every: Annotated[int, Meta(ge=1)] = 5
    probe_until: Annotated[int, Meta(ge=0)] = 0

    def faults(self, path: str) -> Iterator[Fault]:
        """Cross-field checks."""
        yield from self._rung_faults(path)
        if self.target_density > self.start_density:
            yield Fault(
                f"{path}.target_density", str(self.target_density), f"at most start_density {self.start_density}"
            )
        if self.final_round <= self.dense_rounds:
            yield Fault(f"{path}.final_round", str(self.final_round), f"more than dense_rounds = {self.dense_rounds}")

    def _rung_faults(self, path: str) -> Iterator[Fault]:
        """Rungs rise in density or in width, and end with the whole model."""
        widths = self.widths or (1.0,) * len(self.rungs)
        if len(widths) != len(self.rungs):
            yield Fault(f"{path}.widths", f"{len(widths)} numbers", f"none, or one for each of {len(self.rungs)} rungs")
        elif list(widths) != sorted(widths) or widths[-1] != 1.0:
            yield Fault(f"{path}.widths", str(list(widths)), "numbers that do not fall and end with 1.0")
        pairs = list(zip(self.rungs, widths, strict=False))
        if list(self.rungs) != sorted(self.rungs) or self.rungs[-1] != 1.0 or len(set(pairs)) != len(pairs):
            expected = "numbers that end with 1.0 and rise wherever the width does not"
            yield Fault(f"{path}.rungs", str(list(self.rungs)), expected)


class CodingSettings(_Table, frozen=True):
    """How updates are quantised (docs/protocol.md §6.4); with reveal = plain 16 and 32 bits are float16 and float32."""

    value_bits: Annotated[int, Meta(ge=2, le=32)] = 4
    vector_bits: Annotated[int, Meta(ge=2, le=32)] = 16
    max_weight: Annotated[int, Meta(ge=1, lt=2**24)] = 512
    clip_initial: Positive = 0.1
    clip_factor: Positive = 3.0
    chunk_bytes: Annotated[int, Meta(ge=1024, le=MAX_CHUNK_BYTES)] = 64 * 1024
    radix: Literal["mixed", "power-of-two"] = "mixed"


class TrainingSettings(_Table, frozen=True):
    """What devices do locally. `proximal_mu` above 0 is FedProx: it holds models of unlike data together.

    `least_work`: the least part of its steps that a device may do which has no time for all of them at the lowest rung.
    """

    local_epochs: Annotated[int, Meta(ge=1)] = 2
    batch_size: Annotated[int, Meta(ge=1)] = 32
    learning_rate: Positive = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0)] = 0.0
    least_work: Density = 0.5


class AveragingSettings(_Table, frozen=True):
    """How the opened mean moves the model, by the names of Reddi et al., "Adaptive federated optimization", ICLR 2021.

    `fedavg` adds `server_learning_rate` times the mean; `fedavgm` gives it momentum `beta_1`; `fedadam` scales every
    coordinate by its second moment (`beta_2`, `tau`) and wants a smaller learning rate, about 0.01 to 0.1.

    `max_score_drop`: a round whose model scores worse than the last applied one by more than this, in the task's
    metric, is FAILED and the old model stays; 0 applies every sound one. Pruning lowers scores for a while by itself.
    """

    server_optimiser: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    server_learning_rate: Positive = 1.0
    beta_1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    tau: Positive = 1e-3
    max_score_drop: Annotated[float, Meta(ge=0)] = 0.0


def word_faults(sharing: SharingSettings, coding: CodingSettings, cohort: int) -> Iterator[Fault]:
    """Sums that could wrap, chunks that would cut words, bits that are not those of what is sent."""
    field = FIELDS[sharing.field]
    for name, bits in (("value_bits", coding.value_bits), ("vector_bits", coding.vector_bits)):
        if sharing.reveal == "plain" and bits not in (16, 32):
            yield Fault(f"coding.{name}", str(bits), "16 or 32 with sharing.reveal = plain")
        elif sharing.reveal != "plain" and bits > 16:
            yield Fault(f"coding.{name}", str(bits), "at most 16 unless sharing.reveal = plain")
    if cohort * coding.max_weight >= field.p:
        expected = f"below {field.p // cohort} for rounds.cohort = {cohort}"
        yield Fault("coding.max_weight", str(coding.max_weight), expected, "the sum of weights could wrap")
    if coding.chunk_bytes % field.word_bytes:
        expected = f"a multiple of {field.word_bytes}"
        yield Fault("coding.chunk_bytes", str(coding.chunk_bytes), expected, "chunks hold whole words")


class CoordinatorSettings(_Table, frozen=True):
    """The whole file. `bundle` is the task bundle; `store` the folder of ledger, model and rounds.jsonl."""

    party: PartySettings
    bundle: str
    store: str
    rounds: RoundSettings = RoundSettings()
    sharing: SharingSettings = SharingSettings()
    pruning: PruningSettings = PruningSettings()
    coding: CodingSettings = CodingSettings()
    training: TrainingSettings = TrainingSettings()
    averaging: AveragingSettings = AveragingSettings()
    link: LinkSettings = LinkSettings()

    def faults(self, path: str) -> Iterator[Fault]:
        """Checks across tables."""
        yield from word_faults(self.sharing, self.coding, self.rounds.cohort)

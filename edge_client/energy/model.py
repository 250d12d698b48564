"""Joules where nothing measures: watts of the board's profile x seconds of each phase, and the bytes of the radio.

    E = P_idle·T + (P_busy - P_idle)·t_busy + bytes·e_radio + tails

`T` are all seconds, `t_busy` those of training, pruning, encoding and sharing. While it sends or receives a board is
taken to idle, and every byte costs what the radio adds: most of that time is waiting. A figure of this model always
says so, and carries an uncertainty that is an estimate, too.

Radio coefficients: of Ethernet and Wi-Fi from the profile (watts over idle while the link is busy, over its rate). Of
LTE, which no board's profile knows, from Huang et al., "A close examination of performance and power characteristics
of 4G LTE networks", MobiSys 2012: mW = alpha · Mbit/s + beta, and 11.6 s of tail. Those are phones of 2012; what the
paper says of Wi-Fi bounds the uncertainty of Wi-Fi here. One's own can be set (`RadioSettings`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edge_client.energy.meters import Source
from edge_client.energy.parts import Phase, PhaseEnergy
from edge_client.energy.settings import RadioSettings

if TYPE_CHECKING:
    from edge_client.board.profiles import BoardProfile

#: How far a profile's watts may be off, as a share: other copies of the board, supplies, temperatures; many of the
#: profiles' figures are estimates themselves.
WATTS_ERROR: Final = 0.3
#: The same of coefficients that were measured, by someone else (Huang et al. say 6 % of their own phones) or by the
#: operator, and of a cable's.
_RADIO_ERROR: Final = 0.5
#: How far a profile's `train_scale` may be off, which `work_scale` is made of: it is an estimate from benchmarks.
_SCALE_ERROR: Final = 0.5
_BUSY: Final = (Phase.TRAIN, Phase.PRUNE, Phase.ENCODE, Phase.SHARE)


@dataclass(frozen=True)
class Linear:
    """Power of a radio at work by Huang et al., table 4: mW = up (down) · Mbit/s + base; then a tail."""

    up_mw: float
    down_mw: float
    base_mw: float
    tail_s: float = 0.0
    tail_w: float = 0.0

    def joules_per_byte(self, mw_per_mbit_s: float, mbit_s: float) -> float:
        """At a rate: mW over Mbit/s are nanojoules per bit."""
        return (mw_per_mbit_s + self.base_mw / mbit_s) * 8e-9


HUANG_WIFI: Final = Linear(283.0, 137.0, 133.0)
HUANG_LTE: Final = Linear(438.0, 52.0, 1288.0, tail_s=11.6, tail_w=1.06)


@dataclass(frozen=True)
class Radio:
    """What bytes cost over the idle board: joules per byte with their uncertainty, and what follows the last byte."""

    up_j_byte: float
    down_j_byte: float
    up_error_j: float
    down_error_j: float
    source: str
    tail_w: float = 0.0
    tail_s: float = 0.0

    @classmethod
    def of(cls, profile: BoardProfile, own: RadioSettings | None = None) -> Radio:
        """The operator's own coefficients, else those of the profile's kind of link."""
        link, power = profile.link, profile.power
        if own is not None:
            up, down = own.up_j_mb / 1e6, own.down_j_mb / 1e6
            error = (_RADIO_ERROR * up, _RADIO_ERROR * down)
            return cls(up, down, *error, "settings", own.tail_w, own.tail_s)
        if link.kind == "lte":
            up = HUANG_LTE.joules_per_byte(HUANG_LTE.up_mw, link.up_mbit_s)
            down = HUANG_LTE.joules_per_byte(HUANG_LTE.down_mw, link.down_mbit_s)
            error = (_RADIO_ERROR * up, _RADIO_ERROR * down)
            return cls(up, down, *error, "LTE of 2012 (Huang et al.)", HUANG_LTE.tail_w, HUANG_LTE.tail_s)
        up = max(0.0, power.send_w - power.idle_w) / (link.up_mbit_s * 125_000)
        down = max(0.0, power.receive_w - power.idle_w) / (link.down_mbit_s * 125_000)
        if link.kind == "ethernet":
            return cls(up, down, _RADIO_ERROR * up, _RADIO_ERROR * down, "profile")
        up_2012 = HUANG_WIFI.joules_per_byte(HUANG_WIFI.up_mw, link.up_mbit_s)
        down_2012 = HUANG_WIFI.joules_per_byte(HUANG_WIFI.down_mw, link.down_mbit_s)
        return cls(up, down, abs(up_2012 - up), abs(down_2012 - down), "profile")


@dataclass(frozen=True)
class EnergyModel:
    """Joules of a round on one board, from what its phases took and what went over its link.

    `work_scale`: how many times longer the board would have worked than this machine that stands for it; what is
    scaled are seconds of its processor, for it may be shared. With `work_is_slowed` the machine was held to that speed:
    its seconds are the board's, as uncertain as the scale is.
    """

    profile: BoardProfile
    radio: Radio
    work_scale: float = 1.0
    work_is_slowed: bool = False

    @property
    def source(self) -> Source:
        """The profile, and where the radio's coefficients come from."""
        covers = f"the whole board by the profile {self.profile.name}, radio by {self.radio.source}"
        if self.work_scale != 1.0:
            how = "time of work slowed down" if self.work_is_slowed else "processor time of work x"
            covers += f", {how} {self.work_scale:g}"
        return Source("model", covers, "watts x seconds + joules x bytes, not measured", self._error_share)

    @property
    def _seconds_scale(self) -> float:
        """From seconds of this machine to the board's."""
        return 1.0 if self.work_is_slowed else self.work_scale

    @property
    def counts_processor_time(self) -> bool:
        """Whether its work is told by seconds of the processor: where the machine stands for a board unslowed."""
        return self.work_scale != 1.0 and not self.work_is_slowed

    @property
    def _error_share(self) -> float:
        return WATTS_ERROR if self.work_scale == 1.0 else math.hypot(WATTS_ERROR, _SCALE_ERROR)

    def round_energy(
        self,
        seconds: Mapping[Phase, float],
        bytes_up: int,
        bytes_down: int,
        processor_s: Mapping[Phase, float] | None = None,
    ) -> dict[Phase, PhaseEnergy]:
        """Joules by phase. Bytes received belong to `receive`, those sent to `send`, each with its radio's tail.

        `seconds` are of this machine; joules are the board's. `processor_s`: what the processor spent in each phase,
        where that counts (`counts_processor_time`).
        """
        worked = processor_s if self.counts_processor_time and processor_s is not None else seconds
        extra = self._radio_joules({**seconds, **{p: worked.get(p, 0.0) for p in _BUSY}}, bytes_up, bytes_down)
        power, made = self.profile.power, {}
        for phase in Phase:
            radio_j, radio_error_j = extra.get(phase, (0.0, 0.0))
            if phase not in seconds and not radio_j:
                continue
            is_busy, here_s = phase in _BUSY, seconds.get(phase, 0.0)
            length_s = worked.get(phase, 0.0) * self._seconds_scale if is_busy else here_s
            board_j = (power.busy_w if is_busy else power.idle_w) * length_s
            error_share = self._error_share if is_busy else WATTS_ERROR
            made[phase] = PhaseEnergy(
                joules=board_j + radio_j,
                seconds=here_s,
                source=self.source,
                is_modelled=True,
                uncertainty_j=math.hypot(error_share * board_j, radio_error_j),
                readings=0,
                idle_j=power.idle_w * length_s,
            )
        return made

    def _radio_joules(
        self, seconds: Mapping[Phase, float], bytes_up: int, bytes_down: int
    ) -> dict[Phase, tuple[float, float]]:
        """Joules of the bytes, and of a tail for as long as nothing follows; and their uncertainty.

        A tail ends with the period: what follows in the next one has its own, and none is paid for twice.
        """
        radio, idle_s = self.radio, seconds.get(Phase.IDLE, 0.0)
        pause_s = self._seconds_scale * sum(seconds.get(phase, 0.0) for phase in _BUSY)
        tails_s = {Phase.RECEIVE: pause_s if bytes_up else pause_s + idle_s, Phase.SEND: idle_s}
        costs = {
            Phase.RECEIVE: (bytes_down, radio.down_j_byte, radio.down_error_j),
            Phase.SEND: (bytes_up, radio.up_j_byte, radio.up_error_j),
        }
        found = {}
        for phase, (size_bytes, j_byte, error_j_byte) in costs.items():
            if size_bytes:
                tail_j = radio.tail_w * min(radio.tail_s, tails_s[phase])
                error_j = math.hypot(size_bytes * error_j_byte, _RADIO_ERROR * tail_j)
                found[phase] = (size_bytes * j_byte + tail_j, error_j)
        return found

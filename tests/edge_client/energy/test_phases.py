"""Joules by phase under a clock that only moves when told: sums, boundaries, failures, and never two sources in one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.board.profiles import load_board
from edge_client.energy.meters import Source
from edge_client.energy.model import EnergyModel, Radio
from edge_client.energy.phases import (
    Phase,
    PhaseEnergy,
    PhaseMeter,
    Span,
    find_energy,
    ledger_energy,
    ledger_spans,
    measured_j,
    round_j,
)
from edge_client.energy.settings import EnergySettings
from fedpruneshare.errors import MeterError

TREES = Path(__file__).parents[1] / "trees"
PI_4, ORIN = load_board("raspberry-pi-4b"), load_board("jetson-orin-nano")
MODEL = EnergyModel(PI_4, Radio.of(PI_4))
#: Never by itself within a test: what is read is read at boundaries, or by `tick`.
NEVER_S = 60.0


class Bench:
    """A clock, and a board whose power is set by hand."""

    def __init__(self, kind: str = "power", interval_s: float = 0.0, error_share: float = 0.0) -> None:
        self.now, self.power_w, self.total_j = 0.0, 2.0, 100.0
        self.source = Source("bench", "all of it", "exact", error_share, interval_s)
        self.failing = ""
        self.read = 0
        if kind == "power":
            self.watts = self._watts
        else:
            self.joules = self._joules

    def _watts(self) -> float:
        self._fail()
        return self.power_w + 1e-9 * self.read  # a sensor has noise

    def _joules(self) -> float:
        self._fail()
        return self.total_j

    def _fail(self) -> None:
        self.read += 1
        if self.failing:
            raise MeterError(self.failing)

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.total_j += self.power_w * seconds

    def meter(self, model: EnergyModel | None = MODEL) -> PhaseMeter:
        return PhaseMeter(self, model, NEVER_S, self.clock, self.wall)


def joules(found: dict[Phase, PhaseEnergy]) -> dict[str, float | None]:
    return {str(phase): part.joules for phase, part in found.items()}


# --------------------------------------------------------------------------- measured


@pytest.mark.parametrize("kind", ["power", "counter"])
def test_each_phase_has_its_own_joules(kind: str) -> None:
    bench = Bench(kind)
    phases = bench.meter()
    phases.begin_round()
    bench.pass_s(1.0)
    with phases.phase(Phase.RECEIVE):
        bench.pass_s(2.0)
    for power_w, phase, seconds in ((5.0, Phase.TRAIN, 10.0), (4.0, Phase.ENCODE, 0.5), (3.0, Phase.SEND, 4.0)):
        bench.power_w = power_w
        phases.enter(phase)
        bench.pass_s(seconds)
    bench.power_w = 2.0
    phases.enter(Phase.IDLE)
    bench.pass_s(3.0)
    found = phases.end_round(1000, 2000)
    if kind == "counter":
        expected = {"receive": 4.0, "train": 50.0, "encode": 2.0, "send": 12.0, "idle": 8.0}
    else:  # between two readings power is taken to change evenly: training from 5 to 4 W, and so on
        expected = {"receive": 4.0, "train": 45.0, "encode": 1.75, "send": 10.0, "idle": 8.0}
    assert joules(found) == pytest.approx(expected)
    assert {phase: part.seconds for phase, part in found.items()} == pytest.approx(
        {"receive": 2.0, "train": 10.0, "encode": 0.5, "send": 4.0, "idle": 4.0}
    )
    assert all((part.source.sensor, part.is_modelled) == ("bench", False) for part in found.values())


def test_a_counter_is_read_at_the_boundary_and_the_rest_is_told_apart_exactly() -> None:
    bench = Bench("counter", error_share=0.05)
    phases = bench.meter()
    phases.begin_round()
    phases.enter(Phase.TRAIN)
    bench.power_w = 7.0
    bench.pass_s(3.0)
    phases.enter(Phase.SEND)
    bench.power_w = 1.0
    bench.pass_s(2.0)
    found = phases.end_round(0, 0)
    assert joules(found) == {"train": 21.0, "send": 2.0, "idle": 0.0}
    assert found[Phase.TRAIN].uncertainty_j == pytest.approx(0.05 * 21.0)
    assert (found[Phase.TRAIN].readings, found[Phase.SEND].readings) == (1, 1)


def test_phases_shorter_than_the_sensors_interval_are_kept_and_doubted() -> None:
    """The sensor renews its reading each second: three phases of 0.2 s share one second by time."""
    bench = Bench("counter", interval_s=1.0)
    phases = bench.meter()
    phases.begin_round()
    for phase, power_w in ((Phase.RECEIVE, 2.0), (Phase.TRAIN, 8.0), (Phase.ENCODE, 2.0)):
        phases.enter(phase)
        bench.power_w = power_w
        bench.pass_s(0.2)
    found = phases.end_round(0, 0)
    assert bench.read == 2  # first and last: nothing new in between
    for phase in (Phase.RECEIVE, Phase.TRAIN, Phase.ENCODE):
        part = found[phase]
        assert part.joules == pytest.approx(2.4 / 3)
        assert part.uncertainty_j is not None
        assert part.joules is not None
        assert part.uncertainty_j >= part.joules
        true_j = 1.6 if phase is Phase.TRAIN else 0.4
        assert abs(true_j - part.joules) <= part.uncertainty_j


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Phase)), st.floats(0.001, 30), st.floats(0.5, 20)), min_size=1, max_size=12
    ),
    st.sampled_from([0.0, 0.05, 5.0]),
)
def test_nothing_is_lost_and_nothing_counted_twice(steps: list[tuple[Phase, float, float]], interval_s: float) -> None:
    bench = Bench("counter", interval_s)
    phases = bench.meter()
    phases.begin_round()
    for phase, seconds, power_w in steps:
        phases.enter(phase)
        bench.power_w = power_w
        bench.pass_s(seconds)
    found = phases.end_round(0, 0)
    assert sum(part.joules or 0.0 for part in found.values()) == pytest.approx(bench.total_j - 100.0)
    assert sum(part.seconds for part in found.values()) == pytest.approx(bench.now)
    for phase in Phase:
        true_j = sum(seconds * power_w for one, seconds, power_w in steps if one is phase)
        if interval_s == 0.0 and true_j:
            assert found[phase].joules == pytest.approx(true_j)


def test_a_thread_samples_between_the_boundaries() -> None:
    seen = threading.Event()

    class Real(Bench):
        def _watts(self) -> float:
            if threading.current_thread() is not threading.main_thread():
                self.now += 0.5
                if self.read > 20:
                    seen.set()
            return super()._watts()

    bench = Real()
    phases = PhaseMeter(bench, MODEL, 0.01, bench.clock, bench.wall)
    phases.begin_round()
    phases.enter(Phase.TRAIN)
    assert seen.wait(20)
    found = phases.end_round(0, 0)
    assert found[Phase.TRAIN].readings >= 19
    assert round_j(found, is_modelled=False) == pytest.approx(2.0 * bench.now, rel=1e-6)
    assert not [thread for thread in threading.enumerate() if thread.name == "energy"]


# --------------------------------------------------------------------------- failures


@pytest.mark.parametrize("where", ["begin", "middle", "end"])
def test_a_sensor_that_fails_anywhere_leaves_no_figure_in_the_whole_round(where: str) -> None:
    bench, reason = Bench(), "in1_input: permission denied, expected a readable sensor"
    phases = bench.meter()
    bench.failing = reason if where == "begin" else ""
    phases.begin_round()
    phases.enter(Phase.TRAIN)
    bench.pass_s(2.0)
    bench.failing = reason if where == "middle" else ""
    phases.enter(Phase.SEND)
    bench.pass_s(1.0)
    bench.failing = reason if where == "end" else ""
    found = phases.end_round(10_000, 0)
    assert joules(found) == {"train": None, "send": None, "idle": None}
    assert {part.reason for part in found.values()} == {f"unavailable: {reason}"}
    assert not any(part.is_modelled for part in found.values())
    assert found[Phase.TRAIN].seconds == 2.0
    assert (measured_j(found), round_j(found, is_modelled=False), round_j(found, is_modelled=True)) == (None,) * 3
    assert phases.modelled_j == pytest.approx(
        PI_4.power.busy_w * 2 + PI_4.power.idle_w * 1 + 10_000 * MODEL.radio.up_j_byte
    )
    # The next round is measured again.
    bench.failing = ""
    phases.begin_round()
    bench.pass_s(4.0)
    assert joules(phases.end_round(0, 0)) == pytest.approx({"idle": 8.0})


def test_a_sensor_that_hangs_over_several_rounds_is_found_out() -> None:
    bench = Bench("counter")
    phases, known = bench.meter(), []
    for _ in range(60):
        phases.begin_round()
        bench.now += 1.0  # time passes, and no joule with it
        known.append(round_j(phases.end_round(0, 0), is_modelled=False))
    assert None in known
    first = known.index(None)
    assert set(known[first:]) == {None}
    assert first <= 50


def test_a_power_meter_that_was_not_read_for_long_gives_none() -> None:
    bench = Bench()
    phases = PhaseMeter(bench, MODEL, 0.2, bench.clock, bench.wall)
    phases.begin_round()
    phases.enter(Phase.TRAIN)
    bench.now += 3600.0  # as a board that slept would show
    found = phases.end_round(0, 0)
    assert "bench: not read for 3600.0 s" in found[Phase.TRAIN].reason


def test_wrong_order_of_calls_is_refused() -> None:
    phases = Bench().meter()
    with pytest.raises(RuntimeError, match=r"expected begin_round\(\) before"):
        phases.enter(Phase.TRAIN)
    with pytest.raises(RuntimeError, match=r"expected begin_round\(\) before end_round"):
        phases.end_round(0, 0)
    phases.begin_round()
    with pytest.raises(RuntimeError, match=r"expected end_round\(\) before"):
        phases.begin_round()
    phases.end_round(0, 0)


def test_a_phase_cut_short_by_an_error_ends_and_one_that_outlives_its_round_is_no_error() -> None:
    bench = Bench("counter")
    phases = bench.meter()
    phases.begin_round()
    with pytest.raises(ValueError, match="cut"), phases.phase(Phase.SEND), phases.phase(Phase.SHARE):
        bench.pass_s(1.0)
        raise ValueError("cut")
    bench.pass_s(2.0)
    assert joules(phases.end_round(0, 0)) == {"send": 0.0, "share": 2.0, "idle": 4.0}
    phases.begin_round()
    with phases.phase(Phase.TRAIN):
        bench.pass_s(1.0)
        assert joules(phases.end_round(0, 0)) == {"train": 2.0, "idle": 0.0}
    phases.begin_round()
    with phases.phase(Phase.TRAIN):
        phases.end_round(0, 0)
        phases.begin_round()
    bench.pass_s(1.0)
    assert joules(phases.end_round(0, 0)) == {"idle": 2.0}


# --------------------------------------------------------------------------- modelled, and none


def test_without_a_meter_everything_is_modelled_and_says_so() -> None:
    bench = Bench()
    phases = PhaseMeter(None, MODEL, 0.2, bench.clock, bench.wall)
    phases.begin_round()
    phases.enter(Phase.TRAIN)
    bench.pass_s(10.0)
    found = phases.end_round(0, 0)
    assert found == MODEL.round_energy({Phase.TRAIN: 10.0, Phase.IDLE: 0.0}, 0, 0)
    assert all((part.is_modelled, part.source.sensor) == (True, "model") for part in found.values())
    assert measured_j(found) is None
    assert round_j(found, is_modelled=True) == pytest.approx(30.0) == phases.modelled_j


@pytest.mark.parametrize(
    ("scale", "is_slowed", "busy_s"),
    [(1.0, False, 10.0), (5.0, False, 5.0 * 2.0), (5.0, True, 10.0)],
    ids=["the board itself", "a quicker machine, shared with others", "a machine held to the board's speed"],
)
def test_work_of_a_board_that_is_stood_for_is_told_by_processor_time(
    scale: float, is_slowed: bool, busy_s: float
) -> None:
    """Ten devices on two cores wait for each other; the boards they stand for would not."""
    bench = Bench()
    model = EnergyModel(PI_4, Radio.of(PI_4), scale, is_slowed)
    phases = PhaseMeter(None, model, 0.2, bench.clock, bench.wall, lambda: bench.now / 5)
    phases.begin_round()
    phases.enter(Phase.TRAIN)
    bench.pass_s(10.0)  # of which the processor worked two seconds for this process
    phases.enter(Phase.IDLE)
    bench.pass_s(4.0)
    found = phases.end_round(0, 0)
    assert found[Phase.TRAIN].joules == pytest.approx(PI_4.power.busy_w * busy_s)
    assert found[Phase.TRAIN].seconds == 10.0
    assert found[Phase.IDLE].joules == pytest.approx(PI_4.power.idle_w * 4.0)


def test_with_neither_nothing_is_told_but_the_phases() -> None:
    bench = Bench()
    phases = PhaseMeter(None, None, 0.2, bench.clock, bench.wall)
    phases.begin_round()
    with phases.phase(Phase.TRAIN):
        bench.pass_s(1.0)
    assert phases.end_round(1, 1) == {}
    assert (phases.source, phases.modelled_j) == (None, None)
    assert phases.spans() == [Span(Phase.TRAIN, 1_700_000_000.0, 1_700_000_001.0)]


def test_spans_are_in_unix_time_and_joined() -> None:
    bench = Bench()
    bench.now = 50.0
    phases = bench.meter()
    phases.begin_round()
    bench.pass_s(1.0)
    for _ in range(3):
        with phases.phase(Phase.SEND):
            bench.pass_s(0.25)
    bench.pass_s(0.5)
    phases.end_round(0, 0)
    at = 1_700_000_050.0
    assert ledger_spans(phases.spans()) == [
        ("idle", at, at + 1.0),
        ("send", at + 1.0, at + 1.75),
        ("idle", at + 1.75, at + 2.25),
    ]


def test_what_the_ledger_gets() -> None:
    part = PhaseEnergy(1.23456789, 2.0, Source("rapl", "1 package", "µJ"), False, 0.5, 7)
    failed = PhaseEnergy(None, 2.0, Source("rapl", "1 package", "µJ"), False, None, 0, reason="unavailable: gone")
    made = ledger_energy({Phase.TRAIN: part, Phase.IDLE: failed})
    assert made["train"] == {
        "joules": 1.234568, "uncertainty_j": 0.5, "seconds": 2.0, "source": "rapl", "modelled": False, "readings": 7,
        "covers": "1 package", "resolution": "µJ",
    }  # fmt: skip
    assert (made["idle"]["joules"], made["idle"]["reason"]) == (None, "unavailable: gone")


def test_measured_joules_of_work_leave_idle_out_and_are_never_mixed_with_modelled_ones() -> None:
    source = Source("rapl", "1 package", "µJ")
    train, idle = PhaseEnergy(5.0, 1, source, False, 0, 1), PhaseEnergy(3.0, 1, source, False, 0, 1)
    modelled = MODEL.round_energy({Phase.SEND: 1.0}, 0, 0)
    assert measured_j({Phase.TRAIN: train, Phase.IDLE: idle}) == 5.0
    assert round_j({Phase.TRAIN: train, Phase.IDLE: idle}, is_modelled=False) == 8.0
    for is_modelled in (True, False):
        assert round_j({Phase.TRAIN: train, **modelled}, is_modelled=is_modelled) is None
    assert measured_j({Phase.TRAIN: train, **modelled}) is None
    assert measured_j({}) is None


# --------------------------------------------------------------------------- which one is taken


@pytest.mark.parametrize(
    ("board", "meter", "sensor"),
    [
        ("jetson-orin-nano", "auto", "ina3221"),
        ("jetson-orin-nano", "ina3221", "ina3221"),
        ("jetson-orin-nano", "model", "model"),
        ("raspberry-pi-4b", "auto", "model"),
        ("raspberry-pi-5", "auto", "rpi5-pmic"),
        ("generic-x86-64", "rapl", "rapl"),
        ("jetson-orin-nano", "none", None),
    ],
)
def test_the_settings_choose(board: str, meter: str, sensor: str | None) -> None:
    phases = find_energy(TREES / board, load_board(board), EnergySettings(meter=meter))  # type: ignore[arg-type]
    assert (phases.source.sensor if phases.source else None) == sensor


@pytest.mark.parametrize(("board", "text"), [("raspberry-pi-4b", "no power sensor"), ("jetson-nano", "is ina3221")])
def test_a_sensor_that_is_insisted_on_must_be_there(board: str, text: str) -> None:
    with pytest.raises(MeterError, match=text):
        find_energy(TREES / board, load_board(board), EnergySettings(meter="rapl"))


def test_a_tree_is_metered_through_a_round() -> None:
    bench = Bench()
    phases = find_energy(TREES / "jetson-orin-nano", ORIN, EnergySettings(every_s=NEVER_S), bench.clock, bench.wall)
    phases.begin_round()
    phases.enter(Phase.TRAIN)
    bench.pass_s(4.0)
    found = phases.end_round(0, 0)
    assert found[Phase.TRAIN].joules == pytest.approx(4.0 * 5.008 * 1.088, rel=1e-12)
    assert found[Phase.TRAIN].source.covers == "the whole board (VDD_IN)"
    uncertainty_j = found[Phase.TRAIN].uncertainty_j
    assert uncertainty_j is not None
    assert 0.02 * 21.79 < uncertainty_j < 0.06 * 21.8

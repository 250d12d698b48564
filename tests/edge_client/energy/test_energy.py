"""Joules to the last digit from trees laid out as the boards' drivers do, and a reason where a sensor fails."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.energy.meters import Ina3221, Pmic, Rapl, Source, find_meter
from edge_client.energy.recorder import Energy, EnergyRecorder
from edge_client.energy.trace import PowerTrace
from fedpruneshare.cli import run
from fedpruneshare.errors import MeterError


def tree(root: Path, files: Mapping[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


HWMON = "sys/class/hwmon/hwmon3"
ORIN = {
    "sys/class/hwmon/hwmon0/name": "cpu_thermal", f"{HWMON}/name": "ina3221",
    f"{HWMON}/in1_label": "VDD_IN", f"{HWMON}/in1_input": 5000, f"{HWMON}/curr1_input": 1400,
    f"{HWMON}/in2_label": "VDD_CPU_GPU_CV", f"{HWMON}/in2_input": 5000, f"{HWMON}/curr2_input": 400,
    f"{HWMON}/in3_label": "NC", f"{HWMON}/in3_input": 5000, f"{HWMON}/curr3_input": 9000,
    f"{HWMON}/in7_label": "sum of shunt voltages", f"{HWMON}/in7_input": 77, f"{HWMON}/curr7_input": 9,
}  # fmt: skip
IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
NANO = {
    f"{IIO}/rail_name_0": "POM_5V_IN", f"{IIO}/in_power0_input": 2345,
    f"{IIO}/rail_name_1": "POM_5V_GPU", f"{IIO}/in_power1_input": 300,
    f"{IIO}/rail_name_2": "POM_5V_CPU", f"{IIO}/in_power2_input": 800,
}  # fmt: skip
ZONE = "sys/class/powercap/intel-rapl:0"
X86 = {
    f"{ZONE}/name": "package-0", f"{ZONE}/energy_uj": 1_000_000, f"{ZONE}/max_energy_range_uj": 5_000_000,
    f"{ZONE}:0/name": "core", f"{ZONE}:0/energy_uj": 7, f"{ZONE}:0/max_energy_range_uj": 5_000_000,
}  # fmt: skip
PI5 = {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}
PMIC = """
     3V7_WL_SW_A current(0)=0.10000000A
       VDD_CORE_A current(7)=2.00000000A
     3V7_WL_SW_V volt(8)=3.70000000V
       VDD_CORE_V volt(15)=0.75000000V
          EXT5V_V volt(24)=5.14270000V
           BATT_V volt(25)=0.00000000V
"""
OLD_PMIC = "VDD_CORE_A=2.0A\nVDD_CORE_V=0.75V\nEXT5V_V=5.1V\n"


# --------------------------------------------------------------------------- meters


def test_an_orin_is_read_at_its_input(tmp_path: Path) -> None:
    meter = find_meter(tree(tmp_path, ORIN))
    assert isinstance(meter, Ina3221)
    assert meter.watts() == pytest.approx(7.0)
    assert meter.rail_watts("VDD_CPU_GPU_CV") == pytest.approx(2.0)
    assert sorted(meter.rails) == ["VDD_CPU_GPU_CV", "VDD_IN"]
    assert (meter.source.sensor, meter.source.covers) == ("ina3221", "the whole board (VDD_IN)")


def test_a_nano_is_read_by_the_older_files(tmp_path: Path) -> None:
    meter = find_meter(tree(tmp_path, NANO))
    assert meter.watts() == pytest.approx(2.345)  # type: ignore[union-attr]
    assert "POM_5V_IN" in meter.source.covers


def test_without_a_rail_for_the_whole_all_rails_are_summed_and_named(tmp_path: Path) -> None:
    files = {name.replace("rail_name_0", "other"): text for name, text in NANO.items()}
    meter = find_meter(tree(tmp_path, files))
    assert meter.watts() == pytest.approx(1.1)  # type: ignore[union-attr]
    assert meter.source.covers == "the rails POM_5V_CPU, POM_5V_GPU"


@pytest.mark.parametrize(("text", "watts"), [(PMIC, 0.37 + 1.5), (OLD_PMIC, 1.5)])
def test_a_pi_5_sums_its_rails_but_not_what_has_no_current(tmp_path: Path, text: str, watts: float) -> None:
    assert isinstance(Pmic.find(tree(tmp_path, PI5)), Pmic)
    assert Pmic(lambda: text).watts() == pytest.approx(watts)
    with pytest.raises(MeterError, match="expected pairs of volt and ampere"):
        Pmic(lambda: "error=1 error_msg='Command not registered'").watts()


def test_rapl_counts_packages_over_a_wrap(tmp_path: Path) -> None:
    meter, counter = Rapl.find(tree(tmp_path, X86)), tmp_path / ZONE / "energy_uj"
    assert meter is not None
    assert meter.joules() == 0.0
    expected = 0.0
    for now, passed in ((1_500_000, 0.5), (4_999_999, 3.499999), (1, 0.000002), (4_000_000, 3.999999)):
        counter.write_text(f"{now}\n")
        expected += passed
        assert meter.joules() == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.integers(0, 4_999_999), min_size=1, max_size=12))
def test_a_counter_never_runs_backwards(steps: list[int]) -> None:
    """Whatever is taken between two readings, below the counter's range, is counted exactly once."""
    with tempfile.TemporaryDirectory() as folder:
        meter, counter = Rapl.find(tree(Path(folder), X86)), Path(folder) / ZONE / "energy_uj"
        assert meter is not None
        meter.joules()
        now = 1_000_000
        for step in steps:
            now = (now + step) % 5_000_000
            counter.write_text(f"{now}")
            joules = meter.joules()
        assert joules == pytest.approx(sum(steps) / 1e6)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "no power sensor"),
        ({**ORIN, f"{HWMON}/curr1_input": "n/a"}, "'n/a', expected a number"),
        ({**NANO, f"{IIO}/in_power0_input": ""}, "'', expected a number"),
        ({"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5"}, "an external meter can measure any board"),
    ],
    ids=["nothing", "damaged", "empty", "a Pi 4"],
)
def test_what_cannot_be_measured_has_a_reason(tmp_path: Path, files: dict[str, object], text: str) -> None:
    with pytest.raises(MeterError, match=text):
        find_meter(tree(tmp_path, files))


def test_a_missing_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError

    meter = Ina3221.find(tree(tmp_path, NANO))
    assert meter is not None
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MeterError, match=r"permission denied, expected a readable sensor .as root: chmod a.r"):
        meter.watts()


# --------------------------------------------------------------------------- recorder


class Scripted:
    """Power readings at given moments."""

    source = Source("scripted", "everything", "exact")

    def __init__(self, *readings: float) -> None:
        self.left = list(readings)

    def watts(self) -> float:
        if not self.left:
            raise MeterError("the sensor has gone")
        return self.left.pop(0)


def test_power_is_integrated_by_trapezoids() -> None:
    moments = iter([0.0, 1.0, 3.0, 3.5, 5.5])
    recorder = EnergyRecorder(Scripted(2.0, 4.0, 4.0, 10.0, 2.0), lambda: next(moments))
    expected = 0.0
    for passed in (0.0, 3.0, 8.0, 3.5, 12.0):
        recorder.sample()
        expected += passed
        assert recorder.taken.joules == pytest.approx(expected)
    assert (recorder.taken.seconds, recorder.taken.readings) == (5.5, 4)
    assert not recorder.failure


def test_a_counter_is_read_off(tmp_path: Path) -> None:
    meter, counter = Rapl.find(tree(tmp_path, X86)), tmp_path / ZONE / "energy_uj"
    assert meter is not None
    moments = iter([0.0, 1.0, 2.0])
    recorder = EnergyRecorder(meter, lambda: next(moments))
    recorder.sample()
    for reading, joules in (("1250000", 0.25), ("4250000", 3.25)):
        counter.write_text(reading)
        recorder.sample()
        assert recorder.taken.joules == pytest.approx(joules)


def test_a_sensor_that_fails_leaves_a_reason_and_no_number() -> None:
    moments = iter(range(10))
    recorder = EnergyRecorder(Scripted(1.0, 2.0), lambda: float(next(moments)))
    for _ in range(4):
        recorder.sample()
    assert recorder.failure == "the sensor has gone"
    assert recorder.taken == Energy()


def test_a_sensor_that_hangs_is_noticed() -> None:
    moments = iter(range(200))
    recorder = EnergyRecorder(Scripted(*[3.0] * 100), lambda: float(next(moments)))
    for _ in range(100):
        recorder.sample()
    assert "50 equal readings in a row, the sensor hangs" in recorder.failure
    assert recorder.taken == Energy()


def test_a_thread_samples_while_the_block_lasts() -> None:
    class Counting(Scripted):
        count = 0

        def watts(self) -> float:
            self.count += 1
            return 1.0 + self.count % 3

    meter = Counting()
    moments = iter(float(number) for number in range(10_000))
    recorder = EnergyRecorder(meter, lambda: next(moments))
    with recorder.sampling(0.001):
        while meter.count < 20:
            pass
    assert recorder.taken.readings == meter.count - 1
    assert not recorder.failure


# --------------------------------------------------------------------------- external meter


def test_a_trace_is_integrated_between_any_two_moments(tmp_path: Path) -> None:
    path = tmp_path / "plug.csv"
    path.write_text("time_s,watts,volts\n10,2,230\n11,4,230\n13,4,229\n14,0,230\n")
    trace = PowerTrace.read(path)
    assert trace.joules(10, 14) == pytest.approx(3 + 8 + 2)
    assert trace.joules(10.5, 12) == pytest.approx(1.75 + 4)
    assert trace.joules(12.25, 12.75) == pytest.approx(2)
    assert trace.joules(11, 11) == 0
    assert (trace.source.sensor, trace.source.resolution) == ("external", "a sample each 1.33 s")
    with pytest.raises(MeterError, match=r"9 to 12 s, expected a time from 10\.0 to 14\.0 s"):
        trace.joules(9, 12)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("seconds,watts\n1,2\n", "expected time_s and watts"),
        ("", "expected time_s and watts"),
        ("time_s,watts\n1,2\n", "1 samples, expected at least 2"),
        ("time_s,watts\n1,2\n1,3\n", "line 3: time 1.0, expected a later one"),
        ("time_s,watts\n1,2\n2,much\n", "line 3: 'much', expected a number"),
        ("time_s,watts\n1,2\n2,inf\n", "expected a finite number"),
        ("time_s,watts\n1,2\n2\n", "expected a number"),
    ],
)
def test_a_damaged_trace_is_refused_by_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "plug.csv"
    path.write_text(text)
    with pytest.raises(MeterError, match=error):
        PowerTrace.read(path)


# --------------------------------------------------------------------------- the command


def test_the_command_reads_a_recorded_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, ORIN)
    assert run(["device", "power", "--root", str(tmp_path), "--seconds", "0.1", "--every", "0.02", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["watts"] == pytest.approx(7.0)
    assert found["joules"] == pytest.approx(7.0 * found["seconds"])
    assert found["source"]["sensor"] == "ina3221"
    assert run(["device", "power", "--root", str(tmp_path), "--seconds", "0.1"]) == 0
    assert "7.000 W" in capsys.readouterr().out


def test_the_command_reads_an_external_meter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plug.csv").write_text("time_s,watts\n10,2\n12,4\n")
    assert run(["device", "power", "--csv", str(tmp_path / "plug.csv")]) == 0
    out = capsys.readouterr().out
    assert "3.000 W, 6.00 J in 2.0 s (2 readings)" in out
    assert "external: what the meter of plug.csv is wired to" in out


def test_the_command_says_why_there_is_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["device", "power", "--root", str(tmp_path)]) == 2
    assert "no power sensor under" in capsys.readouterr().err

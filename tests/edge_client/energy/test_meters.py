"""The trees of boards, read to the exact watt; and every way a sensor fails has a name and no number."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_client.energy.meters import Ina3221, Pmic, PowerMeter, Rapl, Source, find_meter, read_meter, read_number
from edge_client.energy.recorder import Energy, EnergyRecorder, StuckWatch
from fedpruneshare.errors import MeterError

TREES = Path(__file__).parents[1] / "trees"
ORIN_HWMON = "sys/class/hwmon/hwmon1"
RAPL_ZONE = "sys/class/powercap/intel-rapl:0"
IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
PMIC_W = 0.37 + 0.165 + 0.36 + 0.0275 + 0 + 0.22 + 0.4 + 1.5 + 0.00033 + 0.00066 + 0.004 + 0.102


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """All trees, to be damaged."""
    return Path(shutil.copytree(TREES, tmp_path / "trees"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --------------------------------------------------------------------------- whole trees


@pytest.mark.parametrize(
    ("board", "watts", "sensor", "covers"),
    [
        ("jetson-orin-nano", 5.008 * 1.088, "ina3221", "the whole board (VDD_IN)"),
        ("jetson-nano", 2.345, "ina3221", "the whole board (POM_5V_IN)"),
        ("raspberry-pi-5", PMIC_W, "rpi5-pmic", "the rails of the PMIC, not its losses nor what takes 5 V directly"),
    ],
)
def test_a_tree_gives_its_watts_and_joules_exactly(board: str, watts: float, sensor: str, covers: str) -> None:
    clock, meter = Clock(), find_meter(TREES / board)
    assert isinstance(meter, PowerMeter)
    assert meter.watts() == pytest.approx(watts, rel=1e-12)
    assert (meter.source.sensor, meter.source.covers) == (sensor, covers)
    recorder = EnergyRecorder(meter, clock)
    for clock.now in (0.0, 0.5, 2.0, 10.0):
        recorder.sample()
    assert recorder.taken.joules == pytest.approx(watts * 10.0, rel=1e-12)
    assert (recorder.taken.seconds, recorder.taken.readings) == (10.0, 3)


def test_the_x86_tree_counts_its_package_and_no_part_of_it_twice(copy: Path) -> None:
    root = copy / "generic-x86-64"
    for name in ("intel-rapl:1", "intel-rapl-mmio", "intel-rapl-mmio:0"):
        (root / "sys/class/powercap" / name).mkdir()
    for name, label in (("intel-rapl:1", "psys"), ("intel-rapl-mmio:0", "package-0")):
        (root / "sys/class/powercap" / name / "name").write_text(f"{label}\n")
        (root / "sys/class/powercap" / name / "energy_uj").write_text("7\n")
    meter = find_meter(root)
    assert isinstance(meter, Rapl)
    assert meter.source.covers == "1 processor package(s) of this machine, not the board"
    assert meter.joules() == 0.0
    counter = root / RAPL_ZONE / "energy_uj"
    counter.write_text(f"{48_123_456_789 + 1_234_567}\n")
    (root / RAPL_ZONE).with_name("intel-rapl:1").joinpath("energy_uj").write_text("900000000\n")
    assert meter.joules() == pytest.approx(1.234567, abs=1e-9)
    counter.write_text("262143328850\n")
    before = meter.joules()
    counter.write_text("500000\n")  # over the top of the counter
    assert meter.joules() - before == pytest.approx(0.5, abs=1e-6)


def test_two_packages_are_added(copy: Path) -> None:
    root = copy / "generic-x86-64"
    second = root / "sys/class/powercap/intel-rapl:1"
    shutil.copytree(root / RAPL_ZONE, second)
    (second / "name").write_text("package-1\n")
    meter = Rapl.find(root)
    assert meter is not None
    meter.joules()
    (root / RAPL_ZONE / "energy_uj").write_text(str(48_123_456_789 + 2_000_000))
    (second / "energy_uj").write_text(str(48_123_456_789 + 500_000))
    assert meter.joules() == pytest.approx(2.5)
    assert meter.source.covers.startswith("2 processor package(s)")


@pytest.mark.parametrize("board", ["raspberry-pi-4b", "raspberry-pi-zero-2-w"])
def test_boards_without_a_sensor_say_so(board: str) -> None:
    with pytest.raises(MeterError, match=r"no power sensor under .*an external meter can measure any board"):
        find_meter(TREES / board)


def test_a_copied_tree_never_asks_this_machine(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this machine's vcgencmd was called for another machine's files")

    monkeypatch.setattr("subprocess.run", refuse)
    assert read_meter(find_meter(copy / "raspberry-pi-5")) > 0
    (copy / "raspberry-pi-5/pmic_read_adc").unlink()
    with pytest.raises(MeterError, match="pmic_read_adc: No such file"):
        find_meter(copy / "raspberry-pi-5")


# --------------------------------------------------------------------------- what can be wrong with them


def test_a_total_that_cannot_be_read_is_not_replaced_by_its_parts(copy: Path) -> None:
    (copy / "jetson-orin-nano" / ORIN_HWMON / "curr1_input").unlink()
    with pytest.raises(MeterError, match="curr1_input: No such file"):
        find_meter(copy / "jetson-orin-nano")
    (copy / "jetson-nano" / IIO / "in_power0_input").unlink()
    with pytest.raises(MeterError, match="in_power0_input: No such file"):
        find_meter(copy / "jetson-nano")


def test_channels_without_label_are_named(copy: Path) -> None:
    for label in (copy / "jetson-orin-nano" / ORIN_HWMON).glob("*_label"):
        label.unlink()
    with pytest.raises(MeterError, match="no channel has a label"):
        find_meter(copy / "jetson-orin-nano")


def test_rails_of_two_chips_are_both_counted_where_none_is_the_total(copy: Path) -> None:
    one = copy / "jetson-orin-nano" / ORIN_HWMON
    (one / "in1_label").write_text("NC\n")
    (one / "in3_label").write_text("nc\n")
    shutil.copytree(one, one.with_name("hwmon7"))
    meter = Ina3221.find(copy / "jetson-orin-nano")
    assert meter is not None
    assert sorted(meter.rails) == ["VDD_CPU_GPU_CV", "VDD_CPU_GPU_CV of hwmon7"]
    assert meter.watts() == pytest.approx(2 * 5.008 * 0.240)


def test_the_interval_is_the_drivers(copy: Path) -> None:
    root = copy / "jetson-orin-nano"
    assert find_meter(root).source.interval_s == 0.1
    (root / ORIN_HWMON / "update_interval").write_text("35\n")
    assert find_meter(root).source.interval_s == 0.035


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "", "0x10", "4 mW"])
def test_what_is_no_number_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "reading"
    path.write_text(text + "\n")
    with pytest.raises(MeterError, match="expected a number"):
        read_number(path)
    path.write_bytes(b"\xff\xfe5\n")
    with pytest.raises(MeterError, match="expected a number"):
        read_number(path)


def test_a_folder_in_place_of_a_sensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="Is a directory, expected a sensor's reading"):
        read_number(tmp_path)


@pytest.mark.parametrize("power", ["0", "-12"])
def test_a_board_that_runs_takes_power(copy: Path, power: str) -> None:
    (copy / "jetson-nano" / IIO / "in_power0_input").write_text(power)
    with pytest.raises(MeterError, match="expected more than nothing of a board that runs"):
        find_meter(copy / "jetson-nano")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("VDD_CORE_A=2.0A\nHDMI_A=0.1A\nVDD_CORE_V=0.75V\n", "no voltage of HDMI"),
        ("VDD_CORE_A=2.0.1A\nVDD_CORE_V=0.75V\n", "2 readings|1 readings"),
        ("VDD_CORE_A=2.0V\nVDD_CORE_V=0.75V\n", "1 readings"),
        ("EXT5V_A=1A\nEXT5V_V=5V\n", "1 readings"),
        ("", "0 readings"),
        ("VDD_CORE_A=0A\nVDD_CORE_V=0.75V\n", "rpi5-pmic: 0 W"),
    ],
)
def test_half_an_answer_of_the_pmic_is_none(text: str, found: str) -> None:
    with pytest.raises(MeterError, match=found):
        Pmic(lambda: text).watts()


@pytest.mark.parametrize("sensor", ["jetson-orin-nano", "jetson-nano", "generic-x86-64", "raspberry-pi-5"])
def test_a_missing_permission_is_named_and_nothing_else_is_tried(sensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.read_text

    def refuse(path: Path, *arguments: object, **options: object) -> str:
        if path.name.endswith(("_input", "energy_uj", "pmic_read_adc")):
            raise PermissionError(13, "Permission denied")
        return plain(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MeterError, match=r"permission denied, expected a readable sensor .as root: chmod a.r"):
        find_meter(TREES / sensor)


# --------------------------------------------------------------------------- recording


class Counter:
    source = Source("counter", "everything", "exact", interval_s=0.001)

    def __init__(self) -> None:
        self.total = 0.0

    def joules(self) -> float:
        return self.total


class Power:
    source = Source("power", "everything", "exact", interval_s=0.1)

    def __init__(self) -> None:
        self.now = 3.0

    def watts(self) -> float:
        return self.now


def test_a_counter_that_was_reset_is_not_taken_for_one_that_wrapped(copy: Path) -> None:
    """A zone set back to 0 looks like a wrap of a quarter of a megajoule."""
    clock, root = Clock(), copy / "generic-x86-64"
    recorder = EnergyRecorder(find_meter(root), clock)
    recorder.sample()
    clock.now = 0.2
    (root / RAPL_ZONE / "energy_uj").write_text("1000\n")
    recorder.sample()
    assert "expected 0 to 10000 W; was it reset?" in recorder.failure
    assert recorder.taken == Energy()


def test_readings_closer_than_the_sensor_renews_them_do_not_mean_that_it_hangs() -> None:
    clock = Clock()
    recorder = EnergyRecorder(Power(), clock)
    for _ in range(400):
        clock.now += 0.01
        recorder.sample()
    assert not recorder.failure
    for _ in range(200):
        clock.now += 0.01
        recorder.sample()
    assert "50 equal readings in a row, the sensor hangs" in recorder.failure


def test_a_sensor_that_hung_in_several_short_recordings_is_found_out() -> None:
    clock, watch, meter = Clock(), StuckWatch(), Counter()
    failures = []
    for _ in range(6):
        recorder = EnergyRecorder(meter, clock, watch=watch)
        for _ in range(10):
            clock.now += 1
            recorder.sample()
        failures.append(recorder.failure)
    assert failures[:5] == [""] * 5
    assert "the sensor hangs" in failures[5]


def test_a_power_meter_that_was_not_read_for_long_says_so_and_a_counter_need_not() -> None:
    clock = Clock()
    power, counter = (EnergyRecorder(meter, clock, longest_s=5.0) for meter in (Power(), Counter()))
    for clock.now in (0.0, 1.0, 7.0):
        power.sample()
        counter.sample()
    assert "power: not read for 6.0 s, expected a reading in 5 s" in power.failure
    assert (counter.failure, counter.taken.seconds) == ("", 7.0)

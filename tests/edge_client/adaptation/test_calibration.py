"""calibration.toml comes back as it was written, and refuses what cannot have been measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.adaptation.calibration import Calibration, LinkRate, load_calibration, save_calibration
from edge_client.adaptation.watches import width_key
from fedpruneshare.errors import SettingsError

WHOLE = Calibration(
    "raspberry-pi-4b", "lenet5", 32,
    step_s={"1.0": 0.02, "0.5": 0.008}, share_bytes_s=3e7, receive_bytes_s=1e6,
    links={"aggregator-1": LinkRate(1.5e6, 0.012), "aggregator.2": LinkRate(1e5, 0.0)},
    idle_w=2.7, busy_w=4.5, power_source="ina3221", base_mib=210.5, step_mib={"1.0": 12.0, "0.5": 7.5},
)  # fmt: skip


@pytest.mark.parametrize("calibration", [WHOLE, Calibration("generic-x86-64", "examples/tool_wear.py", 1)])
def test_it_comes_back(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "calibration.toml"
    save_calibration(path, calibration)
    assert load_calibration(path) == calibration
    assert "device calibrate" in path.read_text().splitlines()[0]


@pytest.mark.parametrize(("width", "key"), [(1.0, "1.0"), (0.5, "0.5"), (0.25, "0.25"), (1 / 3, "0.3333333333333333")])
def test_a_step_is_found_by_its_width(tmp_path: Path, width: float, key: str) -> None:
    save_calibration(tmp_path / "calibration.toml", Calibration("b", "t", 1, {key: 2.0}))
    assert load_calibration(tmp_path / "calibration.toml").step_s[width_key(width)] == 2.0


@pytest.mark.parametrize(
    "text",
    [
        'board = "b"\ntask = "t"\nbatch_size = 0\n',
        'board = "b"\ntask = "t"\nbatch_size = 1\n[step_s]\n"1.0" = 0.0\n',
        'board = "b"\ntask = "t"\nbatch_size = 1\n[step_s]\n"1.50" = 0.1\n',
        'board = "b"\ntask = "t"\nbatch_size = 1\nstep_sec = 1\n',
        'board = "b"\ntask = "t"\nbatch_size = 1\n[links.a]\nup_bytes_s = -1.0\nrtt_s = 0.1\n',
    ],
    ids=["batch", "step", "width", "unknown", "rate"],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.toml"
    path.write_text(text)
    with pytest.raises(SettingsError):
        load_calibration(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"calibration\.toml"):
        load_calibration(tmp_path / "calibration.toml")

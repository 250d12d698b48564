"""TensorBoard event files: read back record by record, they say what the rounds say."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from report_folders import ARMS, Made, made_folder

from fedpruneshare.cli import run as command_line
from fedpruneshare.errors import SettingsError
from testbed.ledger.rounds import read_rounds

pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from testbed.report.event_files import write_event_files


def masked(data: bytes) -> int:
    """The check of a record: CRC-32C, rotated and offset as the format of TFRecord files has it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scalars(folder: Path) -> dict[str, dict[int, tuple[float, float]]]:
    """(value, wall time) by tag and step, of the only event file in a folder."""
    (file,) = folder.glob("events.out.tfevents.*")
    data, found = file.read_bytes(), dict[str, dict[int, tuple[float, float]]]()
    while data:
        length, of_length = struct.unpack("<QI", data[:12])
        body, of_body = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])[0]
        assert (of_length, of_body) == (masked(data[:8]), masked(body))
        event = Event.FromString(body)
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = (value.simple_value, event.wall_time)
        data = data[16 + length :]
    return found


def test_every_arm_and_seed_has_its_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_folder(tmp_path / "run", Made(rounds=4, devices=6, cohort=5, seeds=(1, 2)))
    out = tmp_path / "events"
    command = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "page"), "--tensorboard", str(out)]
    assert command_line(command) == 0
    assert "event files of 8 runs" in capsys.readouterr().out
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("*/*")) == [
        f"{arm}/seed-{seed}" for arm in sorted(ARMS) for seed in (1, 2)
    ]
    lines = read_rounds(tmp_path / "run" / "rounds.jsonl")
    mine = {line.round: line for line in lines if (line.arm, line.seed) == ("fedpruneshare", 2) and line.round}
    found = scalars(out / "fedpruneshare" / "seed-2")
    assert set(found["accuracy"]) == set(mine) == {1, 2, 3, 4}
    so_far = 0.0
    for number, line in mine.items():
        assert found["accuracy"][number] == (pytest.approx(line.accuracy), line.started_at)
        assert found["bytes/up"][number][0] == line.up.total
        assert found["bytes/wire_up"][number][0] == line.wire_up
        assert found["joules/model/train"][number][0] == pytest.approx(line.energy_j["model"]["train"], rel=1e-6)
        so_far += sum(line.energy_j["model"].values())
        assert found["joules/so_far"][number][0] == pytest.approx(so_far, rel=1e-6)


def test_a_folder_that_holds_anything_is_refused(tmp_path: Path) -> None:
    made_folder(tmp_path / "run", Made(("fedpruneshare",), (1,), 3, 4, 3))
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "old").write_text("")
    with pytest.raises(SettingsError, match="not empty"):
        write_event_files([tmp_path / "run"], tmp_path / "events")


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = made_folder(tmp_path / name, Made(("fedpruneshare",), (1,), 3, 4, 3))
        summary = (folder / "summary.json").read_text().replace('"fedpruneshare":', '"../../x y":')
        (folder / "summary.json").write_text(summary)
    assert write_event_files([tmp_path / "a", tmp_path / "b"], tmp_path / "events") == 2
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("events.out*")]
    assert sorted(name.rpartition("/")[0] for name in written) == ["events/a/x_y/seed-1", "events/b/x_y/seed-1"]

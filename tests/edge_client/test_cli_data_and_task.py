from __future__ import annotations

from fedpruneshare.bundle import Bundle
from fedpruneshare.cli import run


def test_task_export_writes_a_bundle_and_says_what_it_is(tmp_path, capsys):
    path = tmp_path / "hapt.bundle"
    assert run(["task", "export", "hapt", "--out", str(path), "--seed", "3", "--data-dir", str(tmp_path)]) == 0
    bundle = Bundle.open(path)
    out = capsys.readouterr().out
    assert "hapt (fixture data)" in out and bundle.digest.hex() in out
    assert bundle.manifest.seed == 3


def test_mistakes_end_with_code_2_and_a_message(tmp_path, capsys):
    assert run(["task", "export", "hatp", "--out", str(tmp_path / "x")]) == 2
    assert "did you mean 'hapt'" in capsys.readouterr().err
    assert run(["data", "get", "mnist"]) == 2
    assert "'hapt', 'fashion-mnist'" in capsys.readouterr().err


def test_data_that_cannot_be_had_end_with_code_1_and_the_commands(tmp_path, capsys):
    (tmp_path / "hapt").mkdir()
    (tmp_path / "hapt" / "hapt.npz").write_bytes(b"damaged")
    assert run(["data", "get", "hapt", "--to", str(tmp_path)]) == 1
    assert "not a readable file" in capsys.readouterr().err

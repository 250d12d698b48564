"""The bundle file: one encoding, and nothing else is accepted."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare import bundle as module
from fedpruneshare.bundle import Bundle, Manifest
from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role

TABLE = ParameterTable(
    (
        Parameter("w", (3, 4), Role.WEIGHT, 0),
        Parameter("b", (3,), Role.VECTOR),
        Parameter("n", (), Role.COUNTER),
        Parameter("v", (3,), Role.VARIANCE),
    )
)
RNG = np.random.default_rng(0)
PARTS = {
    "template": b"a graph",
    "weights": RNG.standard_normal(12).astype(np.float32),
    "vectors": RNG.standard_normal(6).astype(np.float32),
    "test_inputs": RNG.standard_normal((5, 2, 2)).astype(np.float32),
    "test_targets": np.array([0, 1, 2, 2, 0], np.int64),
}
MANIFEST = Manifest("t", TABLE, (2, 2), 5, 3, 1, "full")


def make(manifest=MANIFEST, **changed):
    return Bundle(manifest, **{**PARTS, **changed})


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_members(changes, order=None):
    parts = {**members(make().encode()), **changes}
    return module._zip({name: parts[name] for name in (order or parts) if parts[name] is not None})


def with_manifest(**changes):
    manifest = {**json.loads(members(make().encode())["manifest.json"]), **changes}
    return with_members({"manifest.json": json.dumps(manifest, separators=(",", ":")).encode()})


def test_round_trip(tmp_path):
    bundle = make()
    bundle.save(tmp_path / "sub" / "t.bundle")
    found = Bundle.open(tmp_path / "sub" / "t.bundle")
    assert found.manifest == MANIFEST and found.template == b"a graph"
    for name in ("weights", "vectors", "test_inputs", "test_targets"):
        np.testing.assert_array_equal(getattr(found, name), PARTS[name])
        assert getattr(found, name).dtype == PARTS[name].dtype
    data = (tmp_path / "sub" / "t.bundle").read_bytes()
    assert found.digest == bundle.digest == hashlib.sha256(data).digest()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["t.bundle"]


@pytest.mark.parametrize("shape", [(), (2,)])
def test_round_trip_of_values(shape):
    manifest = Manifest("t", TABLE, (2, 2), 5, 0, 1, "full", metric="rmse", target_shape=shape)
    targets = RNG.standard_normal((5, *shape)).astype(np.float32)
    found = Bundle.decode(make(manifest, test_targets=targets).encode())
    assert found.manifest == manifest and found.test_targets.dtype == np.float32
    np.testing.assert_array_equal(found.test_targets, targets)
    for wrong in (targets.astype(np.float64), targets[:4], PARTS["test_targets"], np.full_like(targets, np.inf)):
        with pytest.raises(ModelFileError, match="test_targets"):
            make(manifest, test_targets=wrong)


def test_bytes_are_fixed():
    # A change here changes the digest of every bundle: a new schema, not an accident.
    assert hashlib.sha256(
        Bundle(MANIFEST, b"g", *map(np.zeros_like, list(PARTS.values())[1:])).encode()
    ).hexdigest() == ("f471b13f7d4702342ea2c52814b1501bf47bd638a7156505b2c99a5494d10453")


def test_reading_needs_neither_torch_nor_onnx():
    program = "import sys, fedpruneshare.bundle; sys.exit(bool({'torch', 'onnx', 'edge_client'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=250, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"weights": PARTS["weights"][:-1]}, r"weights is float32\[11\], expected float32\[12\]"),
        ({"weights": PARTS["weights"].astype(np.float64)}, "float64"),
        ({"vectors": np.full(6, np.nan, np.float32)}, "vectors holds a value that is not finite"),
        ({"test_inputs": PARTS["test_inputs"][:4]}, "test_inputs"),
        ({"test_targets": PARTS["test_targets"] + 1}, "from 1 to 3, expected 0 to 2"),
        ({"test_targets": PARTS["test_targets"] - 1}, "from -1"),
        ({"template": b""}, "template.onnx is empty"),
    ],
)
def test_parts_that_contradict_the_manifest_are_refused(changed, reason):
    with pytest.raises(ModelFileError, match=reason):
        make(**changed)


ENTRIES = list(members(make().encode()))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a readable zip"),
        (b"PK\x05\x06" + bytes(18), "members are"),
        (with_members({"weights.bin": None}), "members are"),
        (with_members({"more.bin": b"x"}), "members are"),
        (with_members({}, order=ENTRIES[::-1]), "members are"),
        (with_members({"weights.bin": bytes(47)}), "weights.bin has 47 bytes, expected 48"),
        (with_members({"weights.bin": bytes(52)}), "weights.bin has 52 bytes"),
        (with_members({"test_targets.bin": b"\xff" * 40}), "from -1"),
        (with_members({"vectors.bin": b"\xff" * 24}), "not finite"),
        (with_members({"manifest.json": b"{}"}), "manifest.json: Object missing required field"),
        (with_members({"manifest.json": b"\xff"}), "manifest.json"),
        (with_manifest(metric="loss"), "manifest.json"),
        (with_manifest(schema=1), "manifest.json"),
        (with_manifest(extra=1), "unknown field"),
        (with_manifest(test_count=6), "test_inputs.bin has 80 bytes, expected 96"),
        (with_manifest(test_count=0), "test inputs has shape"),
        (with_manifest(input_shape=[2, -2]), "test inputs has shape"),
        (with_manifest(input_shape=[2] * 9), "at most 8 axes"),
        (with_manifest(input_shape=[2**40, 2**40]), "elements"),
        (with_manifest(classes=0), "classes"),
        (with_manifest(seed=-1), "seed"),
        (with_manifest(metric="rmse"), "3 classes .* metric is rmse"),
        (with_manifest(metric="rmse", classes=0, target_shape=[2, 2]), r"targets of \(2, 2\)"),
        (with_manifest(metric="rmse", classes=0, target_shape=[3]), "test_targets.bin has 40 bytes, expected 60"),
        (with_manifest(metric="rmse", classes=0, target_shape=[2**40]), "elements"),
        (with_manifest(metric="macro_f1", target_shape=[1]), r"targets of \(1,\)"),
        (with_members({"manifest.json": members(make().encode())["manifest.json"] + b" "}), "one encoding"),
        (make().encode() + b"x", "one encoding|not a readable"),
        (b"x" + make().encode(), "one encoding|not a readable"),
    ],
)
def test_other_files_are_refused(data, reason):
    with pytest.raises(ModelFileError, match=reason):
        Bundle.decode(data)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ([{"name": "w", "shape": [3, 4], "role": "weight"}] * 2, "expected each once"),
        ([{"name": "w", "shape": [2**32, 2**32], "role": "weight"}], "elements"),
        ([{"name": "w", "shape": [3, 0], "role": "weight"}], "shape"),
        ([{"name": "w", "shape": [12], "role": "weight", "channel_axis": 1}], "channel axis 1"),
        ([{"name": "w", "shape": [12], "role": "heavy"}], "manifest.json"),
        ([{"name": "w", "shape": [12], "role": "vector"}], "no prunable weight"),
        ([{"name": f"w{i}", "shape": [2**28], "role": "weight"} for i in range(9)], "weights.bin has"),
    ],
)
def test_impossible_tables_are_refused_before_any_array_is_made(parameters, reason):
    with pytest.raises(ModelFileError, match=reason):
        Bundle.decode(with_manifest(table={"parameters": parameters}))


def test_compressed_members_are_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members(make().encode()).items():
            archive.writestr(name, data)
    with pytest.raises(ModelFileError, match="is compressed"):
        Bundle.decode(buffer.getvalue())


def test_a_bomb_is_refused_by_its_declared_size():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ENTRIES:
            archive.writestr(name, bytes(5 << 20) if name == "manifest.json" else b"")
    with pytest.raises(ModelFileError, match=r"manifest\.json has 5242880 bytes, expected at most"):
        Bundle.decode(buffer.getvalue())


@given(st.data())
def test_no_changed_byte_and_no_cut_goes_unnoticed(data):
    good = make().encode()
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ModelFileError):
        Bundle.decode(bytes(flipped))
    with pytest.raises(ModelFileError):
        Bundle.decode(good[:at])


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ModelFileError, match=r"none\.bundle cannot be read"):
        Bundle.open(tmp_path / "none.bundle")
    (tmp_path / "bad.bundle").write_bytes(b"?")
    with pytest.raises(ModelFileError, match=r"bad\.bundle: not a readable zip"):
        Bundle.open(tmp_path / "bad.bundle")

from __future__ import annotations

import gzip
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.datasets.idx import idx_bytes, parse_idx, read_idx_bytes, read_idx_rows
from fedpruneshare.errors import DataError


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_round_trip(shape):
    array = np.arange(int(np.prod(shape)), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(parse_idx(idx_bytes(array), "x"), array)


def test_known_bytes():
    data = bytes.fromhex("00000802" + "00000002" + "00000003") + bytes([1, 2, 3, 4, 5, 6])
    assert parse_idx(data, "x").tolist() == [[1, 2, 3], [4, 5, 6]]


RNG = np.random.default_rng(0)
GOOD = idx_bytes(np.zeros((3, 2), np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "starts with"),
        (b"\0\0\x0d\x01" + GOOD[4:], "starts with 00000d01"),
        (b"\0\0\x08\x00", "starts with"),
        (b"\0\0\x08\x09" + b"\0" * 60, "starts with"),
        (GOOD[:7], "ends inside its header"),
        (GOOD[:-1], "17 bytes, expected 18"),
        (GOOD + b"\0", "19 bytes, expected 18"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "expected"),  # sizes whose product needs 96 bits
    ],
)
def test_refuses_damaged_files(data, reason):
    with pytest.raises(DataError, match=reason):
        parse_idx(data, "x")


def test_reads_raw_and_gzipped(tmp_path):
    (tmp_path / "a").write_bytes(GOOD)
    (tmp_path / "a.gz").write_bytes(gzip.compress(GOOD))
    assert read_idx_bytes(tmp_path / "a", 100) == read_idx_bytes(tmp_path / "a.gz", 100) == GOOD


def test_refuses_bombs_truncation_and_absence(tmp_path):
    bomb = gzip.compress(bytes(10_000_000))
    (tmp_path / "bomb.gz").write_bytes(bomb)
    with pytest.raises(DataError, match="more than 1000"):
        read_idx_bytes(tmp_path / "bomb.gz", 1000)
    (tmp_path / "cut.gz").write_bytes(bomb[: len(bomb) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx_bytes(tmp_path / "cut.gz", 1 << 30)
    with pytest.raises(DataError, match="cannot be read"):
        read_idx_bytes(tmp_path / "none", 1000)


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzipped"])
@given(st.integers(1, 1300), st.sets(st.integers(0, 1299)))
def test_rows_are_those_of_the_array(packed, tmp_path_factory, count, chosen):
    array = RNG.integers(0, 256, (count, 3), np.uint8)
    rows = np.array(sorted(row for row in chosen if row < count), np.int64)
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(idx_bytes(array), 1) if packed else idx_bytes(array))
    taken, digest = read_idx_rows(path, rows, 10_000)
    np.testing.assert_array_equal(taken, array[rows])
    assert digest == hashlib.sha256(idx_bytes(array)).hexdigest()


@pytest.mark.parametrize(
    ("data", "rows", "limit", "reason"),
    [
        (GOOD[:-1], [0], 100, "longer or shorter"),
        (GOOD + b"\0", [0], 100, "longer or shorter"),
        (GOOD[:7], [0], 100, "ends inside its header"),
        (b"", [0], 100, "starts with"),
        (GOOD, [3], 100, "3 rows, expected one at 3"),
        (GOOD, [-1, 0], 100, "rows, expected"),
        (GOOD, [0], 17, "more than 17 bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, [0], 100, "more than 100 bytes"),
    ],
    ids=str,
)
def test_rows_of_what_is_no_such_file_are_refused(data, rows, limit, reason, tmp_path):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read_idx_rows(tmp_path / "a", np.array(rows), limit)


def test_rows_of_a_damaged_gzip_are_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(GOOD)[:-6])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx_rows(tmp_path / "a.gz", np.array([0]), 100)

from __future__ import annotations

import copyreg
import gzip
import hashlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from edge_client.datasets import FIXTURES
from edge_client.datasets import hapt_recordings as hapt
from fedpruneshare.errors import DataError


@pytest.fixture
def pandas_pickle(monkeypatch):
    """Write recordings the way the published file holds them, with bare classes under the names of pandas."""
    modules = {
        "pandas.core.frame": "DataFrame",
        "pandas.core.internals.managers": "BlockManager",
        "pandas.core.indexes.base": "Index",
    }
    classes = {}
    for parent in ("pandas", "pandas.core", "pandas.core.internals", "pandas.core.indexes"):
        package = types.ModuleType(parent)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, parent, package)
    for module, name in modules.items():
        classes[name] = type(name, (), {"__module__": module})
        holder = types.ModuleType(module)
        setattr(holder, name, classes[name])
        monkeypatch.setitem(sys.modules, module, holder)

    def new_index(cls, state):
        raise NotImplementedError

    new_index.__module__, new_index.__qualname__, new_index.__name__ = (
        "pandas.core.indexes.base",
        "_new_Index",
        "_new_Index",
    )
    sys.modules["pandas.core.indexes.base"]._new_Index = new_index
    classes["Index"].__reduce__ = lambda self: (new_index, (classes["Index"], {"data": self.data, "name": None}))
    for name in ("DataFrame", "BlockManager"):
        # As the published file does: copyreg._reconstructor(class, object, None), then the state.
        classes[name].__reduce__ = lambda self: (copyreg._reconstructor, (type(self), object, None), self.stored)

    def frame(signals, labels):
        index = classes["Index"]()
        index.data = np.array([*hapt.CHANNELS, "sequence", "label"], dtype=object)
        blocks = [
            {"values": signals, "mgr_locs": slice(0, 6, 1)},
            {"values": np.stack([np.arange(len(labels)), labels]), "mgr_locs": slice(6, 8, 1)},
        ]
        manager = classes["BlockManager"]()
        manager.stored = ([], [], [], {"0.14.1": {"axes": [index], "blocks": blocks}})
        made = classes["DataFrame"]()
        made.stored = {"_data": manager}
        return made

    return lambda people: gzip.compress(
        pickle.dumps({person: [frame(*r) for r in recordings] for person, recordings in people.items()}, protocol=2)
    )


def recording(rng, *runs):
    labels = np.concatenate([np.full(length, label) for label, length in runs]).astype(np.int64)
    return rng.standard_normal((6, len(labels))), labels


def read(packed):
    return hapt.read_recordings(packed, hashlib.sha256(packed).hexdigest())


def test_cuts_single_label_windows_of_activities_only(pandas_pickle):
    rng = np.random.default_rng(0)
    first = recording(rng, (-1, 64), (5, 256), (7, 192), (1, 128))
    second = recording(rng, (6, 127))
    third = recording(rng, (2, 128))
    windows = read(pandas_pickle({2: [first, second], 1: [third]}))
    assert windows.person.tolist() == [1, 2, 2, 2, 2]
    assert windows.activity.tolist() == [1, 4, 4, 4, 0]
    np.testing.assert_array_equal(windows.signals[0], third[0].astype(np.float16))
    np.testing.assert_array_equal(windows.signals[2], first[0][:, 128:256].astype(np.float16))


def test_refuses_another_hash_before_unpickling():
    packed = gzip.compress(pickle.dumps({}))
    with pytest.raises(DataError, match="SHA-256"):
        hapt.read_recordings(packed)


def test_refuses_bombs_and_damage():
    with pytest.raises(DataError, match="more than"):
        read(gzip.compress(bytes(hapt.RECORDINGS_UNPACKED_BYTES + 1), 1))
    with pytest.raises(DataError, match="damaged"):
        read(gzip.compress(pickle.dumps({}))[:-4])
    with pytest.raises(DataError, match="expected person"):
        read(gzip.compress(pickle.dumps([1])))
    with pytest.raises(DataError, match="another layout"):
        read(gzip.compress(pickle.dumps({1: ["no frame"]})))


def test_saves_and_loads_without_pickle(tmp_path):
    windows = hapt.open_windows(None)
    path = tmp_path / "a" / "hapt.npz"
    hapt.save_windows(windows, path)
    assert hapt.open_windows(path, windows.digest()).digest() == windows.digest()
    with pytest.raises(DataError, match="SHA-256"):
        hapt.open_windows(path)  # not the full data set
    assert list(path.parent.iterdir()) == [path]


def test_refuses_bad_npz(tmp_path):
    path = tmp_path / "hapt.npz"
    windows = hapt.open_windows(None)
    good = {"signals": windows.signals, "activity": windows.activity, "person": windows.person}
    bad = [
        {"signals": windows.signals},
        {**good, "activity": windows.activity[:-1]},
        {**good, "activity": windows.activity + np.uint8(6)},
        {**good, "person": windows.person - np.uint8(1)},
        {**good, "signals": windows.signals.astype(np.float32)},
        {**good, "person": windows.person.astype(object)},
    ]
    for arrays in bad:
        np.savez_compressed(path, **arrays)
        with pytest.raises(DataError):
            hapt.load_windows(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match="not a readable"):
        hapt.load_windows(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("signals.npy", bytes(hapt.WINDOWS_LIMIT_BYTES + 1))
    with pytest.raises(DataError, match="unpacks to"):
        hapt.load_windows(path)


@pytest.mark.parametrize("place", ["hapt/hapt.npz", "hapt.npz", "HAPT/HAPT.pkl.gz", "hapt/HAPT.pkl.gz"])
def test_finds_every_layout(place, tmp_path):
    assert hapt.find_windows(tmp_path) is None
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert hapt.find_windows(tmp_path) == path


def test_fixture_is_small_and_whole():
    windows = hapt.open_windows(None)
    assert (FIXTURES / "hapt.npz").stat().st_size < 1_000_000
    assert np.bincount(windows.person).tolist() == [0] + [20] * 30
    assert np.bincount(windows.activity).min() > 50

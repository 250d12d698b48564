"""The pickle reader must hand back numbers and refuse everything else by name."""

from __future__ import annotations

import os
import pickle
import pickletools
import subprocess

import numpy as np
import pytest

from edge_client.datasets.allow_list_pickle import PickledArray, PickledObject, load_allow_listed
from fedpruneshare.errors import DataError

NOTHING: frozenset[tuple[str, str]] = frozenset()


class Calls:
    """An object whose pickle calls `function(*arguments)` when loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<i8", "u1"])
def test_reads_plain_arrays(protocol, dtype):
    array = np.arange(12).astype(dtype).reshape(3, 4)
    for kept in (array, np.asfortranarray(array)):
        found = load_allow_listed(pickle.dumps({"a": [kept]}, protocol=protocol), NOTHING)["a"][0]
        assert isinstance(found, PickledArray)
        np.testing.assert_array_equal(found.values, array)
        assert found.values.dtype == np.dtype(dtype)


def test_reads_plain_containers_and_object_arrays():
    value = {"names": np.array(["x", "y"], dtype=object), "n": (1, 2.5, "z", None, slice(0, 2, 1))}
    found = load_allow_listed(pickle.dumps(value, protocol=2), NOTHING)
    assert found["names"].values == ["x", "y"]
    assert found["n"] == value["n"]


@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (Calls(os.system, "touch PWNED"), "posix.system"),
        (Calls(subprocess.Popen, ["touch", "PWNED"]), "subprocess.Popen"),
        (Calls(eval, "open('PWNED', 'w')"), "builtins.eval"),
        (Calls(exec, "open('PWNED', 'w')"), "builtins.exec"),
        (Calls(getattr, "x", "upper"), "builtins.getattr"),
        (Calls(__import__, "os"), "builtins.__import__"),
        (Calls(open, "PWNED", "w"), ".open"),
        (Calls(np.load, "PWNED"), "numpy.load"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_refuses_calls_by_name(hostile, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="not on the list") as caught:
        load_allow_listed(pickle.dumps({"ok": 1, "bad": hostile}, protocol=protocol, fix_imports=False), NOTHING)
    assert name in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_dotted_names_do_not_reach_through_a_listed_one():
    # STACK_GLOBAL with "ndarray.tofile": the default reader would walk the attribute.
    data = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(DataError, match=r"numpy\.ndarray\.tofile"):
        load_allow_listed(data, NOTHING)


def test_listed_classes_are_never_constructed():
    listed = frozenset({("pandas.core.frame", "DataFrame")})
    call = b"\x80\x02cpandas.core.frame\nDataFrame\n(K\x01tR."  # DataFrame(1)
    with pytest.raises(DataError, match="calls 'DataFrame'"):
        load_allow_listed(call, listed)
    with pytest.raises(DataError, match="damaged"):
        load_allow_listed(call.replace(b"tR.", b"t\x81."), listed)  # DataFrame.__new__(DataFrame, 1)
    with pytest.raises(DataError, match=r"pandas\.core\.frame\.DataFrame"):
        load_allow_listed(call, NOTHING)


def test_listed_classes_come_back_as_bare_state():
    data = (
        b"\x80\x02ccopy_reg\n_reconstructor\ncpandas.core.frame\nDataFrame\n"
        b"c__builtin__\nobject\nN\x87R}X\x01\x00\x00\x00kK\x05sb."
    )
    assert [op.name for op, _, _ in pickletools.genops(data)][-1] == "STOP"
    found = load_allow_listed(data, frozenset({("pandas.core.frame", "DataFrame")}))
    assert isinstance(found, PickledObject)
    assert (found.kind, found.state) == ("DataFrame", {"k": 5})


def test_refuses_huge_and_lying_arrays():
    good = pickle.dumps(np.arange(4, dtype="<i8"), protocol=2)
    assert load_allow_listed(good, NOTHING).values.size == 4
    with pytest.raises(DataError, match="4 elements"):
        load_allow_listed(good.replace(b"K\x04\x85", b"K\xff\x85"), NOTHING)  # says 255 elements
    with pytest.raises(DataError, match="not an empty ndarray"):
        load_allow_listed(good.replace(b"K\x00\x85", b"K\xff\x85"), NOTHING)  # asks for memory up front


def test_refuses_other_element_types():
    for array in (np.zeros(2, dtype="c16"), np.zeros(2, dtype=[("a", "f8")]), np.zeros(2, dtype="M8[s]")):
        with pytest.raises(DataError):
            load_allow_listed(pickle.dumps(array, protocol=2), NOTHING)
    with pytest.raises(DataError, match="byte order"):
        load_allow_listed(pickle.dumps(np.zeros(2, dtype=">f8"), protocol=2), NOTHING)


@pytest.mark.parametrize("cut", [0, 1, 5, 40, -1])
def test_refuses_truncated_pickles(cut):
    data = pickle.dumps({"a": np.arange(5)}, protocol=2)
    with pytest.raises(DataError, match="damaged"):
        load_allow_listed(data[:cut], NOTHING)


def test_refuses_outside_references():
    with pytest.raises(DataError, match="outside object"):
        load_allow_listed(b"\x80\x02X\x01\x00\x00\x00aQ.", NOTHING)

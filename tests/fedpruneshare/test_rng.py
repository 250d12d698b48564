"""Named streams: repeatable, independent of each other, and told apart by name path."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.rng import derived_seed, python_stream, stream

NAMES = st.lists(st.one_of(st.integers(), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), max_size=4)


def test_streams_are_these_numbers_on_every_machine() -> None:
    # Frozen: a change here would silently change every recorded run.
    assert stream(1, "device", 3).integers(0, 1000, 4).tolist() == [583, 880, 758, 461]
    assert python_stream(1, "device", 3).randrange(1000) == 294
    assert derived_seed(1, "device", 3) == 7177978803644938027


def test_a_stream_starts_anew_each_time_it_is_asked_for() -> None:
    assert np.array_equal(stream(7, "a").random(5), stream(7, "a").random(5))
    assert python_stream(7, "a").random() == python_stream(7, "a").random()


@given(st.integers(), NAMES, st.integers(), NAMES)
def test_other_seed_or_path_other_stream(
    seed: int, names: list[str | int], other_seed: int, other_names: list[str | int]
) -> None:
    same = (seed, names) == (other_seed, other_names)
    assert (derived_seed(seed, *names) == derived_seed(other_seed, *other_names)) == same


@pytest.mark.parametrize(
    ("one", "other"), [(("a", "b"), ("ab",)), ((1,), ("1",)), ((), ("",)), (("a",), ("a", "")), ((1, 2), (12,))]
)
def test_paths_do_not_run_into_each_other(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert derived_seed(5, *one) != derived_seed(5, *other)


def test_derived_seeds_fit_a_signed_64_bit_number() -> None:
    assert all(0 <= derived_seed(0, number) < 2**63 for number in range(200))


def test_streams_of_neighbours_are_not_correlated() -> None:
    one, other = stream(3, "device", 1).standard_normal(20_000), stream(3, "device", 2).standard_normal(20_000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


@pytest.mark.parametrize("name", [1.5, b"x", None, True])
def test_other_types_of_names_are_refused(name: object) -> None:
    with pytest.raises(TypeError, match="expected text or a whole number"):
        stream(1, name)  # type: ignore[arg-type]

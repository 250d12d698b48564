"""Settings: everything wrong is said at once, with path, found, expected and the nearest match."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from fedpruneshare.errors import Fault, SettingsError
from fedpruneshare.settings import load_settings, render_toml


class Arm(StrEnum):
    FEDAVG = "fedavg"
    SHARED = "share-only"


class Sharing(msgspec.Struct, frozen=True):
    count: Annotated[int, Meta(ge=2, le=16)] = 3
    threshold: Annotated[int, Meta(ge=2, le=16)] = 2

    def faults(self, path: str) -> Iterator[Fault]:
        if self.threshold > self.count:
            yield Fault(f"{path}.threshold", str(self.threshold), f"at most count = {self.count}")


class Group(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(pattern="^[a-z0-9-]+$")]
    count: Annotated[int, Meta(ge=1)]
    range: tuple[float, float] = (0.0, 1.0)


class Rounds(msgspec.Struct, frozen=True):
    count: Annotated[int, Meta(ge=1)]
    deadline_s: Annotated[float, Meta(gt=0)] = 60.0
    eager: bool = True


class Scenario(msgspec.Struct, frozen=True):
    task: str
    rounds: Rounds
    sharing: Sharing = Sharing(count=5, threshold=3)
    fleet: tuple[Group, ...] = ()
    arms: tuple[Arm, ...] = (Arm.FEDAVG,)
    prg: Literal["chacha20", "aes-256-ctr"] = "chacha20"
    limits: dict[Annotated[str, Meta(pattern="^[a-z]+$")], Rounds] = {}
    folder: Path = Path("runs")
    seed: int | None = None
    rates: Annotated[list[float], Meta(max_length=3)] = []
    size: int | str = "auto"

    def faults(self, path: str) -> Iterator[Fault]:
        if self.task == "forbidden":
            yield Fault(f"{path}.task", "forbidden", "another task")


GOOD = """
task = "hapt"
arms = ["fedavg", "share-only"]
rates = [1, 2.5]
size = 7
folder = "out/a b"

[rounds]
count = 20
deadline_s = 30

[[fleet]]
name = "pi4"
count = 3
range = [0.5, 1]

[[fleet]]
name = "pi5"
count = 2

[limits.slow]
count = 1
"""


def faults_of(source: object, *overrides: str) -> dict[str, Fault]:
    with pytest.raises(SettingsError) as caught:
        load_settings(source, Scenario, overrides)  # type: ignore[arg-type]
    return {fault.path: fault for fault in caught.value.faults}


def minimal(**more: object) -> dict[str, object]:
    return {"task": "hapt", "rounds": {"count": 2}, **more}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    return path


def test_a_good_file_becomes_frozen_typed_settings(good: Path) -> None:
    settings = load_settings(good, Scenario)
    assert settings.rounds == Rounds(count=20, deadline_s=30.0)
    assert settings.fleet == (Group("pi4", 3, (0.5, 1.0)), Group("pi5", 2))
    assert settings.arms == (Arm.FEDAVG, Arm.SHARED)
    assert settings.sharing == Sharing(5, 3)
    assert settings.limits == {"slow": Rounds(1)}
    assert settings.folder == Path("out/a b")
    assert (settings.size, settings.seed) == (7, None)


def test_ten_mistakes_give_ten_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("""
arms = ["fedavg", "shareonly"]
prg = "chacha"
seed = "four"
threshold = 3
rates = [1, 2, 3, 4]

[rounds]
deadline_s = 0
eager = 1

[sharing]
treshold = 3

[[fleet]]
name = "Pi 4"
count = true
""")
    faults = faults_of(path)
    assert set(faults) == {
        "task",
        "arms.1",
        "prg",
        "seed",
        "threshold",
        "rates",
        "rounds.count",
        "rounds.deadline_s",
        "rounds.eager",
        "sharing.treshold",
        "fleet.0.name",
        "fleet.0.count",
    }
    assert str(faults["task"]) == "task: found nothing, expected text"
    assert str(faults["arms.1"]) == (
        "arms.1: found the text 'shareonly', expected one of 'fedavg', 'share-only' (did you mean 'share-only'?)"
    )
    assert faults["prg"].hint == "did you mean 'chacha20'?"
    assert (faults["seed"].found, faults["seed"].expected) == ("the text 'four'", "a whole number")
    assert faults["threshold"].hint == "did you mean 'sharing.threshold'?"
    assert (faults["rates"].found, faults["rates"].expected) == (
        "a list of 4",
        "a list of numbers, at most 3 entries",
    )
    assert faults["rounds.count"].expected == "a whole number at least 1"
    assert faults["rounds.deadline_s"].expected == "a number above 0"
    assert (faults["rounds.eager"].found, faults["rounds.eager"].expected) == ("the whole number 1", "true or false")
    assert faults["sharing.treshold"].hint == "did you mean 'sharing.threshold'?"
    assert faults["fleet.0.name"].expected == "text matching ^[a-z0-9-]+$"
    assert (faults["fleet.0.count"].found, faults["fleet.0.count"].expected) == ("true", "a whole number at least 1")


def test_the_message_lists_every_fault_under_the_file_name(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text("task = 1\n[rounds]\ncount = 0\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, Scenario)
    first, *rest = str(caught.value).splitlines()
    assert first == f"{path}: 2 mistakes"
    assert len(rest) == 2


def test_an_unknown_key_without_a_neighbour_lists_what_is_known() -> None:
    faults = faults_of(minimal(sharing={"zzz": 1}))
    assert faults["sharing.zzz"].hint == "known here: count, threshold"


def test_a_struct_is_asked_once_it_converted_even_if_others_did_not() -> None:
    faults = faults_of({"task": "hapt", "rounds": {}, "sharing": {"count": 2, "threshold": 3}})
    assert set(faults) == {"rounds.count", "sharing.threshold"}
    assert set(faults_of(minimal(task="forbidden"))) == {"task"}


@pytest.mark.parametrize(
    ("text", "line"),
    [('task = "hapt"\nrounds = = 3\n', "line 2"), ("task = 1\ntask = 2\n", "line 2"), ('a = "open', "line 1")],
)
def test_a_syntax_error_names_its_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    (fault,) = faults_of(path).values()
    assert fault.path == line
    assert fault.expected == "valid TOML"


def test_a_missing_or_unreadable_file_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(tmp_path / "none.toml", Scenario)
    (tmp_path / "latin.toml").write_bytes(b'task = "\xe9"')
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(tmp_path / "latin.toml", Scenario)


@pytest.mark.parametrize("number", ["inf", "nan", "-inf"])
def test_numbers_must_be_finite(number: str) -> None:
    assert "rounds.deadline_s" in faults_of(minimal(), f"rounds.deadline_s={number}")


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"fleet": {"name": "pi"}}, "fleet"),
        ({"fleet": [3]}, "fleet.0"),
        ({"fleet": [{"name": "a", "count": 1, "range": [1.0]}]}, "fleet.0.range"),
        ({"limits": {"Bad": {"count": 1}}}, "limits.Bad"),
        ({"limits": {"a.b": 3}}, 'limits."a.b"'),
        ({"limits": 4}, "limits"),
        ({"rounds": 4}, "rounds"),
        ({"size": 1.5}, "size"),
        ({"seed": True}, "seed"),
        ({"folder": 1}, "folder"),
    ],
)
def test_wrong_shapes_are_named_where_they_are(more: dict[str, object], path: str) -> None:
    assert path in faults_of(minimal(**more))


def test_a_union_says_all_it_takes() -> None:
    assert faults_of(minimal(size=1.5))["size"].expected == "a whole number or text"


def test_overrides_apply_in_order_and_reach_into_lists(good: Path) -> None:
    overrides = ["rounds.count=40", "fleet.1.count=9", "arms=['share-only']", "task=my_task.py", "rounds.count = 41"]
    settings = load_settings(good, Scenario, overrides)
    assert settings.rounds == Rounds(41, 30.0)
    assert settings.fleet[1].count == 9
    assert settings.arms == (Arm.SHARED,)
    assert settings.task == "my_task.py"


def test_an_override_of_a_table_left_out_keeps_the_rest_of_its_default() -> None:
    assert load_settings(minimal(), Scenario, ["sharing.threshold=4"]).sharing == Sharing(5, 4)
    assert load_settings(minimal(), Scenario, ["limits.fast.count=4"]).limits == {"fast": Rounds(4)}


def test_an_override_does_not_change_the_mapping_given() -> None:
    source = minimal()
    load_settings(source, Scenario, ["rounds.count=9"])
    assert source == minimal()


@pytest.mark.parametrize(
    ("override", "path", "hint"),
    [
        ("round.count=4", "round", "did you mean 'rounds'?"),
        ("rounds.cuont=4", "rounds.cuont", "did you mean 'rounds.count'?"),
        ("fleet.0.count=4", "fleet.0", ""),
        ("task.name=4", "task", "--set"),
        ("task.name.more=4", "task", "--set"),
        ("rounds.count", "--set rounds.count", "e.g. rounds.count=40"),
        ("rounds..count=3", "--set rounds..count=3", "e.g. rounds.count=40"),
        ("rounds.count=many", "rounds.count", ""),
    ],
)
def test_a_bad_override_is_a_fault_like_any_other(override: str, path: str, hint: str) -> None:
    faults = faults_of(minimal(), override)
    assert path in faults
    assert hint in faults[path].hint


def test_an_override_cannot_smuggle_in_a_second_key() -> None:
    assert load_settings(minimal(), Scenario, ["task=1\nseed=3"]).seed is None


def test_rendered_settings_read_back_equal(good: Path, tmp_path: Path) -> None:
    settings = load_settings(good, Scenario)
    again = tmp_path / "again.toml"
    again.write_text(render_toml(settings))
    assert load_settings(again, Scenario) == settings


class Odd(msgspec.Struct, frozen=True):
    text: str
    number: float
    whole: int
    table: dict[str, list[int]]
    nested: list[list[bool]]
    groups: list[Rounds]
    keyed: dict[str, Rounds]


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROUNDS = st.builds(Rounds, st.integers(1, 9), st.floats(1e-9, 1e300), st.booleans())


@given(
    st.builds(
        Odd,
        TEXTS,
        FLOATS,
        st.integers(-(2**63), 2**63 - 1),
        st.dictionaries(TEXTS, st.lists(st.integers(0, 9), max_size=2), max_size=3),
        st.lists(st.lists(st.booleans(), max_size=2), max_size=2),
        st.lists(ROUNDS, max_size=2),
        st.dictionaries(TEXTS, ROUNDS, max_size=2),
    )
)
def test_any_settings_survive_the_file(tmp_path_factory: pytest.TempPathFactory, settings: Odd) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.toml"
    path.write_text(render_toml(settings), "utf-8", newline="\n")
    assert load_settings(path, Odd) == settings


def test_a_field_type_that_settings_cannot_have_is_our_own_bug() -> None:
    class Wrong(msgspec.Struct):
        raw: bytes

    with pytest.raises(TypeError):
        load_settings({"raw": "aa"}, Wrong)

"""Every shipped profile is whole, bounded and sourced, and every board is taken for what it is."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest

from edge_client.board.profiles import BoardProfile, board_names, boards, find_board, load_board
from fedpruneshare.errors import SettingsError

ROOT = Path(__file__).resolve().parents[3]
TREES = Path(__file__).parents[1] / "trees"
NAMES = (
    "generic-arm64",
    "generic-x86-64",
    "jetson-nano",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "raspberry-pi-3b-plus",
    "raspberry-pi-4b",
    "raspberry-pi-5",
    "raspberry-pi-zero-2-w",
)


def text_of(name: str) -> str:
    return (files("firmware_configs.devices") / f"{name}.toml").read_text("utf-8")


# --------------------------------------------------------------------------- the files


def test_the_shipped_boards_are_these() -> None:
    assert board_names() == NAMES
    assert tuple(profile.name for profile in boards()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_does_not_contradict_itself(name: str) -> None:
    profile = load_board(name)
    power, link = profile.power, profile.link
    assert power.idle_w < power.busy_w
    assert power.idle_w < power.receive_w <= power.send_w
    assert link.up_mbit_s <= link.down_mbit_s
    assert profile.memory_reserve_mib < profile.ram_mib / 4
    assert profile.processor.neon == (profile.processor.arch == "aarch64")
    assert bool(profile.match) != name.startswith("generic-")


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_where_it_comes_from(name: str) -> None:
    lines = text_of(name).splitlines()
    bare = [
        line
        for line in lines
        if re.match(r"\w+ = (?:[-\d.]+|true|false|\")", line)
        and not re.match(r"(?:name|title|arch) = ", line)
        and not re.search(r"#\s*\S+", line)
        and line != "tensor_cores = false"
    ]
    assert not bare, f"no source: {bare}"


@pytest.mark.parametrize("name", NAMES)
def test_every_source_that_is_quoted_is_named_in_full(name: str) -> None:
    head = {found for line in text_of(name).splitlines() if (found := re.match(r"# \[([\w-]+)\]\s+\S", line))}
    named = {found[1] for found in head}
    quoted = set(re.findall(r"\[([a-z][\w-]+)\]", text_of(name))) - set(tomllib.loads(text_of(name)))
    assert quoted == named, "each source is named once at the top and quoted at least once"


def test_instruction_facts_are_those_of_the_cores() -> None:
    aes = {profile.name for profile in boards() if profile.processor.aes}
    half = {profile.name for profile in boards() if profile.processor.fp16}
    assert aes == {"generic-x86-64", "jetson-nano", "jetson-orin-nano", "jetson-orin-nx", "raspberry-pi-5"}
    assert half == {"jetson-orin-nano", "jetson-orin-nx", "raspberry-pi-5"}
    assert {profile.name for profile in boards() if profile.processor.tensor_cores} == {
        "jetson-orin-nano",
        "jetson-orin-nx",
    }


@pytest.mark.parametrize("name", sorted(path.name for path in TREES.iterdir() if path.is_dir()))
def test_instruction_facts_agree_with_what_the_kernel_lists(name: str) -> None:
    cpuinfo = (TREES / name / "proc/cpuinfo").read_text()
    listed = set(re.search(r"^(?:Features|flags)\s*: (.*)$", cpuinfo, re.MULTILINE)[1].split())  # type: ignore[index]
    processor = load_board(name).processor
    assert ("aes" in listed) == processor.aes
    assert ("asimdhp" in listed) == processor.fp16
    assert ("asimd" in listed) == processor.neon
    assert cpuinfo.count("processor\t:") == processor.cores


# --------------------------------------------------------------------------- loading


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = text_of("raspberry-pi-5")
    assert text.count(old) == 1
    path = tmp_path / "raspberry-pi-5.toml"
    path.write_text(text.replace(old, new))
    return path


def test_a_board_of_ones_own_is_a_path(tmp_path: Path) -> None:
    path = edited(tmp_path, "idle_w = 2.8", "idle_w = 2.5")
    assert load_board(str(path)) == msgspec.structs.replace(
        load_board("raspberry-pi-5"),
        power=msgspec.structs.replace(load_board("raspberry-pi-5").power, idle_w=2.5),
    )


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("idle_w = 2.8", "idle_w = -2.8", r"power\.idle_w: found the number -2\.8"),
        ("idle_w = 2.8", "idle_watts = 2.8", r"power\.idle_watts.*did you mean 'power\.idle_w'"),
        ("limit_c = 80.0", "limit_c = 800.0", r"thermal\.limit_c"),
        ('sensor = "rpi5-pmic"', 'sensor = "rpi5"', r"sensor.*rpi5-pmic"),
        ('arch = "aarch64"', 'arch = "armv7l"', r"processor\.arch"),
        ("ram_mib = 4096", "ram_mib = 4", r"ram_mib"),
        ("train_scale = 5.0", "train_scale = 0.0", r"train_scale"),
        ('name = "raspberry-pi-5"', 'name = "pi"', r"name is 'pi', expected 'raspberry-pi-5'"),
    ],
)
def test_a_damaged_profile_is_refused_with_the_place(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        load_board(str(edited(tmp_path, old, new)))


def test_an_unknown_board_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'raspberry-pi-6' is unknown, expected .*raspberry-pi-5"):
        load_board("raspberry-pi-6")


# --------------------------------------------------------------------------- which one fits


@pytest.mark.parametrize("name", sorted(path.name for path in TREES.iterdir() if path.is_dir()))
def test_every_tree_is_taken_for_its_board(name: str) -> None:
    arch = load_board(name).processor.arch
    assert find_board(TREES / name, arch=arch).name == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "raspberry-pi-3b-plus"),
        ("Raspberry Pi 400 Rev 1.0", "raspberry-pi-4b"),
        ("Raspberry Pi 500 Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi Compute Module 5 Rev 1.0", "raspberry-pi-5"),
        ("NVIDIA Orin Nano Developer Kit", "jetson-orin-nano"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "jetson-orin-nx"),
        ("Radxa ROCK 5B", "generic-arm64"),
        ("Raspberry Pi 6 Model B Rev 1.0", "generic-arm64"),
        ("", "generic-arm64"),
    ],
)
def test_a_board_is_found_by_its_model(tmp_path: Path, model: str, name: str) -> None:
    path = tmp_path / "proc/device-tree/model"
    path.parent.mkdir(parents=True)
    path.write_bytes(model.encode() + b"\0")
    assert find_board(tmp_path, arch="aarch64").name == name


def test_the_module_number_counts_more_than_the_model(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"nvidia,p3768-0000+p3767-0001\0nvidia,tegra234\0")
    assert find_board(tmp_path, arch="aarch64").name == "jetson-orin-nx"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_boot_control.conf").write_text("TNSPEC 3767-000-0003-G.2-1-1-jetson-orin-nano-devkit-\n")
    assert find_board(tmp_path, arch="aarch64").name == "jetson-orin-nano"


@pytest.mark.parametrize(("arch", "name"), [("arm64", "generic-arm64"), ("AMD64", "generic-x86-64")])
def test_other_spellings_of_an_architecture(tmp_path: Path, arch: str, name: str) -> None:
    assert find_board(tmp_path, arch=arch).name == name


@pytest.mark.parametrize("arch", ["armv7l", "i686", "riscv64"])
def test_an_architecture_without_a_profile_is_refused(tmp_path: Path, arch: str) -> None:
    with pytest.raises(SettingsError, match=f"architecture '{arch}', expected aarch64 or x86_64"):
        find_board(tmp_path, arch=arch)


def test_only_the_boards_given_are_considered(tmp_path: Path) -> None:
    tree = TREES / "raspberry-pi-5"
    others = [profile for profile in boards() if profile.name != "raspberry-pi-5"]
    assert find_board(tree, others, "aarch64").name == "generic-arm64"


# --------------------------------------------------------------------------- the table in the docs

HEADINGS = (
    "board", "cores", "RAM MiB", "AES", "fp16", "tensor", "idle W", "busy W", "send W", "receive W", "link",
    "up / down Mbit/s", "limit °C", "sensor", "step time",
)  # fmt: skip


def row(profile: BoardProfile) -> tuple[str, ...]:
    cpu, power, link = profile.processor, profile.power, profile.link
    says = {True: "yes", False: "no"}
    return (
        f"`{profile.name}`", str(cpu.cores), str(profile.ram_mib), says[cpu.aes], says[cpu.fp16],
        says[cpu.tensor_cores], f"{power.idle_w:g}", f"{power.busy_w:g}", f"{power.send_w:g}", f"{power.receive_w:g}",
        link.kind, f"{link.up_mbit_s:g} / {link.down_mbit_s:g}", f"{profile.thermal.limit_c:g}", profile.sensor,
        f"× {profile.train_scale:g}",
    )  # fmt: skip


def test_the_table_in_the_docs_is_that_of_the_files() -> None:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(row, boards())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    assert table in (ROOT / "docs/boards.md").read_text("utf-8"), f"docs/boards.md should hold\n\n{table}\n"

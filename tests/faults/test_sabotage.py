"""Take out a defence, and a test must fail: a suite that stays green is the mistake (tests/faults/sabotage.py)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults.sabotage import BY_NAME, SABOTAGES

ROOT = Path(__file__).parents[2]
#: Defences that are no code of ours (sandboxes of services, dependencies, what cannot be hidden); not built: noise.
NOT_CODE, NOT_BUILT = {22, 23, 26}, {24}
NAMES = [sabotage.name for sabotage in SABOTAGES]
GROUP = 6
SLICE = ("every message is signed", "a wrong sum is noticed by its checksum")


def run_without(names: list[str]) -> None:
    """Each of these defences taken out turns one of its tests red, and not by an accident of the saboteur."""
    command = [sys.executable, "-m", "faults.sabotage_runner", *names]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["name"] for line in lines] == names
    green = [f"{line['name']} (exit code {line['code']}): {line['said']}" for line in lines if line["code"] != 1]
    assert not green, "without these defences no test fails:\n" + "\n".join(green)
    for line in lines:
        assert "faults/sabotage.py:" not in line["said"], line["said"]
        assert re.search(BY_NAME[line["name"]].says, line["said"]), f"red for another reason: {line['said']}"


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, len(NAMES), GROUP), ids=lambda first: NAMES[first].replace(" ", "-"))
def test_without_a_defence_a_test_fails(first: int) -> None:
    run_without(NAMES[first : first + GROUP])


def test_a_slice_of_the_defences() -> None:
    run_without(list(SLICE))


def test_every_defence_that_is_code_is_on_the_list() -> None:
    assert {sabotage.rank for sabotage in SABOTAGES} == set(range(27)) - NOT_CODE - NOT_BUILT
    assert len(BY_NAME) == len(SABOTAGES)

"""Who may draw what a share hides behind: the operating system alone, in few places (docs/protocol.md §5.2)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHARING = sorted((ROOT / "fedpruneshare" / "sharing").glob("*.py"))
#: Module -> what it draws from the operating system's generator.
DRAWS_FROM_THE_SYSTEM = {
    "fedpruneshare/sharing/prg.py",  # seeds
    "fedpruneshare/sharing/dispersal.py",  # keys of blobs
    "fedpruneshare/keys.py",  # the hybrid half of a key
    "edge_client/fresh_upload.py",  # upload ids and dispersal keys
    "coordinator/deciding.py",  # the challenge of a dealer check, which is public
    "coordinator/service.py",  # the seed of the hidden checksum
}
GENERATORS = {"random", "secrets", "uuid", "torch", "numpy.random", "Crypto.Random", "fedpruneshare.rng"}
SYSTEM = {"urandom", "getrandom", "SystemRandom", "get_random_bytes", "token_bytes", "randbytes", "randbits"}


def draws(module: ast.Module) -> list[str]:
    """Every name of a module or function by which random numbers could be had."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in GENERATORS]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [node.module] if node.module in GENERATORS else [name for name in whole if name in GENERATORS]
            found += [alias.name for alias in node.names if alias.name in SYSTEM]
        elif isinstance(node, ast.Attribute) and node.attr in SYSTEM | {"random", "default_rng", "Generator"}:
            found.append(node.attr)
        elif isinstance(node, ast.Name) and node.id in {"rng", "__import__"}:
            found.append(node.id)
    return found


@pytest.mark.parametrize("path", SHARING, ids=lambda path: path.name)
def test_sharing_draws_seeds_and_nothing_else(path: Path) -> None:
    """One call of `os.urandom`, for fresh seeds and keys; what a share is made of comes from the keystream."""
    assert draws(ast.parse(path.read_text("utf-8"))) == (["urandom"] if path.name in ("prg.py", "dispersal.py") else [])


def test_the_systems_generator_is_used_in_few_places() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("fedpruneshare", "edge_client", "aggregator", "coordinator")
        for path in (ROOT / package).rglob("*.py")
        if set(draws(ast.parse(path.read_text("utf-8")))) & {"urandom", "getrandom", "get_random_bytes"}
    }
    assert users == DRAWS_FROM_THE_SYSTEM


def test_seeds_and_ids_of_an_upload_come_from_the_system() -> None:
    """`new_upload` is given no generator: it could not use another one."""
    module = ast.parse((ROOT / "edge_client" / "fresh_upload.py").read_text("utf-8"))
    (function,) = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "new_upload"]
    assert draws(ast.Module(body=[function], type_ignores=[])) == ["urandom", "urandom"]
    assert [argument.arg for argument in function.args.args] == ["view", "rung", "weight", "words", "prg"]


@pytest.mark.parametrize(
    "code",
    [
        "import random",
        "from random import randrange",
        "import numpy.random as r",
        "from numpy import random",
        "from numpy.random import Generator",
        "np.random.default_rng(3)",
        "import secrets",
        "from os import urandom",
        "from Crypto.Random import get_random_bytes",
        "def f(a):\n    return rng.integers(a)",
        "import torch",
        "from fedpruneshare.rng import stream",
    ],
)
def test_the_rule_notices(code: str) -> None:
    assert draws(ast.parse(code))

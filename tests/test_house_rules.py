"""House rules as code: size, names of dangerous things, who may import what, and quotations that must exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedpruneshare", "edge_client", "aggregator", "coordinator", "firmware_configs", "testbed")
SOURCES = sorted(
    path.relative_to(ROOT).as_posix() for name in (*PACKAGES, "examples") for path in (ROOT / name).rglob("*.py")
)

#: The only module that reads pickles, through an unpickler that knows a short list of names.
PICKLE_READER = "edge_client/datasets/allow_list_pickle.py"
MQTT_MODULE = "fedpruneshare/link/connection.py"
#: What may hand bytes to onnx or onnxruntime: behind the fence (`model_fence.py`), or graphs of this process's making.
MODEL_READERS = {
    "fedpruneshare/sparse/onnx_codec.py",
    "fedpruneshare/sparse/local_model.py",
    "fedpruneshare/sparse/model_child.py",
    "edge_client/exporting.py",
    "testbed/benchmarks/width.py",
    "testbed/synthetic/bundle.py",
}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
#: Children of one fork must not share the libraries' own generators, so these are seeded anew there.
RESEEDS_AFTER_FORK = "testbed/zygote.py"
SEEDED = {"Random", "Generator", "PCG64", "Philox", "SeedSequence", "BitGenerator", "default_rng"}

FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 40, 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text("utf-8"), source)


def name_of(node: ast.AST) -> str:
    """`a.b.c` for a chain of names, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := name_of(node.value)):
        return f"{inner}.{node.attr}"
    return ""


def functions(module: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(module) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def imports(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module


def is_command_line(source: str) -> bool:
    path = Path(source)
    return path.name == "cli.py" or path.name.startswith("cli_") or path.parent.name == "commands"


# --------------------------------------------------------------------------- the rules: module -> complaints


def too_long(source: str, module: ast.Module) -> Iterator[str]:
    lines = len((ROOT / source).read_text("utf-8").splitlines())
    if lines > FILE_LINES:
        yield f"{lines} lines, at most {FILE_LINES} allowed"
    for function in functions(module):
        first = function.body[0]
        # The docstring is not counted: nobody should shorten one to pass.
        spare = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) is not None else 0
        length = (function.end_lineno or 0) - function.lineno + 1 - spare
        if length > FUNCTION_LINES:
            yield f"line {function.lineno}: {function.name} has {length} lines, at most {FUNCTION_LINES} allowed"


def too_many_parameters(source: str, module: ast.Module) -> Iterator[str]:
    for function in functions(module):
        # The parameters of a click command are its options.
        decorators = {
            name_of(item.func if isinstance(item, ast.Call) else item).rpartition(".")[2]
            for item in function.decorator_list
        }
        if is_command_line(source) and decorators & {"command", "group"}:
            continue
        arguments = function.args
        names = [item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > PARAMETERS:
            yield f"line {function.lineno}: {function.name} has {count} parameters, at most {PARAMETERS} allowed"


def loads_code(source: str, module: ast.Module) -> Iterator[str]:
    for line, imported in imports(module):
        if imported.partition(".")[0] in PICKLERS and source != PICKLE_READER:
            yield f"line {line}: imports {imported}; pickles are read in {PICKLE_READER} only"
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        name = name_of(call.func)
        allows = any(
            item.arg == "allow_pickle" and not (isinstance(item.value, ast.Constant) and item.value.value is False)
            for item in call.keywords
        )
        if name in {"eval", "exec", "__import__", "torch.load", "yaml.load", "torch.jit.load", "onnx.load"} or allows:
            yield f"line {call.lineno}: {name}(…) may run code that comes with data"


def wrong_import(source: str, module: ast.Module) -> Iterator[str]:
    at_home = source.startswith(("edge_client/", "examples/"))
    for line, imported in imports(module):
        top = imported.partition(".")[0]
        if top == "paho" and source != MQTT_MODULE:
            yield f"line {line}: imports {imported}; only {MQTT_MODULE} may"
        if top in {"onnx", "onnxruntime"} and source not in MODEL_READERS:
            yield f"line {line}: imports {imported}; models are read by {', '.join(sorted(MODEL_READERS))} only"
        if top in {"torch", "torchvision"} and not at_home:
            yield f"line {line}: imports {imported}; only edge_client may"


def prints(source: str, module: ast.Module) -> Iterator[str]:
    if not is_command_line(source):
        for call in ast.walk(module):
            if isinstance(call, ast.Call) and name_of(call.func) == "print":
                yield f"line {call.lineno}: print(…) in library code; log, or return the text"


def quality_of_service_2(source: str, module: ast.Module) -> Iterator[str]:
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        for item in call.keywords:
            if item.arg == "qos" and isinstance(item.value, ast.Constant) and item.value.value == 2:
                yield f"line {call.lineno}: QoS 2 is never used (docs/protocol.md §3)"


def loses_cancellations(source: str, module: ast.Module) -> Iterator[str]:
    """Before Python 3.12 `wait_for` drops a cancellation that comes when what it waits for has just come, too."""
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        if name_of(call.func) == "asyncio.wait_for":
            yield f"line {call.lineno}: asyncio.wait_for(…) may go on after a SIGTERM; use `async with asyncio.timeout`"


def global_randomness(source: str, module: ast.Module) -> Iterator[str]:
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        head, _, last = name_of(call.func).rpartition(".")
        if head not in {"random", "np.random", "numpy.random"}:
            continue
        if last == "seed" and source == RESEEDS_AFTER_FORK:
            continue
        # `random.Random()`, seeded by the system, is an object of its own: services make one for their jitter.
        if last not in SEEDED or (last == "default_rng" and not (call.args or call.keywords)):
            yield f"line {call.lineno}: {head}.{last}(…) draws from global or unseeded state; pass an rng"
    for node in (node for node in ast.walk(module) if isinstance(node, ast.ImportFrom)):
        names = {alias.name for alias in node.names}
        hidden = node.module in {"numpy.random", "random"} and names - SEEDED
        if (hidden or (node.module == "numpy" and "random" in names)) and source != RESEEDS_AFTER_FORK:
            yield f"line {node.lineno}: imports random functions by name; pass an rng"


def undocumented(source: str, module: ast.Module) -> Iterator[str]:
    if ast.get_docstring(module) is None:
        yield "the module has no docstring"
    yield from _undocumented_in(module.body, "")


def _undocumented_in(body: list[ast.stmt], owner: str) -> Iterator[str]:
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if any(name_of(item) in {"overload", "typing.overload"} for item in node.decorator_list):
            continue
        if ast.get_docstring(node) is None:
            yield f"line {node.lineno}: {owner}{node.name} is public and has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented_in(node.body, f"{node.name}.")


RULES: tuple[Callable[[str, ast.Module], Iterator[str]], ...] = (
    too_long,
    too_many_parameters,
    loads_code,
    wrong_import,
    prints,
    quality_of_service_2,
    loses_cancellations,
    global_randomness,
    undocumented,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Callable[[str, ast.Module], Iterator[str]]) -> None:
    complaints = [f"{source}: {text}" for source in SOURCES for text in rule(source, tree(source))]
    assert not complaints, "\n" + "\n".join(complaints)


# --------------------------------------------------------------------------- the rules notice what they should

LONG_FUNCTION = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
OFFENCES: list[tuple[Callable[[str, ast.Module], Iterator[str]], str]] = [
    (too_long, LONG_FUNCTION),
    (too_many_parameters, "def f(a, b, c, *, d, e, g, h): ..."),
    (too_many_parameters, "class A:\n    def f(self, a, b, c, d, e, g, h): ..."),
    (loads_code, "from pickle import Unpickler"),
    (loads_code, "import torch\ntorch.load('x')"),
    (loads_code, "eval('1')"),
    (loads_code, "np.load('x', allow_pickle=True)"),
    (loads_code, "np.load('x', allow_pickle=flag)"),
    (wrong_import, "def f():\n    import torch.nn"),
    (wrong_import, "from paho.mqtt import client"),
    (wrong_import, "def f():\n    import onnxruntime"),
    (loads_code, "onnx.load('model.onnx')"),
    (prints, "print('x')"),
    (quality_of_service_2, "client.publish('a', b'', qos=2)"),
    (loses_cancellations, "async def f():\n    await asyncio.wait_for(done.wait(), 1.0)"),
    (global_randomness, "np.random.shuffle(x)"),
    (global_randomness, "np.random.default_rng()"),
    (global_randomness, "random.choice(x)"),
    (global_randomness, "from numpy.random import rand"),
    (global_randomness, "from numpy import random as other"),
    (global_randomness, "from random import choice"),
    (undocumented, '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self): ...'),
    (undocumented, "x = 1"),
]
HARMLESS = '''"""Doc."""
import numpy as np


def f(rng, a, b, c, d, e):
    """Doc."""
    model.eval()
    client.publish("a", b"", qos=1)
    return np.load("x", allow_pickle=False), np.random.default_rng(3), rng.random()
'''


@pytest.mark.parametrize(("rule", "code"), OFFENCES)
def test_a_rule_notices_its_offence(rule: Callable[[str, ast.Module], Iterator[str]], code: str) -> None:
    assert list(rule("fedpruneshare/errors.py", ast.parse(code)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_lets_harmless_code_pass(rule: Callable[[str, ast.Module], Iterator[str]]) -> None:
    assert not list(rule("fedpruneshare/errors.py", ast.parse(HARMLESS)))


# --------------------------------------------------------------------------- text

#: Written so that this file does not offend against itself.
PLACES = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users|opt)/\w")
HOSTS = re.compile(
    r"https?://(?:files|registry|deb|download|packages?|index)\.|https?://\S*/simple\b|--(?:extra-)?index-url"
)


def kept_texts() -> Iterator[tuple[str, str]]:
    """Path and text of every text file that belongs to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path != Path(__file__) and path.is_file():
            content = path.read_bytes()
            if b"\0" not in content[:8192]:
                yield name, content.decode("utf-8", "replace")


def test_no_text_names_a_machine_or_a_registry() -> None:
    complaints = [
        f"{name}:{number}: {found[0]!r}"
        for name, text in kept_texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := PLACES.search(line) or HOSTS.search(line))
    ]
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize("place", ["root/x", "home/someone/", "work/main"])
def test_the_text_rule_notices_a_path_of_one_machine(place: str) -> None:
    assert PLACES.search(f"see '/{place}'")


@pytest.mark.parametrize("address", ["index.example/simple", "files.example/a.whl"])
def test_the_text_rule_notices_a_package_registry(address: str) -> None:
    assert HOSTS.search(f"from https://{address}")


QUOTATION = re.compile(r"docs/protocol\.md((?:(?:,| and| or)?\s*§\d+(?:\.\d+)*)+)")


def test_every_protocol_section_quoted_exists() -> None:
    protocol = ROOT / "docs" / "protocol.md"
    if not protocol.exists():
        pytest.skip("docs/protocol.md is not written yet")
    sections = set(re.findall(r"^#+ +§?(\d+(?:\.\d+)*)\b", protocol.read_text("utf-8"), re.MULTILINE))
    missing = {
        f"{name}: §{number}"
        for name, text in kept_texts()
        for quoted in QUOTATION.findall(re.sub(r"\s*\n[\s#]*", " ", text))
        for number in re.findall(r"§(\d+(?:\.\d+)*)", quoted)
        if number not in sections
    }
    assert not missing, "\n" + "\n".join(sorted(missing))


def test_quotations_are_found_over_line_ends_and_in_lists() -> None:
    assert QUOTATION.findall("(docs/protocol.md §1.3, §4) and docs/protocol.md §6.2 or §7") == [
        " §1.3, §4",
        " §6.2 or §7",
    ]

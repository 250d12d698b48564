"""The command line: every table entry resolves, nothing heavy is loaded early, errors are messages with exit codes."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from fedpruneshare import __version__, cli
from fedpruneshare.errors import Fault, LinkError, SettingsError, TaskError


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_table_entry_resolves_and_explains_itself(name: str) -> None:
    command = cli.load_command(name)
    assert command.name == name
    assert command.help, f"{name} has no help text"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_sub_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    assert f"Usage: fedpruneshare {name}" in capsys.readouterr().out


def test_help_lists_every_command_without_loading_any() -> None:
    code = (
        "import sys; from fedpruneshare import cli; assert cli.run(['--help']) == 0; "
        "roles = {'torch', 'onnx', 'matplotlib', 'edge_client', 'aggregator', 'coordinator', 'testbed'}; "
        "sys.exit(', '.join(sorted(roles & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nonsense"], ["--log-level", "loud", "device"], ["--nonsense"], []])
def test_bad_usage_is_2_and_no_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def with_command(monkeypatch: pytest.MonkeyPatch, body: Callable[[], object]) -> None:
    @click.command("device")
    def device() -> object:
        return body()

    monkeypatch.setattr(cli, "load_command", lambda name: device)


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


FAULTS = (Fault("rounds.count", "nothing", "a whole number"), Fault("prg", "'x'", "one of 'y'", "did you mean 'y'?"))


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (SettingsError("scenario.toml: 2 mistakes", FAULTS), 2, ["2 mistakes", "  rounds.count: found", "mean 'y'?"]),
        (TaskError("the model has no parameters"), 2, ["error: the model has no parameters"]),
        (LinkError("no broker at 127.0.0.1:1"), 1, ["error: no broker at 127.0.0.1:1"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (click.UsageError("which one?"), 2, ["which one?"]),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 2, ["torch", "fedpruneshare[edge]"]),
        (OSError(errno.ENOSPC, "No space left on device"), 1, ["error: No space left on device (while writing"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x/out"), 1, ["error: /x/out: Permission denied"]),
    ],
)
def test_errors_become_a_message_and_an_exit_code(
    error: BaseException,
    code: int,
    shown: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_command(monkeypatch, raising(error))
    assert cli.run(["device"]) == code
    written = capsys.readouterr().err
    for text in shown:
        assert text in written
    assert "Traceback" not in written


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("our bug"),
        ModuleNotFoundError("x", name="edge_client.nothing"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "never-written.json"),
        OSError(errno.EBADF, "Bad file descriptor"),
    ],
)
def test_our_own_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with_command(monkeypatch, raising(error))
    with pytest.raises(type(error)):
        cli.run(["device"])


@pytest.mark.parametrize(("body", "code"), [(lambda: None, 0), (lambda: 1, 1)])
def test_a_command_may_return_its_exit_code(
    body: Callable[[], object], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_command(monkeypatch, body)
    assert cli.run(["device"]) == code


def test_a_command_may_exit_through_click(monkeypatch: pytest.MonkeyPatch) -> None:
    with_command(monkeypatch, lambda: click.get_current_context().exit(1))
    assert cli.run(["device"]) == 1


def test_the_scripts_are_installed_under_both_names() -> None:
    from importlib.metadata import entry_points

    scripts = {point.name: point.value for point in entry_points(group="console_scripts")}
    assert scripts["fedpruneshare"] == scripts["fps"] == "fedpruneshare.cli:main"


def test_every_extra_named_to_users_exists() -> None:
    from importlib.metadata import metadata

    offered = set(metadata("fedpruneshare").get_all("Provides-Extra") or ())
    assert {one for extra in cli.EXTRAS.values() for one in extra.split(" or ")} <= offered

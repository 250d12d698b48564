"""The command line: a literal table of sub-commands, each loaded only when it is used.

So `fedpruneshare --help` and an aggregator start without torch, and a role whose extra is not installed says which.
Exit codes: 0 done, 1 the run failed, 2 bad usage or settings (all faults listed, no traceback), 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from fedpruneshare import __version__, logs
from fedpruneshare.errors import FedPruneShareError, SettingsError

#: sub-command -> ("module:click command", what it does)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "device": ("edge_client.cli:device", "Take part in rounds as a device: train, prune, share, upload."),
    "aggregator": ("aggregator.cli:aggregator", "Hold one share per device and answer with sums."),
    "coordinator": ("coordinator.cli:coordinator", "Plan rounds, open sums, publish the next model."),
    "provision": ("firmware_configs.provision.cli:provision", "Make keys and certificates, renew and revoke them."),
    "testbed": ("testbed.cli:testbed", "Run and compare whole fleets on this machine."),
    "data": ("edge_client.commands.data:data", "Fetch the data sets of the built-in tasks."),
    "task": ("edge_client.commands.task:task", "Export what coordinator and fleet need of a task."),
    "report": ("testbed.cli_report:report", "Make the report of a finished run again, or compare several runs."),
    "bench": ("testbed.cli:bench", "Measure, and write the figures as JSON."),
}

#: Third-party module -> the extra that brings it.
EXTRAS: Final[dict[str, str]] = {
    "torch": "edge",
    "onnx": "edge or coordinator",
    "onnxruntime": "edge or coordinator",
    "cryptography": "provision",
    "onnxscript": "export",
    "torch_pruning": "export",
    "iotcore": "testbed",
    "matplotlib": "testbed",
    "psutil": "testbed",
    "rich": "testbed",
    "tensorboardX": "tensorboard",
}

#: What a user can put right about a disk or a path: full, over quota, read-only, forbidden, or no folder (or one).
DISK_FAULTS: Final = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
        errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    }
)  # fmt: skip


class LazyGroup(click.Group):
    """A group that imports a sub-command's module only when that sub-command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one sub-command; None for an unknown name."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the sub-commands from the table: help must not import eight packages."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def load_command(name: str) -> click.Command:
    """The click command of a table entry. Raises `ImportError` where its module cannot be imported."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    if not isinstance(command, click.Command):
        raise TypeError(f"{module}:{attribute} is a {type(command).__name__}, expected a click command")
    return command


@click.group("fedpruneshare", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedpruneshare")
@click.option(
    "--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True, help="Least level shown."
)
@click.option("--log-json", is_flag=True, help="One JSON object a line instead of readable lines.")
@click.pass_context
def cli(ctx: click.Context, log_level: str, log_json: bool) -> None:
    """Federated learning for the edge: prune on the device, share secretly over MQTT, open only sums."""
    logs.configure(ctx.invoked_subcommand or "cli", "", log_level, log_json)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors made on purpose become one message, not a traceback."""
    try:
        # Without standalone mode click hands an exit code back, and passes its own errors on.
        result: Any = cli.main(arguments, prog_name="fedpruneshare", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except SettingsError as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except FedPruneShareError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        click.echo(f"error: {disk_fault(error)}", err=True)
        return 1
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        click.echo(f"error: {missing_extra(str(error.name), extra)}", err=True)
        return 2


def missing_extra(module: str, extra: str) -> str:
    """What to tell a user whose installation lacks a library."""
    commands = " or ".join(f"pip install 'fedpruneshare[{one}]'" for one in extra.split(" or "))
    return f"this command needs {module}, which is not installed: {commands}"


def disk_fault(error: OSError) -> str:
    """What to tell a user whose disk or path does not take what a command writes, or does not give what it reads."""
    return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror} (while writing or reading)"


def main() -> None:
    """Entry point of `fedpruneshare` and `fps`."""
    sys.exit(run())


if __name__ == "__main__":
    main()

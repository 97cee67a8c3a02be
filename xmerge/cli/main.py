"""The command `xmerge`: its subcommands, loaded when they are asked for, and what every error ends in."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any, NoReturn

import click
from typing_extensions import override

from xmerge.errors import Interrupted, StorageError, XmergeError
from xmerge.files import DISK_FULL
from xmerge.signals import stop_on_signals

COMMANDS = {
    "compat": ("xmerge.cli.compat", "What of one model can cross into another, and why; no weight is read."),
    "families": ("xmerge.cli.listings", "List the model families that xmerge knows, or one's tensors."),
    "merge": ("xmerge.cli.merge", "Merge the models of a configuration into a checkpoint."),
    "methods": ("xmerge.cli.listings", "List the merge methods, or explain one."),
    "plan": ("xmerge.cli.plan", "Show every decision of a merge; no weight is read."),
    "publish": ("xmerge.cli.publish", "Upload a checkpoint that has been verified."),
    "schema": ("xmerge.cli.listings", "Print the JSON schema of a configuration, for editors."),
    "serve": ("xmerge.cli.serve", "Carry out merges that are started from a browser."),
    "ui": ("xmerge.cli.ui", "Show past and present runs in a browser."),
    "verify": ("xmerge.cli.verify", "Check a checkpoint, whoever wrote it."),
}
BUG_REPORT = "this is a bug in xmerge. Please report it with the lines above and your configuration."


class _Commands(click.Group):
    """Subcommands that are imported when they are called: `--help` waits for nothing."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xmerge", message="xmerge %(version)s")
def xmerge() -> None:
    """Merge the weights of language models, across families, into exactly a model of the base's architecture."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and end the process with an exit code that says how it went."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        # What a command ends with by `Exit` comes back as a value here.
        with stop_on_signals():
            ended = xmerge.main(args=words, prog_name="xmerge", standalone_mode=False)
    except XmergeError as error:
        sys.exit(_tell(error, as_json="--json" in words))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_tell(Interrupted("interrupted.", remedy="run the same command again."), as_json="--json" in words))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader has gone (`xmerge plan ... | head`): nothing is left to say, at the exit of Python either.
        sys.stdout = None
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the one place that tells a bug from a mistake
        if isinstance(error, OSError) and error.filename is None and error.errno in DISK_FULL:
            sys.stdout = None
            sys.exit(_tell(StorageError(f"this cannot be printed: {error.strerror}."), as_json=False))
        import traceback

        traceback.print_exc()
        click.echo(BUG_REPORT, err=True)
        sys.exit(XmergeError.exit_code)
    sys.exit(ended if isinstance(ended, int) else 0)


def _tell(error: XmergeError, *, as_json: bool) -> int:
    """Print an error for the person, and for the machine if asked; the exit code."""
    # Names come from files, and a terminal would act upon what they hold.
    told = "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in str(error))
    click.echo(click.style(f"{type(error).__name__}: ", fg="red", bold=True) + told, err=True)
    if as_json:
        click.echo(json.dumps({"error": describe_error(error)}))
    return error.exit_code


def describe_error(error: XmergeError) -> dict[str, Any]:
    """An error as data."""
    return {
        "kind": type(error).__name__,
        "exit_code": error.exit_code,
        "what": error.what,
        "where": error.where,
        "why": error.why,
        "remedy": error.remedy,
    }

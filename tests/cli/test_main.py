"""The command itself: help, errors and exit codes."""

from __future__ import annotations

import json

import click
import pytest

from xmerge import errors
from xmerge.cli.main import COMMANDS, _Commands


def test_every_command_is_listed_and_can_be_called(xmerge):
    """The help names every command, and every command has help of its own."""
    listed = xmerge("--help").out
    for name in COMMANDS:
        assert name in listed
        assert xmerge(name, "--help").exit_code == 0


def test_an_unknown_command_is_refused(xmerge):
    """A word that is no command ends in exit 2 and is named."""
    said = xmerge("merg")
    assert said.exit_code == 2
    assert "merg" in said.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.PlanError, 2),
        (errors.OutputExistsError, 2),
        (errors.CheckpointError, 3),
        (errors.SourceChangedError, 3),
        (errors.HubError, 3),
        (errors.InvalidMergeError, 4),
        (errors.InUseError, 5),
        (errors.StorageError, 6),
        (errors.Interrupted, 130),
    ],
)
def test_an_error_ends_in_its_exit_code_without_a_traceback(xmerge, monkeypatch, error, code):
    """Every error of ours is told in words, on standard error, and ends in the exit code that stands in the README."""
    raise_in_plan(monkeypatch, error("it went wrong.", where="here", why="so.", remedy="do that."))
    said = xmerge("plan", "recipe.yml")
    assert said.exit_code == code
    assert said.err == f"{error.__name__}: it went wrong.\n  at: here\n  why: so.\n  do: do that.\n"


def test_an_error_is_data_if_asked(xmerge, monkeypatch):
    """With --json an error is one line of JSON on standard output as well."""
    raise_in_plan(monkeypatch, errors.StorageError("full.", remedy="free some space."))
    said = xmerge("plan", "recipe.yml", "--json")
    assert json.loads(said.out) == {
        "error": {
            "kind": "StorageError",
            "exit_code": 6,
            "what": "full.",
            "where": None,
            "why": None,
            "remedy": "free some space.",
        }
    }


def test_a_bug_is_told_as_one(xmerge, monkeypatch):
    """Any other exception is a bug: exit 1, a traceback, and a request to report it."""
    raise_in_plan(monkeypatch, ZeroDivisionError("division by zero"))
    said = xmerge("plan", "recipe.yml")
    assert said.exit_code == 1
    assert "Traceback" in said.err
    assert "Please report it" in said.err


def test_ctrl_c_ends_in_130(xmerge, monkeypatch):
    """An interrupted command says so and ends in exit 130."""
    raise_in_plan(monkeypatch, KeyboardInterrupt())
    said = xmerge("plan", "recipe.yml")
    assert said.exit_code == 130
    assert "Traceback" not in said.err


def raise_in_plan(monkeypatch, error: BaseException) -> None:
    """Make `xmerge plan` raise this."""

    def plan(**_: object) -> None:
        raise error

    parameters: list[click.Parameter] = [click.Argument(["config"]), click.Option(["--json", "as_json"], is_flag=True)]
    command = click.Command("plan", callback=plan, params=parameters)
    monkeypatch.setattr(_Commands, "get_command", lambda *_: command)

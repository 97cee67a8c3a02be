"""Errors: what they say, and which exit code they end in."""

import copy
import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmerge import errors
from xmerge.errors import XmergeError, nearest

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, XmergeError) and kind is not XmergeError
]
EXIT_CODES = {
    "CheckpointError": 3,
    "ConfigError": 2,
    "HubError": 3,
    "HubUnavailableError": 3,
    "InUseError": 5,
    "Interrupted": 130,
    "InvalidMergeError": 4,
    "OutputExistsError": 2,
    "PlanError": 2,
    "NonfiniteInputError": 3,
    "SourceChangedError": 3,
    "StorageError": 6,
    "WorkerLostError": 6,
}


def test_every_error_has_its_exit_code():
    """Each kind of error ends in the exit code that the manual gives it, and only a bug ends in 1."""
    assert {kind.__name__: kind.exit_code for kind in KINDS} == EXIT_CODES
    assert XmergeError.exit_code == 1


def test_the_tree_in_the_manual_is_the_tree():
    """The tree at the top of the module names every error once, each with its exit code."""
    tree = [line.split() for line in (errors.__doc__ or "").splitlines() if "──" in line]
    named = {next(part for part in line if part.isidentifier()): line for line in tree}
    assert set(named) == set(EXIT_CODES)
    for name, line in named.items():
        assert str(EXIT_CODES[name]) in line


def test_an_error_says_what_where_why_and_what_to_do():
    """Each part that is given stands on a line of its own, and no line stands for one that is not."""
    error = errors.PlanError("no.", where="here", why="because.", remedy="do it.")
    assert str(error) == "no.\n  at: here\n  why: because.\n  do: do it."
    assert str(errors.PlanError("no.")) == "no."
    assert str(errors.PlanError("no.", remedy="do it.")) == "no.\n  do: do it."


texts = st.one_of(st.none(), st.text(max_size=5))


@given(st.sampled_from(KINDS), st.text(max_size=5), texts, texts, texts)
def test_an_error_survives_another_process(
    kind: type[XmergeError], what: str, where: str | None, why: str | None, remedy: str | None
):
    """An error that was pickled or copied, as between processes, says the same."""
    error = kind(what, where=where, why=why, remedy=remedy)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - Our own bytes.
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert (twin.what, twin.where, twin.why, twin.remedy) == (what, where, why, remedy)


@pytest.mark.parametrize(
    ("name", "valid", "told"),
    [
        ("slrep", ["linear", "slerp"], "did you mean 'slerp'?"),
        ("zzz", ["slerp", "linear"], "valid here: linear, slerp."),
        ("x", [], "there are none."),
    ],
)
def test_the_nearest_name_is_told_or_all(name: str, valid: list[str], told: str):
    """A name that is not valid is answered with one that is like it, else with all there are in their order."""
    assert nearest(name, valid) == nearest(name, reversed(valid)) == told

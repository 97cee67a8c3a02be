"""Which errors stand in a run's log with a traceback."""

from __future__ import annotations

import logging

import pytest

from tasks.telling import LOGGERS, PlainErrors
from xmerge.errors import ConfigError, XmergeError


def record(error: Exception) -> logging.LogRecord:
    """What Prefect logs when a run has raised."""
    told = (type(error), error, None)
    return logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, "Encountered exception: %r", (error,), told)


def test_an_error_of_ours_is_told_in_its_own_words_and_once():
    """Message and remedy take the place of the traceback; what passes it on says it no second time."""
    plain, error = PlainErrors(), ConfigError("no such key.", where="line 1", remedy="remove it.")
    first = record(error)
    assert plain.filter(first)
    assert first.getMessage() == "ConfigError: no such key.\n  at: line 1\n  do: remove it."
    assert first.exc_info is None
    assert not plain.filter(record(error))
    assert plain.filter(record(ConfigError("no such key.")))


def test_a_bug_keeps_its_traceback():
    """An error that nobody has meant passes as it is, each time."""
    plain, error = PlainErrors(), ValueError("a bug")
    for _ in range(2):
        told = record(error)
        assert plain.filter(told)
        assert told.exc_info is not None
        assert told.getMessage() == "Encountered exception: ValueError('a bug')"


@pytest.mark.parametrize("name", LOGGERS)
def test_every_process_with_tasks_tells_plainly(name):
    """To import the tasks is enough, wherever they are carried out."""
    assert any(isinstance(each, PlainErrors) for each in logging.getLogger(name).filters)


def test_no_error_is_remembered_longer_than_it_lives():
    """What has been told is kept only as long as somebody else keeps it."""
    plain = PlainErrors()
    assert plain.filter(record(XmergeError("gone.")))
    assert not list(plain._told)

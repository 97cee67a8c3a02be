"""Task runners by name: what is understood, and what is refused before anything begins."""

from __future__ import annotations

import socket
import sys

import pytest

from xmerge.errors import ConfigError, PlanError
from xmerge.runners import EXAMPLES, PACKAGES, RunnerName, check_runner, parse_runner


@pytest.mark.parametrize(
    ("text", "kind", "address", "endpoint"),
    [
        ("thread", "thread", None, None),
        ("dask", "dask", None, None),
        (" ray ", "ray", None, None),
        ("dask:tcp://10.0.0.1:8786", "dask", "tcp://10.0.0.1:8786", ("10.0.0.1", 8786)),
        ("dask:head:8786", "dask", "head:8786", ("head", 8786)),
        ("dask:tls://[::1]:8786", "dask", "tls://[::1]:8786", ("::1", 8786)),
        ("ray:ray://head:10001", "ray", "ray://head:10001", ("head", 10001)),
        ("ray:10.0.0.1:6379", "ray", "10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray:auto", "ray", "auto", None),
    ],
)
def test_a_name_is_a_kind_and_maybe_an_address(text, kind, address, endpoint):
    """The address is everything after the first colon, with or without a protocol."""
    name = parse_runner(text)
    assert name == RunnerName(kind=kind, address=address)
    assert name.endpoint == endpoint
    assert name.is_cluster == (kind != "thread")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dusk", "there is no task runner 'dusk'.\n  at: task_runner\n  do: did you mean 'dask'?"),
        ("", "do: valid here: dask, ray, thread."),
        ("thread:4", "threads have no address."),
        ("dask:", "'' is no address of a dask cluster."),
        ("dask:auto", "'auto' is no address of a dask cluster."),
        ("dask:tcp://head", "an address such as 'dask:tcp://10.0.0.1:8786'"),
        ("ray:head:many", "'head:many' is no address of a ray cluster."),
        ("ray:head:99999", "an address such as 'ray:10.0.0.1:6379'"),
    ],
)
def test_a_name_that_means_nothing_is_refused(text, told):
    """The error names what is wrong, and the nearest name or an address that would be right."""
    with pytest.raises(ConfigError) as caught:
        parse_runner(text)
    assert told in str(caught.value)


@pytest.mark.parametrize("example", EXAMPLES.values())
def test_the_examples_are_understood(example):
    """What an error tells a person to say is accepted."""
    assert parse_runner(example).endpoint


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_library_that_is_not_here_is_named(monkeypatch, kind):
    """Without it the run is refused with the command that installs it; with it, and for threads, nothing is said."""
    check_runner(parse_runner(kind))
    check_runner(parse_runner("thread"))
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    with pytest.raises(PlanError) as caught:
        check_runner(parse_runner(kind))
    assert caught.value.remedy == f"pip install 'xmerge[{kind}]'"
    assert f"prefect-{kind}" in caught.value.what


def test_an_address_where_nobody_answers_is_named():
    """A port that nobody listens on is refused with its address; one where somebody does is let pass."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        check_runner(parse_runner(f"dask:{address}"))
    with pytest.raises(PlanError) as caught:
        check_runner(parse_runner(f"dask:{address}"))
    assert caught.value.what == f"nobody answers at {address}, where a dask cluster should be."
    assert caught.value.why == "Connection refused."

"""Servers that come and go: the one that commands of a machine share, and one that is away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.server import shared
from flows.server.shared import EmbeddedServer
from tests.flows.calls import Call
from tests.flows.tiny import Bench, digest
from tests.servers.holding import holding
from tests.servers.processes import wait_until

pytestmark = pytest.mark.slow

STARTS = "starting an embedded Prefect server ..."
SECONDS_TO_REPORT = 60.0
"""What a merge may take after its end when nobody hears that it has ended; a third of it on a quiet machine."""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A Prefect home in which nothing has ever run."""
    return Path(tmp_path_factory.mktemp("life")) / "home"


@pytest.fixture
def calls(home) -> Iterator[list[Call]]:
    """What a test has started, and must not leave behind."""
    started = list[Call]()
    yield started
    for call in started:
        call.kill()


def merge(bench: Bench, home: Path, name: str, log: str = "", **options: Any) -> Call:
    """Begin a merge."""
    recipe, out = bench.recipe_file(), bench.place / name
    return Call(home, bench.place / f"{log or name}.log", "merge", recipe, out, "--skip-trial-load", **options)


def test_two_first_merges_at_once_share_one_server(bench: Bench, home, calls):
    """On a new database one starts the server and the other finds it: neither meets a lock, and both end well."""
    calls += [merge(bench, home, name) for name in ("one", "two")]
    assert [call.wait() for call in calls] == [0, 0]
    said = [line for call in calls for line in call.read()]
    assert said.count(STARTS) == 1
    assert not [line for line in said if "locked" in line or "Traceback" in line]
    assert digest(bench.place / "one") == digest(bench.place / "two")


def test_a_killed_merge_has_crashed_for_whoever_looks(bench: Bench, home, calls):
    """The pages show a run whose process was killed as crashed, with its tasks; the next merge joins their server."""
    with holding(bench) as wait_for_middle:
        calls.append(merge(bench, home, "out"))
        wait_for_middle("out")
        with temporary_settings(updates={PREFECT_HOME: home}):
            server = EmbeddedServer()
        wait_until(lambda: "Running" in read_task_states(server.api_url), "the server knows which layers are in work")
        server.stop()
        calls[0].kill()
    calls.append(Call(home, bench.place / "ui.log", "ui", "--port", "0", "--json"))
    pages = calls[1].wait_for_json()
    assert pages["last_run"]["state"] == "Crashed"
    assert httpx.get(pages["last_run"]["url"], headers={"Accept": "text/html"}, follow_redirects=True).is_success
    assert read_task_states(pages["api"], pages["last_run"]["id"]) == {"Completed", "Crashed"}
    calls.append(merge(bench, home, "out", "again"))
    assert calls[2].wait() == 0
    assert STARTS not in calls[2].read()
    assert calls[1].end() == 0
    assert not answers(pages["api"])


def test_a_server_lives_as_long_as_its_last_user(home):
    """The first user may leave before the second; after the second nothing answers."""
    with temporary_settings(updates={PREFECT_HOME: home.parent / "other"}):
        first = EmbeddedServer()
        second = EmbeddedServer()
        second.wait()
        assert (first.is_new, second.is_new) == (True, False)
        first.stop()
        assert answers(second.api_url)
        second.stop()
        assert not answers(second.api_url)


def test_the_last_user_ends_the_server_that_runs(home):
    """Also where the one that it found at first was killed, and another command has started a new one."""
    with temporary_settings(updates={PREFECT_HOME: home.parent / "other"}):
        last = EmbeddedServer()
        last.wait()
        os.kill(last.address.pid, signal.SIGKILL)
        wait_until(lambda: not shared._is_held(last._folder / shared.SERVER), "the first server is gone")
        other = EmbeddedServer()
        other.wait()
        other.stop()
        assert other.is_new
        assert answers(other.api_url)
        last.stop()
        assert not answers(other.api_url)


def test_a_merge_outlives_the_server_it_reports_to(bench: Bench, home, calls):
    """Killed for ever in the middle, it costs the merge neither its output nor its exit code, and little time."""
    with temporary_settings(updates={PREFECT_HOME: home}):
        server = EmbeddedServer()
    try:
        server.wait()
        with holding(bench) as wait_for_middle:
            calls.append(merge(bench, bench.place / "home", "out", api_url=server.api_url))
            wait_for_middle("out")
            os.kill(server.address.pid, signal.SIGKILL)
        wait_until(bench.out.exists, "the output is in its place")
        ended = time.monotonic()
        assert calls[0].wait() == 0
    finally:
        server.stop()
    assert time.monotonic() - ended < SECONDS_TO_REPORT
    assert "the merge is done; Prefect's API could not be told so." in calls[0].read()
    assert "Traceback" not in "\n".join(calls[0].read())


def read_task_states(api_url: str, *runs: str) -> set[str | None]:
    """The names of the states in which the tasks of some runs are; without any, of all runs."""
    these = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run) for run in runs])) if runs else None
    with temporary_settings(updates={PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        return {task.state_name for task in client.read_task_runs(flow_run_filter=these)}


def answers(api_url: str) -> bool:
    """Whether a server is there."""
    try:
        return httpx.get(f"{api_url}/health", timeout=1.0, trust_env=False).is_success
    except httpx.TransportError:
        return False

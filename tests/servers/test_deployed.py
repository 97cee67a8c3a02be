"""Runs of deployments, and of the command line, against a server on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from tests.flows.tiny import LAYERS, Bench, digest
from tests.servers.runs import UNHURRIED, deploy, read_complaints, read_tasks, start_run, tell, wait_for_end
from xmerge.config import parse_config
from xmerge.run import merge

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("worker")]

TASKS = LAYERS + 2 + 6


@pytest.fixture(scope="session")
def unhurried(server) -> UUID:
    """A deployment of the flow, with layers that take half a second each."""
    return deploy(UNHURRIED, "unhurried")


@pytest.fixture(scope="session")
def wanted(models, tmp_path_factory) -> str:
    """The digest of what the plain loop makes of the bench's recipe."""
    place = Path(tmp_path_factory.mktemp("wanted"))
    bench = Bench(models, place)
    merge(parse_config(bench.recipe(), "the recipe"), bench.out, trial=False)
    return digest(bench.out)


def test_two_runs_at_once_complete_and_a_third_into_the_same_output_is_refused(bench: Bench, unhurried, wanted):
    """Each makes its own output and complains of nothing; the run that came too late reads who holds the output."""
    places = [bench.place / name for name in ("one", "two", "one")]
    ended = wait_for_end(*(start_run(unhurried, recipe=bench.recipe(), out=str(out), trial=False) for out in places))
    refused = [run for run in ended if run.state_name == "Failed"]
    completed = [run for run in ended if run.state_name == "Completed"]
    assert (len(refused), len(completed)) == (1, 2)
    assert {digest(out) for out in places} == {wanted}
    assert f"InUseError: {bench.place / 'one'} is being merged by process" in tell(refused[0])
    assert "wait for it to end, or name another output" in tell(refused[0])
    for run in completed:
        assert read_complaints(run.id) == []
        assert [task.state_name for task in read_tasks(run.id, TASKS)] == ["Completed"] * TASKS

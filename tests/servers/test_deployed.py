"""Runs of deployments, and of the command line, against a server on PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prefect.exceptions import PrefectHTTPStatusError

from deployments.prepare import POOLS
from tests.flows.tiny import Bench, digest
from tests.servers.command import Command
from tests.servers.holding import holding
from tests.servers.processes import wait_until
from tests.servers.runs import (
    TASKS,
    UNHURRIED,
    add_schedule,
    deploy,
    find_deployment,
    has_ended,
    list_completed,
    list_states,
    read_artifacts,
    read_complaints,
    read_tasks,
    remove,
    start_run,
    tell,
    wait_for_end,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("worker")]


def test_two_runs_at_once_complete_and_a_third_into_the_same_output_is_refused(bench: Bench, unhurried, wanted):
    """Each makes its own output and complains of nothing; the run that came too late reads who holds the output."""
    places = [bench.place / name for name in ("one", "two", "one")]
    with holding(bench) as wait_for_middle:
        runs = [start_run(unhurried, recipe=bench.recipe(), out=str(out), trial=False) for out in places]
        wait_for_middle("one", "two")
        wait_until(lambda: any(map(has_ended, runs)), "the third run is refused")
    ended = wait_for_end(*runs)
    refused = [run for run in ended if run.state_name == "Failed"]
    completed = [run for run in ended if run.state_name == "Completed"]
    assert (len(refused), len(completed)) == (1, 2)
    assert {digest(out) for out in places} == {wanted}
    assert f"InUseError: {bench.place / 'one'} is being merged by process" in tell(refused[0])
    assert "wait for it to end, or name another output" in tell(refused[0])
    for run in completed:
        assert read_complaints(run.id) == []
        assert [task.state_name for task in read_tasks(run.id, TASKS)] == ["Completed"] * TASKS


def test_two_commands_at_once_complete(bench: Bench, server, wanted):
    """Neither says a word of the other or of the server, and the history of both is complete."""
    recipe = bench.recipe_file()
    with holding(bench) as wait_for_middle:
        commands = [Command(server.url, recipe, bench.place / name) for name in ("one", "two")]
        wait_for_middle("one", "two")
    for command, name in zip(commands, ("one", "two"), strict=True):
        outcome = command.take_outcome()
        assert outcome["flow_run"]["recorded"]
        assert digest(bench.place / name) == wanted
        assert "rror" not in command.log.read_text(encoding="utf-8")


def test_a_schedule_merges_once_and_then_finds_nothing_new_in_seconds(bench: Bench):
    """The first run of an interval makes the output; the next one ends as a no-op, in less than ten seconds.

    From its time in the schedule on it also waits until its process has started, which gets more time here.
    """
    watch = find_deployment("watch_sources/watch")
    add_schedule(watch, timedelta(seconds=5), recipe=bench.recipe(), out=str(bench.out), trial=False)
    wait_until(lambda: len(list_completed(watch)) >= 2, "two runs of the schedule have completed")
    first, second = list_completed(watch)[:2]
    remove(watch)
    assert tell(first).endswith("it has not been merged before")
    assert tell(second).startswith("nothing new")
    assert (bench.out / "latest" / "provenance.json").is_file()
    assert second.start_time is not None and second.end_time is not None
    assert second.end_time - second.start_time < timedelta(seconds=10)
    assert second.expected_start_time is not None
    assert second.end_time - second.expected_start_time < timedelta(seconds=30)


def test_a_run_beyond_the_limit_of_its_deployment_waits_its_turn(bench: Bench, server):
    """With a limit of one, the second run is seen to wait for a slot, and begins when the first has ended."""
    limited = deploy(UNHURRIED, "limited", POOLS["process"].name, concurrency_limit=1)
    places = [bench.place / name for name in ("one", "two")]
    with holding(bench):
        runs = [start_run(limited, recipe=bench.recipe(), out=str(out), trial=False) for out in places]
        wait_until(lambda: any("AwaitingConcurrencySlot" in list_states(run) for run in runs), "one waits for a slot")
    early, late = sorted(wait_for_end(*runs), key=lambda run: str(run.end_time))
    assert [early.state_name, late.state_name] == ["Completed", "Completed"]
    assert late.start_time is not None and early.end_time is not None
    assert late.start_time >= early.end_time


def test_a_recipe_of_many_that_fails_is_told_and_the_others_are_merged(bench: Bench, wanted):
    """The run fails and names the recipe; its page says what is wrong with it, and where; the rest is made."""
    recipes = bench.place / "recipes"
    recipes.mkdir()
    for name, text in {"bad": bench.recipe().replace("slerp", "slrp"), "good": bench.recipe()}.items():
        (recipes / f"{name}.yml").write_text(text, encoding="utf-8")
    many = find_deployment("merge_many/merge-many")
    (run,) = wait_for_end(start_run(many, recipes=[str(recipes)], out=str(bench.out), trial=False))
    assert (run.state_name, tell(run)) == ("Failed", "1 of 2 recipes are merged; failed: bad.yml")
    assert (bench.out / "good" / "provenance.json").is_file()
    (summary,) = read_artifacts(run.id, "xmerge-summary-out")
    assert "did you mean 'slerp'?" in str(summary.data)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"recipe": 5, "out": "out"}, "for field 'recipe'. Failure reason: 5 is not of type 'string'"),
        ({"recipe": "recipe.yml"}, "'out' is a required property"),
        ({"recipe": "recipe.yml", "out": "out", "workers": 0}, "for field 'workers'. Failure reason: 0 is less than"),
        (
            {"recipe": "recipe.yml", "out": "out", "fetch": "some"},
            "for field 'fetch'. Failure reason: 'some' is not one",
        ),
    ],
)
def test_bad_parameters_are_refused_by_name(server, parameters, told):
    """The API makes no run of what the form would not have sent, and says which field is wrong."""
    with pytest.raises(PrefectHTTPStatusError) as refused:
        start_run(find_deployment("merge_models/merge"), **parameters)
    assert refused.value.response.status_code == 409
    assert told in refused.value.response.text


def test_a_worker_without_the_storage_fails_its_run_with_the_path_and_what_to_do(bench: Bench):
    """The state's message is the library's error of exit code 6, whole."""
    merge = find_deployment("merge_models/merge")
    (run,) = wait_for_end(start_run(merge, recipe=bench.recipe(), out="/proc/shared/out", trial=False))
    assert run.state_name == "Failed"
    assert "StorageError: the work folder /proc/shared/.out.xmerge cannot be made" in tell(run)
    assert "make sure that this machine has the storage of that path mounted" in tell(run)

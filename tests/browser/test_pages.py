"""A merge from a browser: started by the form, looked at, cancelled, resumed, and run again after a kill."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import expect
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

from tests.browser.models import LAYERS, new_folder
from tests.browser.pages import MILLISECONDS, Pages
from tests.servers.holding import held
from tests.servers.processes import wait_until
from tests.servers.runs import read_run, start_run, wait_for_end
from tests.servers.worker import Worker

pytestmark = pytest.mark.slow

SECONDS_TO_STOP = 10.0
"""Fewer than the thirty after which Prefect kills a run that does not stop."""
SECONDS_TO_END = 60.0
"""Those thirty, and time for a worker on a busy machine to say so."""
HELD_AT = 7
"""Layers that are finished when a run is stopped."""
DELLA = {"weight": 0.5, "density": 0.5, "epsilon": 0.2}


@pytest.fixture(scope="module")
def finished(pages: Pages, deployment: UUID, place: Path) -> UUID:
    """A run that a person has started by filling in the form, when it has ended."""
    pages.open_form(deployment)
    pages.write("out", str(place / "llama-qwen3"))
    pages.write("base", str(place / "llama-3.2-1b"))
    pages.add("donors", str(place / "qwen3-0.6b"))
    pages.write_json("parameters", '{"t": [0, 0.3, 0.3, 0]}')
    pages.switch("trial")
    pages.shoot("form", height=1100)
    run = pages.submit()
    wait_for_end(run)
    return run


def test_the_form_starts_a_merge(finished: UUID, place: Path):
    """What is filled in is merged: the run completes, under a name that says what it is, and the output is there."""
    run = read_run(finished)
    assert run.state is not None
    assert run.state.type.value == "COMPLETED", run.state.message
    assert run.name.startswith("slerp llama-3.2-1b + qwen3-0.6b → llama-qwen3")
    assert (place / "llama-qwen3" / "config.json").is_file()


def test_the_page_of_a_run_shows_its_steps(pages: Pages, finished: UUID):
    """The graph has the six steps with every layer, and the list of task runs names them."""
    names = [str(node["label"]) for node in pages.open_run(finished)]
    steps = ("resolve_architecture", "map_slices", "download llama-3.2-1b", "validate_merge", "publish_merge")
    assert all(any(name.startswith(step) for name in names) for step in steps)
    assert {f"merge layer {layer}" for layer in range(LAYERS)} <= set(names)
    pages.sees("Completed")
    pages.shoot("flow-run", height=512)
    pages.open_tab("Task Runs")
    pages.sees("publish_merge")


def test_the_artifacts_of_a_run_are_shown(pages: Pages, finished: UUID):
    """The plan is a table, the distances are a picture that is drawn, and the validation says its verdict."""
    pages.open_run(finished)
    pages.open_artifact("xmerge-plan-llama-qwen3")
    pages.sees("attn_k_norm")
    expect(pages.page.get_by_role("table").first).to_be_visible(timeout=MILLISECONDS)
    pages.shoot("plan-artifact")
    pages.open_run(finished)
    pages.open_artifact("xmerge-distance-llama-qwen3")
    picture = pages.page.locator("img[src^='data:image']").first
    expect(picture).to_be_visible(timeout=MILLISECONDS)
    assert picture.evaluate("image => image.naturalWidth") > LAYERS
    pages.shoot("distance")
    pages.open_run(finished)
    pages.open_artifact("xmerge-validation-llama-qwen3")
    pages.sees("The output is valid")
    pages.shoot("validation", height=620)


def test_a_form_that_is_filled_in_wrongly_says_so(pages: Pages, deployment: UUID, place: Path):
    """What is missing is told in the form; what only the merge can know, on the page of the run, with what to do."""
    pages.open_form(deployment)
    pages.page.get_by_role("button", name="Submit").click()
    pages.sees("'out' is a required property")
    # Anew, because the form checks itself with a delay, and a person would send it twice.
    pages.open_form(deployment)
    pages.write("out", str(place / "never"))
    pages.write("base", str(place / "llama-3.2-1b"))
    pages.add("donors", str(place / "qwen3-0.6b"))
    pages.choose("method", "slerp", "nearswap")
    pages.write_json("parameters", '{"tt": 0.3}')
    run = pages.submit()
    wait_for_end(run)
    pages.open_run(run)
    pages.sees("Failed")
    pages.sees("ConfigError: nearswap has no parameter 'tt'; did you mean 't'?")
    pages.sees("at: the form: parameters.tt")
    assert "Traceback" not in pages.page.inner_text("body")
    pages.shoot("mistake", height=800)


def test_a_run_is_cancelled_and_resumed(pages: Pages, deployment: UUID, place: Path):
    """Cancelling stops within seconds and keeps what is finished; a retry takes that, and makes only the rest."""
    out = place / "llama-qwen3-della"
    with held(place, HELD_AT):
        run = start_merge(deployment, out)
        wait_until(lambda: count_layers(run)["Completed"] == HELD_AT, "the layers before the hold are merged")
        pages.open_run(run)
        pages.choose_in_menu("Cancel", "Cancel Flow Run")
        wait_for_end(run)
    stopped, cancelled = measure_stop(run)
    assert stopped < SECONDS_TO_STOP
    assert cancelled < SECONDS_TO_END
    pages.open_run(run)
    pages.sees("Cancelled")
    pages.shoot("cancelled", height=512)
    assert not out.exists()
    assert count_layers(run) == {"Completed": HELD_AT, "Interrupted": 1}

    pages.choose_in_menu("Retry", "Retry")
    wait_until(lambda: read_state(run) == "Completed", "the retry completes")
    wait_until(lambda: count_layers(run)["Cached"] == HELD_AT, "it is recorded which layers were finished")
    assert out.exists()
    pages.open_run(run)
    pages.sees("Completed")
    pages.shoot("resumed", height=512)


def test_a_crashed_run_is_run_again(pages: Pages, deployment: UUID, place: Path, worker: Worker):
    """A run whose process is killed is shown as crashed; a copy of it takes the finished layers and completes."""
    out = place / "llama-qwen3-again"
    with held(place, HELD_AT):
        run = start_merge(deployment, out)
        wait_until(lambda: count_layers(run)["Completed"] == HELD_AT, "the layers before the hold are merged")
        worker.kill_runs()
        wait_for_end(run)
    pages.open_run(run)
    pages.sees("Crashed")
    pages.choose_in_menu("Copy to new run")
    again = pages.submit()
    wait_for_end(again)
    assert read_state(again) == "Completed"
    wait_until(lambda: count_layers(again)["Cached"] == HELD_AT, "it is recorded which layers were finished")
    assert out.exists()


def test_a_folder_of_somebody_else_is_not_taken_for_pictures(tmp_path: Path):
    """Where the models of the pictures are to lie, nothing may be: what is there stays."""
    (tmp_path / "kept").touch()
    with pytest.raises(FileExistsError), new_folder(tmp_path):
        pytest.fail("it was taken")
    assert (tmp_path / "kept").exists()
    with new_folder(tmp_path / "models") as made:
        (made / "llama").mkdir()
    assert not made.exists()


def start_merge(deployment: UUID, out: Path) -> UUID:
    """A run that merges one layer at a time."""
    models = out.parent
    return start_run(
        deployment,
        base=str(models / "llama-3.2-1b"),
        donors=[str(models / "qwen3-0.6b")],
        method="della",
        parameters=DELLA,
        out=str(out),
        workers=1,
        trial=False,
    )


def count_layers(run: UUID) -> Counter[str]:
    """State -> how many layers of a run are in it, in all of its tries."""
    return Counter(str(task.state_name) for task in list_layers(run))


def list_layers(run: UUID) -> list[TaskRun]:
    """The task runs that merge a layer, of all tries of a run."""
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    return [task for task in tasks if task.name.startswith("merge layer ")]


def measure_stop(run: UUID) -> tuple[float, float]:
    """Seconds from the wish to cancel a run to the end of the last layer, and to the end of the run."""
    wait_until(lambda: all(task.end_time for task in list_layers(run)), "it is recorded that every layer has ended")
    with get_client(sync_client=True) as client:
        times = {state.name: state.timestamp.timestamp() for state in client.read_flow_run_states(run)}
    last = max(task.end_time.timestamp() for task in list_layers(run) if task.end_time)
    return last - times["Cancelling"], times["Cancelled"] - times["Cancelling"]


def read_state(run: UUID) -> str:
    """The name of the state that a run is in."""
    state = read_run(run).state
    return str(state.name) if state else ""

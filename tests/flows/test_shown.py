"""What a run leaves on a running server: pages that are versions of each other, tags, lineage, few requests."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.events import emit_event

from tasks.pages.progress import ProgressPage
from tests.flows.history import last_run
from tests.flows.test_flow import TASKS
from tests.flows.test_pages import Layer, Layers
from tests.flows.tiny import Bench
from xmerge.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("api_url")]

SECONDS_FOR_EVENTS = 30.0
PAGES = ("plan", "progress", "layers", "distance", "validation", "output")


def read_versions(key: str) -> list[Artifact]:
    """All artifacts of a key, the oldest first."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return sorted(found, key=lambda artifact: str(artifact.created))


def test_two_runs_of_one_series_are_versions_of_the_same_pages(bench: Bench):
    """A merge to another place of the same name has the same keys; a run keeps the tags that it came with."""
    with tags("nightly"):
        bench.merge(bench.place / "monday" / "our-merge")
        bench.merge(bench.place / "tuesday" / "our-merge", t=0.4)
    last = last_run(TASKS)
    assert {artifact.key for artifact in last.artifacts} == {f"xmerge-{page}-our-merge" for page in PAGES}
    assert set(last.run.tags) == {"nightly", "slerp", "llama", "cpu"}
    for page in PAGES:
        versions = read_versions(f"xmerge-{page}-our-merge")
        assert len(versions) == 2, page
        assert versions[0].flow_run_id != versions[1].flow_run_id == last.run.id
    monday, tuesday = (json.loads(str(plan.data)) for plan in read_versions("xmerge-plan-our-merge"))
    assert {row["what"] for row in monday} == {"slerp t=0.3"}
    assert {row["what"] for row in tuesday} == {"slerp t=0.4"}
    layers = json.loads(str(read_versions("xmerge-layers-our-merge")[0].data))
    assert [row["reused"] for row in layers] == ["no"] * len(layers)
    assert sum(float(row["MB"]) for row in layers) > 0


def test_the_models_of_a_merge_materialize_into_its_output(bench: Bench, api_url):
    """One event says what the output was made of; a run that finds it finished says nothing of the kind."""
    bench.merge(bench.place / "traced")
    bench.merge(bench.place / "traced")
    wait_for_events(api_url)
    events = read_events(api_url, "prefect.asset.materialization.succeeded", "xmerge://traced-")
    assert len(events) == 1
    assert events[0]["resource"]["prefect.resource.name"] == "traced"
    made_of = {each["prefect.resource.id"].rpartition("-")[0] for each in events[0]["related"]}
    assert {"xmerge://base", "xmerge://donor"} <= made_of
    assert str(bench.place) not in json.dumps(events)


def wait_for_events(api_url: str) -> None:
    """Return when the server has kept all events of this process, which it takes in their order."""
    mark = f"xmerge.test.{uuid4()}"
    emit_event("xmerge.test.mark", resource={"prefect.resource.id": mark})
    deadline = time.monotonic() + SECONDS_FOR_EVENTS
    while not read_events(api_url, "xmerge.test.mark", mark):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def read_events(api_url: str, name: str, resource: str) -> list[dict[str, Any]]:
    """The events of a name about resources whose id begins so."""
    asked = {"filter": {"event": {"name": [name]}, "resource": {"id_prefix": [resource]}}}
    found = httpx.post(f"{api_url}/events/filter", json=asked, trust_env=False).json()
    return list(found["events"])


def test_a_failed_run_has_a_page_with_the_reason_and_the_way_on(bench: Bench):
    """The page has what, where, why and the remedy of the error, and the command that goes on."""
    from flows.merge import merge_models

    recipe = bench.recipe_file(architecture="other")
    with pytest.raises(Exception, match="architecture"):
        merge_models(str(recipe), out=str(bench.place / "never"), trial=False, workers=3)
    last = last_run(1)
    assert last.run.name == "merge → never"
    assert {artifact.key for artifact in last.artifacts} >= {"xmerge-failure-never"}
    shown = str(read_versions("xmerge-failure-never")[0].data).replace("\\", "")
    assert "PlanError" in shown
    assert "What to do: " in shown
    assert f"xmerge merge {recipe} {bench.place / 'never'} --workers 3 --skip-trial-load" in shown


def test_a_page_that_cannot_be_drawn_does_not_fail_the_merge(bench: Bench, monkeypatch):
    """A bug in a page costs that page alone, and the log says so."""

    def fail(*_: Any) -> str:
        raise ValueError("a bug in a page")

    monkeypatch.setattr("tasks.pages.distance.draw_distance", fail)
    assert bench.merge(bench.place / "undrawn")["layers"]
    last = last_run(TASKS)
    shown = {f"xmerge-{page}-undrawn" for page in PAGES if page != "distance"}
    assert {artifact.key for artifact in last.artifacts} == shown


def test_progress_costs_a_bounded_number_of_requests(monkeypatch):
    """However many layers there are and however fast they come, the API is told as often as is allowed."""
    monkeypatch.setattr("tasks.pages.progress.MOST_UPDATES", 12)
    asked: list[str] = []
    real = httpx.Client.send

    def counted(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        asked.append(request.url.path)
        return real(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", counted)
    plan: Any = Layers([Layer() for _ in range(600)])

    @flow
    def merge_many_layers() -> None:
        page, results = ProgressPage(plan, "many layers", pause=0.0), dict[int, Any]()
        for index, layer in enumerate(plan.layers):
            results[index] = layer
            page.show(results)

    merge_many_layers()
    told = [path for path in asked if "/artifacts" in path]
    assert 6 < len(told) <= 13
    newest = read_versions("xmerge-progress-many-layers")
    assert len(newest) == 1
    assert str(newest[0].description).startswith("600 of 600 layers")


def test_each_stage_has_pages_of_its_own(bench: Bench):
    """The pages of a stage are kept under the names of output and stage, apart from those of the output."""
    from flows.merge import merge_models

    first = json.loads(bench.recipe()) | {"name": "first"}
    second = json.loads(bench.recipe())
    second["models"][1]["model"] = "first"
    merge_models(f"{json.dumps(first)}\n---\n{json.dumps(second)}\n", out=str(bench.place / "two"), trial=False)
    keys = {artifact.key for artifact in last_run(2 * TASKS).artifacts}
    assert keys == {f"xmerge-{page}-two{stage}" for page in PAGES for stage in ("", "-first")}


def test_the_pages_of_a_watched_recipe_are_one_series(bench: Bench):
    """A watched recipe's outputs, each in a folder of its own name, are versions of one series."""
    from flows.watch import watch_sources

    watch_sources(str(bench.recipe_file()), str(bench.place / "watched"), trial=False)
    assert len(read_versions("xmerge-plan-watched")) == 1


def test_a_mistake_in_a_recipe_has_a_page_before_anything_is_planned(bench: Bench):
    """An error of the configuration stands on a page as well."""
    from flows.merge import merge_models

    with pytest.raises(ConfigError):
        merge_models(bench.recipe().replace("slerp", "slrp"), out=str(bench.place / "unread"), trial=False)
    assert "slrp" in str(read_versions("xmerge-failure-unread")[0].data)

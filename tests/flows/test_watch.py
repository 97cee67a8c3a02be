"""The flow for a schedule: merges when a source has moved, and else does nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows.history import last_run
from tests.flows.tiny import Bench, digest, write_llama
from tests.hub.samples import read_files
from tests.hub.server import connected, running
from xmerge import engine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("api_url")]


@pytest.fixture
def own(tmp_path: Path, models: Path) -> Bench:
    """A bench whose models are its own, so that they can move."""
    shutil.copytree(models, tmp_path / "models")
    return Bench(tmp_path / "models", tmp_path)


def watch(bench: Bench, recipe: dict[str, Any] | None = None) -> str:
    """Call the flow; how it says that it ended."""
    from flows.watch import watch_sources

    text = json.dumps(recipe) if recipe else bench.recipe()
    state = watch_sources(text, str(bench.out), trial=False, return_state=True)
    assert state.type.value == "COMPLETED"
    return str(state.message)


def test_the_first_time_merges_and_the_second_does_nothing(own: Bench, monkeypatch):
    """What was merged last is read from the output; where nothing has moved, no layer and no file is touched."""
    assert watch(own).endswith("it has not been merged before")
    (made,) = [path for path in own.out.iterdir() if not path.is_symlink()]
    assert (own.out / "latest").resolve() == made.resolve()
    before = {path: path.stat().st_mtime_ns for path in own.out.rglob("*")}
    monkeypatch.setattr(engine, "merge_layer", None)
    assert watch(own).startswith(f"nothing new: latest is {made.name}")
    assert last_run(1).names == ["look_at_sources"]
    assert {path: path.stat().st_mtime_ns for path in own.out.rglob("*")} == before


def test_a_source_that_moved_is_merged_beside_the_last_output(own: Bench):
    """The new output appears beside the old one, which stays as it is, and `latest` leads to the new one."""
    watch(own)
    first = (own.out / "latest").resolve()
    kept = digest(first)
    shutil.rmtree(own.models / "donor")
    write_llama(own.models / "donor", seed=9)
    told = watch(own)
    second = (own.out / "latest").resolve()
    assert told.startswith(f"merged to {second.name}: donor: ")
    assert second != first
    assert digest(first) == kept
    assert digest(second) != kept


def test_a_merge_that_was_done_and_not_linked_is_linked(own: Bench, monkeypatch):
    """After a kill between the merge and the link, the next run makes nothing twice and sets the link."""
    watch(own)
    (own.out / "latest").unlink()
    monkeypatch.setattr(engine, "merge_layer", None)
    watch(own)
    assert (own.out / "latest" / "provenance.json").is_file()


def test_a_changed_recipe_is_merged_too(own: Bench):
    """A recipe that says something else since the last time is no no-op, and is told as what it is."""
    from flows.watch import watch_sources

    watch(own)
    state = watch_sources(own.recipe(0.7), str(own.out), trial=False, return_state=True)
    assert str(state.message).endswith(": the recipe or xmerge has changed")


def test_a_branch_that_moved_on_the_hub_is_merged_again(own: Bench):
    """The commits are compared: at the same ones no weight is fetched, and a new one is merged and told."""
    recipe = json.loads(own.recipe())
    recipe["models"][1]["model"] = "org/donor@main"
    with running() as server, connected(server, own.place / "hub"):
        first = server.add("org/donor", read_files(own.models / "donor"))
        watch(own, recipe)
        server.served.clear()
        assert watch(own, recipe).startswith("nothing new")
        assert server.bytes_of("model.safetensors") == 0
        second = server.repositories["org/donor"].commit({**read_files(write_llama(own.models / "newer", seed=9))})
        assert watch(own, recipe).endswith(f": org/donor: {first[:12]} -> {second[:12]}")

"""The flow against a running Prefect server."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import CancelledRun

from flows.reporting import RunWatch, watch_run
from tests.flows.history import LastRun, last_run
from tests.flows.tiny import LAYERS, Bench, digest
from xmerge import engine
from xmerge.config import parse_config
from xmerge.errors import CheckpointError, HubUnavailableError, InUseError, PlanError, StorageError
from xmerge.interrupt import check_stop, request_stop
from xmerge.run import merge

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("api_url")]

UNITS = LAYERS + 2
"""Layers, and what stands before and after them; at this size one task each."""
TASKS_BEFORE_LAYERS = 4
TASKS = UNITS + 6


@pytest.fixture
def merged_layers(monkeypatch) -> list[str]:
    """The labels of the layers that were really merged, in the order in which they were begun."""
    begun: list[str] = []
    real = engine.merge_layer

    def watched(plan, index, folders, store, device):
        result = real(plan, index, folders, store, device)
        if not result.reused:
            begun.append(result.label)
        return result

    monkeypatch.setattr(engine, "merge_layer", watched)
    return begun


def test_the_flow_makes_the_bytes_of_the_plain_loop(bench: Bench):
    """With one worker, with four, and without Prefect, a merge makes one and the same folder."""
    outs = [bench.place / name for name in ("one", "four", "direct")]
    bench.merge(outs[0], workers=1)
    bench.merge(outs[1], workers=4)
    merge(parse_config(bench.recipe(), "the recipe"), outs[2], trial=False)
    assert len({digest(out) for out in outs}) == 1


def test_the_pages_of_a_run_show_its_steps(bench: Bench):
    """The six kinds of task by their names, edges between them, a telling name, and six artifacts."""
    bench.merge()
    last = last_run(TASKS)
    assert re.fullmatch("slerp base \\+ donor → out · [0-9a-f]{8}", str(last.run.name))
    layers = [f"merge layer {layer}" for layer in range(LAYERS)]
    ends = ["merge before the layers", "merge after the layers"]
    steps = ["resolve_architecture", "map_slices", "download base", "download donor", "validate_merge", "publish_merge"]
    assert sorted(last.names) == sorted(steps + layers + ends)
    assert [name for name, task in zip(last.names, last.tasks, strict=True) if not any(task.task_inputs.values())] == [
        "resolve_architecture"
    ]
    keys = {artifact.key for artifact in last.artifacts}
    pages = ("plan", "progress", "layers", "distance", "validation", "output")
    assert keys == {f"xmerge-{page}-out" for page in pages}


def test_a_second_run_takes_every_layer_from_its_record(bench: Bench, merged_layers):
    """With a store that is kept, the same merge to another place computes nothing, and says so."""
    first = bench.merge(store=str(bench.store))
    again = bench.merge(bench.place / "again", store=str(bench.store))
    assert (first["reused"], again["reused"]) == (0, UNITS)
    assert len(merged_layers) == UNITS
    assert last_run(TASKS).layer_states == {"Cached": UNITS}
    assert digest(bench.out) == digest(bench.place / "again")


@pytest.mark.parametrize("harm", ["deleted", "flipped"])
def test_only_a_lost_layer_is_made_again(bench: Bench, merged_layers, harm):
    """A record whose entry in the store is gone or damaged does not count, for that one layer."""
    bench.merge(store=str(bench.store))
    merged_layers.clear()
    damage(sorted(bench.store.glob("*/*.safetensors"))[3], harm)
    again = bench.merge(bench.place / "again", store=str(bench.store))
    assert len(merged_layers) == 1
    assert again["reused"] == UNITS - 1
    assert last_run(TASKS).layer_states == {"Cached": UNITS - 1, "Completed": 1}
    assert digest(bench.out) == digest(bench.place / "again")


def test_a_torn_record_is_no_record(bench: Bench, merged_layers):
    """A record that a crash has cut off is ignored; the entry it spoke of is still used."""
    bench.merge(store=str(bench.store))
    merged_layers.clear()
    record = min(path for path in (bench.store / "records").rglob("*") if path.is_file())
    record.write_text(record.read_text()[:40])
    assert bench.merge(bench.place / "again", store=str(bench.store))["reused"] == UNITS
    assert merged_layers == []


def test_a_changed_parameter_repeats_only_what_it_changes(bench: Bench, merged_layers):
    """Layers whose parameters are the same in two recipes are merged once."""
    bench.merge(store=str(bench.store), t=[0.0, 0.5, 0.5, 0.5, 0.5, 0.0])
    merged_layers.clear()
    bench.merge(bench.place / "again", store=str(bench.store), t=[0.0, 0.5, 0.5, 0.5, 0.5, 1.0])
    assert 0 < len(merged_layers) < UNITS


def test_a_finished_output_is_left_alone(bench: Bench, merged_layers):
    """Merging into an output that is this merge already reads no weight and changes nothing."""
    bench.merge()
    before = {path: path.stat().st_mtime_ns for path in bench.out.iterdir()}
    merged_layers.clear()
    assert bench.merge()["report"] is None
    assert merged_layers == []
    assert {path: path.stat().st_mtime_ns for path in bench.out.iterdir()} == before


def test_nothing_is_left_beside_the_output(bench: Bench):
    """After success the work folder is gone, and with it the records."""
    bench.merge()
    assert [path.name for path in bench.place.iterdir()] == ["out"]


def test_records_are_small_plain_and_name_no_place(bench: Bench):
    """What is stored of a task is readable JSON of some kilobytes: no tensor, no pickle, no path of this machine."""
    bench.merge(store=str(bench.store))
    records = [path for path in (bench.store / "records").rglob("*") if path.is_file()]
    assert len(records) == UNITS
    for record in records:
        text = record.read_text(encoding="utf-8")
        said = json.loads(text)
        assert said["metadata"]["serializer"]["type"] == "json"
        assert str(bench.place) not in said["result"]
        assert str(bench.models) not in said["result"]
        assert str(Path.home()) not in said["result"]
        assert "pickle" not in text
        assert len(text) < 20_000


def test_two_runs_on_one_output_exclude_each_other(bench: Bench, monkeypatch):
    """The second run is refused while the first one works, with the name of the process that holds the output."""
    caught: list[BaseException] = []
    real = engine.merge_layer

    def also_try(plan, index, folders, store, device):
        if not caught:
            try:
                merge(parse_config(bench.recipe(), "the recipe"), bench.out)
            except InUseError as error:
                caught.append(error)
        return real(plan, index, folders, store, device)

    monkeypatch.setattr(engine, "merge_layer", also_try)
    bench.merge(workers=1)
    assert "is being merged by process" in str(caught[0])


def test_the_holder_of_an_output_stops_a_flow(bench: Bench):
    """A flow meets the lock of another process as the library's own error."""
    from xmerge.architecture import resolve
    from xmerge.planning import map_slices
    from xmerge.work import open_work_folder

    config = parse_config(bench.recipe(), "the recipe")
    with open_work_folder(bench.out, map_slices(config, resolve(config))), pytest.raises(InUseError, match="process"):
        bench.merge()


def test_no_more_layers_are_in_work_than_workers(bench: Bench, monkeypatch):
    """`workers` bounds what runs at a time, and is made use of."""
    lock, now, most = threading.Lock(), [0], [0]
    real = engine.merge_layer

    def counted(plan, index, folders, store, device):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.05)
        try:
            return real(plan, index, folders, store, device)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(engine, "merge_layer", counted)
    bench.merge(workers=3)
    assert most[0] == 3


def test_a_passing_fault_of_a_layer_is_tried_again(bench: Bench, monkeypatch):
    """A layer that fails for an I/O error is merged at the second try, within the same run."""
    calls = fail_first(monkeypatch, engine, "merge_layer", passing_storage_error())
    assert bench.merge(workers=1)["layers"] == UNITS
    assert len(calls) == UNITS + 1


def test_a_mistake_is_not_tried_again(bench: Bench, monkeypatch):
    """An error that a person must mend ends the run at once, unchanged, and nothing appears."""
    calls = fail_first(monkeypatch, engine, "merge_layer", CheckpointError("a shard is damaged.", where="layer 3"))
    with pytest.raises(CheckpointError, match=r"a shard is damaged.\n  at: layer 3"):
        bench.merge(workers=1)
    assert len(calls) == len({index for _, index, *_ in calls})
    assert not bench.out.exists()


def test_what_an_error_or_a_stop_has_ended_is_cancelled(bench: Bench, monkeypatch):
    """On the pages only the layer with the error has failed; what a stop ends has not failed at all."""

    def merge_two_and(act: Callable[[], None]) -> LastRun:
        numbers, both_begun = itertools.count(), threading.Event()

        def stuck(*args: Any) -> None:
            if next(numbers):
                both_begun.set()
            else:
                both_begun.wait(60)
                act()
            for _ in range(1000):
                check_stop()
                time.sleep(0.01)

        monkeypatch.setattr(engine, "merge_layer", stuck)
        with pytest.raises((CheckpointError, CancelledRun)):
            bench.merge(workers=2)
        # A third may have been begun before anybody looked at what has come of the first.
        return last_run(TASKS_BEFORE_LAYERS + 2)

    def fail() -> None:
        raise CheckpointError("a shard is damaged.")

    failed, stopped = merge_two_and(fail), merge_two_and(request_stop)
    assert (failed.run.state_name, failed.layer_states["Failed"]) == ("Failed", 1)
    assert failed.layer_states["Interrupted"] >= 1
    assert (stopped.run.state_name, stopped.layer_states["Failed"]) == ("Interrupted", 0)
    assert stopped.layer_states["Interrupted"] >= 2


def test_an_error_is_told_before_the_other_layers_have_ended(bench: Bench, monkeypatch):
    """Nobody waits for a layer, or a download, that does not hear that it is to end; but the folders stay for it."""
    watch, numbers, both_begun = RunWatch(), itertools.count(), threading.Event()
    told, kept = list[BaseException | None](), list[bool]()

    def fail_or_be_deaf(plan: Any, index: int, folders: Any, store: Any, device: str) -> None:
        if next(numbers):
            both_begun.set()
            deadline = time.monotonic() + 20
            while watch.failure is None and time.monotonic() < deadline:
                time.sleep(0.01)
            told.append(watch.failure)
            time.sleep(1)
            kept.append(store.path.is_dir())
            check_stop()
        both_begun.wait(60)
        raise CheckpointError("a shard is damaged.")

    monkeypatch.setattr(engine, "merge_layer", fail_or_be_deaf)
    watch_run(watch)
    try:
        with pytest.raises(CheckpointError) as raised:
            bench.merge(workers=2)
    finally:
        watch_run(RunWatch())
    assert told[0] is raised.value
    assert kept and all(kept)


def test_a_stop_leaves_no_record(bench: Bench, monkeypatch):
    """A layer that was stopped here and made elsewhere is taken from the store, not from a record of the stop."""

    def stop(*_: object) -> None:
        request_stop()
        check_stop()

    with monkeypatch.context() as patched:
        patched.setattr(engine, "merge_layer", stop)
        with pytest.raises(CancelledRun):
            bench.merge(store=str(bench.store))
    merge(parse_config(bench.recipe(), "the recipe"), bench.place / "direct", store=bench.store, trial=False)
    assert bench.merge(store=str(bench.store))["reused"] == UNITS
    assert digest(bench.out) == digest(bench.place / "direct")


def test_a_download_is_tried_again_while_the_hub_is_away(bench: Bench, monkeypatch):
    """A Hub that does not answer costs a wait, not the run."""
    from tasks import download

    monkeypatch.setattr(download.download_model, "retry_delay_seconds", [0, 0, 0, 0])
    calls = fail_first(monkeypatch, download, "fetch_model", HubUnavailableError("the Hub does not answer."))
    bench.merge()
    assert len(calls) == 3


def test_an_impossible_plan_fails_before_any_download(bench: Bench):
    """What the library refuses, the flow refuses in the same words."""
    from flows.merge import merge_models

    with pytest.raises(PlanError, match="'architecture' names other"):
        merge_models(bench.recipe(architecture="other"), out=str(bench.out))
    assert last_run(1).names == ["resolve_architecture"]


def test_names_from_outside_cannot_act_on_the_pages(bench: Bench, models):
    """A model's name reaches Prefect's pages as text: no markup, no table cell, no line of its own."""
    from flows.merge import merge_models

    hostile = bench.place / "a|b`<img src=x onerror=alert(1)>"
    shutil.copytree(models / "donor", hostile)
    recipe = json.loads(bench.recipe())
    recipe["models"][1]["model"] = str(hostile)
    merge_models(json.dumps(recipe), out=str(bench.out), trial=False)
    markdown = last_run(TASKS).markdown
    assert "onerror" in markdown
    assert "<img" not in markdown
    assert not any(re.match(r"\| a ?\|", line) for line in markdown.splitlines())


def damage(path: Path, harm: str) -> None:
    """Delete a file, or flip a bit of it."""
    content = bytearray(path.read_bytes())
    path.unlink()  # The output may be another name of the same file.
    if harm == "flipped":
        content[-5] ^= 1
        path.write_bytes(content)


def passing_storage_error() -> StorageError:
    """An I/O error as the library tells of it."""
    error = StorageError("the shard cannot be written: Input/output error.")
    error.__cause__ = OSError(5, "Input/output error")
    return error


def fail_first(monkeypatch, module: Any, name: str, error: Exception) -> list[tuple[Any, ...]]:
    """Make the first call of a function fail; the arguments of every call."""
    real, calls = getattr(module, name), list[tuple[Any, ...]]()

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise error
        return real(*args)

    monkeypatch.setattr(module, name, failing)
    return calls

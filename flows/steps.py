"""The steps after the plan, in order: what is submitted, what it waits for, and who is told about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.tasks import Task
from prefect.utilities.annotations import quote

from flows.reporting import RunWatch
from flows.runners.pacing import count_slots, keep_busy, wait_for_all
from flows.runners.runner import Runner
from tasks.caching import name_unit, record_key
from tasks.download import download_model
from tasks.lineage import list_outputs, list_sources
from tasks.markdown import show_plain
from tasks.merge import merge_layer
from tasks.pages.progress import ProgressPage
from tasks.publish import publish_merge
from tasks.recipes import Recipe, parse_recipe
from tasks.storage import check_storage
from tasks.validate import validate_merge
from tasks.workers import Cluster, work_on
from xmerge.interrupt import open_pool, stoppable
from xmerge.planning import MergePlan, pack_layers
from xmerge.planning.downloads import FetchMode
from xmerge.runners import RunnerName
from xmerge.units import UnitOfWork
from xmerge.work import WorkFolder, write_plan

if TYPE_CHECKING:
    from xmerge.engine import LayerResult

Futures = list[PrefectFuture[Any]]
THREADS = RunnerName(kind="thread")


@dataclass(frozen=True)
class Unit:
    """The layers that one task run merges."""

    layers: tuple[int, ...]
    fingerprint: str
    label: str
    refresh: bool
    """Whether its record speaks of an entry of the store that is gone or damaged."""


@dataclass(frozen=True)
class RunOptions:
    """How a merge is carried out; no byte of the output depends on it."""

    device: str = "auto"
    workers: int = 2
    trial: bool = True
    fetch: FetchMode = "auto"
    runner: Runner = field(default_factory=lambda: Runner(THREADS))


@dataclass
class MergeSteps:
    """One stage of a merge, from its plan to a folder in its place."""

    recipe: Recipe
    plan: MergePlan
    work: WorkFolder
    watch: RunWatch
    series: str
    """What its pages are versions of."""
    stage: str = ""
    """What its layers are listed under, where there are several stages."""
    results: dict[int, LayerResult] = field(default_factory=dict)
    submitted: Futures = field(default_factory=list)
    """Its task runs so far."""

    def carry_out(self, after: Futures, options: RunOptions) -> dict[str, Any]:
        """Do what is to be done; what there is to say about it, in a few plain values."""
        if self.work.finished:
            self.watch.reporter.note(f"{self.work.out} is this merge already: nothing is to be merged.")
            return self.describe(None, self.publish(after))
        try:
            with stoppable():
                return self.make(after, options)
        except BaseException as error:
            # Told at once; a download that cannot be stopped may go on for long.
            self.watch.tell_failure(error)
            # The folders are let go of when nobody writes to them any more.
            wait_for_all(self.submitted)
            raise

    def make(self, after: Futures, options: RunOptions) -> dict[str, Any]:
        """All that there is to do where no output is."""
        count = self.count_workers(options)
        downloads = self.download_models(after, options.fetch)
        cluster = options.runner.start(count)
        folders = self.take_folders(downloads)
        self.check_sources(folders)
        ready = [*downloads, *self.check_storage(downloads, folders, cluster, options.device)]

        def slots() -> int:
            if cluster is None:
                return count
            there = cluster.count_slots(options.device)
            # One on this machine may have been started for an earlier recipe, whose layers took less memory.
            return there if options.runner.name.address else min(count, there)

        with work_on(cluster):
            merged = self.merge_layers(ready, folders, options.device, slots)
        checked = self.validate(merged, options.trial)
        return self.describe(checked.result(), self.publish([checked]))

    def describe(self, report: dict[str, Any] | None, publication: dict[str, Any]) -> dict[str, Any]:
        """What the flow returns: the fields of `xmerge.run.MergeOutcome`."""
        return {
            "plan_fingerprint": self.plan.fingerprint,
            "publication": publication,
            "report": report,
            "layers": len(self.plan.layers),
            "reused": self.count_reused() if report else len(self.plan.layers),
        }

    def download_models(self, after: Futures, fetch: FetchMode) -> Futures:
        """Bring every model's shards to this machine, all models at once."""
        self.watch.reporter.stage("download_model")
        write_plan(self.work, self.plan)
        return [
            self.submit(
                download_model,
                plan_file=str(self.work.plan_file),
                fingerprint=self.plan.fingerprint,
                index=index,
                model=show_plain(model.label),
                parts_folder=str(self.work.fetched),
                fetch=fetch,
                wait_for=after,
            )
            for index, model in enumerate(self.plan.models)
        ]

    def take_folders(self, downloads: Futures) -> list[str]:
        """Where each model is, and what there is to say of how it came."""
        fetched = [download.result() for download in downloads]
        for note in (note for each in fetched for note in each["notes"]):
            self.watch.reporter.note(note)
        return [each["folder"] for each in fetched]

    def check_sources(self, folders: list[str]) -> None:
        """Refuse now what would be refused half-way."""
        from xmerge.engine import check_gains

        check_gains(self.plan, [Path(folder) for folder in folders])

    def count_workers(self, options: RunOptions) -> int:
        """How many units this machine can have under way at once; on a cluster that is elsewhere, that one knows."""
        if options.runner.name.address:
            return options.workers
        return count_slots(self.plan, options.device, options.workers)

    def check_storage(self, after: Futures, folders: list[str], cluster: Cluster | None, device: str) -> Futures:
        """See that every worker of a cluster sees the storage."""
        if cluster is None:
            return []
        places = list(dict.fromkeys([self.work.path, self.work.store.path]))
        where = UnitOfWork(**self.describe_places(folders, device), layers=())
        checked = self.submit(
            check_storage, quote(self.plan), quote(where), quote(places), quote(cluster), wait_for=after
        )
        checked.result()
        return [checked]

    def describe_places(self, folders: list[str], device: str) -> dict[str, Any]:
        """What a unit of work has in common with every other."""
        return {
            "plan_file": str(self.work.plan_file),
            "fingerprint": self.plan.fingerprint,
            "folders": folders,
            "store": str(self.work.store.path),
            "device": device,
        }

    def merge_layers(self, after: Futures, folders: list[str], device: str, slots: Callable[[], int]) -> Futures:
        """Merge every layer, `slots()` units at a time; a unit that is done and intact is not repeated."""
        self.watch.reporter.stage("merge_layer")
        progress, futures = ProgressPage(self.plan, self.series), list[PrefectFuture[Any]]()

        def submit(unit: Unit) -> PrefectFuture[Any]:
            return self.submit_unit(unit, after, folders, device)

        for unit, future in keep_busy(self.list_units(folders, slots()), submit, slots):
            self.take_results(unit, future)
            futures.append(future)
            progress.show(self.results)
        get_run_logger().info("%d of %d layers reused", self.count_reused(), len(self.plan.layers))
        return futures

    def list_units(self, folders: list[str], slots: int) -> list[Unit]:
        """The units of work, largest first, so that no large one is left to a single worker at the end."""
        packs = sorted(pack_layers(self.plan), key=lambda pack: -sum(self.plan.layers[i].bytes_written for i in pack))
        with open_pool(max(1, slots), "look") as pool:
            return list(pool.map(lambda pack: self.describe_unit(pack, folders), packs))

    def describe_unit(self, pack: tuple[int, ...], folders: list[str]) -> Unit:
        """A unit, and whether an earlier run's record of it is to be believed."""
        name, places = name_unit(self.plan, pack), [Path(folder) for folder in folders]
        recorded = (self.work.records / record_key(name)).exists()
        refresh = recorded and any(self.work.store.find(self.plan, index, places) is None for index in pack)
        first, last = self.plan.layers[pack[0]].label, self.plan.layers[pack[-1]].label
        label = first if first == last else f"{first} to {last}"
        return Unit(pack, name, f"{self.stage}: {label}" if self.stage else label, refresh)

    def submit_unit(self, unit: Unit, after: Futures, folders: list[str], device: str) -> PrefectFuture[Any]:
        """Submit one unit. Its record goes where the units are, so that both are moved or forgotten together."""
        return self.submit(
            merge_layer.with_options(result_storage=self.work.records, refresh_cache=unit.refresh),
            **self.describe_places(folders, device),
            layers=list(unit.layers),
            unit=unit.fingerprint,
            label=unit.label,
            wait_for=after,
        )

    def take_results(self, unit: Unit, future: PrefectFuture[Any]) -> None:
        """Keep what a unit has made, and report it."""
        from xmerge.engine import LayerResult

        made = future.result()
        # Only after result(): before it, `state` is a question to the server. A record does not know that it is one.
        update = {"reused": True} if future.state.name == "Cached" else {}
        for index, result in zip(unit.layers, made, strict=True):
            self.results[index] = LayerResult.model_validate(result | update)
            self.watch.reporter.layer_done(self.results[index], len(self.results), len(self.plan.layers))

    def count_reused(self) -> int:
        """How many layers an earlier run had made."""
        return sum(result.reused for result in self.results.values())

    def validate(self, merged: Futures, trial: bool) -> PrefectFuture[Any]:
        """Put the output together and look at it."""
        self.watch.reporter.stage("validate_merge")
        results = [self.results[index] for index in range(len(self.plan.layers))]
        # quote: Prefect would look for futures in every field of these.
        checked = self.submit(
            validate_merge,
            self.recipe,
            quote(self.plan),
            quote(results),
            quote(self.work),
            self.series,
            trial,
            wait_for=merged,
        )
        checked.result()
        return checked

    def publish(self, after: Futures) -> dict[str, Any]:
        """Give the output its name, and upload it if the recipe says so."""
        self.watch.reporter.stage("publish_merge")
        published = self.submit(
            self.trace_lineage(), self.recipe, quote(self.plan), quote(self.work), self.series, wait_for=after
        )
        return dict(published.result())

    def trace_lineage(self) -> Task[..., Any]:
        """The task `publish_merge` with what the output is made of; one that was there already is not made again."""
        target = parse_recipe(self.recipe).publish
        made = list_outputs(self.plan, self.work.out, target.repo if target else None)
        return publish_merge.with_options(
            assets=() if self.work.finished else made, asset_deps=[*list_sources(self.plan)]
        )

    def submit(self, task: Task[..., Any], *args: Any, **kwargs: Any) -> PrefectFuture[Any]:
        """Submit a task, and count it: the history is complete when the API knows as many."""
        self.watch.task_runs += 1
        future: PrefectFuture[Any] = task.submit(*args, **kwargs)
        self.submitted.append(future)
        return future

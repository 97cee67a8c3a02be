"""A whole merge as a plain loop: what the Prefect flow does, without Prefect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from xmerge.config import MergeConfig
from xmerge.engine import LayerResult, check_gains, merge_layer
from xmerge.engine.devices import choose_device
from xmerge.fetching import fetch_model
from xmerge.interrupt import open_pool, stoppable
from xmerge.output import Publication, assemble, publish, upload
from xmerge.planning import MergePlan
from xmerge.planning.downloads import FetchMode
from xmerge.planning.memory import fit_workers
from xmerge.progress import Reporter, Silence
from xmerge.stages import Stage, open_stage, plan_stages, sweep_stages
from xmerge.store import Store
from xmerge.validation import ValidationReport, validate
from xmerge.values import Value
from xmerge.work import WorkFolder, open_work_folder


class MergeOutcome(Value):
    """What a merge has come to."""

    plan_fingerprint: str
    publication: Publication
    report: ValidationReport | None
    """None: the output was there already, and nothing was done."""
    layers: int
    reused: int
    """Layers that an earlier run had made."""


def merge(
    config: MergeConfig | Sequence[MergeConfig],
    out: Path,
    *,
    device: str = "auto",
    workers: int = 2,
    store: Path | None = None,
    trial: bool = True,
    fetch: FetchMode = "auto",
    reporter: Reporter | None = None,
) -> MergeOutcome:
    """Merge models into a checkpoint that appears at `out`, whole or not at all.

    Args:
        config: What to merge; or stages, in an order in which each can be carried out, the output's last.
        out: A folder that does not exist, is empty, or is an earlier output of the same configuration.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: Layers under way at once; the bytes do not depend on it.
        store: A store of finished layers to keep and share.
        trial: Load the output with transformers before it appears.
        fetch: What comes of a shard on the Hub: the whole, or the parts that are read.
        reporter: Told how far the merge has come.

    Raises:
        XmergeError: One of its kinds; nothing has appeared at `out`.
    """
    tell = reporter or Silence()
    stages = plan_stages([config] if isinstance(config, MergeConfig) else config, out, tell)
    last, run = stages[-1], _Run(device, workers, fetch, tell)
    for stage in stages:
        fit_workers(stage.plan, choose_device(device).type, workers)
    with stoppable(), open_work_folder(out, last.plan, store) as work:
        before, earlier = list[MergeOutcome](), () if work.finished else stages[:-1]
        sweep_stages(earlier, work)
        for stage in earlier:
            tell.stage(f"stage {stage.name}")
            with open_stage(stage, work) as inner:
                before.append(run.carry_out(stage, inner, trial=False))
        outcome = run.carry_out(last, work, trial=trial)
    return add_stages(outcome, before)


def add_stages(outcome: MergeOutcome, before: Sequence[MergeOutcome]) -> MergeOutcome:
    """What a merge has come to, the layers of its earlier stages counted too."""
    every = (*before, outcome)
    sums = {"layers": sum(each.layers for each in every), "reused": sum(each.reused for each in every)}
    return outcome.model_copy(update=sums)


@dataclass(frozen=True)
class _Run:
    """How stages are carried out."""

    device: str
    workers: int
    fetch: FetchMode
    tell: Reporter

    def carry_out(self, stage: Stage, work: WorkFolder, *, trial: bool) -> MergeOutcome:
        """Make one stage's output, if it is not there."""
        plan, config, tell = stage.plan, stage.config, self.tell
        tell.plan_ready(plan)
        if work.finished:
            return MergeOutcome(
                plan_fingerprint=plan.fingerprint,
                publication=upload(work.out, config, plan),
                report=None,
                layers=len(plan.layers),
                reused=len(plan.layers),
            )
        tell.stage("download_model")
        fetched = [fetch_model(plan, index, work.fetched, self.fetch) for index in range(len(plan.models))]
        for note in (note for each in fetched for note in each.notes):
            tell.note(note)
        folders = [each.folder for each in fetched]
        check_gains(plan, folders)
        tell.stage("merge_layer")
        workers = fit_workers(plan, choose_device(self.device).type, self.workers)
        results = merge_layers(plan, folders, work.store, self.device, workers, tell)
        tell.stage("validate_merge")
        staged = assemble(plan, config, results, work)
        report = validate(staged, plan, results, trial=trial)
        report.raise_if_invalid()
        tell.stage("publish_merge")
        return MergeOutcome(
            plan_fingerprint=plan.fingerprint,
            publication=publish(staged, config, plan, work),
            report=report,
            layers=len(results),
            reused=sum(result.reused for result in results),
        )


def merge_layers(
    plan: MergePlan, folders: Sequence[Path], store: Store, device: str, workers: int, tell: Reporter
) -> list[LayerResult]:
    """Make every layer, the largest first, several at once; the results are in the plan's order."""
    order = sorted(range(len(plan.layers)), key=lambda index: (-plan.layers[index].bytes_written, index))
    with open_pool(workers, "layer") as pool:
        futures = {pool.submit(merge_layer, plan, index, folders, store, device): index for index in order}
        _wait_for(futures, tell)
    results = {index: future.result() for future, index in futures.items()}
    return [results[index] for index in range(len(plan.layers))]


def _wait_for(futures: Iterable[Future[LayerResult]], tell: Reporter) -> None:
    """Tell of each layer as it ends; raise the error of the first that has one."""
    order, done = list(futures), 0
    pending = set(order)
    while pending:
        finished, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in (each for each in order if each in finished):
            done += 1
            tell.layer_done(future.result(), done, len(order))

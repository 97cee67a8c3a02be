"""A recipe of several stages: all are planned before a weight is read, each from the plans of those that it needs.

What a stage is going to be follows from its plan: every tensor, shape and file. So a stage that is not made yet is
planned with like any model, a plan that cannot be carried out is refused before the first stage is made, and a
finished output is known as such when the stages before it are long gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xmerge import disk
from xmerge.architecture import ForeseenModel, ResolvedArchitecture, resolve
from xmerge.checkpoints import Checkpoint, Shard, StoredTensor
from xmerge.checkpoints.headers import build_header
from xmerge.config import MergeConfig, list_needed
from xmerge.errors import OutputExistsError, StorageError
from xmerge.files import make_folders, remove_tree, storage_error
from xmerge.finished import is_finished, resolve_path
from xmerge.planning import MergePlan, map_slices
from xmerge.progress import Reporter, Silence
from xmerge.source_cards import SourceCard
from xmerge.sources import Location, metadata_folder
from xmerge.work import WorkFolder, name_work_folder, open_work_folder

STAGES = "stages"


@dataclass(frozen=True)
class Stage:
    """One configuration of a recipe, and its plan."""

    config: MergeConfig
    plan: MergePlan
    metadata: Path
    """A folder with the small files that go along from the target."""

    @property
    def name(self) -> str:
        """What other stages call it; nothing for an output that has no name."""
        return self.config.name or ""


def plan_stages(configs: Sequence[MergeConfig], out: Path, tell: Reporter | None = None) -> tuple[Stage, ...]:
    """Plan every stage.

    Args:
        configs: The stages in an order in which each can be carried out; the last gives the output.
        out: Where the output is going to appear.
        tell: Told which part of the planning begins, if anybody is.

    Raises:
        XmergeError: One of them cannot be carried out.
    """
    planned, reporter = dict[str, Stage](), tell or Silence()
    for config in configs:
        reporter.stage("resolve_architecture")
        architecture = resolve(config, foresee_needed(config, planned, out))
        reporter.stage("map_slices")
        planned[config.name or ""] = plan_stage(config, architecture)
    return tuple(planned.values())


def plan_stage(config: MergeConfig, architecture: ResolvedArchitecture) -> Stage:
    """Plan one stage whose models are known.

    Raises:
        XmergeError: It cannot be carried out.
    """
    return Stage(config, map_slices(config, architecture), metadata_folder(architecture.target.location))


def foresee_needed(config: MergeConfig, planned: Mapping[str, Stage], out: Path) -> dict[str, ForeseenModel]:
    """The models that stages before this one are going to make for it, by name."""
    return {name: foresee(planned[name], place_stage(out, name)) for name in list_needed(config, planned)}


def place_stage(out: Path, name: str) -> Path:
    """Where a stage's output is while the whole is made."""
    return name_work_folder(resolve_path(out)) / STAGES / name


def foresee(stage: Stage, folder: Path) -> ForeseenModel:
    """The model that a stage is going to make in a folder."""
    plan, name = stage.plan, stage.name
    return ForeseenModel(
        location=Location(reference=name, label=name, folder=folder, metadata=stage.metadata),
        checkpoint=foresee_checkpoint(plan, name),
        card=foresee_card(plan),
        origins=plan.origins,
    )


def foresee_checkpoint(plan: MergePlan, label: str) -> Checkpoint:
    """The config and headers that a plan's output is going to have; its pin is the plan's fingerprint."""
    shards, tensors = [], {}
    for index, layer in enumerate(plan.layers):
        file = plan.shard_name(index)
        header, entries = build_header((tensor.name, tensor.dtype, tensor.shape) for tensor in layer.tensors)
        shards.append(Shard(file, len(header) + entries[-1].end, hashlib.sha256(header).hexdigest(), 0))
        for entry in entries:
            start, size = len(header) + entry.begin, entry.end - entry.begin
            tensors[entry.name] = StoredTensor(entry.name, file, entry.dtype, entry.shape, start, size)
    return Checkpoint(
        label, json.loads(plan.config_text), tuple(shards), dict(sorted(tensors.items())), plan.fingerprint
    )


def foresee_card(plan: MergePlan) -> SourceCard:
    """What the card of a plan's output is going to say, and the licence texts that are going to lie beside it."""
    cards, licensing = [origin.card for origin in plan.origins], plan.licensing
    return SourceCard(
        licence=licensing.licence,
        licence_name=licensing.name,
        licence_link=licensing.link,
        languages=tuple(dict.fromkeys(each for card in cards for each in card.languages)),
        datasets=tuple(dict.fromkeys(each for card in cards for each in card.datasets)),
        pipeline_tag=plan.models[plan.target].card.pipeline_tag or "text-generation",
        notices=tuple(sorted((notice.copy_name, notice.sha256) for notice in plan.notices)),
    )


@contextlib.contextmanager
def open_stage(stage: Stage, work: WorkFolder) -> Iterator[WorkFolder]:
    """The work folder of a stage before the last, inside that of the output, with the same store.

    Raises:
        StorageError: It cannot be made.
    """
    folder = work.path / STAGES / stage.name
    try:
        make_folders(folder.parent)
        try:
            is_finished(folder, stage.plan)
        except OutputExistsError:
            # It is ours alone: left by an earlier state of the recipe, or damaged.
            remove_tree(folder)
    except OSError as error:
        raise storage_error(error, folder) from error
    with open_work_folder(folder, stage.plan, work.store.path) as inner:
        yield inner


def sweep_stages(stages: Sequence[Stage], work: WorkFolder) -> None:
    """Remove what stages left that the recipe no longer has.

    Raises:
        StorageError: It cannot be removed.
    """
    kept = {name for stage in stages for name in (stage.name, name_work_folder(Path(stage.name or "-")).name)}
    try:
        for name in sorted(disk.listdir(work.path / STAGES)):
            if name not in kept:
                remove_tree(work.path / STAGES / name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{work.path / STAGES} cannot be swept: {error.strerror}.") from error

"""The output folder: put together in the work folder, checked there, and made to appear by one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from xmerge import hub
from xmerge.card import write_card
from xmerge.checkpoints.checkpoint import INDEX_NAME
from xmerge.config import MergeConfig
from xmerge.engine.results import LayerResult
from xmerge.engine.shard import storage_error
from xmerge.errors import OutputExistsError
from xmerge.files import copy_synced, link_or_copy, sync_folder
from xmerge.planning.plan import MergePlan
from xmerge.provenance import build_provenance, write_provenance
from xmerge.sources import Location, metadata_folder
from xmerge.values import Value
from xmerge.work import WorkFolder, remove_work_folder

CONFIG_COPY_NAME = "xmerge_config.yml"


class Publication(Value):
    """Where the output went."""

    folder: Path
    repo: str | None = None
    commit: str | None = None
    url: str | None = None


def assemble(plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult], work: WorkFolder) -> Path:
    """Put the whole output together in the work folder.

    Args:
        plan: The plan.
        config: The configuration as it was given.
        results: One for each layer of the plan, in its order.
        work: The locked work folder.

    Raises:
        StorageError: A file cannot be written.
    """
    staged = work.staged
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        for index, result in enumerate(results):
            link_or_copy(work.store.shard_path(result.fingerprint), staged / plan.shard_name(index))
        _write_texts(staged, plan, config, results)
        _copy_side_files(staged, plan)
        write_index(staged, plan)
        for path in sorted(staged.iterdir()):
            _sync(path)
        sync_folder(staged)
    except OSError as error:
        raise storage_error(error, work.path) from error
    return staged


def write_index(folder: Path, plan: MergePlan) -> None:
    """The index, last of all: without it no reader takes the folder for a model."""
    weight_map = {
        tensor.name: plan.shard_name(index) for index, layer in enumerate(plan.layers) for tensor in layer.tensors
    }
    index = {"metadata": {"total_size": plan.bytes_written}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def publish(staged: Path, config: MergeConfig, plan: MergePlan, work: WorkFolder) -> Publication:
    """Make the validated output appear, and upload it if the configuration says so.

    Raises:
        OutputExistsError: Something has appeared in its place meanwhile.
        StorageError: The rename failed.
        HubError: The upload failed; the output is in its place all the same.
    """
    try:
        work.out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staged, work.out)
        sync_folder(work.out.parent)
    except OSError as error:
        if work.out.exists():
            raise OutputExistsError(
                f"{work.out} appeared while the merge ran.", remedy="move it away and run again: every layer is kept."
            ) from error
        raise storage_error(error, work.out.parent) from error
    remove_work_folder(work)
    return upload(work.out, config, plan)


def upload(folder: Path, config: MergeConfig, plan: MergePlan) -> Publication:
    """Upload an output if the configuration says where to."""
    target = config.publish
    if target is None:
        return Publication(folder=folder)
    uploaded = hub.upload_folder(
        folder,
        target.repo,
        private=target.visibility == "private",
        branch=target.branch,
        message=f"xmerge: {plan.title} ({plan.fingerprint[:12]})",
    )
    return Publication(folder=folder, repo=uploaded.repo, commit=uploaded.commit, url=uploaded.url)


def _write_texts(staged: Path, plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult]) -> None:
    (staged / "config.json").write_text(plan.config_text, encoding="utf-8")
    text = config.source.text or json.dumps(config.model_dump(mode="json"), indent=2) + "\n"
    (staged / CONFIG_COPY_NAME).write_text(text, encoding="utf-8")
    provenance = build_provenance(plan, config, results)
    write_provenance(staged, provenance)
    write_card(staged, plan, config, results)


def _copy_side_files(staged: Path, plan: MergePlan) -> None:
    target = plan.models[plan.target]
    location = Location(
        reference=target.reference, label=target.label, folder=target.folder, repo=target.repo, commit=target.commit
    )
    folder = metadata_folder(location)
    for name in plan.side_files:
        copy_synced(folder / name, staged / name)
    if plan.chat_template is not None:
        (staged / "chat_template.jinja").write_text(plan.chat_template, encoding="utf-8")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

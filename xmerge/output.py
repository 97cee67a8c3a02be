"""The output folder: put together in the work folder, checked there, and made to appear by one rename."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from xmerge import disk, hub
from xmerge.card import write_card
from xmerge.checkpoints.checkpoint import INDEX_NAME
from xmerge.config import MergeConfig
from xmerge.distances import write_picture
from xmerge.engine.reading import list_files, tell_change
from xmerge.engine.results import LayerResult, SourceStamp
from xmerge.errors import CheckpointError, OutputExistsError, SourceChangedError
from xmerge.files import (
    digest_files,
    encode,
    hash_file,
    read_bytes,
    remove_tree,
    storage_error,
    sync_file,
    sync_folder,
    write_bytes,
    write_text,
)
from xmerge.finished import draw_texts
from xmerge.interrupt import check_stop
from xmerge.planning.plan import MergePlan, PlannedModel
from xmerge.provenance import CONFIG_COPY_NAME, build_provenance, list_digests, read_provenance, write_provenance
from xmerge.reservation import release_space
from xmerge.sources import Location, metadata_folder
from xmerge.values import Value
from xmerge.work import WorkFolder, remove_work_folder


class Publication(Value):
    """Where the output went."""

    folder: Path
    repo: str | None = None
    commit: str | None = None
    url: str | None = None
    uploaded: bool = False
    """Whether anything was uploaded, which is not so where all of it was there already."""


def assemble(plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult], work: WorkFolder) -> Path:
    """Put the whole output together in the work folder.

    Args:
        plan: The plan.
        config: The configuration as it was given.
        results: One for each layer of the plan, in its order.
        work: The locked work folder.

    Raises:
        StorageError: A file cannot be written, or another run has replaced a layer in the store.
        CheckpointError: A file that goes along from the target cannot be read.
        SourceChangedError: Such a file is gone or changed, or a shard was another one for one layer than for the next.
    """
    staged = work.staged
    _refuse_mixture(plan, results)
    try:
        release_space(work.store.path)
        remove_tree(staged)
        disk.mkdir(staged)
        for index, result in enumerate(results):
            check_stop()
            work.store.give(result, staged / plan.shard_name(index))
        _copy_side_files(staged, plan)
        _copy_notices(staged, plan)
        _write_texts(staged, plan, config, results)
        write_index(staged, plan)
        for name in sorted(disk.listdir(staged)):
            sync_file(staged / name)
        sync_folder(staged)
    except OSError as error:
        raise storage_error(error, work.path, needed=plan.bytes_written) from error
    return staged


def write_index(folder: Path, plan: MergePlan) -> None:
    """The index, last of all: without it no reader takes the folder for a model."""
    write_text(folder / INDEX_NAME, draw_texts(plan)[INDEX_NAME])


def publish(staged: Path, config: MergeConfig, plan: MergePlan, work: WorkFolder) -> Publication:
    """Make the validated output appear, and upload it if the configuration says so.

    Raises:
        OutputExistsError: Something has appeared in its place meanwhile.
        StorageError: It cannot be put there.
        HubError: The upload failed; the output is in its place all the same.
    """
    try:
        disk.rename(staged, work.out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputExistsError(
                f"{work.out} appeared while the merge ran.", remedy="move it away and run again: every layer is kept."
            ) from error
        raise storage_error(error, work.out) from error
    try:
        sync_folder(work.out.parent)
    except OSError as error:
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
        digests=list_digests(read_provenance(folder) or {}),
    )
    return Publication(
        folder=folder, repo=uploaded.repo, commit=uploaded.commit, url=uploaded.url, uploaded=uploaded.changed
    )


def _write_texts(staged: Path, plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult]) -> None:
    for name, drawn in draw_texts(plan).items():
        if name != INDEX_NAME:
            write_text(staged / name, drawn)
    text = config.source.text or json.dumps(config.model_dump(mode="json"), indent=2) + "\n"
    write_text(staged / CONFIG_COPY_NAME, text)
    write_card(staged, plan, config, results)
    write_picture(staged, plan, results)
    write_provenance(staged, build_provenance(plan, config, results, _digest_small_files(staged, plan)))


def _copy_side_files(staged: Path, plan: MergePlan) -> None:
    target = plan.models[plan.target]
    for name in plan.side_files:
        write_bytes(staged / name, _read_source_file(target, name))
    if digest_files(staged, plan.side_files) != plan.side_files_digest:
        raise _changed(f"of {target.label}, {', '.join(plan.side_files)} are not what they were")


def _copy_notices(staged: Path, plan: MergePlan) -> None:
    """The licence texts of the models, each as it was when the plan was made."""
    for notice in plan.notices:
        model = plan.models[notice.model]
        data = _read_source_file(model, notice.file)
        if hashlib.sha256(data).hexdigest() != notice.sha256:
            raise _changed(f"{model.label}/{notice.file} is not what it was")
        write_bytes(staged / notice.copy_name, data)


def _read_source_file(model: PlannedModel, name: str) -> bytes:
    location = Location(
        reference=model.reference, label=model.label, folder=model.folder, repo=model.repo, commit=model.commit
    )
    try:
        return read_bytes(metadata_folder(location, (name,)) / name)
    except FileNotFoundError as error:
        raise _changed(f"{model.label}/{name} is gone") from error
    except OSError as error:
        raise CheckpointError(f"{model.label}/{name} cannot be read: {error.strerror}.") from error


def _digest_small_files(staged: Path, plan: MergePlan) -> dict[str, str]:
    """File -> SHA-256 of all that lies beside the shards; the index is drawn already and written last."""
    shards = {plan.shard_name(index) for index in range(len(plan.layers))}
    names = [name for name in sorted(disk.listdir(staged)) if name not in shards]
    index = hashlib.sha256(encode(draw_texts(plan)[INDEX_NAME])).hexdigest()
    return {**{name: hash_file(staged / name)[1] for name in names}, INDEX_NAME: index}


def _refuse_mixture(plan: MergePlan, results: Sequence[LayerResult]) -> None:
    """Refuse layers that were read from different files of one name, one replaced by the other in between."""
    seen: dict[tuple[int, str], SourceStamp] = {}
    for layer, result in zip(plan.layers, results, strict=True):
        for (model, file), stamp in zip(list_files(layer), result.stamps, strict=True):
            if seen.setdefault((model, file), stamp) != stamp:
                raise tell_change(f"{plan.models[model].label}/{file}", "while it was read")


def _changed(what: str) -> SourceChangedError:
    return SourceChangedError(
        f"{what} since the plan was made.", remedy="leave the inputs alone during a merge, and run it again."
    )

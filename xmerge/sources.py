"""Find the models of a configuration: local folders and repositories on the Hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from xmerge import hub
from xmerge.checkpoints import Checkpoint, Shard, read_checkpoint
from xmerge.checkpoints.checkpoint import INDEX_NAME, collect_tensors, list_shards, read_config
from xmerge.checkpoints.headers import parse_header
from xmerge.config import ModelReference
from xmerge.errors import CheckpointError, HubError, PlanError
from xmerge.values import Value


class Location(Value):
    """Where a model is."""

    reference: str
    """As the configuration names it."""
    label: str
    """As people read it: the folder's name, or `org/name`."""
    folder: Path | None = None
    repo: str | None = None
    commit: str | None = None
    metadata: Path | None = None
    """Where its small files are, if not in its folder: an earlier stage of the recipe is still to make it."""


def locate_model(reference: ModelReference, config_folder: Path | None = None) -> Location:
    """Find a model: a folder here, a folder beside the configuration, or a repository pinned to a commit.

    `hf://org/name` is a repository whatever folders there are.

    Raises:
        CheckpointError: There is no such folder, and the name is none of a repository either.
        PlanError: The reference asks for a LoRA adapter.
    """
    if reference.lora is not None:
        raise PlanError(
            f"the model {reference} has a LoRA adapter, which xmerge does not merge.",
            remedy="merge the adapter first (peft: model.merge_and_unload()), save it, and name the folder.",
        )
    path, revision = reference.model.path, reference.model.revision
    if hub.is_url(path):
        # In an address, the '/' of a ref such as refs/pr/1 may be written %2F.
        repo, revision = hub.repo_of_url(path), revision and unquote(revision)
        return _locate_on_hub(reference, repo, hub.pin_revision(repo, revision))
    folder = _find_folder(path, config_folder)
    if folder is not None:
        if revision:
            raise PlanError(
                f"the model {reference} is a folder, and a folder has no revision '{revision}'.",
                remedy="leave the revision out; write a path that contains '@' or '+' as a mapping: {path: ...}.",
            )
        # As it is written, where that says anything: a link's own name rather than its target's.
        return Location(
            reference=str(reference),
            label=folder.name if Path(path).name in ("", "..") else Path(path).name,
            folder=folder,
        )
    if os.path.isfile(os.path.expanduser(path)):
        raise CheckpointError(
            f"{path!r} is a file, and a model is a folder.", remedy="name the folder that holds its config.json."
        )
    if not hub.is_repo_id(path) or path.startswith((".", "/", "~")):
        raise CheckpointError(
            f"there is no model {path!r}.",
            why="no such folder exists, and it is no name of a repository (org/name).",
            remedy=f"paths are read from the current folder ({Path.cwd().name}/) and from the configuration's.",
        )
    try:
        commit = hub.pin_revision(path, revision)
    except HubError as error:
        why = f"{error.why or ''} There is no folder '{path}' here either.".strip()
        raise type(error)(error.what, where=error.where, why=why, remedy=error.remedy) from None
    return _locate_on_hub(reference, path, commit)


def _locate_on_hub(reference: ModelReference, repo: str, commit: str) -> Location:
    return Location(reference=str(reference), label=repo, repo=repo, commit=commit)


def read_model(location: Location) -> Checkpoint:
    """Everything about a model that its config.json and its shards' headers say; no weight is read or fetched.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or of a kind that cannot be merged.
    """
    if location.folder is not None:
        return read_checkpoint(location.folder, location.label)
    assert location.repo is not None and location.commit is not None
    return _read_remote(location.repo, location.commit, location.label)


def metadata_folder(location: Location, names: Collection[str] | None = None) -> Path:
    """A local folder with the model's config, tokenizer and side files, or with the named ones of them."""
    if location.metadata is not None:
        return location.metadata
    if location.folder is not None:
        return location.folder
    assert location.repo is not None and location.commit is not None
    return hub.fetch_metadata(location.repo, location.commit, names)


def _find_folder(path: str, config_folder: Path | None) -> Path | None:
    places = [os.path.expanduser(path)]
    if config_folder is not None:
        places.append(os.path.join(config_folder, path))
    # Unlike pathlib's, these never raise: not for a home that does not exist, nor for a path that cannot.
    return next((Path(place).resolve() for place in places if os.path.isdir(place)), None)


# A commit never changes, and a merge is planned twice: before it starts anything, and as its own step.
@cache
def _read_remote(repo: str, commit: str, label: str) -> Checkpoint:
    folder = hub.fetch_metadata(repo, commit, ("config.json", INDEX_NAME))
    config = read_config(folder / "config.json", f"{label}/config.json")
    sizes = hub.list_files(repo, commit)
    names, index = list_shards(sorted(sizes), label, lambda name: folder / name)
    shards, entries = [], {}
    for name, header in hub.read_shard_headers(repo, commit, names).items():
        entries[name] = (parse_header(header.header, header.size, f"{label}/{name}"), len(header.header))
        shards.append(Shard(name, header.size, hashlib.sha256(header.header).hexdigest(), 0))
    return Checkpoint(label, config, tuple(shards), collect_tensors(entries, index, label), commit)

"""Reading: pin a revision, list its files, and read the headers of that commit's shards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from xmerge.checkpoints.headers import parse_header
from xmerge.errors import HubError
from xmerge.hub.client import ANSWER_TIMEOUT, cache_folder, hub_api, is_offline, snapshot_folder
from xmerge.hub.faults import Doing, in_words, tell_offline
from xmerge.hub.memory import recall, remember
from xmerge.hub.names import is_commit, is_ref_name, require_commit, require_repo_id, require_shards
from xmerge.hub.ranges import Range, read_range, try_again
from xmerge.interrupt import open_pool
from xmerge.values import Value

MAX_HEADER = 25_000_000  # Bytes; the limit of huggingface_hub, far above any real model.
_FIRST_READ = 8 * 1024  # The header of a shard of a large model fits; more would cost more than it saves.
_HEADERS_AT_ONCE = 8
_LISTING = "files"


class ListedFile(NamedTuple):
    """A file of a commit, as the Hub describes it."""

    size: int
    sha256: str | None = None
    """None: the Hub does not say; it does for every large file."""


class RemoteHeader(Value):
    """The header of one safetensors file on the Hub.

    Attributes:
        size: Bytes of the whole file.
        header: The 8 bytes of the header's length and the header's JSON, as they stand in the file.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    size: int
    header: bytes


def pin_revision(repo: str, revision: str | None) -> str:
    """Find the commit that a revision names now; everything after this names the commit.

    With HF_HUB_OFFLINE the answer is the one that the local cache remembers.

    Args:
        repo: `org/name` on the Hub.
        revision: Branch, tag or commit; None for the main branch.

    Returns:
        The commit's sha, 40 hexadecimal digits.

    Raises:
        HubError: There is no such repository or revision, or nothing is cached and the Hub may not be asked.
        HubUnavailableError: The Hub cannot answer for now.
    """
    require_repo_id(repo)
    if is_offline():
        return _pin_from_cache(repo, revision or "main")
    doing = Doing(repo, revision=revision)
    with in_words(doing):
        info = try_again(lambda: hub_api().model_info(repo, revision=revision, timeout=ANSWER_TIMEOUT))
    commit = info.sha or ""
    if not is_commit(commit) or (revision is not None and is_commit(revision) and commit != revision):
        raise HubError(
            "the Hub did not say which commit this revision is.",
            where=doing.where,
            remedy="check HF_ENDPOINT; if it is right, try again later.",
        )
    _remember_pin(repo, revision or "main", commit)
    return commit


def list_files(repo: str, commit: str) -> dict[str, int]:
    """List a commit's files with their sizes in bytes, sorted by name; see `describe_files`."""
    return {name: file.size for name, file in describe_files(repo, commit).items()}


def describe_files(repo: str, commit: str) -> dict[str, ListedFile]:
    """A commit's files by name, sorted; the Hub is asked once, and the local cache remembers the answer.

    With HF_HUB_OFFLINE, and where the cache has no listing of the commit, these are the files in the cache.

    Raises:
        HubError: There is no such repository or commit, or it is not cached and the Hub may not be asked.
        HubUnavailableError: The Hub cannot answer for now.
    """
    require_repo_id(repo)
    require_commit(repo, commit)
    listed = _recall_listing(repo, commit)
    if listed is None:
        if is_offline():
            return _list_cached_files(repo, commit)
        listed = _ask_for_listing(repo, commit)
        remember(repo, commit, _LISTING, json.dumps(listed))
    return dict(sorted(listed.items()))


def read_shard_headers(repo: str, commit: str, files: Sequence[str]) -> dict[str, RemoteHeader]:
    """Read the headers of shards without fetching the shards.

    A shard in the local cache is read there; of any other no more is requested than its header and 8 KiB, once.

    Args:
        repo: `org/name` on the Hub.
        commit: The pinned commit.
        files: Names of shards, as an index gives them; they are checked against the commit's files.

    Returns:
        The header of each file, in the order asked for.

    Raises:
        HubError: A name is not that of a shard of this commit, or a header may not be read.
        CheckpointError: A header is damaged.
        HubUnavailableError: The Hub cannot answer for now.
    """
    sizes = list_files(repo, commit)
    require_shards(repo, files, sizes)
    names = list(dict.fromkeys(files))
    if is_offline():
        missing = [name for name in names if _find_header(repo, commit, name, sizes[name]) is None]
        if missing:
            raise tell_offline(name_some(missing, f"{repo}@{commit}"))
    with open_pool(_HEADERS_AT_ONCE, "header") as pool:
        headers = pool.map(lambda name: _read_header(repo, commit, name, sizes[name]), names)
        return dict(zip(names, headers, strict=True))


def size_of(path: Path) -> int | None:
    """The bytes of a file; None: it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def name_some(names: Sequence[str], place: str) -> str:
    """Up to three names and where they belong, as an error tells them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} in {place}"


def _pin_from_cache(repo: str, revision: str) -> str:
    if is_commit(revision):
        commit, known = revision, snapshot_folder(repo, revision).is_dir()
    else:
        ref = cache_folder(repo) / "refs" / revision
        commit = ref.read_text().strip() if is_ref_name(revision) and ref.is_file() else ""
        known = is_commit(commit)
    if not known:
        raise tell_offline(f"revision '{revision}' of {repo}")
    return commit


def _remember_pin(repo: str, revision: str, commit: str) -> None:
    """Write the ref that a later offline run reads, where the client would write it."""
    if is_commit(revision) or not is_ref_name(revision):
        return
    ref = cache_folder(repo) / "refs" / revision
    # A cache that cannot be written may still hold every file; fetching says so if it does not.
    with suppress(OSError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=ref.parent, prefix=f"{ref.name}.", suffix=".tmp", delete=False) as file:
            file.write(commit)
        os.replace(file.name, ref)


def _recall_listing(repo: str, commit: str) -> dict[str, ListedFile] | None:
    said = recall(repo, commit, _LISTING)
    # What cannot be read is asked for again.
    with suppress(ValidationError):
        return TypeAdapter(dict[str, ListedFile]).validate_json(said) if said else None
    return None


def _ask_for_listing(repo: str, commit: str) -> dict[str, ListedFile]:
    from huggingface_hub.hf_api import RepoFile

    with in_words(Doing(repo, revision=commit)):
        entries = list(hub_api().list_repo_tree(repo, recursive=True, revision=commit))
    return {
        entry.path: ListedFile(entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def _list_cached_files(repo: str, commit: str) -> dict[str, ListedFile]:
    """What the client has listed of a commit, else the files that it has fetched."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    with suppress(CachedRepoTreeNotFoundError):
        tree = get_cached_repo_tree(repo, revision=commit)
        return {file.path: ListedFile(file.size) for file in sorted(tree, key=lambda file: file.path)}
    folder = snapshot_folder(repo, commit)
    if not folder.is_dir():
        raise tell_offline(f"{repo}@{commit}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): ListedFile(path.stat().st_size) for path in files}


def _find_header(repo: str, commit: str, name: str, size: int) -> RemoteHeader | None:
    """A header that needs no request: of a shard in the local cache, or one that was read before."""
    cached = snapshot_folder(repo, commit) / name
    if size_of(cached) == size:
        with cached.open("rb") as file:
            length = _header_length(file.read(8), size, f"{name} in {repo}@{commit}")
            file.seek(0)
            return RemoteHeader(size=size, header=file.read(8 + length))
    said = recall(repo, commit, name)
    # What cannot be read is asked for again.
    with suppress(ValidationError):
        return RemoteHeader.model_validate_json(said) if said else None
    return None


def _read_header(repo: str, commit: str, name: str, size: int) -> RemoteHeader:
    found = _find_header(repo, commit, name, size)
    if found is not None:
        return found
    read = partial(read_range, Doing(repo, revision=commit, file=name), size)
    head = read(Range(0, min(_FIRST_READ, size))) if size >= 8 else b""
    end = 8 + _header_length(head[:8], size, f"{name} in {repo}@{commit}")
    rest = read(Range(len(head), end)) if end > len(head) else b""
    header = RemoteHeader(size=size, header=head[:end] + rest)
    parse_header(header.header, size, f"{name} in {repo}@{commit}")  # What is damaged is not worth remembering.
    remember(repo, commit, name, header.model_dump_json())
    return header


def _header_length(first: bytes, size: int, where: str) -> int:
    """The header's length, bounded before anything of that length is requested or held."""
    length = int.from_bytes(first, "little") if len(first) == 8 else -1
    if 0 < length <= min(MAX_HEADER, size - 8):
        return length
    raise HubError(
        "this is not a safetensors file, or it is damaged.",
        where=where,
        why=f"it has {size:,} bytes and its header would have {length:,}; the limit is {MAX_HEADER:,}."
        if length >= 0
        else f"it has {size:,} bytes, too few for a header.",
        remedy="use another revision of this model, or tell its authors.",
    )

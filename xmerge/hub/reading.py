"""Reading: pin a revision, list its files, and fetch metadata, shard headers and shards of that commit."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

from pydantic import ConfigDict

from xmerge.errors import HubError
from xmerge.hub.client import (
    ANSWER_TIMEOUT,
    cache_folder,
    hub_api,
    is_offline,
    request_headers,
    snapshot_folder,
)
from xmerge.hub.faults import (
    Doing,
    http_library,
    in_words,
    tell_cut_short,
    tell_disk_full,
    tell_offline,
    tell_wrong_size,
)
from xmerge.hub.names import is_commit, is_ref_name, require_commit, require_repo_id, require_shards
from xmerge.values import Value

T = TypeVar("T")

MAX_HEADER = 25_000_000  # Bytes; the limit of huggingface_hub, far above any real model.
_FIRST_READ = 8 * 1024  # The header of a shard of a large model fits; more would cost more than it saves.
_HEADERS_AT_ONCE = 8
_ATTEMPTS = 3

_METADATA = (
    "config.json",
    "model.safetensors.index.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template*.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "README.md",
    "LICENSE*",
    "NOTICE*",
)
_NEVER = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.py")


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
        info = _again_if_broken(lambda: hub_api().model_info(repo, revision=revision, timeout=ANSWER_TIMEOUT))
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
    """List a commit's files with their sizes in bytes, sorted by name.

    With HF_HUB_OFFLINE, and where the cache has no listing of the commit, these are the files in the cache.

    Raises:
        HubError: There is no such repository or commit, or it is not cached and the Hub may not be asked.
        HubUnavailableError: The Hub cannot answer for now.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    require_repo_id(repo)
    require_commit(repo, commit)
    with suppress(CachedRepoTreeNotFoundError):
        return _sizes_by_name({file.path: file.size for file in get_cached_repo_tree(repo, revision=commit)})
    if is_offline():
        return _list_cached_files(repo, commit)
    with in_words(Doing(repo, revision=commit)):
        entries = list(hub_api().list_repo_tree(repo, recursive=True, revision=commit))
    return _sizes_by_name({entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)})


def fetch_metadata(repo: str, commit: str, names: Collection[str] | None = None) -> Path:
    """Fetch what a plan and an output need besides weights: configuration, index, tokenizer, card, licence.

    Never weights, never code, never pickles. What the cache has already is not fetched again.

    Args:
        repo: `org/name` on the Hub.
        commit: The pinned commit.
        names: The only files to fetch, where the commit has them; None: all.

    Returns:
        The commit's folder in the local Hub cache.

    Raises:
        HubError: A file may not be fetched, or is not cached and the Hub may not be asked.
        HubUnavailableError: The Hub cannot answer for now.
        StorageError: The cache cannot be written.
    """
    sizes = list_files(repo, commit)
    wanted = {name for name in sizes if _is_metadata(name) and (names is None or name in names)}
    return _fetch_files(repo, commit, {name: size for name, size in sizes.items() if name in wanted})


def fetch_shards(repo: str, commit: str, files: Sequence[str]) -> Path:
    """Fetch the named shards, and no other file, into the local Hub cache, where they stay in place.

    Args:
        repo: `org/name` on the Hub.
        commit: The pinned commit.
        files: Names of shards, as an index gives them; they are checked against the commit's files.

    Returns:
        The commit's folder in the local Hub cache.

    Raises:
        HubError: A name is not that of a shard of this commit, a shard may not be fetched or has a wrong size.
        HubUnavailableError: The Hub cannot answer for now.
        StorageError: The cache is full or cannot be written.
    """
    sizes = list_files(repo, commit)
    require_shards(repo, files, sizes)
    return _fetch_files(repo, commit, {name: sizes[name] for name in files})


def read_shard_headers(repo: str, commit: str, files: Sequence[str]) -> dict[str, RemoteHeader]:
    """Read the headers of shards without fetching the shards.

    A shard in the local cache is read there; of any other no more is requested than its header and 8 KiB.

    Args:
        repo: `org/name` on the Hub.
        commit: The pinned commit.
        files: Names of shards, as an index gives them; they are checked against the commit's files.

    Returns:
        The header of each file, in the order asked for.

    Raises:
        HubError: A name is not that of a shard of this commit, or a header is damaged or may not be read.
        HubUnavailableError: The Hub cannot answer for now.
    """
    sizes = list_files(repo, commit)
    require_shards(repo, files, sizes)
    names = list(dict.fromkeys(files))
    with ThreadPoolExecutor(max_workers=_HEADERS_AT_ONCE) as pool:
        headers = pool.map(lambda name: _read_header(repo, commit, name, sizes[name]), names)
        return dict(zip(names, headers, strict=True))


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


def _list_cached_files(repo: str, commit: str) -> dict[str, int]:
    folder = snapshot_folder(repo, commit)
    if not folder.is_dir():
        raise tell_offline(f"{repo}@{commit}")
    files = (path for path in folder.rglob("*") if path.is_file())
    return _sizes_by_name({path.relative_to(folder).as_posix(): path.stat().st_size for path in files})


def _sizes_by_name(sizes: dict[str, int]) -> dict[str, int]:
    return dict(sorted(sizes.items()))


def _is_metadata(name: str) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in _NEVER):
        return False
    # Depth is compared because fnmatch lets '*' match a '/'.
    return any(fnmatchcase(name, wanted) and name.count("/") == wanted.count("/") for wanted in _METADATA)


def _fetch_files(repo: str, commit: str, sizes: dict[str, int]) -> Path:
    """Fetch, one after another, the files that the cache lacks or has in another size.

    One at a time, because the client has the transfer of one file in parallel already, and Ctrl-C then stops it.
    """
    folder = snapshot_folder(repo, commit)
    missing = {name: size for name, size in sizes.items() if _size_of(folder / name) != size}
    if missing and is_offline():
        raise tell_offline(_some_of(sorted(missing), f"{repo}@{commit}"))
    _require_space(cache_folder(repo), repo, sum(missing.values()))
    for name, size in missing.items():
        _fetch_file(Doing(repo, revision=commit, file=name), folder / name)
        actual = _size_of(folder / name)
        if actual != size:
            raise tell_wrong_size(f"{name} in {repo}@{commit}", size, actual)
    return folder


def _fetch_file(doing: Doing, path: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    # The client's own bar shows the end of the URL, which is where a signature stands.
    no_bar: Any = partial(tqdm, disable=True)

    download = partial(
        hf_hub_download,
        doing.repo,
        str(doing.file),
        revision=doing.revision,
        library_name="xmerge",
        force_download=path.exists(),  # It is there in a wrong size.
        tqdm_class=no_bar,
    )
    with in_words(doing):
        _again_if_broken(download)


def _again_if_broken(call: Callable[[], T]) -> T:
    """Call up to three times while the connection breaks; the client itself gives up at a reset."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except http_library().TransportError:
            time.sleep(attempt * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
    return call()


def _require_space(folder: Path, repo: str, needed: int) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise tell_disk_full(repo, why=f"{needed:,} bytes are to be fetched and the cache's disk has {free:,} free.")


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _some_of(names: Sequence[str], place: str) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} in {place}"


def _read_header(repo: str, commit: str, name: str, size: int) -> RemoteHeader:
    where = f"{name} in {repo}@{commit}"
    cached = snapshot_folder(repo, commit) / name
    if _size_of(cached) == size:
        with cached.open("rb") as file:
            length = _header_length(file.read(8), size, where)
            file.seek(0)
            return RemoteHeader(size=size, header=file.read(8 + length))
    if is_offline():
        raise tell_offline(where)
    read = partial(_read_range, Doing(repo, revision=commit, file=name), size)
    head = read(0, min(_FIRST_READ, size)) if size >= 8 else b""
    end = 8 + _header_length(head[:8], size, where)
    rest = read(len(head), end) if end > len(head) else b""
    return RemoteHeader(size=size, header=head[:end] + rest)


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


def _read_range(doing: Doing, size: int, start: int, stop: int) -> bytes:
    """Read the bytes from `start` up to `stop`, trying again where the connection breaks."""
    with in_words(doing):
        content, total = _again_if_broken(lambda: _request_range(doing, start, stop))
    if total != size:
        raise tell_wrong_size(doing.where, size, total)
    if len(content) != stop - start:
        raise tell_cut_short(doing.where)
    return content


def _request_range(doing: Doing, start: int, stop: int) -> tuple[bytes, int | None]:
    """The bytes from `start` up to `stop`, and the size of the whole file by this answer."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

    wanted = stop - start
    url = hf_hub_url(doing.repo, str(doing.file), revision=doing.revision)
    headers = {**request_headers(), "Range": f"bytes={start}-{stop - 1}"}
    # The client's own retry of broken streams yields twice from one context manager, which Python forbids.
    with http_stream_backoff("GET", url, headers=headers, timeout=ANSWER_TIMEOUT, retry_on_exceptions=()) as response:
        hf_raise_for_status(response)
        # A server may ignore the range and send the whole shard, of which no more than needed is taken.
        skipped = 0 if response.status_code == 206 else start
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > skipped + wanted:
                break
        total = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length")
    return bytes(content[skipped : skipped + wanted]), int(total) if total and total.isdigit() else None

"""Fetching whole files into the local Hub cache, where they stay in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from xmerge.files import free_bytes, hash_file, remove_file
from xmerge.hub.client import cache_folder, is_offline, snapshot_folder
from xmerge.hub.faults import Doing, in_words, tell_disk_full, tell_offline, tell_wrong_bytes, tell_wrong_size
from xmerge.hub.names import require_shards
from xmerge.hub.ranges import try_again_if_broken
from xmerge.hub.reading import ListedFile, describe_files, name_some, size_of

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
    "LICEN[CS]E*",
    "NOTICE*",
    "[Nn]otice*",
    "USE_POLICY*",
)
_NEVER = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.py")


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
    listed = describe_files(repo, commit)
    wanted = {name: file for name, file in listed.items() if names is None or name in names}
    return _fetch_files(repo, commit, {name: file for name, file in wanted.items() if _is_metadata(name)})


def fetch_shards(repo: str, commit: str, files: Sequence[str]) -> Path:
    """Fetch the named shards, and no other file, into the local Hub cache, where they stay in place.

    Args:
        repo: `org/name` on the Hub.
        commit: The pinned commit.
        files: Names of shards, as an index gives them; they are checked against the commit's files.

    Returns:
        The commit's folder in the local Hub cache.

    Raises:
        HubError: A name is not that of a shard of this commit, a shard may not be fetched, or does not have the size or
            the SHA-256 that the Hub says.
        HubUnavailableError: The Hub cannot answer for now.
        StorageError: The cache is full or cannot be written.
    """
    listed = describe_files(repo, commit)
    require_shards(repo, files, listed)
    return _fetch_files(repo, commit, {name: listed[name] for name in files})


def is_cached(repo: str, commit: str, file: str, size: int) -> bool:
    """Whether a file is in the local Hub cache, whole as far as its size tells."""
    return size_of(snapshot_folder(repo, commit) / file) == size


def _is_metadata(name: str) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in _NEVER):
        return False
    # Depth is compared because fnmatch lets '*' match a '/'.
    return any(fnmatchcase(name, wanted) and name.count("/") == wanted.count("/") for wanted in _METADATA)


def _fetch_files(repo: str, commit: str, files: Mapping[str, ListedFile]) -> Path:
    """Fetch, one after another, the files that the cache lacks or has in another size.

    One at a time, because the client has the transfer of one file in parallel already, and Ctrl-C then stops it.
    """
    missing = {name: file for name, file in files.items() if not is_cached(repo, commit, name, file.size)}
    if missing and is_offline():
        raise tell_offline(name_some(sorted(missing), f"{repo}@{commit}"))
    _require_space(cache_folder(repo), repo, sum(file.size for file in missing.values()))
    folder = snapshot_folder(repo, commit)
    for name, file in missing.items():
        doing = Doing(repo, revision=commit, file=name)
        if not (_fetch_file(doing, folder / name, file) or _fetch_file(doing, folder / name, file)):
            raise tell_wrong_bytes(doing.where)
    return folder


def _fetch_file(doing: Doing, path: Path, listed: ListedFile) -> bool:
    """Fetch one file; whether it holds what the Hub says. What does not is removed: the cache is others' too."""
    _download(doing, path)
    actual = size_of(path)
    if actual != listed.size:
        raise tell_wrong_size(doing.where, listed.size, actual)
    if listed.sha256 in (None, hash_file(path)[1]):
        return True
    for place in (path.resolve(), path):
        remove_file(place)
    return False


def _download(doing: Doing, path: Path) -> None:
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
        try_again_if_broken(download)


def _require_space(folder: Path, repo: str, needed: int) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = free_bytes(existing)
    if free is not None and needed > free:
        raise tell_disk_full(repo, why=f"{needed:,} bytes are to be fetched and the cache's disk has {free:,} free.")

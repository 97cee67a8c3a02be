"""A checkpoint: config.json, shards and index, read without touching a weight."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xmerge.checkpoints.headers import HeaderEntry, parse_header, read_header_length
from xmerge.errors import CheckpointError
from xmerge.values import fingerprint_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 100
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


class StoredTensor(NamedTuple):
    """A tensor in a shard; `offset` counts from the start of the file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Shard(NamedTuple):
    """One safetensors file of a checkpoint, known by its header."""

    file: str
    size: int
    header_sha256: str
    modified_ns: int
    """When a local file was last written; 0 for a file on the Hub, which its commit pins."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model before any weight is read."""

    label: str
    """The model's name for people: the folder's name, or `org/name`."""
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    tensors: Mapping[str, StoredTensor]
    pin: str
    """The commit, or a digest of names, sizes, headers and times of the shards."""


def read_checkpoint(folder: Path, label: str) -> Checkpoint:
    """Read config.json, the index and every shard's header of a local checkpoint.

    Raises:
        CheckpointError: Something is missing, damaged, contradicts itself, or is no safetensors checkpoint.
    """
    config = read_config(folder / "config.json", f"{label}/config.json")
    names, index = list_shards(_list_names(folder, label), label, lambda name: folder / name)
    shards, entries = [], {}
    for name in names:
        shard, header, data_start = read_local_shard(folder / name, f"{label}/{name}")
        shards.append(shard)
        entries[name] = (header, data_start)
    tensors = collect_tensors(entries, index, label)
    pin = fingerprint_json([list(shard) for shard in shards])
    return Checkpoint(label, config, tuple(shards), tensors, pin)


def list_shards(
    present: list[str], label: str, path_of: Callable[[str], Path]
) -> tuple[list[str], dict[str, str] | None]:
    """The shards a checkpoint is made of, by name, and its weight map (None for a single file).

    Args:
        present: Names of all files beside config.json.
        label: What errors call the model.
        path_of: Gives a local path for a name; called for the index only.
    """
    if INDEX_NAME in present:
        index = read_weight_map(path_of(INDEX_NAME), f"{label}/{INDEX_NAME}")
        names = sorted(set(index.values()))
        if SINGLE_NAME in present and SINGLE_NAME not in names:
            raise CheckpointError(
                f"{label} holds both {SINGLE_NAME} and {INDEX_NAME}, which speaks of other files.",
                why="they may be two different models.",
                remedy="remove the one that is out of date.",
            )
        missing = [name for name in names if name not in present]
        if missing:
            raise CheckpointError(
                f"{label} lacks {len(missing)} of its {len(names)} shards: {_some(missing)}.",
                remedy="fetch the missing files.",
            )
        return names, index
    if SINGLE_NAME in present:
        return [SINGLE_NAME], None
    raise _no_weights(present, label)


def collect_tensors(
    entries: Mapping[str, tuple[tuple[HeaderEntry, ...], int]], index: Mapping[str, str] | None, label: str
) -> dict[str, StoredTensor]:
    """All tensors of all shards by name, refusing shards and index that contradict each other.

    Args:
        entries: For each shard its header's tensors and where its data starts.
        index: The weight map, None for a single file.
        label: What errors call the model.
    """
    tensors: dict[str, StoredTensor] = {}
    for file, (header, start) in entries.items():
        for entry in header:
            if entry.name in tensors:
                raise CheckpointError(f"{label} holds {entry.name} twice: in {tensors[entry.name].file} and {file}.")
            size = entry.end - entry.begin
            tensors[entry.name] = StoredTensor(entry.name, file, entry.dtype, entry.shape, start + entry.begin, size)
    if index is not None:
        absent = sorted(name for name, file in index.items() if name not in tensors or tensors[name].file != file)
        unindexed = sorted(name for name in tensors if name not in index)
        if absent or unindexed:
            told = [f"not in their shard: {_some(absent)}"] if absent else []
            told += [f"not in the index: {_some(unindexed)}"] if unindexed else []
            raise CheckpointError(f"the index of {label} contradicts its shards.", why="; ".join(told) + ".")
    return dict(sorted(tensors.items()))


def read_local_shard(path: Path, told: str) -> tuple[Shard, tuple[HeaderEntry, ...], int]:
    """A local shard by its header: what it is, its tensors, and where its data starts."""
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            start = file.read(8)
            length = read_header_length(start, stat.st_size, told)
            raw = start + file.read(length)
    except OSError as error:
        raise CheckpointError(f"{told} cannot be read: {error.strerror}.") from error
    entries = parse_header(raw, stat.st_size, told)
    shard = Shard(path.name, stat.st_size, hashlib.sha256(raw).hexdigest(), stat.st_mtime_ns)
    return shard, entries, len(raw)


def read_json_object(path: Path, told: str) -> dict[str, Any]:
    """A JSON object from a file that may say what it likes.

    Raises:
        CheckpointError: The file is missing, too large, or no JSON object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{told} does not exist.", remedy="name a folder that holds a whole model.") from None
    except OSError as error:
        raise CheckpointError(f"{told} cannot be read: {error.strerror}.") from error
    if len(raw) > MAX_JSON_BYTES:
        raise CheckpointError(f"{told} has more than {MAX_JSON_BYTES} bytes.")
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{told} is not JSON.", remedy="fetch the file again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{told} is not a JSON object.")
    if _is_deep(data):
        raise CheckpointError(f"{told} is nested more than {MAX_JSON_DEPTH} deep.", remedy="fetch the file again.")
    return data


def read_config(path: Path, told: str) -> dict[str, Any]:
    """The config.json of a model; all of it can be written again.

    Raises:
        CheckpointError: The file is missing, too large, no JSON object, or holds what is no text.
    """
    data = read_json_object(path, told)
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{told} holds half of a character.", remedy="fetch the file again.") from None
    return data


def _is_deep(data: dict[str, Any]) -> bool:
    """Whether anything that looks into the data level by level could run out of stack."""
    level: list[Any] = [data]
    for _ in range(MAX_JSON_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def read_weight_map(path: Path, told: str) -> dict[str, str]:
    """The index's tensor -> shard, each shard a plain file name beside the index."""
    weight_map = read_json_object(path, told).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{told} has no weight_map, and so names no shard.", remedy="fetch the file again.")
    for tensor, file in weight_map.items():
        if not is_plain_shard_name(file):
            raise CheckpointError(
                f"{told} places {tensor[:80]!r} in {str(file)[:80]!r}.",
                why="a shard is a plain file name that ends in .safetensors.",
            )
    return weight_map


def is_plain_shard_name(name: Any) -> bool:
    """Whether a name from an index can only mean a file beside the index."""
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and name.isprintable()
        and not name.startswith(".")
        and not any(part in name for part in ("/", "\\", ":", "\0"))
    )


def _list_names(folder: Path, label: str) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"the model {label} cannot be read: {error.strerror}.", where=str(folder)) from error


def _no_weights(present: list[str], label: str) -> CheckpointError:
    pickled = [name for name in present if name.endswith(PICKLE_SUFFIXES)]
    if pickled:
        return CheckpointError(
            f"{label} holds its weights as pickle files only: {_some(pickled)}.",
            why="unpickling runs code from the file, so xmerge never opens one.",
            remedy="load it with transformers and save it again with save_pretrained, which writes safetensors.",
        )
    loose = [name for name in present if name.endswith(".safetensors")]
    if loose:
        return CheckpointError(
            f"{label} holds {_some(loose)} but neither {SINGLE_NAME} nor {INDEX_NAME}.",
            remedy="fetch the index, or name a folder that transformers wrote.",
        )
    return CheckpointError(f"{label} holds no weights.", why=f"neither {SINGLE_NAME} nor {INDEX_NAME} is there.")


def _some(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

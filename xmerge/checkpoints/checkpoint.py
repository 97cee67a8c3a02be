"""A checkpoint: config.json, shards and index, read without touching a weight."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xmerge import disk
from xmerge.checkpoints.headers import HeaderEntry, parse_header, read_header_length
from xmerge.checkpoints.untrusted import (
    SMALL,
    Bounds,
    UntrustedError,
    is_plain_shard_name,
    is_tensor_name,
    parse_object,
)
from xmerge.errors import CheckpointError
from xmerge.files import read_into
from xmerge.values import fingerprint_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


class StoredTensor(NamedTuple):
    """A tensor in a shard; `offset` counts from the start of the file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Contradictions(NamedTuple):
    """Where shards and index do not say the same, by tensor and shard."""

    twice: tuple[tuple[str, str, str], ...]
    """(tensor, shard, the other shard that holds it)"""
    absent: tuple[tuple[str, str], ...]
    """What the index places in a shard that does not hold it."""
    unindexed: tuple[tuple[str, str], ...]
    """What a shard holds and the index does not name."""


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
    names, index = list_shards(list_names(folder, label), label, lambda name: folder / name)
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
    found = find_contradictions({file: header for file, (header, _) in entries.items()}, index)
    if found.twice:
        name, first, second = found.twice[0]
        more = f", and {len(found.twice) - 1} more so" if len(found.twice) > 1 else ""
        raise CheckpointError(
            f"{label} holds {name} twice: in {first} and {second}{more}.", remedy="fetch the whole model again."
        )
    if found.absent or found.unindexed:
        told = [f"not in their shard: {_some([name for name, _ in found.absent])}"] if found.absent else []
        told += [f"not in the index: {_some([name for name, _ in found.unindexed])}"] if found.unindexed else []
        raise CheckpointError(
            f"the index of {label} contradicts its shards.",
            why="; ".join(told) + ".",
            remedy="fetch index and shards of one and the same revision.",
        )
    tensors = {
        entry.name: StoredTensor(
            entry.name, file, entry.dtype, entry.shape, start + entry.begin, entry.end - entry.begin
        )
        for file, (header, start) in entries.items()
        for entry in header
    }
    return dict(sorted(tensors.items()))


def find_contradictions(
    headers: Mapping[str, tuple[HeaderEntry, ...]], index: Mapping[str, str] | None
) -> Contradictions:
    """Everything that two shards, or index and shards, say of one tensor that cannot both be so.

    Args:
        headers: The tensors of each shard.
        index: The weight map, None for a single file.
    """
    places: dict[str, str] = {}
    twice = []
    for file, header in headers.items():
        for entry in header:
            if entry.name in places:
                twice.append((entry.name, places[entry.name], file))
            places.setdefault(entry.name, file)
    held = {(entry.name, file) for file, header in headers.items() for entry in header}
    said = sorted(index.items()) if index is not None else []
    absent = tuple((name, file) for name, file in said if file in headers and (name, file) not in held)
    unindexed = tuple(sorted((name, file) for name, file in places.items() if index is not None and name not in index))
    return Contradictions(tuple(sorted(twice)), absent, unindexed)


def read_local_shard(path: Path, told: str) -> tuple[Shard, tuple[HeaderEntry, ...], int]:
    """A local shard by its header: what it is, its tensors, and where its data starts."""
    try:
        with open_inside(path, told) as descriptor:
            status = disk.fstat(descriptor)
            length = read_header_length(_read_first(descriptor, 8), status.st_size, told)
            raw = _read_first(descriptor, 8 + length)
    except OSError as error:
        raise CheckpointError(f"{told} cannot be read: {error.strerror}.") from error
    entries = parse_header(raw, status.st_size, told)
    shard = Shard(path.name, status.st_size, hashlib.sha256(raw).hexdigest(), status.st_mtime_ns)
    return shard, entries, len(raw)


@contextlib.contextmanager
def open_inside(path: Path, told: str) -> Iterator[int]:
    """The descriptor of a file of a checkpoint: a regular one, which lies where the checkpoint does.

    Raises:
        CheckpointError: It is a pipe or a device, or a link that leads out of the checkpoint.
        OSError: It cannot be opened.
    """
    refuse_escape(path, told)
    # Without O_NONBLOCK, a pipe would be waited for.
    descriptor = disk.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kind = disk.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise CheckpointError(f"{told} is a pipe or a device.", remedy="put the file itself in its place.")
        yield descriptor
    finally:
        disk.close(descriptor)


def refuse_escape(path: Path, told: str) -> None:
    """Refuse a link that leads out of its checkpoint, which could bring any file of this machine into an output.

    A folder of the Hub's cache holds nothing but links, into the same cache.

    Raises:
        CheckpointError: Names the file, and where it leads.
    """
    if not path.is_symlink():
        return
    # Unlike pathlib's, it does not raise where a link leads to itself.
    folder, actual = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    is_snapshot = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    inside = folder.parents[2] if is_snapshot else folder
    if not actual.is_relative_to(inside):
        raise CheckpointError(
            f"{told} is a link that leads out of its folder.",
            where=str(actual),
            why="a link in a checkpoint could bring any file of this machine into the output.",
            remedy="put the file itself in the link's place.",
        )


def read_json_object(path: Path, told: str, bounds: Bounds = SMALL, *, unique: bool = False) -> dict[str, Any]:
    """A JSON object from a file that may say what it likes.

    Raises:
        CheckpointError: The file is missing, too large, or no JSON object, or has a key twice if it must be `unique`.
    """
    try:
        with open_inside(path, told) as descriptor:
            raw = _read_first(descriptor, min(disk.fstat(descriptor).st_size, bounds.nbytes + 1))
    except FileNotFoundError:
        raise CheckpointError(f"{told} does not exist.", remedy="name a folder that holds a whole model.") from None
    except OSError as error:
        raise CheckpointError(f"{told} cannot be read: {error.strerror}.") from error
    try:
        # Some editors put a byte order mark in front.
        return parse_object(raw.removeprefix(codecs.BOM_UTF8), bounds, unique=unique)
    except UntrustedError as error:
        raise CheckpointError(f"{told} {error}.", remedy="fetch the file again.") from None


def read_text(path: Path, told: str, most: int = SMALL.nbytes) -> str:
    """A text of a checkpoint; what is no UTF-8 in it is marked.

    Raises:
        CheckpointError: It cannot be read, or is larger than any such text.
    """
    try:
        with open_inside(path, told) as descriptor:
            raw = _read_first(descriptor, min(disk.fstat(descriptor).st_size, most + 1))
    except OSError as error:
        raise CheckpointError(f"{told} cannot be read: {error.strerror}.") from error
    if len(raw) > most:
        raise CheckpointError(f"{told} takes more than {most:,} bytes.", remedy="fetch the file again.")
    return raw.decode("utf-8-sig", "replace")


def _read_first(descriptor: int, count: int) -> bytes:
    """The first bytes of a file, fewer where it has fewer."""
    buffer = bytearray(count)
    return bytes(buffer[: read_into(descriptor, memoryview(buffer), 0)])


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


def read_weight_map(path: Path, told: str) -> dict[str, str]:
    """The index's tensor -> shard, each shard a plain file name beside the index."""
    weight_map = read_json_object(path, told, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{told} has no weight_map, and so names no shard.", remedy="fetch the file again.")
    for tensor, file in weight_map.items():
        if not is_tensor_name(tensor):
            raise CheckpointError(
                f"{told} names {tensor[:80]!r}, which is no name for a tensor.", remedy="fetch the file again."
            )
        if not is_plain_shard_name(file):
            raise CheckpointError(
                f"{told} places {tensor[:80]!r} in {str(file)[:80]!r}.",
                why="a shard is a plain file name that ends in .safetensors.",
                remedy="fetch the file again, from someone you trust.",
            )
    return weight_map


def list_names(folder: Path, label: str) -> list[str]:
    """The names of all files of a checkpoint, sorted."""
    try:
        return sorted(disk.listdir(folder))
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
    return CheckpointError(
        f"{label} holds no weights.",
        why=f"neither {SINGLE_NAME} nor {INDEX_NAME} is there.",
        remedy="name a folder with a model's weights in safetensors, or fetch the whole model again.",
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

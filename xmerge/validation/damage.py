"""A checkpoint that cannot be read as a whole: everything that is wrong with its files, and not only the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xmerge.checkpoints.checkpoint import (
    INDEX_NAME,
    find_contradictions,
    list_names,
    list_shards,
    read_config,
    read_local_shard,
    read_weight_map,
)
from xmerge.checkpoints.headers import HeaderEntry
from xmerge.errors import CheckpointError
from xmerge.validation.findings import Finding

FETCH = "fetch index and shards of one and the same revision."


def list_damage(folder: Path, label: str) -> Iterator[Finding]:
    """What keeps a checkpoint from being read: its config.json, its index, its shards, and where those disagree."""
    try:
        read_config(folder / "config.json", f"{label}/config.json")
    except CheckpointError as error:
        yield tell_damage(error)
    try:
        present = list_names(folder, label)
        index = read_weight_map(folder / INDEX_NAME, f"{label}/{INDEX_NAME}") if INDEX_NAME in present else None
        if index is None:
            list_shards(present, label, lambda name: folder / name)
    except CheckpointError as error:
        yield tell_damage(error)
        return
    headers: dict[str, tuple[HeaderEntry, ...]] = {}
    for name in sorted(set(index.values())) if index is not None else list_shards(present, label, Path)[0]:
        if name not in present:
            yield Finding(code="missing_shard", text=f"{name} is missing: the index names it.", remedy=FETCH)
            continue
        try:
            headers[name] = read_local_shard(folder / name, f"{label}/{name}")[1]
        except CheckpointError as error:
            yield tell_damage(error)
    yield from _list_contradictions(headers, index)


def tell_damage(error: CheckpointError, code: str = "damaged") -> Finding:
    """What a reader refused, as a finding."""
    text = "; ".join(part.rstrip(".") for part in (error.what, error.where, error.why) if part)
    return Finding(code=code, text=f"{text}.", remedy=error.remedy or "fetch or make it again.")


def _list_contradictions(
    headers: dict[str, tuple[HeaderEntry, ...]], index: dict[str, str] | None
) -> Iterator[Finding]:
    found = find_contradictions(headers, index)
    for tensor, first, second in found.twice:
        yield Finding(
            code="duplicate_tensor", text=f"'{tensor}' is in {first} and in {second}.", remedy=FETCH, tensor=tensor
        )
    for tensor, file in found.absent:
        yield Finding(
            code="missing_tensor",
            text=f"'{tensor}' is missing: the index places it in {file}, which does not hold it.",
            remedy=FETCH,
            tensor=tensor,
        )
    for tensor, file in found.unindexed:
        yield Finding(
            code="unindexed_tensor",
            text=f"'{tensor}' is in {file}, and the index does not name it: it is never read.",
            remedy=FETCH,
            tensor=tensor,
        )

"""What a plan needs of the Hub: which bytes of which shards, and whether whole shards are the better way to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from xmerge import hub
from xmerge.checkpoints.headers import DTYPE_BITS
from xmerge.planning.plan import MergePlan, Segment, list_segments

FetchMode = Literal["auto", "shards", "tensors"]
"""`shards`: whole shards, which the Hub cache keeps. `tensors`: only the bytes that are used, which go with the merge.
`auto`: tensors where less than half of a shard is used."""

FETCH_MODES: tuple[FetchMode, ...] = ("auto", "shards", "tensors")


class Download(NamedTuple):
    """A shard on the Hub that a plan reads."""

    model: int
    """Index among the plan's models."""
    file: str
    size: int
    """Bytes of the whole shard."""
    ranges: tuple[hub.Range, ...]
    """What the plan reads of it, in order."""
    cached: bool
    """Whether the local Hub cache has it: then nothing of it is fetched."""

    @property
    def used(self) -> int:
        """Bytes that the plan reads."""
        return sum(each.nbytes for each in self.ranges)

    def is_fetched_whole(self, mode: FetchMode) -> bool:
        """Whether the whole shard is fetched, if it is not in the cache."""
        return mode == "shards" or (mode == "auto" and 2 * self.used >= self.size)

    def bytes_fetched(self, mode: FetchMode) -> int:
        """Bytes that a merge would fetch of it."""
        if self.cached:
            return 0
        return self.size if self.is_fetched_whole(mode) else self.used


def list_downloads(plan: MergePlan) -> Iterator[Download]:
    """Every shard on the Hub that a plan reads, model by model."""
    ranges: dict[tuple[int, str], list[hub.Range]] = {}
    for tensor in plan.tensors:
        for index, segment in list_segments(tensor):
            ranges.setdefault((index, segment.file), []).append(find_range(segment))
    for index, model in enumerate(plan.models):
        if model.repo is None or model.commit is None:
            continue
        sizes = {file: size for file, size, _, _ in model.shards}
        for file in model.files:
            cached = hub.is_cached(model.repo, model.commit, file, sizes[file])
            yield Download(index, file, sizes[file], tuple(hub.join_ranges(ranges[index, file])), cached)


def find_range(segment: Segment) -> hub.Range:
    """The bytes of a shard from the first that a segment reads to its last."""
    reach = 1 + sum((count - 1) * step for count, step, _ in segment.order) if segment.order else segment.elements
    return hub.Range(segment.offset, segment.offset + reach * DTYPE_BITS[segment.dtype] // 8)

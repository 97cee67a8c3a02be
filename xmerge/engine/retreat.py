"""Going on where a device runs out of memory: with smaller blocks, and at last on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch

from xmerge.engine.reading import OpenSources
from xmerge.engine.results import TensorResult
from xmerge.engine.rules import RuleMerger
from xmerge.engine.shard import ShardWriter
from xmerge.errors import StorageError
from xmerge.planning.memory import BLOCK_ELEMENTS
from xmerge.planning.plan import MergePlan, TensorPlan

SMALLER = (1, 8, 64)
"""What the blocks of a device are divided by, one after another, until they fit."""


class Step(NamedTuple):
    """Where to compute, and how many numbers at a time."""

    device: torch.device
    block: int

    def __str__(self) -> str:
        return f"blocks of {self.block:,} numbers on {self.device}"


def list_steps(device: torch.device) -> list[Step]:
    """What is tried, one after another: the device with smaller and smaller blocks, then the CPU."""
    cpu = Step(torch.device("cpu"), BLOCK_ELEMENTS["cpu"])
    if device.type == "cpu":
        return [cpu]
    return [*(Step(device, BLOCK_ELEMENTS[device.type] // part) for part in SMALLER), cpu]


class PatientMerger:
    """Merges tensors as `RuleMerger` does, and takes the next step where a device has no memory left."""

    def __init__(self, plan: MergePlan, sources: OpenSources, device: torch.device) -> None:
        self._plan, self._sources = plan, sources
        self._steps = list_steps(device)
        self._merger: RuleMerger | None = None
        self.notes: list[str] = []
        """Each step that was taken, in words."""

    @property
    def device(self) -> torch.device:
        """Where it computes now."""
        return self._steps[0].device

    def combine(self, tensor: TensorPlan, shard: ShardWriter) -> TensorResult:
        """Write one merged tensor into its shard.

        Raises:
            StorageError: There is too little memory, on the CPU too.
            XmergeError: As `RuleMerger.combine`.
        """
        while True:
            try:
                if self._merger is None:
                    self._merger = RuleMerger(self._plan, self._sources, *self._steps[0])
                return self._merger.combine(tensor, shard)
            except (RuntimeError, MemoryError) as error:
                if not _tells_of_memory(error):
                    raise
                self._merger = None
            # Outside of the handler, whose error holds on to what was allocated.
            self._retreat(tensor)
            shard.restart(tensor.name)

    def _retreat(self, tensor: TensorPlan) -> None:
        failed = self._steps.pop(0)
        if failed.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._steps:
            raise StorageError(
                f"there is too little memory to merge {tensor.name}.",
                why=f"{failed} did not fit.",
                remedy="use fewer workers, and run again: finished layers are kept.",
            )
        self.notes.append(f"{failed.device} ran out of memory at {tensor.name}: {self._steps[0]} from there on")


def _tells_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on the CPU torch says so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

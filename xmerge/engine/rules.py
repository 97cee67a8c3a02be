"""Merging by a rule: statistics of the whole tensor by streaming over its inputs, then a pass that writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from xmerge.engine.combine import FLOAT32_DIGITS, Combiner, compare, list_measured, round_digits
from xmerge.engine.randomness import Dice, Mask, make_dice
from xmerge.engine.results import TensorResult
from xmerge.engine.selection import TopValues, select_largest
from xmerge.engine.shard import ShardWriter
from xmerge.interrupt import check_stop
from xmerge.methods import Block, find_method
from xmerge.planning.memory import MASK_BYTES
from xmerge.planning.plan import TensorPlan

LEAST_INTEGER = -(2**31)

SAMPLE_RUN = 512
"""How many elements of a sample stand together; of a rule that wants rows, a row."""


class RuleMerger(Combiner):
    """Combines the tensors of one layer, and merges those whose method is a rule."""

    def combine(self, tensor: TensorPlan, shard: ShardWriter) -> TensorResult:
        """Write one merged tensor into its shard.

        Raises:
            CheckpointError: An input holds NaN or infinity.
            InvalidMergeError: The output does, though no input did; or the rule cannot be carried out.
        """
        method = find_method(tensor.method)
        if not method.is_rule:
            return super().combine(tensor, shard)
        streamed = self.stream(tensor, by_rows=method.by_rows)
        rule = method.rule(streamed, dict(tensor.parameters))
        tally = _Tally(tensor)
        for block in streamed.blocks():
            inputs = [each.reshape(-1) for each in block.inputs]
            made = tally.add(rule(block).reshape(-1), inputs)
            for at in range(0, made.numel(), self._block):
                self._write(tensor, block.start + at, made[at : at + self._block], shard)
        return tally.tell(self._compare_biases(tensor, tally.squares, FLOAT32_DIGITS))

    def stream(self, tensor: TensorPlan, *, by_rows: bool) -> StreamedTensor:
        """A tensor as a rule sees it, and no other from now on."""
        self._reader.open(tensor.sources)
        return StreamedTensor(self, tensor, by_rows=by_rows)

    def read_blocks(self, tensor: TensorPlan, row: int, *, check: bool) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """(first element, each input's elements in float32) of the blocks of a tensor, whole rows in each.

        A row that is longer than a block is a block of its own; a tensor without elements is one block without any.

        Raises:
            CheckpointError: An input holds NaN or infinity, if they are to be checked.
        """
        step = max(self._block // row, 1) * row
        for start in range(0, max(tensor.elements, 1), step):
            yield start, self.read_block(tensor, start, min(step, tensor.elements - start), check=check)

    def read_block(self, tensor: TensorPlan, start: int, count: int, *, check: bool) -> list[torch.Tensor]:
        """Each input's elements from one on, in float32; valid until the next block is read.

        Raises:
            CheckpointError: An input holds NaN or infinity, if they are to be checked.
        """
        read = []
        for number, source in enumerate(tensor.sources):
            out = self._buffer_of(f"input{number}", count)[:count]
            for at in range(0, count, self._block):
                check_stop()
                self._reader.read(source, start + at, out[at : at + self._block])
            if check and tensor.on_nonfinite != "propagate":
                self._refuse_nonfinite_input(tensor, number, start, out)
            read.append(out)
        return read

    def read_runs(self, tensor: TensorPlan, starts: Sequence[int], run: int) -> Iterator[list[torch.Tensor]]:
        """Each input's elements in float32 of runs of one length, as many of them at a time as a block has room for."""
        many = max(self._block // run, 1)
        for first in range(0, len(starts), many):
            part = starts[first : first + many]
            read = [
                self._buffer_of(f"input{i}", len(part) * run)[: len(part) * run] for i in range(len(tensor.sources))
            ]
            for source, out in zip(tensor.sources, read, strict=True):
                for place, start in enumerate(part):
                    check_stop()
                    self._reader.read(source, start, out[place * run : (place + 1) * run])
            yield read

    def _buffer_of(self, name: str, elements: int) -> torch.Tensor:
        """A buffer of float32 that is as long as the longest row asked for."""
        key = (name, torch.float32)
        if key not in self._buffers or self._buffers[key].numel() < elements:
            self._buffers[key] = torch.empty(max(elements, self._block), dtype=torch.float32, device=self._device)
        return self._buffers[key]

    def _refuse_nonfinite_input(self, tensor: TensorPlan, number: int, start: int, read: torch.Tensor) -> None:
        # A sum is cheap and is finite unless something in it is not, or it is very large.
        if not math.isfinite(read.sum().item()):
            bad = (~torch.isfinite(read)).nonzero()
            if bad.numel():
                raise self._nonfinite_input(tensor, number, start + int(bad[0]))


class _Tally:
    """What is told of a tensor, summed while it is written."""

    def __init__(self, tensor: TensorPlan) -> None:
        self._tensor, self._measured = tensor, list_measured(tensor)
        self.squares = [0.0] * len(tensor.sources)
        self._yy = self._yb = 0.0
        self._changed = 0

    def add(self, made: torch.Tensor, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Count a block, and give it back with the base's own zeros where they are equal: its -0 stays -0."""
        for number in self._measured:
            self.squares[number] += torch.dot(inputs[number], inputs[number]).item()
        if self._tensor.base is None:
            return made
        base = inputs[self._tensor.base]
        self._yy += torch.dot(made, made).item()
        self._yb += torch.dot(made, base).item()
        # Numbers, not booleans, which torch works on several times as slowly.
        self._changed += int(torch.ne(made, base, out=torch.empty_like(made)).sum())
        return base.where(made == base, made) if _has_negative_zero(base) else made

    def tell(self, bias_ratios: tuple[float | None, ...]) -> TensorResult:
        """What has become of the tensor."""
        tensor = self._tensor
        if tensor.base is None:
            return TensorResult(name=tensor.name, bias_ratios=bias_ratios)
        cosine, ratio = compare((self._yy, self._yb, self.squares[tensor.base]), FLOAT32_DIGITS)
        changed = round_digits(self._changed / max(tensor.elements, 1))
        return TensorResult(name=tensor.name, cosine=cosine, norm_ratio=ratio, changed=changed, bias_ratios=bias_ratios)


class StreamedTensor:
    """A tensor as a rule sees it."""

    def __init__(self, merger: RuleMerger, tensor: TensorPlan, *, by_rows: bool) -> None:
        self._merger, self._tensor, self._by_rows = merger, tensor, by_rows
        self._checked = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the output."""
        return self._tensor.shape

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return self._tensor.elements

    @property
    def count(self) -> int:
        """How many inputs there are, the base included."""
        return len(self._tensor.sources)

    def blocks(self) -> Iterator[Block]:
        """All blocks in order; the first time they are read, their numbers are checked."""
        for start, inputs in self._merger.read_blocks(self._tensor, self._row, check=not self._checked):
            yield self._show(start, inputs)
        self._checked = True

    def sample(self, elements: int) -> Iterator[Block]:
        """Runs from all over it with about so many elements together, as blocks whose start means nothing."""
        run = min(self._row if self._by_rows else SAMPLE_RUN, self.elements)
        whole = self.elements // run
        runs = min(max(elements // run, 1), whole)
        starts = [number * whole // runs * run for number in range(runs)]
        for inputs in self._merger.read_runs(self._tensor, starts, run):
            yield self._show(0, inputs)

    def _show(self, start: int, inputs: Sequence[torch.Tensor]) -> Block:
        return Block(start, [each.view(-1, self._row) for each in inputs] if self._by_rows else inputs)

    @property
    def _row(self) -> int:
        return max(self.shape[-1], 1) if self._by_rows and self.shape else 1

    def total(self, measure: Callable[[Block], Sequence[torch.Tensor]]) -> list[float]:
        """The sum over all elements of each tensor that `measure` gives, in float64."""
        sums = [[each.sum(dtype=torch.float64).item() for each in measure(block)] for block in self.blocks()]
        return [math.fsum(column) for column in zip(*sums, strict=True)]

    def largest(
        self, values: Callable[[Block], Sequence[torch.Tensor]], wanted: Sequence[tuple[int, int]]
    ) -> list[TopValues]:
        """Select exactly the k largest."""
        return select_largest(self, values, wanted)

    def chance(self, donor: int, probability: float, block: Block) -> torch.Tensor:
        """Which elements of a block a donor keeps with a probability: 1 or 0."""
        start, count = block.start, block.base.numel()
        kept = self._drawn.recall(
            (donor, probability, start, count), lambda: self._dice[donor].keep(probability, start, count)
        )
        return _as_numbers(kept, block)

    def chance_by_rank(self, donor: int, middle: float, spread: float, block: Block) -> torch.Tensor:
        """The same with a probability that grows with the rank of a task vector's magnitude in its row."""
        start, donors, base = block.start, block.inputs[donor], block.base
        kept = self._drawn.recall(
            (donor, middle, spread, start, base.numel()),
            lambda: self._dice[donor].keep_by_rank(middle, spread, start, donors, base),
        )
        return _as_numbers(kept, block)

    @cached_property
    def _drawn(self) -> _Drawn:
        return _Drawn()

    @cached_property
    def _dice(self) -> Mapping[int, Dice]:
        return make_dice(self._tensor)


class _Drawn:
    """Masks that were drawn, a bit for each element, as far as there is room; the others are drawn again."""

    def __init__(self) -> None:
        self._masks: dict[tuple[float, ...], NDArray[np.uint8]] = {}
        self._room = MASK_BYTES

    def recall(self, key: tuple[float, ...], draw: Callable[[], Mask]) -> Mask:
        """The mask of a key, which ends with the number of its elements."""
        if key in self._masks:
            return np.unpackbits(self._masks[key], count=int(key[-1])).view(np.bool_)
        drawn = draw()
        packed = np.packbits(drawn)
        if packed.nbytes <= self._room:
            self._masks[key] = packed
            self._room -= packed.nbytes
        return drawn


def _has_negative_zero(numbers: torch.Tensor) -> bool:
    """Whether one of some float32 numbers is -0, whose bits as an integer are the least there is."""
    return numbers.numel() > 0 and int(numbers.view(torch.int32).min()) == LEAST_INTEGER


def _as_numbers(kept: Mask, block: Block) -> torch.Tensor:
    """A mask in float32, which multiplies five times as fast as one of booleans, in the shape of a block."""
    return torch.from_numpy(kept.view(np.uint8)).to(block.base.device, torch.float32).view(block.base.shape)

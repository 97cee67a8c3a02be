"""Merging by a rule: statistics of the whole tensor by streaming over its inputs, then a pass that writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from xmerge.engine.combine import FLOAT32_DIGITS, Combiner, compare, list_measured, round_digits
from xmerge.engine.results import TensorResult
from xmerge.engine.shard import ShardWriter
from xmerge.interrupt import check_stop
from xmerge.methods import Block, find_method
from xmerge.planning.plan import TensorPlan

HIGH_BITS = 16
LOW_BITS = 15
"""A float32 that is not negative has 31 bits, and they are ordered as the number is."""


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
        buffers = [self._buffer_of(f"input{number}", step) for number in range(len(tensor.sources))]
        for start in range(0, max(tensor.elements, 1), step):
            count = min(step, tensor.elements - start)
            for number, source in enumerate(tensor.sources):
                for at in range(0, count, self._block):
                    check_stop()
                    self._reader.read(source, start + at, buffers[number][at : min(at + self._block, count)])
                if check:
                    self._refuse_nonfinite_input(tensor, number, start, buffers[number][:count])
            yield start, [buffer[:count] for buffer in buffers]

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
        same = made == base
        self._changed += made.numel() - int(same.sum())
        return base.where(same, made)

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
        row = max(self.shape[-1], 1) if self._by_rows and self.shape else 1
        for start, inputs in self._merger.read_blocks(self._tensor, row, check=not self._checked):
            yield Block(start, [each.view(-1, row) for each in inputs] if self._by_rows else inputs)
        self._checked = True

    def total(self, measure: Callable[[Block], Sequence[torch.Tensor]]) -> list[float]:
        """The sum over all elements of each tensor that `measure` gives, in float64."""
        sums = [[each.sum(dtype=torch.float64).item() for each in measure(block)] for block in self.blocks()]
        return [math.fsum(column) for column in zip(*sums, strict=True)]

    def largest(
        self, values: Callable[[Block], Sequence[torch.Tensor]], wanted: Sequence[tuple[int, int]]
    ) -> list[TopValues]:
        """Select exactly the k largest, by two histograms of the bits of the numbers."""
        high: dict[int, torch.Tensor] = {}
        wanted = [(which, min(k, self.elements)) for which, k in wanted]
        for block in self.blocks():
            for which, each in enumerate(values(block)):
                counted = torch.bincount(_bits(each) >> LOW_BITS, minlength=1 << HIGH_BITS).cpu()
                high[which] = high[which] + counted if which in high else counted
        places = [_find_bin(high[which], k) if which in high else (0, 0) for which, k in wanted]
        low = [torch.zeros(1 << LOW_BITS, dtype=torch.int64) for _ in wanted]
        for block in self.blocks():
            given = [_bits(each) for each in values(block)]
            for number, ((which, _), (top, _)) in enumerate(zip(wanted, places, strict=True)):
                inside = given[which][given[which] >> LOW_BITS == top] & ((1 << LOW_BITS) - 1)
                low[number] += torch.bincount(inside, minlength=1 << LOW_BITS).cpu()
        selections = []
        for (_, k), (top, above), histogram in zip(wanted, places, low, strict=True):
            bottom, above_in_bin = _find_bin(histogram, k - above)
            selections.append(TopValues((top << LOW_BITS) | bottom, k - above - above_in_bin, k))
        return selections


class TopValues:
    """The k largest of a tensor's numbers: all above a threshold, and the first of those that equal it."""

    def __init__(self, threshold: int, ties: int, k: int) -> None:
        self._threshold, self._ties, self._k = threshold, ties, k
        self._seen = 0

    @property
    def threshold(self) -> float:
        """The k-th largest number; infinity where k is 0."""
        if self._k <= 0:
            return math.inf
        return torch.tensor(self._threshold, dtype=torch.int32).view(torch.float32).item()

    def mask(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Which of a block's numbers are among them."""
        if start == 0:
            self._seen = 0
        bits = _bits(values).view(values.shape)
        if self._k <= 0:
            return torch.zeros_like(bits, dtype=torch.bool)
        kept = bits > self._threshold
        equal = bits == self._threshold
        count = int(equal.sum())
        left = self._ties - self._seen
        self._seen += count
        if count <= left:
            return kept | equal
        if left <= 0:
            return kept
        first = equal.reshape(-1).cumsum(0).le(left).view(equal.shape)
        return kept | (equal & first)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """The bits of float32 numbers that are not negative, one-dimensional; -0 counts as 0."""
    return values.contiguous().view(torch.int32).reshape(-1) & 0x7FFFFFFF


def _find_bin(histogram: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest number, and how many lie in the bins above it."""
    if k <= 0:
        return len(histogram) - 1, 0
    above = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, k))
    before = int(above[place - 1]) if place > 0 else 0
    return len(histogram) - 1 - place, before

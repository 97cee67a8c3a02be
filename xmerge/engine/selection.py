"""The k largest of a tensor's numbers, exactly, from one reading of it and without sorting it.

A sample brackets the k-th largest number. Reading the tensor then counts what is above the bracket and keeps what is in
it, a few numbers of a thousand. Where the bracket turns out to be wrong or too full, histograms of the numbers' bits
find the k-th largest in two more readings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from xmerge.methods import Block

Values: TypeAlias = Callable[[Block], Sequence[torch.Tensor]]

SAMPLE = 2**17
"""How many numbers a sample has at least; of a tensor that has not many more all are kept."""
SAMPLE_SHARE = 2**-9
"""Which share of a very large tensor a sample is."""
DEVIATIONS = 8.0
"""How far a bracket reaches to either side, in standard deviations of a sample of independent numbers."""
KEPT = 2**22
"""How many numbers of a bracket are kept one by one, and beyond that how many different ones for each block."""

SMALLEST = float(np.finfo(np.float32).smallest_subnormal)

HIGH_BITS = 16
LOW_BITS = 15
"""A float32 that is not negative has 31 bits, and they are ordered as the number is."""


class Readable(Protocol):
    """A tensor that can be read in blocks, as often as is needed."""

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        ...

    def blocks(self) -> Iterator[Block]:
        """All of it, in order."""
        ...

    def sample(self, elements: int) -> Iterator[Block]:
        """Runs from all over it with about so many elements together, as blocks whose start means nothing."""
        ...


class TopValues:
    """The k largest of a tensor's numbers: all above a threshold, and the first of those that equal it."""

    def __init__(self, threshold: float, start: int = 0, equal: int = 0) -> None:
        """Take over what was found.

        Args:
            threshold: The k-th largest number, a float32; infinity where k is 0.
            start: In which block, by its place, those that equal it begin to be too many.
            equal: How many of those are among the largest in that block.
        """
        self.threshold, self._start, self._equal = threshold, start, equal
        self._below = float(np.nextafter(np.float32(threshold), np.float32(-1)))
        self._end: int | None = None if equal else 0
        """Up to which place of the tensor they are; None: it is found when that block comes."""

    def mask(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Which of a block's numbers are among them."""
        kept = values > self.threshold
        cut = self._cut(values, start)
        if cut > 0:
            kept.view(-1)[:cut] = values.reshape(-1)[:cut] >= self.threshold
        return kept

    def trim(self, numbers: torch.Tensor, start: int) -> torch.Tensor:
        """Numbers of either sign, with 0 for those whose magnitude is not among them."""
        if self.threshold == 0.0:
            return numbers
        cut = self._cut(numbers, start)
        if cut == numbers.numel():
            return numbers.hardshrink(self._below)
        trimmed = numbers.hardshrink(self.threshold)
        if cut > 0:
            trimmed.view(-1)[:cut] = numbers.reshape(-1)[:cut].hardshrink(self._below)
        return trimmed

    def _cut(self, numbers: torch.Tensor, start: int) -> int:
        """How many of a block's first numbers are among the largest if they equal the threshold."""
        count = numbers.numel()
        if self._end is None:
            if start + count <= self._start:
                return count
            assert start == self._start, "blocks come in the order and of the size in which they were selected from"
            places = (numbers.reshape(-1).abs() == self.threshold).nonzero()
            self._end = start + int(places[self._equal - 1]) + 1
        return min(max(self._end - start, 0), count)


def select_largest(tensor: Readable, values: Values, wanted: Sequence[tuple[int, int]]) -> list[TopValues]:
    """Select exactly.

    Args:
        tensor: What is read.
        values: For a block the tensors to select from: float32, no number below 0.
        wanted: For each selection which of these tensors, and k.
    """
    searches = [_Search(which, min(k, tensor.elements)) for which, k in wanted]
    open_ = [search for search in searches if search.k > 0]
    if open_:
        if tensor.elements > 4 * SAMPLE:
            _bracket(tensor, values, open_)
        _search(tensor, values, open_)
        missed = [search for search in open_ if search.found is None]
        if missed:
            _narrow(tensor, values, missed)
            _search(tensor, values, missed)
    return [search.found or TopValues(math.inf) for search in searches]


class _Search:
    """The search for a k-th largest number in a bracket; both of its ends are in it."""

    def __init__(self, which: int, k: int) -> None:
        self.which, self.k = which, k
        self.found: TopValues | None = None
        self.start(0.0, math.inf)

    def start(self, low: float, high: float) -> None:
        """Look between two numbers."""
        self.low, self.high = low, high
        self._above = 0
        self._blocks: list[_Inside] = []
        self._stored = 0

    def add(self, values: torch.Tensor, start: int) -> None:
        """Count what a block has above the bracket, and keep what it has inside."""
        above, inside = _split(values, self.low, self.high)
        self._above += above
        if self._gives_up:
            return
        counts: NDArray[np.intp] | None = None
        if self.low == self.high or self._stored > KEPT:
            inside, counts = np.unique(inside, return_counts=True)
        # What is neither above nor inside is below; it is 0 if the bracket reaches down to that.
        zeros = values.numel() - above - (inside.size if counts is None else int(counts.sum()))
        self._blocks.append(_Inside(start, inside, counts, zeros))
        self._stored += inside.size

    def settle(self) -> None:
        """Find the threshold, if it is in the bracket."""
        rank = self.k - self._above
        if rank <= 0 or self._gives_up:
            return
        numbers = np.concatenate([block.numbers for block in self._blocks])
        counts = np.concatenate([block.repeats for block in self._blocks])
        inside = int(counts.sum())
        if rank <= inside:
            threshold = _find_largest(numbers, counts, rank)
            self._accept(threshold, rank - int(counts[numbers > threshold].sum()))
        elif self.low == 0.0:
            self._accept(0.0, rank - inside)

    def _accept(self, threshold: float, equal: int) -> None:
        """Find the block in which the first `equal` numbers that equal the threshold end."""
        for block in self._blocks:
            found = block.count(threshold)
            if equal <= found:
                self.found = TopValues(threshold, block.start, equal)
                return
            equal -= found

    @property
    def _gives_up(self) -> bool:
        """Whether the bracket holds too much; one of a single number never does."""
        return self._stored > 2 * KEPT and self.low < self.high


@dataclass(frozen=True)
class _Inside:
    """What a block has inside a bracket, zeros apart."""

    start: int
    numbers: NDArray[np.float32]
    counts: NDArray[np.intp] | None
    """How often it has each of them; None: each stands for itself."""
    zeros: int

    @property
    def repeats(self) -> NDArray[np.intp]:
        """How often each number is there."""
        return np.ones(self.numbers.size, np.intp) if self.counts is None else self.counts

    def count(self, number: float) -> int:
        """How often a number is there."""
        return int(self.repeats[self.numbers == number].sum()) if number else self.zeros


def _bracket(tensor: Readable, values: Values, searches: Sequence[_Search]) -> None:
    """Begin each search where a sample has the number that it is for."""
    sampled: dict[int, list[NDArray[np.float32]]] = {search.which: [] for search in searches}
    for block in tensor.sample(max(SAMPLE, int(tensor.elements * SAMPLE_SHARE))):
        given = values(block)
        for which, parts in sampled.items():
            parts.append(_to_numpy(given[which]))
    for which, parts in sampled.items():
        numbers = np.sort(np.concatenate(parts))[::-1]
        for search in searches:
            if search.which == which:
                share = search.k / tensor.elements
                rank, reach = share * numbers.size, DEVIATIONS * math.sqrt(share * (1 - share) * numbers.size) + 1
                first, last = math.floor(rank - reach), math.ceil(rank + reach)
                search.start(
                    float(numbers[last]) if last < numbers.size else 0.0,
                    float(numbers[first]) if first >= 0 else math.inf,
                )


def _search(tensor: Readable, values: Values, searches: Sequence[_Search]) -> None:
    """Read everything once."""
    for block in tensor.blocks():
        given = values(block)
        for search in searches:
            search.add(given[search.which], block.start)
    for search in searches:
        search.settle()


def _narrow(tensor: Readable, values: Values, searches: Sequence[_Search]) -> None:
    """Let each search begin anew at the very number that it is for, found by histograms of the bits of all numbers."""
    high = [np.zeros(1 << HIGH_BITS, np.intp) for _ in searches]
    for block in tensor.blocks():
        given = values(block)
        for search, histogram in zip(searches, high, strict=True):
            counted = np.bincount(_bits(given[search.which]) >> LOW_BITS, minlength=1 << HIGH_BITS)
            np.add(histogram, counted, out=histogram)
    bins = [_find_bin(histogram, search.k) for search, histogram in zip(searches, high, strict=True)]
    low = [np.zeros(1 << LOW_BITS, np.intp) for _ in searches]
    for block in tensor.blocks():
        given = values(block)
        for search, histogram, (top, _) in zip(searches, low, bins, strict=True):
            bits = _bits(given[search.which])
            inside = bits[bits >> LOW_BITS == top] & np.uint32((1 << LOW_BITS) - 1)
            np.add(histogram, np.bincount(inside, minlength=1 << LOW_BITS), out=histogram)
    for search, histogram, (top, above) in zip(searches, low, bins, strict=True):
        bottom, _ = _find_bin(histogram, search.k - above)
        number = float(np.uint32(top << LOW_BITS | bottom).view(np.float32))
        search.start(number, number)


def _split(values: torch.Tensor, low: float, high: float) -> tuple[int, NDArray[np.float32]]:
    """How many numbers are above a bracket, and those inside it that are not 0."""
    least = max(low, SMALLEST)
    if values.device.type == "cpu":
        numbers = values.reshape(-1).numpy()
        top = numbers > np.float32(high)
        return int(np.count_nonzero(top)), numbers[np.flatnonzero((numbers >= np.float32(least)) ^ top)]
    above = values > high
    return int(above.sum()), _to_numpy(values[(values >= least) ^ above])


def _find_largest(numbers: NDArray[np.float32], counts: NDArray[np.intp], rank: int) -> float:
    """The rank-th largest of some numbers, each of which is there so often."""
    if numbers.size == int(counts.sum()):
        # numpy's selection takes 14 times as long as its sort where most numbers are there more than once.
        return float(np.sort(numbers)[numbers.size - rank])
    order = np.argsort(numbers)[::-1]
    return float(numbers[order][np.searchsorted(np.cumsum(counts[order]), rank)])


def _to_numpy(values: torch.Tensor) -> NDArray[np.float32]:
    """A copy, one-dimensional, where numpy can work on it."""
    copied: NDArray[np.float32] = values.detach().reshape(-1).cpu().numpy().copy()
    return copied


def _bits(values: torch.Tensor) -> NDArray[np.uint32]:
    """The bits of float32 numbers that are not negative; -0 counts as 0."""
    return _to_numpy(values).view(np.uint32) & np.uint32(0x7FFFFFFF)


def _find_bin(histogram: NDArray[np.intp], k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest number, and how many lie in the bins above it."""
    above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(above, k))
    return histogram.size - 1 - place, int(above[place - 1]) if place else 0

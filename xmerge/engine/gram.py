"""Inner products of a tensor's sources, or of their differences from the first: whole, by rows or by columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from xmerge.methods.contract import Axis

Blocks = Callable[[int], Iterator[tuple[int, Sequence[torch.Tensor]]]]
"""From the length of a row to the blocks of all sources in float64, each with its first element's place: whole rows,
or a part of one."""


class InnerProducts:
    """The Gram matrices of one tensor, each taken by one reading when it is first asked for.

    Args:
        shape: The tensor's.
        count: How many sources it has.
        blocks: What reads them; the blocks may be changed.
        device: Where they are.
    """

    def __init__(self, shape: Sequence[int], count: int, blocks: Blocks, device: torch.device) -> None:
        self._shape, self._count, self._blocks, self._device = shape, count, blocks, device
        self._found: dict[tuple[bool, Axis], torch.Tensor] = {}

    @property
    def whole(self) -> list[list[float]] | None:
        """The inner products of the whole sources, if they have been asked for."""
        found = self._found.get((False, None))
        return None if found is None else found.reshape(self._count, self._count).tolist()

    def measure(self, *, deltas: bool, axis: Axis) -> torch.Tensor:
        """The inner products in float64: [sources, sources, 1, 1], or with rows or columns for one of the 1s.

        Args:
            deltas: Of the differences from source 0, taken in float64; else of the sources.
            axis: Which slices.
        """
        key = (deltas, axis)
        if key not in self._found:
            self._found[key] = self._sum(deltas=deltas, axis=axis).cpu()
        return self._found[key]

    def _sum(self, *, deltas: bool, axis: Axis) -> torch.Tensor:
        columns, slices = arrange_slices(self._shape, axis)
        sums = torch.zeros((self._count, self._count, *slices), dtype=torch.float64, device=self._device)
        for start, vectors in self._blocks(columns):
            row, column = divmod(start, columns)
            if deltas:
                for each in vectors[1:]:
                    each.sub_(vectors[0])
            for i in range(int(deltas), self._count):
                for j in range(i, self._count):
                    _add_products(sums[i, j], vectors[i], vectors[j], row, column, columns)
        for i in range(self._count):
            for j in range(i):
                sums[i, j] = sums[j, i]
        return sums


def _add_products(sums: torch.Tensor, x: torch.Tensor, y: torch.Tensor, row: int, column: int, columns: int) -> None:
    """Add the products of a block to those of its rows, or of its columns."""
    by_column = sums.shape[1] > 1
    if x.numel() <= columns and not by_column:
        sums[row, 0] += torch.dot(x, y)
        return
    products = (x * y).view(-1, min(columns, x.numel()))
    if by_column:
        sums[0, column : column + products.shape[1]] += products.sum(0)
    else:
        sums[row : row + len(products), 0] += products.sum(1)


def arrange_slices(shape: Sequence[int], axis: Axis) -> tuple[int, tuple[int, int]]:
    """How long a row is, and how many slices there are: (1, 1), (rows, 1) or (1, columns)."""
    if axis is None or len(shape) < 2:
        return math.prod(shape), (1, 1)
    if axis == -1:
        return shape[-1], (math.prod(shape[:-1]), 1)
    columns = math.prod(shape[1:])
    # A single column is the whole, and read as one row it needs no sums over many.
    return (shape[0], (1, 1)) if columns == 1 else (columns, (1, columns))

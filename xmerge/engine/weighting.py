"""What each source is multiplied by in a block: a number, or a number for each row or column."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from xmerge.methods.contract import Coefficient

EXACT = 1e-12
"""Coefficients whose sum differs from 1 by less sum to 1."""


class Weighting:
    """The coefficients of a tensor's sources, and their sum, for one block after another.

    Args:
        coefficients: For each source a number, or float64 numbers: [rows, 1] or [1, columns].
        elements: How many numbers the tensor has.
        device: Where the blocks are.
    """

    def __init__(self, coefficients: Sequence[Coefficient], elements: int, device: torch.device) -> None:
        sliced = [each.shape for each in coefficients if isinstance(each, torch.Tensor)]
        self.columns = elements
        """How long the rows are of which a block has whole ones or a part of one."""
        if sliced:
            rows, columns = sliced[0]
            self.columns = columns if columns > 1 else elements // max(rows, 1)
            wide = [torch.as_tensor(each, dtype=torch.float64).expand(rows, columns) for each in coefficients]
            self._total: Coefficient = torch.stack(wide).sum(0).to(device, torch.float32)
            self._coefficients: list[Coefficient] = [each.to(device, torch.float32) for each in wide]
        else:
            total = math.fsum(map(float, coefficients))
            self._total = total if abs(total - 1.0) > EXACT else 1.0
            self._coefficients = list(coefficients)

    def cut(self, start: int, count: int) -> tuple[list[Coefficient], Coefficient]:
        """The coefficients of a block, and their sum: numbers, or float32 numbers [rows, 1] or [1, columns]."""
        row, column = divmod(start, max(self.columns, 1))
        rows, columns = max(count // max(self.columns, 1), 1), min(count, self.columns)

        def cut(each: Coefficient) -> Coefficient:
            if not isinstance(each, torch.Tensor):
                return each
            return each[row : row + rows] if len(each) > 1 else each[:, column : column + columns]

        return [cut(each) for each in self._coefficients], cut(self._total)


def multiply(block: torch.Tensor, coefficient: Coefficient) -> torch.Tensor:
    """Multiply a block in place by what `Weighting.cut` gave for it."""
    if not isinstance(coefficient, torch.Tensor):
        return block if coefficient == 1.0 else block.mul_(coefficient)
    rows, columns = coefficient.shape
    (block.view(-1, columns) if columns > 1 else block.view(rows, -1)).mul_(coefficient)
    return block


def average(coefficient: Coefficient) -> float:
    """A number that stands for a coefficient where there is room for one: the mean over its slices."""
    if not isinstance(coefficient, torch.Tensor):
        return coefficient
    return float(coefficient.mean()) if coefficient.numel() else 0.0

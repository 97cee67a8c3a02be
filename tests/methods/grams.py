"""Gram matrices for tests of methods alone: of given vectors, or given themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xmerge.methods.contract import Axis, Gram


def know_gram(products: Sequence[Sequence[float]]) -> Gram:
    """A Gram matrix of whole tensors that is given number by number."""

    def measure(*, deltas: bool, axis: Axis) -> list[list[torch.Tensor]]:
        assert not deltas
        assert axis is None
        return [[torch.tensor([[number]], dtype=torch.float64) for number in row] for row in products]

    return Gram(measure)


def gram_of(inputs: Sequence[torch.Tensor | Sequence[float]], *, has_base: bool = False) -> Gram:
    """The Gram matrix of some tensors, whole or by slices, straight from its definition."""
    tensors = [torch.as_tensor(each, dtype=torch.float64) for each in inputs]

    def measure(*, deltas: bool, axis: Axis) -> list[list[torch.Tensor]]:
        vectors = [each - tensors[0] for each in tensors] if deltas else tensors
        return [[_multiply(x, y, axis) for y in vectors] for x in vectors]

    return Gram(measure, has_base=has_base)


def _multiply(x: torch.Tensor, y: torch.Tensor, axis: Axis) -> torch.Tensor:
    if axis is None or x.dim() < 2:
        return (x * y).sum().view(1, 1)
    summed = (x * y).sum(axis)
    return summed.reshape(-1, 1) if axis == -1 else summed.reshape(1, -1)


def combine(coefficients: Sequence[float | torch.Tensor], inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors, each times its coefficient or those of its slices, in float64."""
    total = torch.zeros_like(inputs[0], dtype=torch.float64)
    for coefficient, x in zip(coefficients, inputs, strict=True):
        if isinstance(coefficient, torch.Tensor):
            rows, columns = coefficient.shape
            wide = x.double().reshape((rows, -1) if columns == 1 else (-1, columns))
            total += (coefficient * wide).view(x.shape)
        else:
            total += coefficient * x.double()
    return total

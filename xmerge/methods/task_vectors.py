"""What the methods on task vectors share: weights, the election of signs, and the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xmerge.methods.contract import Block, Rule, Selection, Streamed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SMALLEST_SUM = 1e-7
"""Sums of magnitudes below it are not rescaled, as in mergekit."""


def add_task_vectors(
    sparse: Callable[[Block], Sequence[Tensor]],
    weight: Sequence[float],
    *,
    elect: bool,
    normalize: bool,
    scale: float,
) -> Rule:
    """The rule that adds weighted task vectors to the base: y = base + scale * sum_i w_i d_i / divisor.

    Args:
        sparse: The donors' task vectors in a block, as far as they are kept.
        weight: One for each input; the base's counts for nothing.
        elect: Whether each element keeps only the vectors that agree with the sign of their weighted sum (TIES).
        normalize: Whether to divide by the sum of the weights of those that are kept; by 1 where that is 0.
        scale: `lambda`.
    """
    weights = list(weight[1:])

    def add(block: Block) -> Tensor:
        weighted = [delta * w for delta, w in zip(sparse(block), weights, strict=True)]
        total = _sum(weighted)
        if elect:
            # A sum of 0 counts as positive, and an element that is 0 agrees with no sign.
            positive = total >= 0
            agreeing = [(each > 0) & positive | (each < 0) & ~positive for each in weighted]
            total = _sum([each * agrees for each, agrees in zip(weighted, agreeing, strict=True)])
            if normalize:
                divisor = _sum([agrees.float() * w for agrees, w in zip(agreeing, weights, strict=True)])
                total = total / divisor.masked_fill(divisor == 0, 1.0)
        elif normalize and abs(sum(weights)) >= 1e-8:
            total = total / sum(weights)
        return block.base + total * scale

    return add


def keep_largest(tensor: Streamed, density: Sequence[float], *, rescale: bool) -> Callable[[Block], Sequence[Tensor]]:
    """The task vectors' int(density * n) largest numbers, everything else 0.

    Args:
        tensor: What is merged.
        density: One for each input; the base's counts for nothing.
        rescale: Whether what is kept is multiplied so that its magnitudes have the sum of all.
    """
    shares = density[1:]
    trimmed = [donor for donor, share in enumerate(shares) if share < 1.0]
    wanted = [(donor, int(shares[donor] * tensor.elements)) for donor in trimmed]
    chosen = dict(zip(trimmed, tensor.largest(_magnitudes, wanted), strict=True)) if wanted else {}

    def keep(block: Block) -> list[Tensor]:
        return [_mask(delta, chosen.get(donor), block.start) for donor, delta in enumerate(block.deltas)]

    return rescale_sparse(tensor, keep) if rescale and chosen else keep


def rescale_sparse(tensor: Streamed, keep: Callable[[Block], Sequence[Tensor]]) -> Callable[[Block], Sequence[Tensor]]:
    """Give each sparse task vector the sum of magnitudes that the whole one has, unless one of the two is nearly 0."""

    def measure(block: Block) -> list[Tensor]:
        return [each.abs() for pair in zip(block.deltas, keep(block), strict=True) for each in pair]

    sums = tensor.total(measure)
    factors = [
        whole / kept if whole >= SMALLEST_SUM and kept >= SMALLEST_SUM else 1.0
        for whole, kept in zip(sums[::2], sums[1::2], strict=True)
    ]
    return lambda block: [each * factor for each, factor in zip(keep(block), factors, strict=True)]


def _magnitudes(block: Block) -> list[Tensor]:
    return [delta.abs() for delta in block.deltas]


def _mask(delta: Tensor, selection: Selection | None, start: int) -> Tensor:
    return delta if selection is None else delta * selection.mask(delta.abs(), start)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """The sum in the order of the donors."""
    total = tensors[0].clone()
    for each in tensors[1:]:
        total += each
    return total

"""What the methods on task vectors share: which of their numbers are kept, the election of signs, and the sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xmerge.methods.arithmetic import add_up
from xmerge.methods.contract import Block, ParameterError, Rule, Streamed

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_SUM = 1e-7
"""Sums of magnitudes below it are not rescaled, as in mergekit."""


@dataclass(frozen=True)
class Sparse:
    """Task vectors of which only a part is kept."""

    keep: Callable[[Block], Sequence[Tensor]]
    """The donors' vectors in a block, 0 where nothing is kept; they are the caller's to change."""
    factors: Sequence[float]
    """What each is to be multiplied by."""


def add_task_vectors(sparse: Sparse, weight: Sequence[float], *, elect: bool, normalize: bool, scale: float) -> Rule:
    """The rule that adds weighted task vectors to the base: y = base + scale * sum_i w_i d_i / divisor.

    Args:
        sparse: The donors' task vectors, as far as they are kept.
        weight: One for each input; the base's counts for nothing.
        elect: Whether each element keeps only the vectors that agree with the sign of their weighted sum (TIES).
        normalize: Whether to divide by the sum of the weights of those that are kept; by 1 where that is 0.
        scale: `lambda`.
    """
    weights = list(weight[1:])
    factors = [w * factor for w, factor in zip(weights, sparse.factors, strict=True)]
    whole = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1.0

    def add(block: Block) -> Tensor:
        weighted = [each.mul_(factor) for each, factor in zip(sparse.keep(block), factors, strict=True)]
        total = _elect(weighted, weights if normalize else None) if elect else add_up(weighted).div_(whole)
        return total.mul_(scale).add_(block.base)

    return add


def keep_largest(tensor: Streamed, density: Sequence[float], *, rescale: bool) -> Sparse:
    """The task vectors' int(density * n) largest numbers.

    Args:
        tensor: What is merged.
        density: One for each input; the base's counts for nothing.
        rescale: Whether what is kept is multiplied so that its magnitudes have the sum of all.
    """
    return keep_between(tensor, density, [0.0] * len(density), rescale=rescale)


def keep_between(tensor: Streamed, density: Sequence[float], gamma: Sequence[float], *, rescale: bool) -> Sparse:
    """The int(density * n) largest numbers of the task vectors that are left when int(gamma * n) larger ones are not.

    Where so many are not left, fewer of the larger ones go.
    """
    trimmed = [donor for donor, share in enumerate(density[1:]) if share < 1.0]
    wanted = []
    for donor in trimmed:
        kept = int(density[donor + 1] * tensor.elements)
        larger = min(int(gamma[donor + 1] * tensor.elements), tensor.elements - kept)
        wanted += [(donor, larger), (donor, larger + kept)]
    selections = tensor.largest(lambda block: [delta.abs_() for delta in block.deltas], wanted) if wanted else []
    pairs = dict(zip(trimmed, zip(wanted[::2], selections[::2], selections[1::2], strict=True), strict=True))

    def keep(block: Block) -> list[Tensor]:
        vectors = block.deltas
        for donor, ((_, larger), outliers, selection) in pairs.items():
            kept = selection.trim(vectors[donor], block.start)
            vectors[donor] = kept - outliers.trim(vectors[donor], block.start) if larger else kept
        return vectors

    return _rescale(tensor, keep) if rescale and trimmed else Sparse(keep, [1.0] * (tensor.count - 1))


def keep_by_chance(tensor: Streamed, density: Sequence[float], *, rescale: bool) -> Sparse:
    """The numbers of the task vectors that a draw leaves, each with the probability `density`."""
    return _keep_drawn(tensor, density, tensor.chance, rescale=rescale)


def keep_by_rank(tensor: Streamed, density: Sequence[float], epsilon: Sequence[float], *, rescale: bool) -> Sparse:
    """The same, with probabilities from density - epsilon to density + epsilon by the magnitude's rank in its row."""

    def draw(donor: int, share: float, block: Block) -> Tensor:
        return tensor.chance_by_rank(donor, share, epsilon[donor], block)

    return _keep_drawn(tensor, density, draw, rescale=rescale)


def _keep_drawn(
    tensor: Streamed, density: Sequence[float], draw: Callable[[int, float, Block], Tensor], *, rescale: bool
) -> Sparse:
    drawn = [(donor, share) for donor, share in enumerate(density) if donor > 0 and share < 1.0]

    def keep(block: Block) -> list[Tensor]:
        vectors = block.deltas
        for donor, share in drawn:
            vectors[donor - 1].mul_(draw(donor, share, block))
        return vectors

    return _rescale(tensor, keep) if rescale and drawn else Sparse(keep, [1.0] * (tensor.count - 1))


def _rescale(tensor: Streamed, keep: Callable[[Block], Sequence[Tensor]]) -> Sparse:
    """Give each sparse task vector the sum of magnitudes that the whole one has, unless one of the two is nearly 0."""

    def measure(block: Block) -> list[Tensor]:
        return [each.abs_() for pair in zip(block.deltas, keep(block), strict=True) for each in pair]

    sums = tensor.total(measure)
    factors = [
        whole / kept if whole >= SMALLEST_SUM and kept >= SMALLEST_SUM else 1.0
        for whole, kept in zip(sums[::2], sums[1::2], strict=True)
    ]
    return Sparse(keep, factors)


def count_drawn_readings(*, density: Sequence[float], rescale: float, **_: Any) -> int:
    """How often the statistics of a method that draws what it keeps read the inputs."""
    return int(bool(rescale) and any(share < 1.0 for share in density[1:]))


def count_trimmed_readings(*, density: Sequence[float], rescale: float, **_: Any) -> int:
    """How often the statistics of a method that keeps by magnitude read the inputs, if nothing has to be repeated."""
    return (1 + int(bool(rescale))) * int(any(share < 1.0 for share in density[1:]))


def check_probabilities(*, density: Sequence[float], epsilon: Sequence[float], **_: Any) -> None:
    """Refuse a density and an epsilon that together are no probabilities.

    Raises:
        ValueError: Which.
    """
    for number, (middle, spread) in enumerate(zip(density, epsilon, strict=True)):
        if number > 0 and middle < 1.0 and not 0.0 < middle - spread <= middle + spread < 1.0:
            raise ParameterError(
                f"'density' {middle:g} less and plus 'epsilon' {spread:g} is {middle - spread:g} and "
                f"{middle + spread:g}, and both must lie between 0 and 1",
                number,
            )


def _elect(weighted: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    """The sum, at each element, of those that have the sign of the sum of all; divided by the sum of their weights."""
    # A sum of 0 counts as positive, and an element that is 0 agrees with no sign.
    sign = add_up(weighted).ge_(0.0).sub_(0.5).sign_()
    agreeing = [each.mul_(sign).relu_() for each in weighted]
    total = add_up(agreeing)
    if weights is not None:
        taking = [each.sign_().mul_(w) for each, w in zip(agreeing, weights, strict=True)]
        divisor = add_up(taking)
        # A mask of floats: torch needs several times as long for one of booleans.
        total.div_(divisor.add_(divisor.clone().eq_(0.0)))
    return total.mul_(sign)

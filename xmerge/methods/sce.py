"""Task vectors where they differ most, weighted by their squares, of one sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from xmerge.methods.arithmetic import add_up, to_float32
from xmerge.methods.contract import Block, PerModel, Range, Rule, Streamed, merge_rule

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_SUM = 1e-6
"""Mean squares that add up to less give equal weights, and a divisor is not less, as in mergekit."""


def _count_readings(*, select_topk: float, **_: Any) -> int:
    return 3 if select_topk < 1.0 else 1


@merge_rule(base="required", inputs=(2, None), readings=_count_readings)
def sce(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("without effect here, as in mergekit")] = (1.0,),
    select_topk: Annotated[float, Range("the share kept of the places where the donors differ", 0, 1)] = 1.0,
    int8_mask: Annotated[bool, Range("without effect here, as in mergekit")] = False,
) -> Rule:
    """Task vectors where they differ most, weighted by their squares, of which each element keeps those of one sign.

    d_i = x_i - base at the int(select_topk v) of the v places with any variance over the donors that have the most of
    it, 0 elsewhere (everywhere x_i - base if select_topk is 1); w_i = mean(d_i^2) / sum_j mean(d_j^2);
    y = base + sum w_i d_i / max(sum w_i, 1e-6) over the d_i with the sign of sum_i d_i. Wan et al. 2024,
    https://arxiv.org/abs/2408.07990. As in mergekit the weights are equal where the mean squares add up to less than
    1e-6, which is so for most fine-tuned models; and one donor alone has no variance, so select_topk below 1 leaves
    the base.
    """
    select = _select_places(tensor, select_topk) if select_topk < 1.0 else _take_all
    squares = tensor.total(lambda block: [each.square() for each in select(block)])
    weights = _weigh([each / max(tensor.elements, 1) for each in squares])

    def merge(block: Block) -> Tensor:
        vectors = select(block)
        positive = add_up(vectors) >= 0
        # A sum of 0 counts as positive, and an element that is 0 agrees with no sign.
        shares = [
            ((each > 0) & positive | (each < 0) & ~positive) * w for each, w in zip(vectors, weights, strict=True)
        ]
        moved = add_up([each.mul_(share) for each, share in zip(vectors, shares, strict=True)])
        return block.base + moved / add_up(shares).clamp_(min=SMALLEST_SUM)

    return merge


def _take_all(block: Block) -> list[Tensor]:
    return block.deltas


def _select_places(tensor: Streamed, share: float) -> Callable[[Block], list[Tensor]]:
    """The task vectors at the places where they differ most, 0 elsewhere."""
    (differing,) = tensor.total(lambda block: [each != 0 for each in _measure_variance(block)])
    (selection,) = tensor.largest(_measure_variance, [(0, count_share(int(differing), share))])

    def select(block: Block) -> list[Tensor]:
        chosen = selection.mask(_measure_variance(block)[0], block.start)
        return [delta.mul_(chosen) for delta in block.deltas]

    return select


def _measure_variance(block: Block) -> list[Tensor]:
    """The variance of the task vectors at each element, over the donors."""
    wide = [delta.double() for delta in block.deltas]
    mean = add_up(wide) / len(wide)
    return [(add_up([each.sub_(mean).square_() for each in wide]) / len(wide)).float()]


def count_share(count: int, share: float) -> int:
    """A share of a number of places, multiplied in float32 as in mergekit: 0.29 of 100 are 29, not 28; never more."""
    return min(count, int(to_float32(to_float32(count) * to_float32(share))))


def _weigh(means: Sequence[float]) -> list[float]:
    total = sum(means)
    return [1.0 / len(means) if total < SMALLEST_SUM else mean / total for mean in means]

"""The donor's numbers where their change is important."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xmerge.methods.arithmetic import to_float32
from xmerge.methods.contract import Block, Rule, Streamed, merge_rule

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_CHANCE = 1e-8
"""Added to each probability, as in mergekit."""


@merge_rule(base="required", inputs=(2, 2), by_rows=True, readings=1)
def arcee_fusion(tensor: Streamed) -> Rule:
    """The donor's numbers where their change is important, the base's elsewhere.

    y = x where I >= median(I) + 1.5 (q3(I) - q1(I)), else base, with I = |x - base| K, and K for each row (the last
    axis) the sum of p log(p / q), p = softmax(x) + 1e-8, q = softmax(base) + 1e-8. The quartiles are those of all
    elements: the sorted numbers at the places (n - 1)/4, (n - 1)/2 and 3(n - 1)/4, rounded down. From
    https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration. K is
    computed in float32, as in mergekit; where a row of the donor is all but the base's it is little more than
    rounding, and which of its numbers are taken says nothing about them. A row is held in memory whole.
    """
    threshold = _find_threshold(tensor)
    return lambda block: block.inputs[1].where(_weigh(block) >= threshold, block.base)


def _find_threshold(tensor: Streamed) -> float:
    """The median and 1.5 times the distance of the quartiles, in float32."""
    low, middle, high = _find_sorted(tensor, [(tensor.elements - 1) * quarter // 4 for quarter in (1, 2, 3)])
    return to_float32(middle + to_float32(1.5 * to_float32(high - low)))


def _find_sorted(tensor: Streamed, places: list[int]) -> list[float]:
    """The importances that would stand at these places, were they sorted from the smallest to the largest."""

    def split(block: Block) -> list[Tensor]:
        # Rounding can leave a row a divergence below 0, and only numbers from 0 up can be selected from.
        importance = _weigh(block)
        return [importance.clamp(min=0), importance.neg().clamp_(min=0)]

    wanted = [(0, tensor.elements - place) for place in places] + [(1, place + 1) for place in places]
    found = [each.threshold for each in tensor.largest(split, wanted)]
    return [above - below for above, below in zip(found[: len(places)], found[len(places) :], strict=True)]


def _weigh(block: Block) -> Tensor:
    """How important the change of each number is, in the shape of the block."""
    base, donor = block.inputs
    p, q = donor.softmax(-1).add_(SMALLEST_CHANCE), base.softmax(-1).add_(SMALLEST_CHANCE)
    divergence = p.div(q).log_().mul_(p).sum(-1, keepdim=True)
    return (donor - base).abs_().mul_(divergence)

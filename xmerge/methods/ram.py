"""Task vectors where one donor moved, their mean where several did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from xmerge.methods.arithmetic import add_up
from xmerge.methods.contract import Block, PerModel, Range, Rule, Streamed, merge_rule

if TYPE_CHECKING:
    from torch import Tensor


@merge_rule(base="required", inputs=(2, None))
def ram(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("without effect here, as in mergekit")] = (1.0,),
    epsilon: Annotated[float, Range("a number of a task vector that is not larger counts as 0", 0)] = 1e-5,
) -> Rule:
    """Task vectors: the only one that moved an element, or the mean of those that did.

    d_i = x_i - base where its magnitude is above epsilon, else 0; y = base + sum_i d_i / max(c, 1), with c the number
    of donors whose d_i is not 0 there. Reinforced Agent Merging, https://arxiv.org/abs/2601.13572. It is made for task
    vectors that are mostly 0: where every donor moved every number, it is their mean.
    """

    def merge(block: Block) -> Tensor:
        active, count = find_active(block, epsilon)
        return block.base + add_up(active) / count.clamp_(min=1)

    return merge


def find_active(block: Block, epsilon: float) -> tuple[list[Tensor], Tensor]:
    """The task vectors without what is `epsilon` or less, and for each element how many are left that are not 0."""
    active = [delta.hardshrink(epsilon) for delta in block.deltas]
    return active, add_up([find_moved(each) for each in active])


def find_moved(active: Tensor) -> Tensor:
    """1 where a task vector is not 0, else 0; numbers, since torch works on booleans several times as slowly."""
    return active.clone().ne_(0.0)

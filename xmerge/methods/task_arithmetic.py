"""Sums of task vectors."""

from collections.abc import Sequence
from typing import Annotated

from xmerge.methods.contract import Gram, PerModel, Range, merge_method


@merge_method(base="required", inputs=(2, None))
def task_arithmetic(
    gram: Gram,
    count: int,
    *,
    weight: Annotated[PerModel, Range("how much of a donor's task vector goes in")],
    normalize: Annotated[bool, Range("divide by the sum of the weights, where that is not 0")] = False,
    lambda_: Annotated[float, Range("what the sum of the task vectors is multiplied by")] = 1.0,
    density: Annotated[PerModel, Range("without effect here, as in mergekit")] = (1.0,),
    rescale: Annotated[bool, Range("without effect here, as in mergekit")] = False,
    int8_mask: Annotated[bool, Range("without effect here, as in mergekit")] = False,
) -> Sequence[float]:
    """The base plus a weighted sum of the donors' task vectors.

    y = base + lambda sum_i w_i (x_i - base), the sum divided by sum_i w_i when `normalize` is true and that is not 0.
    Ilharco et al. 2022, https://arxiv.org/abs/2212.04089. It is made for donors that were trained from the base: of
    others the difference from the base is most of the model.
    """
    donors = weight[1:]
    total = sum(donors)
    divisor = total if normalize and abs(total) >= 1e-8 else 1.0
    scaled = [lambda_ * w / divisor for w in donors]
    return [1.0 - sum(scaled), *scaled]

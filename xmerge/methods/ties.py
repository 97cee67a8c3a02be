"""Trimmed task vectors that agree in sign."""

from typing import Annotated

from xmerge.methods.contract import PerModel, Range, Rule, Streamed, merge_rule
from xmerge.methods.task_vectors import add_task_vectors, count_trimmed_readings, keep_largest


@merge_rule(base="required", inputs=(2, None), readings=count_trimmed_readings)
def ties(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("how much of a donor's task vector goes in")],
    density: Annotated[
        PerModel, Range("the share of a task vector that is kept, its largest numbers", 0, 1, above=True)
    ] = (1.0,),
    normalize: Annotated[bool, Range("divide by the sum of the weights that take part in an element")] = True,
    rescale: Annotated[bool, Range("give what is kept the sum of magnitudes of the whole")] = False,
    lambda_: Annotated[float, Range("what the sum of the task vectors is multiplied by")] = 1.0,
    int8_mask: Annotated[bool, Range("without effect here, as in mergekit")] = False,
) -> Rule:
    """Task vectors, trimmed to their largest numbers, of which each element keeps those of the elected sign.

    d_i = the int(density_i n) of x_i - base that are largest in magnitude, of equal ones the first; s = sign of
    sum_i w_i d_i, + where that is 0; y = base + lambda sum w_i d_i over the d_i of sign s, divided by the sum of their
    w_i when `normalize` is true and that is not 0. Yadav et al. 2023, https://arxiv.org/abs/2306.01708. Where
    density_i n < 1 nothing is kept.
    """
    sparse = keep_largest(tensor, density, rescale=rescale)
    return add_task_vectors(sparse, weight, elect=True, normalize=normalize, scale=lambda_)

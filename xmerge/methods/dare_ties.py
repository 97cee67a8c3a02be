"""Randomly thinned task vectors that agree in sign."""

from typing import Annotated

from xmerge.methods.contract import PerModel, Range, Rule, Streamed, merge_rule
from xmerge.methods.task_vectors import add_task_vectors, count_drawn_readings, keep_by_chance


@merge_rule(base="required", inputs=(2, None), readings=count_drawn_readings, draws="density")
def dare_ties(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("how much of a donor's task vector goes in")],
    density: Annotated[
        PerModel, Range("the probability with which a number of a task vector is kept", 0, 1, above=True)
    ] = (1.0,),
    normalize: Annotated[bool, Range("divide by the sum of the weights that take part in an element")] = False,
    rescale: Annotated[bool, Range("give what is kept the sum of magnitudes of the whole")] = True,
    lambda_: Annotated[float, Range("what the sum of the task vectors is multiplied by")] = 1.0,
    int8_mask: Annotated[bool, Range("without effect here, as in mergekit")] = False,
) -> Rule:
    """Task vectors, of whose numbers chance keeps a share, and each element those of the elected sign.

    d_i as in dare_linear; s = sign of sum_i w_i d_i, + where that is 0; y = base + lambda sum w_i d_i over the d_i of
    sign s, divided by the sum of their w_i when `normalize` is true and that is not 0. Yu et al. 2023,
    https://arxiv.org/abs/2311.03099, with the election of Yadav et al. 2023, https://arxiv.org/abs/2306.01708.
    """
    sparse = keep_by_chance(tensor, density, rescale=rescale)
    return add_task_vectors(sparse, weight, elect=True, normalize=normalize, scale=lambda_)

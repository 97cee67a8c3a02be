"""Task vectors thinned by magnitude and chance, that agree in sign."""

from typing import Annotated

from xmerge.methods.contract import PerModel, Range, Rule, Streamed, merge_rule
from xmerge.methods.task_vectors import add_task_vectors, check_probabilities, count_drawn_readings, keep_by_rank


@merge_rule(
    base="required",
    inputs=(2, None),
    by_rows=True,
    readings=count_drawn_readings,
    draws="density",
    check=check_probabilities,
)
def della(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("how much of a donor's task vector goes in")],
    density: Annotated[
        PerModel, Range("the mean probability with which a number of a task vector is kept", 0, 1, above=True)
    ] = (1.0,),
    epsilon: Annotated[PerModel, Range("how far the probability goes below and above the density", 0, 0.5)] = (0.15,),
    normalize: Annotated[bool, Range("divide by the sum of the weights that take part in an element")] = True,
    rescale: Annotated[bool, Range("give what is kept the sum of magnitudes of the whole")] = True,
    lambda_: Annotated[float, Range("what the sum of the task vectors is multiplied by")] = 1.0,
    int8_mask: Annotated[bool, Range("without effect here, as in mergekit")] = False,
) -> Rule:
    """Task vectors, of whose numbers chance keeps the larger ones rather, and each element those of the elected sign.

    d_i as in della_linear; s = sign of sum_i w_i d_i, + where that is 0; y = base + lambda sum w_i d_i over the d_i of
    sign s, divided by the sum of their w_i when `normalize` is true and that is not 0. Deep et al. 2024,
    https://arxiv.org/abs/2406.11617.
    """
    sparse = keep_by_rank(tensor, density, epsilon, rescale=rescale)
    return add_task_vectors(sparse, weight, elect=True, normalize=normalize, scale=lambda_)

"""Task vectors thinned by magnitude and chance."""

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
def della_linear(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("how much of a donor's task vector goes in")],
    density: Annotated[
        PerModel, Range("the mean probability with which a number of a task vector is kept", 0, 1, above=True)
    ] = (1.0,),
    epsilon: Annotated[PerModel, Range("how far the probability goes below and above the density", 0, 0.5)] = (0.15,),
    normalize: Annotated[bool, Range("divide by the sum of the weights, where that is not 0")] = False,
    rescale: Annotated[bool, Range("give what is kept the sum of magnitudes of the whole")] = True,
    lambda_: Annotated[float, Range("what the sum of the task vectors is multiplied by")] = 1.0,
    int8_mask: Annotated[bool, Range("without effect here, as in mergekit")] = False,
) -> Rule:
    """The base plus a weighted sum of task vectors, of whose numbers chance keeps the larger ones rather.

    d_i = m_i (x_i - base) f_i. m_i is 1 with a probability that grows evenly with the rank of |x_i - base| in its row
    (the last axis), from density_i - epsilon_i to density_i + epsilon_i, both between 0 and 1, else 0; density_i = 1
    keeps all, and a row of one number is kept with density_i. f_i = sum |x_i - base| / sum |m_i (x_i - base)| with
    `rescale`, else 1. y = base + lambda sum_i w_i d_i, divided by sum_i w_i when `normalize` is true and that is not 0.
    Deep et al. 2024, https://arxiv.org/abs/2406.11617. A row is held in memory whole.
    """
    sparse = keep_by_rank(tensor, density, epsilon, rescale=rescale)
    return add_task_vectors(sparse, weight, elect=False, normalize=normalize, scale=lambda_)

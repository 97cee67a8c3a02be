"""Randomly thinned task vectors."""

from typing import Annotated

from xmerge.methods.contract import PerModel, Range, Rule, Streamed, merge_rule
from xmerge.methods.task_vectors import add_task_vectors, count_drawn_readings, keep_by_chance


@merge_rule(base="required", inputs=(2, None), readings=count_drawn_readings, draws="density")
def dare_linear(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("how much of a donor's task vector goes in")],
    density: Annotated[
        PerModel, Range("the probability with which a number of a task vector is kept", 0, 1, above=True)
    ] = (1.0,),
    normalize: Annotated[bool, Range("divide by the sum of the weights, where that is not 0")] = False,
    rescale: Annotated[bool, Range("give what is kept the sum of magnitudes of the whole")] = True,
    lambda_: Annotated[float, Range("what the sum of the task vectors is multiplied by")] = 1.0,
    int8_mask: Annotated[bool, Range("without effect here, as in mergekit")] = False,
) -> Rule:
    """The base plus a weighted sum of task vectors, of whose numbers chance keeps a share.

    d_i = m_i (x_i - base) f_i, m_i = 1 with probability density_i, else 0; y = base + lambda sum_i w_i d_i, divided by
    sum_i w_i when `normalize` is true and that is not 0. With `rescale`, as in mergekit, f_i = sum |x_i - base| /
    sum |m_i (x_i - base)| (the paper's is 1 / density_i), else 1. Yu et al. 2023, https://arxiv.org/abs/2311.03099.
    What is kept follows from `random_seed`, the tensor's name and the donor's; `rng: mergekit` draws as mergekit does.
    Tensors of a few numbers can lose all of them.
    """
    sparse = keep_by_chance(tensor, density, rescale=rescale)
    return add_task_vectors(sparse, weight, elect=False, normalize=normalize, scale=lambda_)

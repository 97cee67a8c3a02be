"""Task vectors without their largest and their smallest numbers."""

from typing import Annotated

from xmerge.methods.contract import PerModel, Range, Rule, Streamed, merge_rule
from xmerge.methods.task_vectors import add_task_vectors, count_trimmed_readings, keep_between


@merge_rule(base="required", inputs=(2, None), readings=count_trimmed_readings)
def breadcrumbs(
    tensor: Streamed,
    *,
    weight: Annotated[PerModel, Range("how much of a donor's task vector goes in")],
    density: Annotated[PerModel, Range("the share of a task vector that is kept", 0, 1, above=True)] = (1.0,),
    gamma: Annotated[PerModel, Range("the share of a task vector that is left out, its largest numbers", 0, 1)] = (
        0.01,
    ),
    normalize: Annotated[bool, Range("divide by the sum of the weights, where that is not 0")] = False,
    rescale: Annotated[bool, Range("give what is kept the sum of magnitudes of the whole")] = False,
    lambda_: Annotated[float, Range("what the sum of the task vectors is multiplied by")] = 1.0,
    int8_mask: Annotated[bool, Range("without effect here, as in mergekit")] = False,
) -> Rule:
    """The base plus a weighted sum of task vectors without their outliers and without what is small.

    d_i = the int(density_i n) of x_i - base that are largest in magnitude behind the int(gamma_i n) largest, of equal
    ones the first; fewer of the largest go where not so many would be left; density_i = 1 keeps all. y = base + lambda
    sum_i w_i d_i, divided by sum_i w_i when `normalize` is true and that is not 0. Davari and Belilovsky 2023,
    https://arxiv.org/abs/2312.06795. A tensor with gamma_i n < 1 has no outliers to lose.
    """
    sparse = keep_between(tensor, density, gamma, rescale=rescale)
    return add_task_vectors(sparse, weight, elect=False, normalize=normalize, scale=lambda_)

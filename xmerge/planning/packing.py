"""Which layers one task run carries."""

from __future__ import annotations

import math

from xmerge.planning.plan import MergePlan

BYTES_PER_TASK = 256 * 2**20
FEWEST_TASKS = 32


def pack_layers(plan: MergePlan) -> tuple[tuple[int, ...], ...]:
    """Group consecutive layers so that a task run takes about a second or more.

    A group is closed at 256 MiB of output; small models are still cut into up to 32 groups, so that one can watch.
    The grouping depends on the plan alone: it decides no bytes, only how many task runs there are.
    """
    most_layers = math.ceil(len(plan.layers) / FEWEST_TASKS)
    groups: list[tuple[int, ...]] = []
    current: list[int] = []
    size = 0
    for index, layer in enumerate(plan.layers):
        if current and (size + layer.bytes_written > BYTES_PER_TASK or len(current) >= most_layers):
            groups.append(tuple(current))
            current, size = [], 0
        current.append(index)
        size += layer.bytes_written
    return (*groups, tuple(current)) if current else ()

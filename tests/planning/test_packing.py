"""Which layers one task run carries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from xmerge.planning import pack_layers
from xmerge.planning.packing import BYTES_PER_TASK, FEWEST_TASKS

sizes = st.lists(st.integers(min_value=0, max_value=2 * BYTES_PER_TASK), max_size=200)


def pack(layers):
    """The groups for layers of these sizes."""
    plan = SimpleNamespace(layers=[SimpleNamespace(bytes_written=size) for size in layers])
    return pack_layers(cast("Any", plan))


@given(sizes)
def test_every_layer_is_carried_once_and_in_order(layers):
    """The groups, one after another, are the plan's layers, and none is empty."""
    groups = pack(layers)
    assert [index for group in groups for index in group] == list(range(len(layers)))
    assert all(groups)


@given(sizes)
def test_a_group_is_as_small_as_it_should_be(layers):
    """A group of several layers stays within the bytes of a task, and a small model is still cut up to be watched."""
    groups = pack(layers)
    for group in groups:
        assert len(group) == 1 or sum(layers[index] for index in group) <= BYTES_PER_TASK
    assert len(groups) >= min(len(layers), FEWEST_TASKS) // 2


def test_a_large_layer_is_a_task_of_its_own():
    """Nothing is joined to a layer that fills a task."""
    assert pack([10, BYTES_PER_TASK, 10, 10]) == ((0,), (1,), (2,), (3,))


def test_a_task_is_closed_before_it_is_too_large():
    """Layers that fit two by two are carried two by two, though three could share a task by their number."""
    assert {len(group) for group in pack([BYTES_PER_TASK // 2] * 96)} == {2}


def test_small_layers_share_a_task():
    """Hundreds of tiny layers make a few dozen tasks."""
    assert len(pack([1000] * 128)) == 32

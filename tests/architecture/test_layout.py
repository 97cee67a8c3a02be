"""Shapes in named axes: where the numbers of every role lie in a tensor."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmerge.architecture.layout import (
    Axis,
    Block,
    Node,
    Number,
    Product,
    Sum,
    count_blocks,
    list_axes,
    name_loops,
    parse_shape,
    place_blocks,
    size_of_node,
)

AXES = {"heads": 3, "head_dim": 4, "group": 2, "ffn": 5, "hidden": 2}
LEAVES = st.sampled_from([*map(Axis, AXES), Number(1), Number(2), Number(3)])
NODES = st.recursive(
    LEAVES,
    lambda node: st.lists(node, min_size=2, max_size=3).map(tuple).flatmap(
        lambda nodes: st.sampled_from([Product(nodes), Sum(nodes)])
    ),
    max_leaves=5,
)  # fmt: skip
SHAPES = st.lists(NODES, min_size=1, max_size=3).map(tuple)


def write(node: Node, inner: bool = False) -> str:
    """A dimension as a family file writes it."""
    match node:
        case Axis(name):
            return name
        case Number(value):
            return str(value)
        case Product(factors):
            return "*".join(write(each, inner=True) if isinstance(each, Sum) else f"{write(each)}" for each in factors)
        case Sum(terms):
            told = " + ".join(write(each) for each in terms)
            return f"({told})" if inner else told


def write_shape(shape: tuple[Node, ...]) -> str:
    """A shape as a family file writes it."""
    return ", ".join(map(write, shape))


def list_places(block: Block) -> list[int]:
    """Where every number of a block lies, in its own order."""
    places = np.array(block.offset)
    for _, count, stride in block.loops:
        places = places[..., None] + stride * np.arange(count)
    return [int(place) for place in places.ravel()]


def evaluate(text: str, axes: Mapping[str, int]) -> int:
    """A dimension worked out as Python would."""
    return int(eval(text, {}, dict(axes)))  # noqa: S307 - written by this test


@given(SHAPES)
def test_the_blocks_of_a_shape_cover_every_element_once(shape: tuple[Node, ...]):
    """Every element of a tensor belongs to one block, and no block reaches out of it."""
    size = math.prod(size_of_node(node, AXES) for node in shape)
    places = [place for block in place_blocks(shape, AXES) for place in list_places(block)]
    assert sorted(places) == list(range(size))


@given(SHAPES)
def test_there_are_as_many_blocks_as_are_counted(shape: tuple[Node, ...]):
    """A shape has the number of blocks that is counted, each with the axes that are named, in the same order."""
    blocks = place_blocks(shape, AXES)
    assert len(blocks) == count_blocks(shape) == len(name_loops(shape))
    named = [tuple(axis for axis, _, _ in block.loops) for block in blocks]
    assert named == list(name_loops(shape))
    assert {axis for axes in named for axis in axes if axis in AXES} == set(list_axes(shape))


@given(SHAPES)
def test_the_loops_of_a_block_make_its_shape(shape: tuple[Node, ...]):
    """A block has as many dimensions as its tensor, and as many elements as its loops count."""
    for block in place_blocks(shape, AXES):
        assert len(block.shape) == len(shape)
        assert math.prod(block.shape) == math.prod(count for _, count, _ in block.loops)


@given(SHAPES)
def test_a_dimension_is_as_large_as_its_text_says(shape: tuple[Node, ...]):
    """What is written as a shape and read again has the sizes that its text has as arithmetic."""
    text = write_shape(shape)
    assert [size_of_node(node, AXES) for node in parse_shape(text)] == [
        evaluate(each, AXES) for each in text.split(",")
    ]


@given(SHAPES)
def test_a_shape_read_again_puts_everything_in_the_same_place(shape: tuple[Node, ...]):
    """A shape written and read again has the same blocks, wherever they are in brackets."""
    assert place_blocks(parse_shape(write_shape(shape)), AXES) == place_blocks(shape, AXES)


@given(st.text(alphabet="ab1+*() ,", max_size=12))
def test_a_shape_is_read_or_refused(text: str):
    """Whatever stands in the brackets is refused or a shape, and a shape has the sizes of its text."""
    try:
        shape = parse_shape(text)
    except ValueError:
        return
    axes = dict.fromkeys(list_axes(shape), 2)
    assert [size_of_node(node, axes) for node in shape] == [evaluate(each.strip(), axes) for each in text.split(",")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an axis, a number or '(' is missing"),
        ("heads*", "an axis, a number or '(' is missing"),
        ("hidden, ", "an axis, a number or '(' is missing"),
        ("heads*(q + k", "a '(' is not closed"),
        ("heads)", "'heads)' is no dimension: ) is too much"),
        ("heads head_dim", "'heads head_dim' is no dimension: head_dim is too much"),
        ("heads-1", "'heads-1' is no dimension"),
        ("heads/2", "'heads/2' is no dimension"),
        ("0*hidden", "a size of 0 holds nothing"),
    ],
)
def test_what_is_no_shape_is_told(text: str, told: str):
    """A mistake in a shape is said in words."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        parse_shape(text)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("text", "places"),
    [
        # Concatenated; per head; per group; transposed; columns in turns.
        ("2 + 3, hidden", [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]),
        ("heads*(2 + 1), 1", [[0, 1, 3, 4, 6, 7], [2, 5, 8]]),
        ("heads*(group*1 + 1 + 1)", [[0, 1, 4, 5, 8, 9], [2, 6, 10], [3, 7, 11]]),
        ("hidden, 2 + 1", [[0, 1, 3, 4], [2, 5]]),
        ("2, heads*(1 + 1)", [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]),
    ],
)
def test_the_layouts_of_families_are_shapes(text: str, places: list[list[int]]):
    """A layout that some family has puts its roles where that family does."""
    assert [list_places(block) for block in place_blocks(parse_shape(text), AXES)] == places

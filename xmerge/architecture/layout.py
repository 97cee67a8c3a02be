"""How a tensor is laid out: from `kv_heads*(group*head_dim + head_dim + head_dim), hidden` to where each role lies.

Every layout that families use (rows one after another, head by head, group by group, transposed, columns in turns,
experts in one tensor) is a set of loops with strides: to convert is to read in another order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

Loop = tuple[str, int, int]
"""(axis, how often, elements from one to the next)."""

_TOKEN = re.compile(r"\s*([A-Za-z_]\w*|\d+|[+*()])")


@dataclass(frozen=True)
class Axis:
    """A named axis, such as `heads`."""

    name: str


@dataclass(frozen=True)
class Number:
    """A size written as a number."""

    value: int


@dataclass(frozen=True)
class Product:
    """Axes inside one another, the outermost first."""

    factors: tuple[Node, ...]


@dataclass(frozen=True)
class Sum:
    """Blocks one after another, a role for each."""

    terms: tuple[Node, ...]


Node = Axis | Number | Product | Sum


@dataclass(frozen=True, slots=True)
class Block:
    """Where the numbers of one role lie in a tensor."""

    offset: int
    """The first one's place, in elements."""
    loops: tuple[Loop, ...]
    shape: tuple[int, ...]


@cache
def parse_shape(text: str) -> tuple[Node, ...]:
    """`heads*head_dim, hidden` as one tree for each dimension.

    Raises:
        ValueError: It is not written as a shape.
    """
    return tuple(_parse_dimension(dimension) for dimension in text.split(","))


def list_axes(shape: Sequence[Node]) -> Iterator[str]:
    """The axes a shape names, in order."""
    for node in shape:
        match node:
            case Axis(name):
                yield name
            case Product(children) | Sum(children):
                yield from list_axes(children)


def name_loops(shape: Sequence[Node]) -> tuple[tuple[str, ...], ...]:
    """The axes of each block, in the order in which the shape names them."""
    ones = dict.fromkeys(list_axes(shape), 1)
    return tuple(tuple(axis for axis, _, _ in block.loops) for block in place_blocks(shape, ones))


def count_blocks(shape: Sequence[Node]) -> int:
    """How many roles share a tensor of this shape."""
    return math.prod(_count_leaves(node) for node in shape)


def size_of_node(node: Node, axes: Mapping[str, int]) -> int:
    """How many elements a dimension has in a model with these axes."""
    match node:
        case Axis(name):
            return axes[name]
        case Number(value):
            return value
        case Product(factors):
            return math.prod(size_of_node(each, axes) for each in factors)
        case Sum(terms):
            return sum(size_of_node(each, axes) for each in terms)


def place_blocks(shape: Sequence[Node], axes: Mapping[str, int]) -> tuple[Block, ...]:
    """Where the blocks of a shape lie, in the order in which it names them."""
    dimensions, stride = [], 1
    for node in reversed(shape):
        dimensions.append(list(_place(node, stride, axes)))
        stride *= size_of_node(node, axes)
    return tuple(
        Block(
            sum(offset for offset, _ in each),
            tuple(loop for _, loops in each for loop in loops),
            tuple(math.prod(count for _, count, _ in loops) for _, loops in each),
        )
        for each in product(*reversed(dimensions))
    )


def _place(node: Node, stride: int, axes: Mapping[str, int]) -> Iterator[tuple[int, tuple[Loop, ...]]]:
    """(offset, loops) of each block of a dimension whose elements are `stride` apart."""
    match node:
        case Axis(name):
            yield 0, ((name, axes[name], stride),)
        case Number(value):
            yield 0, ((str(value), value, stride),) if value > 1 else ()
        case Sum(terms):
            at = 0
            for term in terms:
                yield from ((at + offset, loops) for offset, loops in _place(term, stride, axes))
                at += size_of_node(term, axes) * stride
        case Product(factors):
            placed, step = [], stride
            for factor in reversed(factors):
                placed.append(list(_place(factor, step, axes)))
                step *= size_of_node(factor, axes)
            for each in product(*reversed(placed)):
                yield sum(offset for offset, _ in each), tuple(loop for _, loops in each for loop in loops)


def _count_leaves(node: Node) -> int:
    match node:
        case Product(factors):
            return math.prod(_count_leaves(each) for each in factors)
        case Sum(terms):
            return sum(_count_leaves(each) for each in terms)
        case _:
            return 1


def _parse_dimension(text: str) -> Node:
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise ValueError(f"'{text}' is no dimension")
    node, rest = _parse_sum(tokens)
    if rest:
        raise ValueError(f"'{text}' is no dimension: {rest[0]} is too much")
    return node


def _parse_sum(tokens: Sequence[str]) -> tuple[Node, Sequence[str]]:
    terms, rest = [], tokens
    while True:
        term, rest = _parse_product(rest)
        terms.append(term)
        if not rest or rest[0] != "+":
            return (terms[0] if len(terms) == 1 else Sum(tuple(terms))), rest
        rest = rest[1:]


def _parse_product(tokens: Sequence[str]) -> tuple[Node, Sequence[str]]:
    factors, rest = [], tokens
    while True:
        factor, rest = _parse_factor(rest)
        factors.append(factor)
        if not rest or rest[0] != "*":
            return (factors[0] if len(factors) == 1 else Product(tuple(factors))), rest
        rest = rest[1:]


def _parse_factor(tokens: Sequence[str]) -> tuple[Node, Sequence[str]]:
    if not tokens or tokens[0] in "+*)":
        raise ValueError("an axis, a number or '(' is missing")
    if tokens[0] == "(":
        node, rest = _parse_sum(tokens[1:])
        if not rest or rest[0] != ")":
            raise ValueError("a '(' is not closed")
        return node, rest[1:]
    if not tokens[0].isdigit():
        return Axis(tokens[0]), tokens[1:]
    if int(tokens[0]) == 0:
        raise ValueError("a size of 0 holds nothing")
    return Number(int(tokens[0])), tokens[1:]

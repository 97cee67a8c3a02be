"""Reading in another order: every wanted element once, in its place, and nothing outside what is wanted."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.orders import Order, draw_order
from xmerge.engine import ordering
from xmerge.engine.ordering import Tile, cut_boxes, find_extent, list_tiles


def list_elements(tile: Tile) -> list[tuple[int, int]]:
    """(place in the source, place in the output) of each element that a tile wants, found by way of the buffer."""
    buffer = {
        number * tile.step + offset: start + offset
        for number, start in enumerate(tile.list_starts())
        for offset in range(tile.run)
    }
    assert max(buffer) < tile.size
    return [
        (
            buffer[sum(turn * step for turn, (_, step, _) in zip(turns, tile.loops, strict=True))],
            tile.output + sum(turn * place for turn, (_, _, place) in zip(turns, tile.loops, strict=True)),
        )
        for turns in product(*(range(count) for count, _, _ in tile.loops))
    ]


def cut(draw, order: Order) -> list[int]:
    """Where the blocks of an output begin, and where the last one ends."""
    return sorted({0, order.output_size, *draw(st.lists(st.integers(0, order.output_size), max_size=6))})


@given(data=st.data(), order=draw_order(), most=st.integers(1, 40), width=st.sampled_from([2, 4, 8]))
@pytest.mark.parametrize("near", [0, 8, 24, 1024])
@pytest.mark.parametrize("line", [0, 8, 64])
def test_every_element_is_read_once_and_goes_where_it_belongs(data, order, most, width, near, line):
    """Whatever the blocks, the gaps and the buffer: each element once, in its block, in tiles that fit the buffer."""
    bounds, found = cut(data.draw, order), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "NEAR_BYTES", near)
        patch.setattr(ordering, "LINE_BYTES", line)
        for low, high in pairwise(bounds):
            for box in cut_boxes(order.loops, low - order.at, high - order.at):
                for tile in list_tiles(box, most, width):
                    assert tile.size <= most
                    elements = list_elements(tile)
                    assert all(low <= order.at + output < high for _, output in elements)
                    found += [(order.first + source, order.at + output) for source, output in elements]
    assert sorted(found) == sorted(order.list_places())


@given(data=st.data(), order=draw_order(), most=st.integers(1, 60), width=st.sampled_from([2, 4, 8]))
@pytest.mark.parametrize("near", [0, 16, 1024])
def test_nothing_outside_the_wanted_elements_is_read(data, order, most, width, near):
    """What is read along with the wanted elements lies between the first and the last of a tile's own."""
    low = data.draw(st.integers(-5, order.output_size))
    high = data.draw(st.integers(low, order.output_size + 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "NEAR_BYTES", near)
        for box in cut_boxes(order.loops, low, high):
            for tile in list_tiles(box, most, width):
                wanted = [source for source, _ in list_elements(tile)]
                runs = [(start, start + tile.run) for start in tile.list_starts()]
                assert min(start for start, _ in runs) == min(wanted)
                assert max(end for _, end in runs) == max(wanted) + 1


def test_what_lies_near_is_read_in_one_call():
    """Columns in turns are read through, rows far apart each on its own, and a block in one order in one piece."""
    columns, rows, plain = (
        next(iter(cut_boxes(order, 0, 4096)))
        for order in (((4096, 2, 1),), ((2, 10_000, 2048), (2048, 1, 1)), ((10_000, 1, 1),))
    )
    assert [(tile.run, tile.runs) for tile in list_tiles(columns, 2**19, 2)] == [(8191, ())]
    assert [(tile.run, tile.runs) for tile in list_tiles(rows, 2**19, 2)] == [(2048, ((2, 10_000, 2048),))]
    assert [(tile.run, tile.size) for tile in list_tiles(plain, 2**19, 2)] == [(4096, 4096)]


@given(order=draw_order())
def test_the_extent_reaches_to_the_last_element(order):
    """From the first element's place to the last one's, both included."""
    places = [output for _, output in order.list_places()]
    assert find_extent(order.loops) == max(places) - min(places) + 1


@given(order=draw_order(), most=st.integers(1, 40))
@pytest.mark.parametrize("near", [0, 8, 1024])
def test_a_file_is_read_forwards(order, most, near):
    """The runs of a box come in the order in which they lie in the source, whatever their order in the output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "NEAR_BYTES", near)
        for box in cut_boxes(order.loops, 0, order.output_size):
            starts = [start for tile in list_tiles(box, most, 2) for start in tile.list_starts()]
            assert starts == sorted(starts)


@given(data=st.data(), order=draw_order())
def test_boxes_come_in_the_order_of_their_places(data, order):
    """The elements of a box that comes first go before those of the boxes that follow."""
    low = data.draw(st.integers(0, order.output_size))
    firsts = [box.output for box in cut_boxes(order.loops, low - order.at, order.output_size)]
    assert firsts == sorted(firsts)

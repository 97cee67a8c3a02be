"""Reading blocks: whatever the order, the blocks and the buffers, the numbers that belong there."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import Bench, draw, same_bits
from tests.engine.orders import Order, draw_order, draw_parts
from xmerge.engine import ordering
from xmerge.engine.blocks import Buffers, SourceReader
from xmerge.engine.reading import OpenSources
from xmerge.planning import memory
from xmerge.planning.plan import Segment, Source

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
CPU = torch.device("cpu")
UNTOUCHED = -12345.0


@contextmanager
def open_bench(pieces: Sequence[torch.Tensor]) -> Iterator[tuple[Source, OpenSources]]:
    """A source of these tensors, in a file of its own, one segment each."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), [pieces])
        plan = bench.plan()
        with OpenSources(plan, plan.layers[0], bench.folders) as files:
            yield bench.source(0), files


def reorder(segment: Segment, order: Order, scale: float = 1.0) -> Segment:
    """A part of a whole tensor."""
    width = segment.nbytes // segment.elements
    count = math.prod(count for count, _, _ in order.loops)
    changed = {"offset": segment.offset + order.first * width, "elements": count, "at": order.at}
    return segment.model_copy(update={**changed, "order": order.loops, "scale": scale})


def take(source: Source, *segments: Segment) -> Source:
    """A source of these segments alone."""
    return source.model_copy(update={"segments": segments})


def place(out: torch.Tensor, whole: torch.Tensor, order: Order) -> None:
    """Put the elements of a part where they go, by indexing."""
    sources, outputs = zip(*order.list_places(), strict=True)
    out[list(outputs)] = whole[list(sources)].to(out.dtype)


def read_in_blocks(reader: SourceReader, size: int, bounds: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """What a reader gives for an output, block by block."""
    out = torch.full((size,), UNTOUCHED, dtype=dtype)
    for low, high in pairwise(bounds):
        reader.read(low, out[low:high])
    return out


@given(
    data=st.data(),
    order=draw_order(),
    dtype=st.sampled_from(FLOATS),
    wide=st.sampled_from([torch.float32, torch.float64]),
    near=st.sampled_from([0, 16, 1024]),
)
def test_any_order_in_any_blocks_is_what_indexing_gives(data, order, dtype, wide, near):
    """However axes are permuted, and wherever in both tensors they lie: the whole, indexed, and nothing beside it."""
    whole = draw(3, order.source_size, dtype)
    bounds = sorted({0, order.output_size, *data.draw(st.lists(st.integers(0, order.output_size), max_size=5))})
    block = max(high - low for low, high in pairwise(bounds))
    expected = torch.full((order.output_size,), UNTOUCHED, dtype=wide)
    place(expected, whole, order)
    with pytest.MonkeyPatch.context() as patch, open_bench([whole]) as (source, files):
        patch.setattr(ordering, "NEAR_BYTES", near)
        patch.setattr(memory, "FAR_BYTES", 2**20)
        reader = SourceReader(take(source, reorder(source.segments[0], order)), files, Buffers(block, CPU))
        made = read_in_blocks(reader, order.output_size, bounds, wide)
    assert same_bits(made, expected)


@given(
    data=st.data(),
    order=draw_order(gaps=False),
    dtype=st.sampled_from(FLOATS),
    block=st.integers(1, 30),
    window=st.sampled_from([8, 56, 2**16]),
    far=st.sampled_from([0, 2**20]),
)
def test_several_segments_make_one_tensor(data, order, dtype, block, window, far):
    """Parts of several tensors, each with a scale of its own, fill the output with or without reading ahead."""
    parts = data.draw(draw_parts(order))
    scales = [data.draw(st.sampled_from([1.0, 0.1, -3.0])) for _ in parts]
    wholes = [draw(number, order.source_size, dtype) for number in range(len(parts))]
    bounds = [*range(0, order.output_size, block), order.output_size]
    with pytest.MonkeyPatch.context() as patch, open_bench(wholes) as (source, files):
        patch.setattr(memory, "FAR_BYTES", far)
        segments = tuple(
            reorder(segment, part, scale) for segment, part, scale in zip(source.segments, parts, scales, strict=True)
        )
        reader = SourceReader(take(source, *segments), files, Buffers(block, CPU, window))
        for wide in (torch.float32, torch.float64):
            expected = torch.empty(order.output_size, dtype=wide)
            for part, whole, scale in zip(parts, wholes, scales, strict=True):
                place(expected, whole.to(wide) * scale, part)
            assert same_bits(read_in_blocks(reader, order.output_size, bounds, wide), expected)
        found = [reader.find_stored(at) for at in range(order.output_size)]
    for part, segment in zip(parts, segments, strict=True):
        assert all(found[output] == (segment.tensor, stored) for stored, output in part.list_places())


@given(order=draw_order(gaps=False), block=st.integers(1, 9), window=st.sampled_from([8, 24, 2**16]), data=st.data())
def test_no_byte_is_read_twice_and_none_beside_the_tensor(order, block, window, data):
    """A pass over the output reads each number once, with or without reading ahead, and only from its own tensor."""
    wholes, read = [draw(number, order.source_size) for number in range(3)], []
    with pytest.MonkeyPatch.context() as patch, open_bench(wholes) as (source, files):
        patch.setattr(memory, "FAR_BYTES", data.draw(st.sampled_from([0, 2**20])))
        near = data.draw(st.sampled_from([0, 1024]))
        patch.setattr(ordering, "NEAR_BYTES", near)
        whole = source.segments[1]
        reader = SourceReader(take(source, reorder(whole, order)), files, Buffers(block, CPU, window))
        real = files.read

        def note(model, segment, at, view):
            read.append((segment.offset + at, len(view)))
            real(model, segment, at, view)

        patch.setattr(files, "read", note)
        read_in_blocks(
            reader, order.output_size, [*range(0, order.output_size, block), order.output_size], torch.float32
        )
    assert all(whole.offset <= at and at + count <= whole.offset + whole.nbytes for at, count in read)
    if not near:
        wanted = sorted(whole.offset + 2 * source for source, _ in order.list_places())
        assert sorted(read) == [(at, 2) for at in wanted]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("block", [1, 3, 64])
@pytest.mark.parametrize("window", [64, 2**12])
def test_what_lies_in_order_is_read_ahead_with_what_does_not(monkeypatch, dtype, block, window):
    """A piece in its own order beside a transposed one, each with its scale, longer than what is read into at once."""
    monkeypatch.setattr(memory, "FAR_BYTES", 0)
    transposed, plain = draw(1, 48, dtype), draw(2, 70, dtype)
    with open_bench([transposed, plain]) as (source, files):
        first = source.segments[0].model_copy(update={"order": ((6, 1, 8), (8, 6, 1)), "scale": 2.0})
        second = source.segments[1].model_copy(update={"scale": 0.25})
        reader = SourceReader(take(source, first, second), files, Buffers(block, CPU, window))
        made = read_in_blocks(reader, 118, [*range(0, 118, block), 118], torch.float64)
    expected = torch.cat([transposed.double().view(8, 6).T.reshape(-1) * 2.0, plain.double() * 0.25])
    assert same_bits(made, expected)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_a_tensor_of_no_elements_is_read_as_nothing(block):
    """A segment without elements gives nothing, whatever its loops say."""
    with open_bench([torch.ones(4), torch.ones(3)]) as (source, files):
        empty = source.segments[0].model_copy(update={"elements": 0, "order": ((3, 1, 1), (0, 1, 1))})
        reader = SourceReader(take(source, empty), files, Buffers(block, CPU))
        out = torch.full((3,), UNTOUCHED)[:block]
        reader.read(0, out)
    assert (out == UNTOUCHED).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_every_dtype_is_read_as_the_number_it_is(dtype, wide):
    """A stored number keeps its value in the wider dtype."""
    values, out = draw(3, 30, dtype), torch.empty(30, dtype=wide)
    with open_bench([values]) as (source, files):
        SourceReader(source, files, Buffers(30, CPU)).read(0, out)
    assert same_bits(out, values.to(wide))

"""PNG files that any reader takes, and whose bytes depend on nothing but the picture."""

from __future__ import annotations

import zlib

from hypothesis import example, given
from hypothesis import strategies as st

from xmerge.png import Canvas, measure_text

PALETTE = [(17 * number, 255 - 17 * number, number) for number in range(16)]
SIZES = st.integers(1, 600)


def decode(data: bytes) -> tuple[list[tuple[int, int, int]], list[list[int]]]:
    """Palette and rows of a PNG of 16 colours, with every checksum compared."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        chunks[kind] = data[place + 8 : place + 8 + length]
        assert int.from_bytes(data[place + 8 + length : place + 12 + length]) == zlib.crc32(kind + chunks[kind])
        place += 12 + length
    width, height = (int.from_bytes(chunks[b"IHDR"][at : at + 4]) for at in (0, 4))
    assert chunks[b"IHDR"][8:] == bytes([4, 3, 0, 0, 0])
    lines, step = zlib.decompress(chunks[b"IDAT"]), 1 + (width + 1) // 2
    assert len(lines) == step * height
    rows = [lines[row * step + 1 : (row + 1) * step] for row in range(height)]
    pixels = [[byte >> shift & 15 for byte in row for shift in (4, 0)][:width] for row in rows]
    palette = chunks[b"PLTE"]
    return [(palette[at], palette[at + 1], palette[at + 2]) for at in range(0, len(palette), 3)], pixels


@example(600, 599, [(-5, -3, 20, 20, 3), (590, 590, 40, 40, 7)])
@given(SIZES, SIZES, st.lists(st.tuples(*[st.integers(-9, 620)] * 4, st.integers(0, 15)), max_size=4))
def test_what_is_filled_comes_back(width, height, rectangles):
    """Of any size, also over what one stored block holds, with rectangles that reach out of the picture."""
    canvas, expected = Canvas(width, height, PALETTE), [[0] * width for _ in range(height)]
    for left, top, wide, high, colour in rectangles:
        canvas.fill(left, top, wide, high, colour)
        for y in range(max(top, 0), min(max(top, 0) + high + min(top, 0), height)):
            for x in range(max(left, 0), min(left + wide, width)):
                expected[y][x] = colour
    palette, pixels = decode(canvas.encode())
    assert palette == PALETTE
    assert pixels == expected
    assert decode(canvas.encode(compress=True)) == (palette, pixels)


@given(st.text(max_size=12))
def test_any_text_can_be_written(text):
    """It stays within its width, and a sign without a glyph is a box, never an error."""
    canvas = Canvas(measure_text(text.lower()) + 2, 20, PALETTE)
    canvas.write(0, 0, text, 1)
    _, pixels = decode(canvas.encode())
    assert not any(row[-2:] != [0, 0] for row in pixels)
    assert any(1 in row for row in pixels) or not text.strip(" ")


def test_signs_differ_from_each_other():
    """No two signs look alike, so that a label can be read."""
    pictures = {}
    for sign in "abcdefghijklmnopqrstuvwxyz0123456789 _-.,:/<>=+()é":
        canvas = Canvas(12, 16, PALETTE)
        canvas.write(0, 0, sign, 1)
        pictures[canvas.encode()] = sign
    assert len(pictures) == 50

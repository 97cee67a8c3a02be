"""Pictures of few colours as PNG files, the same bytes wherever they are made."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

Colour = tuple[int, int, int]

GLYPH_WIDTH, GLYPH_HEIGHT, ADVANCE = 5, 8, 6
"""Of a sign, in dots; and from one sign to the next."""
_COLUMNS = {
    "a": "2054545478", "b": "7f48444438", "c": "3844444420", "d": "384444487f", "e": "3854545418", "f": "087e090102",
    "g": "18a4a4a47c", "h": "7f08040478", "i": "00447d4000", "j": "4080847d00", "k": "7f10284400", "l": "00417f4000",
    "m": "7c04180478", "n": "7c08040478", "o": "3844444438", "p": "fc24242418", "q": "18242424fc", "r": "7c08040408",
    "s": "4854545420", "t": "043f444020", "u": "3c4040207c", "v": "1c2040201c", "w": "3c4030403c", "x": "4428102844",
    "y": "1ca0a0a07c", "z": "4464544c44", "0": "3e5149453e", "1": "00427f4000", "2": "4261514946", "3": "2141454b31",
    "4": "1814127f10", "5": "2745454539", "6": "3c4a494930", "7": "0171090503", "8": "3649494936", "9": "064949291e",
    " ": "0000000000", "_": "4040404040", "-": "0808080808", ".": "0060600000", ",": "0050300000", ":": "0036360000",
    "/": "2010080402", "<": "0814224100", ">": "0041221408", "=": "1414141414", "+": "08083e0808", "(": "001c224100",
    ")": "0041221c00",
}  # fmt: skip
"""Five columns for each sign, the lowest bit on top."""
_GLYPHS = {sign: bytes.fromhex(columns) for sign, columns in _COLUMNS.items()}
_UNKNOWN = bytes.fromhex("7f4141417f")
_BLOCK = 0xFFFF  # Bytes; the most that a stored block holds.


class Canvas:
    """A picture of at most 16 colours, each named by its number."""

    def __init__(self, width: int, height: int, palette: Sequence[Colour]) -> None:
        self.width, self.height, self._palette = width, height, palette
        self._rows = [bytearray(width) for _ in range(height)]

    def fill(self, left: int, top: int, width: int, height: int, colour: int) -> None:
        """Fill a rectangle, as far as it lies in the picture."""
        left, right = max(left, 0), min(left + width, self.width)
        for row in self._rows[max(top, 0) : top + height]:
            row[left:right] = bytes([colour]) * max(right - left, 0)

    def write(self, left: int, top: int, text: str, colour: int, scale: int = 2) -> None:
        """Write a text; a sign that has no glyph becomes a box."""
        for place, sign in enumerate(text.lower()):
            for x, column in enumerate(_GLYPHS.get(sign, _UNKNOWN)):
                for y in range(GLYPH_HEIGHT):
                    if column >> y & 1:
                        self.fill(left + (place * ADVANCE + x) * scale, top + y * scale, scale, scale, colour)

    def encode(self, *, compress: bool = False) -> bytes:
        """The PNG file; compressed, its bytes depend on the machine's zlib."""
        header = self.width.to_bytes(4) + self.height.to_bytes(4) + bytes([4, 3, 0, 0, 0])
        palette = b"".join(bytes(colour) for colour in self._palette)
        lines = b"".join(b"\0" + _pack(row) for row in self._rows)
        data = zlib.compress(lines) if compress else _store(lines)
        chunks = (
            (b"IHDR", header),
            (b"PLTE", palette),
            (b"IDAT", data),
            (b"IEND", b""),
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(_frame(kind, data) for kind, data in chunks)


def measure_text(text: str, scale: int = 2) -> int:
    """How wide a text is, in pixels."""
    return max(len(text) * ADVANCE - (ADVANCE - GLYPH_WIDTH), 0) * scale


def _pack(row: bytearray) -> bytes:
    """Two pixels to a byte."""
    even = bytes(row) + b"\0" * (len(row) % 2)
    return bytes(first << 4 | second for first, second in zip(even[::2], even[1::2], strict=True))


def _store(data: bytes) -> bytes:
    """Data in zlib's format without compression, whose result would depend on which zlib it is."""
    blocks = [data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK)] or [b""]
    stored = b"".join(
        bytes([place == len(blocks) - 1])
        + len(block).to_bytes(2, "little")
        + (len(block) ^ 0xFFFF).to_bytes(2, "little")
        + block
        for place, block in enumerate(blocks)
    )
    return b"\x78\x01" + stored + zlib.adler32(data).to_bytes(4)


def _frame(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

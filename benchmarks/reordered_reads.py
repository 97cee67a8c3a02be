"""Time reading a matrix of 4096 x 4096 in bfloat16 in the orders that conversions between families ask for.

Usage: python benchmarks/reordered_reads.py FOLDER. The file is in the page cache; one thread; nothing is computed.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import cast

import torch

from xmerge.engine.blocks import Buffers, SourceReader
from xmerge.engine.reading import OpenSources
from xmerge.planning.memory import BLOCK_ELEMENTS
from xmerge.planning.plan import Segment, Source

N, HEAD = 4096, 128
ROUNDS = 11
ORDERS = {
    "contiguous": (),
    "rotated rows, interleaved to half": (
        (N // HEAD, HEAD * N, HEAD * N),
        (2, N, HEAD // 2 * N),
        (HEAD // 2, 2 * N, N),
        (N, 1, 1),
    ),
    "one of three blocks of each head": ((10, 3 * HEAD * N, HEAD * N), (HEAD * N, 1, 1)),
    "transposed": ((N, 1, N), (N, N, 1)),
    "every second column": ((N * N // 2, 2, 1),),
}
"""What is done -> its loops: (how often, elements from one to the next in the file, the same in the output)."""


class OneFile:
    """An open file in the place of a merge's sources."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, _: int, segment: Segment, at: int, view: memoryview) -> None:
        """Fill `view` from the byte `at` of a segment."""
        assert os.preadv(self._descriptor, [view], segment.offset + at) == len(view)


def main(folder: Path) -> None:
    """Write the matrix, and print the median time of reading it in each order."""
    torch.set_num_threads(1)
    path = folder / "matrix"
    path.write_bytes(torch.randn(N * N).bfloat16().view(torch.uint8).numpy().tobytes())
    files, buffers = cast("OpenSources", OneFile(path)), Buffers(BLOCK_ELEMENTS["cpu"], torch.device("cpu"))
    seconds: dict[str, list[float]] = {name: [] for name in ORDERS}
    for _ in range(ROUNDS):
        for name, order in ORDERS.items():
            seconds[name].append(time_reading(order, files, buffers))
    contiguous = statistics.median(seconds["contiguous"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        sys.stdout.write(f"{name:36}{median * 1e9:6.2f} ns an element{median / contiguous:6.1f} times contiguous\n")


def time_reading(order: tuple[tuple[int, int, int], ...], files: OpenSources, buffers: Buffers) -> float:
    """Seconds for each element of a part of the matrix, read block by block in float32."""
    elements = math.prod(count for count, _, _ in order) if order else N * N
    segment = Segment(tensor="matrix", file="matrix", dtype="BF16", offset=0, elements=elements, order=order)
    reader = SourceReader(Source(model=0, pin="", segments=(segment,)), files, buffers)
    out = torch.empty(buffers.block)
    started = time.perf_counter()
    for start in range(0, elements, buffers.block):
        reader.read(start, out[: elements - start])
    return (time.perf_counter() - started) / elements


if __name__ == "__main__":
    main(Path(sys.argv[1]))

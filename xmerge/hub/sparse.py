"""A shard of which only some bytes are here: a file of its size with its header and holes, and a journal.

The journal has one line for each piece that has come, with its SHA-256. A piece counts if it is what the journal says,
so that neither a kill nor a power loss can leave one that only looks fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xmerge import disk
from xmerge.files import COPY_BYTES, make_folders, open_file, read_bytes, read_into, remove_file, replace_text, write_at
from xmerge.hub.ranges import Range
from xmerge.interrupt import check_stop

PIECE = 16 * 2**20
"""Bytes that one request asks for at most, and so what a kill costs for each request under way."""

NEAR = 4 * 1024
"""Ranges as near as this are fetched as one: a request costs more than the bytes between."""


class SparseShard:
    """A shard in the making, open for writing at any place and from any thread."""

    def __init__(self, path: Path, descriptor: int, journal: int) -> None:
        self.path = path
        self._descriptor, self._journal = descriptor, journal
        self._lock = threading.Lock()
        self._end = disk.fstat(journal).st_size

    def write(self, place: int, data: bytes) -> None:
        """Put bytes where they stand in the shard."""
        write_at(self._descriptor, memoryview(data), place)

    def note(self, piece: Range, sha256: str) -> None:
        """Say that a piece has come, after all of it was written."""
        line = _draw_line(piece, sha256).encode()
        with self._lock:
            write_at(self._journal, memoryview(line), self._end)
            self._end += len(line)


@contextmanager
def open_sparse(path: Path, size: int, header: bytes) -> Iterator[tuple[SparseShard, list[Range]]]:
    """Open a shard of which some bytes are to come, and say which are there already, intact.

    Args:
        path: Where it is, or is to be.
        size: Bytes of the whole shard.
        header: Its first bytes.
    """
    journal = path.with_name(f"{path.name}.journal")
    make_folders(path.parent)
    if path.is_symlink():  # To the whole shard, in the Hub cache, where nothing is to be written.
        remove_file(path)
    with open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) as descriptor:
        if disk.fstat(descriptor).st_size != size or _read(descriptor, Range(0, len(header))) != header:
            remove_file(journal)
            disk.ftruncate(descriptor, 0)
            disk.ftruncate(descriptor, size)
            write_at(descriptor, memoryview(header), 0)
        noted = _read_journal(journal, size)
        intact = [(piece, digest) for piece, digest in noted if _hash(descriptor, piece) == digest]
        # What a kill has cut or a disk has changed is taken out, in one step.
        replace_text(journal, "".join(_draw_line(piece, digest) for piece, digest in intact))
        with open_file(journal, os.O_RDWR) as lines:
            yield SparseShard(path, descriptor, lines), [piece for piece, _ in intact]


def join_ranges(ranges: Iterable[Range], near: int = 0) -> list[Range]:
    """The same bytes in order, each once; ranges that touch, or have at most `near` bytes between them, as one."""
    joined: list[Range] = []
    for each in sorted(ranges):
        if joined and each.start <= joined[-1].stop + near:
            joined[-1] = Range(joined[-1].start, max(joined[-1].stop, each.stop))
        else:
            joined.append(each)
    return joined


def subtract_ranges(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What of some ranges lies in none of the others."""
    left = join_ranges(ranges)
    for other in others:
        left = [
            part
            for each in left
            for part in (Range(each.start, min(each.stop, other.start)), Range(max(each.start, other.stop), each.stop))
            if part.start < part.stop
        ]
    return left


def cut_pieces(ranges: Iterable[Range], most: int = PIECE) -> list[Range]:
    """The same bytes in pieces of at most `most`."""
    return [
        Range(start, min(start + most, each.stop)) for each in ranges for start in range(each.start, each.stop, most)
    ]


def _draw_line(piece: Range, sha256: str) -> str:
    return json.dumps([*piece, sha256]) + "\n"


def _read_journal(path: Path, size: int) -> Iterator[tuple[Range, str]]:
    """The pieces of a file that a journal speaks of; what is no line of a journal was cut, and says nothing."""
    try:
        lines = read_bytes(path).splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            start, stop, digest = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= size:
            yield Range(start, stop), str(digest)


def _hash(descriptor: int, piece: Range) -> str:
    digest = hashlib.sha256()
    for start in range(piece.start, piece.stop, COPY_BYTES):
        check_stop()
        digest.update(_read(descriptor, Range(start, min(start + COPY_BYTES, piece.stop))))
    return digest.hexdigest()


def _read(descriptor: int, part: Range) -> bytes:
    buffer = bytearray(part.nbytes)
    return bytes(buffer[: read_into(descriptor, memoryview(buffer), part.start)])

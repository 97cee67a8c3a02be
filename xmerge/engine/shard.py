"""Writing one shard: reserved in full, header first, tensors at fixed places, bytes copied inside the kernel."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

from xmerge import disk
from xmerge.checkpoints.headers import DTYPE_BITS, build_header
from xmerge.engine.reading import OpenSources
from xmerge.engine.scan import scan_shard
from xmerge.files import DISK_FULL, allocate, remove_file, storage_error, write_at
from xmerge.interrupt import check_stop
from xmerge.planning.plan import LayerPlan, Segment, Source
from xmerge.store import hold

COPY_BYTES = 64 * 2**20
MEMORY_BYTES = 4 * 2**20


class ShardWriter:
    """A shard being written under a temporary name."""

    def __init__(self, path: Path, layer: LayerPlan) -> None:
        self.path = path
        header, entries = build_header((tensor.name, tensor.dtype, tensor.shape) for tensor in layer.tensors)
        self._header = header
        self._entries = entries
        self._places = {entry.name: (len(header) + entry.begin, entry.end - entry.begin) for entry in entries}
        self._missing = {entry.name: entry.end - entry.begin for entry in entries}
        self.size = len(header) + (entries[-1].end if entries else 0)
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._create()
            allocate(self._descriptor, self.size)
            write_at(self._descriptor, memoryview(self._header), 0)
        except OSError as error:
            self._abandon()
            raise storage_error(error, self.path.parent, needed=self.size) from error
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._abandon()
        else:
            self._close()

    def write(self, name: str, at: int, data: memoryview) -> None:
        """Write bytes of a tensor, from its byte `at` on.

        Raises:
            StorageError: They cannot be written.
        """
        place, size = self._places[name]
        assert 0 <= at <= size - len(data)
        try:
            write_at(self._descriptor, data, place + at)
        except OSError as error:
            raise storage_error(error, self.path.parent, needed=self.size) from error
        self._missing[name] -= len(data)

    def restart(self, name: str) -> None:
        """Forget what was written of a tensor, to write all of it again."""
        self._missing[name] = self._places[name][1]

    def copy(self, name: str, source: Source, sources: OpenSources) -> None:
        """Let the kernel copy a tensor's bytes from its source.

        Raises:
            CheckpointError: The source cannot be read, or has become shorter.
            StorageError: The bytes cannot be written.
        """
        for segment in source.segments:
            place = segment.at * DTYPE_BITS[segment.dtype] // 8
            assert source.is_plain and place + segment.nbytes <= self._places[name][1]
            self._copy_segment(name, place, source.model, segment, sources)

    def seal(self) -> tuple[str, dict[str, int]]:
        """Read the shard back: its SHA-256, and how many numbers of each tensor are NaN or infinite."""
        assert not any(self._missing.values()), f"not every byte was written exactly once: {self._missing}"
        sha256, nonfinite = scan_shard(self._descriptor, len(self._header), self._entries)
        return sha256, {name: count for name, (count, _) in nonfinite.items()}

    def sync(self) -> None:
        """Wait until the shard is on the disk.

        Raises:
            StorageError: It did not get there.
        """
        try:
            disk.fsync(self._descriptor)
        except OSError as error:
            raise storage_error(error, self.path.parent, needed=self.size) from error

    def _copy_segment(self, name: str, at: int, model: int, segment: Segment, sources: OpenSources) -> None:
        descriptor, place = sources.descriptor(model, segment.file), self._places[name][0] + at
        done = 0
        while done < segment.nbytes:
            check_stop()
            left = segment.nbytes - done
            count = self._copy_in_kernel(descriptor, segment.offset + done, place + done, min(left, COPY_BYTES))
            if count == 0:
                count = min(left, MEMORY_BYTES)
                data = memoryview(bytearray(count))
                sources.read(model, segment, done, data)
                self.write(name, at + done, data)
            else:
                self._missing[name] -= count
            done += count

    def _copy_in_kernel(self, descriptor: int, offset: int, place: int, count: int) -> int:
        """How many bytes were copied; 0 where the kernel cannot, and a way through memory says whose fault it is."""
        try:
            return disk.copy_file_range(descriptor, self._descriptor, count, offset, place)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise storage_error(error, self.path.parent, needed=self.size) from error
            return 0

    def _create(self) -> None:
        """Open a new file of ours alone; another one if a sweep took it before it was locked."""
        while True:
            self._descriptor = disk.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            hold(self._descriptor)
            if disk.fstat(self._descriptor).st_nlink:
                return
            self._close()

    def _abandon(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                remove_file(self.path)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        # What is to last has been synced; there is nothing left that closing could lose.
        with contextlib.suppress(OSError):
            disk.close(descriptor)

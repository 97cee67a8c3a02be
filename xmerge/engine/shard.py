"""Writing one shard: reserved in full, header first, tensors at fixed places, bytes copied inside the kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from xmerge.checkpoints.headers import build_header
from xmerge.engine.reading import OpenSources
from xmerge.engine.scan import scan_shard
from xmerge.errors import StorageError
from xmerge.interrupt import check_stop
from xmerge.planning.plan import LayerPlan, Source

COPY_BYTES = 64 * 2**20
_NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class ShardWriter:
    """A shard being written under a temporary name."""

    def __init__(self, path: Path, layer: LayerPlan) -> None:
        self.path = path
        header, entries = build_header((tensor.name, tensor.dtype, tensor.shape) for tensor in layer.tensors)
        self._header = header
        self._entries = entries
        self._places = {entry.name: len(header) + entry.begin for entry in entries}
        self.size = len(header) + (entries[-1].end if entries else 0)
        self._descriptor = -1

    def __enter__(self) -> ShardWriter:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.posix_fallocate(self._descriptor, 0, self.size)
            self._write_at(memoryview(self._header), 0)
        except OSError as error:
            self._abandon()
            raise storage_error(error, self.path.parent, needed=self.size) from error
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._abandon()
        elif self._descriptor >= 0:
            os.close(self._descriptor)

    def write(self, name: str, at: int, data: memoryview) -> None:
        """Write bytes of a tensor, from its byte `at` on."""
        try:
            self._write_at(data, self._places[name] + at)
        except OSError as error:
            raise storage_error(error, self.path.parent, needed=self.size) from error

    def copy(self, name: str, source: Source, sources: OpenSources) -> None:
        """Let the kernel copy a tensor's bytes from its source."""
        place = self._places[name]
        for segment in source.segments:
            descriptor = sources.descriptor(source.model, segment.file)
            self._copy_range(descriptor, segment.offset, place, segment.nbytes)
            place += segment.nbytes

    def seal(self) -> tuple[str, dict[str, int]]:
        """Read the shard back: its SHA-256, and how many numbers of each tensor are NaN or infinite."""
        sha256, nonfinite = scan_shard(self._descriptor, len(self._header), self._entries)
        return sha256, {name: count for name, (count, _) in nonfinite.items()}

    def sync(self) -> None:
        """Wait until the shard is on the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise storage_error(error, self.path.parent, needed=self.size) from error

    def _copy_range(self, descriptor: int, offset: int, place: int, left: int) -> None:
        while left:
            check_stop()
            try:
                count = os.copy_file_range(descriptor, self._descriptor, min(left, COPY_BYTES), offset, place)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise storage_error(error, self.path.parent, needed=self.size) from error
                count = self._copy_through_memory(descriptor, offset, place, min(left, COPY_BYTES))
            if count == 0:
                raise StorageError(f"{self.path.name} could not be filled.", why="a source ended early.")
            offset, place, left = offset + count, place + count, left - count

    def _copy_through_memory(self, descriptor: int, offset: int, place: int, count: int) -> int:
        """The same copy where source and store are on file systems that the kernel cannot copy between."""
        data = os.pread(descriptor, count, offset)
        self._write_at(memoryview(data), place)
        return len(data)

    def _write_at(self, data: memoryview, place: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], place + done)

    def _abandon(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self.path.unlink(missing_ok=True)


def storage_error(error: OSError, folder: Path, *, needed: int | None = None) -> StorageError:
    """The error for a failed write: what is needed and what there is, for a full disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = os.statvfs(folder)
        available = free.f_bavail * free.f_frsize
        told = f"{needed:,} bytes are needed at once and " if needed else ""
        return StorageError(
            f"there is no space left in {folder}.",
            why=f"{told}{available:,} bytes are free ({error.strerror}).",
            remedy="free some space and run the same command again: finished layers are kept.",
        )
    return StorageError(f"{folder} cannot be written: {error.strerror}.", remedy="check the folder, then run again.")

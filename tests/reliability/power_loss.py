"""What a power loss may leave: a record of every change to a folder, and the states that its syncs do not rule out.

A sync of a file keeps its bytes, a sync of a folder the names in it. Whatever was not synced may be there or not, each
sector and each name for itself: no file system loses more, and most lose less.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.reliability.failing_disk import replaced

SECTOR = 512
ROOT = 0


@dataclass(frozen=True)
class Change:
    """One change to a file's bytes, or to the names in one or two folders; files and folders are known by numbers."""

    nodes: tuple[int, ...]
    """What has to be synced for it to last: any of these."""
    apply: Callable[[State], None]


@dataclass(frozen=True)
class Sync:
    """From here on, what was done to a file or a folder before lasts."""

    node: int


@dataclass
class State:
    """Files and folders as they are on a disk."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytearray] = field(default_factory=dict)

    def write_to(self, folder: Path) -> None:
        """Make it so in an empty folder; a file with two names is one file."""
        self._write(ROOT, folder, {})

    def _write(self, node: int, folder: Path, written: dict[int, Path]) -> None:
        for name, child in sorted(self.folders.get(node, {}).items()):
            path = folder / name
            if child in self.folders:
                path.mkdir()
                self._write(child, path, written)
            elif child in written:
                path.hardlink_to(written[child])
            else:
                path.write_bytes(self.files.get(child, b""))
                written[child] = path


class Journal:
    """Every change below a folder, in order."""

    def __init__(self, folder: Path) -> None:
        self.entries: list[Change | Sync] = []
        self.calls: list[int] = []
        """Where in the entries each call begins that has changed anything; a large write is many changes."""
        self._folder = folder
        self._now = State()
        self._open: dict[int, int] = {}
        self._made = ROOT

    def note(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        """Make a call, and write down what it has changed."""
        noter, before = getattr(self, f"_note_{name}", None), len(self.entries)
        if noter is None:
            return real(*args)
        result = noter(real, *args)
        if len(self.entries) > before:
            self.calls.append(before)
        return result

    def list_states(self, crash: int, choose: random.Random, count: int) -> Iterator[State]:
        """States after a power loss before the entry `crash`: all that was not synced kept, all of it lost, or some."""
        entries = self.entries[:crash]
        synced: set[int] = set()
        lasting = []
        for entry in reversed(entries):
            if isinstance(entry, Sync):
                synced.add(entry.node)
            else:
                lasting.append((entry, any(node in synced for node in entry.nodes)))
        lasting.reverse()
        for share in (1.0, 0.0, *(choose.random() for _ in range(count))):
            state = State()
            for change, lasts in lasting:
                if lasts or choose.random() < share:
                    change.apply(state)
            yield state

    def _note_open(self, real: Callable[..., int], path: Path, flags: int, mode: int = 0o777) -> int:
        place = self._find(path)
        descriptor = real(path, flags, mode)
        nameless = flags & os.O_TMPFILE == os.O_TMPFILE
        if place is None or nameless:
            self._open.pop(descriptor, None)
            return descriptor
        folder, name = place
        node = self._now.folders[folder].get(name) if name else folder
        if node is None:
            node = self._make()
            self._change((folder,), _put(folder, name, node))
        elif flags & os.O_TRUNC:
            self._change((node,), _cut(node, 0))
        self._open[descriptor] = node
        return descriptor

    def _note_close(self, real: Callable[[int], None], descriptor: int) -> None:
        real(descriptor)
        self._open.pop(descriptor, None)

    def _note_pwrite(self, real: Callable[..., int], descriptor: int, data: memoryview, place: int) -> int:
        count = real(descriptor, data, place)
        self._write(descriptor, bytes(data[:count]), place)
        return count

    def _note_copy_file_range(
        self, real: Callable[..., int], source: int, target: int, size: int, start: int, place: int
    ) -> int:
        count = real(source, target, size, start, place)
        self._write(target, os.pread(source, count, start), place)
        return count

    def _note_ftruncate(self, real: Callable[[int, int], None], descriptor: int, size: int) -> None:
        real(descriptor, size)
        if descriptor in self._open:
            node = self._open[descriptor]
            self._change((node,), _cut(node, size))

    def _note_allocate(self, real: Callable[[int, int], None], descriptor: int, size: int) -> None:
        real(descriptor, size)
        if descriptor in self._open:
            node = self._open[descriptor]
            self._change((node,), _extend(node, size))

    def _note_fsync(self, real: Callable[[int], None], descriptor: int) -> None:
        real(descriptor)
        if descriptor in self._open:
            self.entries.append(Sync(self._open[descriptor]))

    def _note_mkdir(self, real: Callable[[Path], None], path: Path) -> None:
        real(path)
        if place := self._find(path):
            node = self._make()
            self._now.folders[node] = {}
            self._change((place[0],), _put(*place, node, is_folder=True))

    def _note_link(self, real: Callable[[Path, Path], None], source: Path, target: Path) -> None:
        real(source, target)
        origin, place = self._find(source), self._find(target)
        assert origin is not None and place is not None
        self._change((place[0],), _put(*place, self._now.folders[origin[0]][origin[1]]))

    def _note_rename(self, real: Callable[[Path, Path], None], source: Path, target: Path) -> None:
        real(source, target)
        origin, place = self._find(source), self._find(target)
        assert origin is not None and place is not None
        node = self._now.folders[origin[0]][origin[1]]
        take, put = _take(*origin, node), _put(*place, node, is_folder=node in self._now.folders)

        def move(state: State) -> None:
            take(state)
            put(state)

        # One transaction of the file system, which a sync of either folder brings to the disk.
        self._change((origin[0], place[0]), move)

    def _note_unlink(self, real: Callable[[Path], None], path: Path) -> None:
        real(path)
        if place := self._find(path):
            self._change((place[0],), _take(*place, self._now.folders[place[0]][place[1]]))

    _note_rmdir = _note_unlink

    def _find(self, path: Path) -> tuple[int, str] | None:
        """(folder, name) of a path; None outside of what is watched, no name for the watched folder itself."""
        try:
            parts: Sequence[str] = Path(path).relative_to(self._folder).parts
        except ValueError:
            return None
        if not parts:
            return ROOT, ""
        node = ROOT
        for name in parts[:-1]:
            node = self._now.folders.get(node, {}).get(name, -1)
        return node, parts[-1]

    def _make(self) -> int:
        self._made += 1
        return self._made

    def _write(self, descriptor: int, data: bytes, place: int) -> None:
        if descriptor in self._open:
            node = self._open[descriptor]
            for start in range(0, len(data), SECTOR):
                self._change((node,), _write(node, data[start : start + SECTOR], place + start))

    def _change(self, nodes: tuple[int, ...], apply: Callable[[State], None]) -> None:
        apply(self._now)
        self.entries.append(Change(nodes, apply))


@contextmanager
def journal(folder: Path) -> Iterator[Journal]:
    """Write down every change below a folder."""
    made = Journal(folder)
    with replaced(made.note):
        yield made


def _put(folder: int, name: str, node: int, *, is_folder: bool = False) -> Callable[[State], None]:
    def put(state: State) -> None:
        state.folders.setdefault(folder, {})[name] = node
        if is_folder:
            state.folders.setdefault(node, {})

    return put


def _take(folder: int, name: str, node: int) -> Callable[[State], None]:
    def take(state: State) -> None:
        if state.folders.setdefault(folder, {}).get(name) == node:
            del state.folders[folder][name]

    return take


def _cut(node: int, size: int) -> Callable[[State], None]:
    def cut(state: State) -> None:
        data = state.files.setdefault(node, bytearray())
        data[:] = data[:size].ljust(size, b"\0")

    return cut


def _extend(node: int, size: int) -> Callable[[State], None]:
    def extend(state: State) -> None:
        data = state.files.setdefault(node, bytearray())
        data[:] = data.ljust(size, b"\0")

    return extend


def _write(node: int, written: bytes, place: int) -> Callable[[State], None]:
    def write(state: State) -> None:
        data = state.files.setdefault(node, bytearray())
        data[:] = data.ljust(place, b"\0")
        data[place : place + len(written)] = written

    return write

"""All of xmerge reaches the disk through `xmerge.disk`, so that a fault can be put before any call it makes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Where files are touched that are neither weights, nor entries of a store, nor part of an output, and why.
ELSEWHERE = {
    "xmerge/disk.py": "it is the door",
    "xmerge/architecture/family.py": "the package's own files",
    "xmerge/compatibility/naming.py": "the package's own files",
    "xmerge/config/loading.py": "the recipe",
    "xmerge/hub/reading.py": "the cache of the Hub's client, which writes it by itself",
    "xmerge/licences.py": "the package's own files",
    "xmerge/memory.py": "/proc",
    "xmerge/processes.py": "/proc",
}

MODULES = {"fcntl", "io", "mmap", "shutil", "tempfile"}
# What reads, writes, names or syncs; what only looks at names and sizes is free.
OF_OS = {
    "copy_file_range", "fdatasync", "fdopen", "fsync", "ftruncate", "link", "makedirs", "mkdir", "open",
    "posix_fallocate", "pread", "preadv", "pwrite", "pwritev", "read", "readv", "remove", "removedirs", "rename",
    "renames", "replace", "rmdir", "sendfile", "symlink", "sync", "truncate", "unlink", "write", "writev",
}  # fmt: skip
OF_PATHS = {
    "hardlink_to", "mkdir", "read_bytes", "read_text", "rename", "rmdir", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip


def test_the_disk_is_reached_through_one_door():
    """No module calls the system, a path's methods or a library that reads and writes, where xmerge.disk should be."""
    found = {name: list(list_calls(ROOT / name)) for name in list_modules() if name not in ELSEWHERE}
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_no_exception_is_left_that_nothing_needs():
    """Every module that is let off does touch files by itself."""
    assert [name for name in ELSEWHERE if not list(list_calls(ROOT / name))] == []


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.pwrite(1, b'', 0)",
        "from os import rename",
        "import os as system\nsystem.open('x', 0)",
        "import shutil\nshutil.rmtree('x')",
        "from mmap import mmap",
        "open('x')",
        "path.open('rb')",
        "path.open()",
        "path.write_text('x')",
        "(folder / 'x').unlink()",
        "def f():\n    import fcntl",
    ],
)
def test_a_way_around_the_door_is_found(tmp_path, text):
    """The test above can fail: each way to write a call past the door is seen."""
    (tmp_path / "sly.py").write_text(text)
    assert list(list_calls(tmp_path / "sly.py"))


@pytest.mark.parametrize(
    "text",
    [
        "from xmerge import disk\ndisk.open('x', 0)",
        "reader.open(sources)",
        "import os\nos.path.join('x')",
        "import os\nos.listdir('x')",
    ],
)
def test_the_door_itself_is_no_way_around_it(tmp_path, text):
    """What only looks like a call to the system is none."""
    (tmp_path / "honest.py").write_text(text)
    assert list(list_calls(tmp_path / "honest.py")) == []


def list_modules() -> list[str]:
    """Every module of the library and of its tasks, by its path."""
    folders = [ROOT / name for name in ("xmerge", "tasks")]
    return sorted(path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.py"))


def list_calls(path: Path) -> Iterator[str]:
    """What in a module reaches files by itself, as 'line: what'."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    system = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "os"
    }
    for node in ast.walk(tree):
        for found in _reach(node, system):
            yield f"{getattr(node, 'lineno', 0)}: {found}"


def _reach(node: ast.AST, system: set[str]) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="disk"))):
            return
        case ast.Import(names=names):
            yield from (alias.name for alias in names if alias.name in MODULES)
        case ast.ImportFrom(module="os", names=names):
            yield from (alias.name for alias in names if alias.name in OF_OS)
        case ast.ImportFrom(module=str(module)) if module in MODULES:
            yield module
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in system and attribute in OF_OS:
            yield f"{name}.{attribute}"
        case ast.Call(func=ast.Name(id="open")):
            yield "open"
        case ast.Call(func=ast.Attribute(attr="open"), args=args) if not args or isinstance(args[0], ast.Constant):
            yield "path.open"
        case ast.Call(func=ast.Attribute(attr=attribute)) if attribute in OF_PATHS:
            yield f"path.{attribute}"

"""Writing a shard: whole or gone, whatever the system does to it."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest
import torch

from tests.engine.bench import FILE, NAME, Bench, draw, read_back, same_bits
from tests.faults import fail_with
from xmerge import disk
from xmerge.engine import shard as module
from xmerge.engine.reading import OpenSources
from xmerge.engine.shard import ShardWriter
from xmerge.errors import Interrupted, SourceChangedError, StorageError
from xmerge.interrupt import request_stop, stoppable


@pytest.fixture
def bench(tmp_path):
    """A source of two pieces, to be copied one behind the other."""
    return Bench(tmp_path, [[draw(1, 1000), draw(2, 777)]])


def copy(bench: Bench):
    """The shard that a plan of one copied tensor gives, as (tensor, digest, path)."""
    plan = bench.plan()
    layer, path = plan.layers[0], bench.folder / "shard"
    with OpenSources(plan, layer, bench.folders) as sources, ShardWriter(path, layer) as shard:
        shard.copy(NAME, layer.tensors[0].sources[0], sources)
        digest, nonfinite = shard.seal()
        shard.sync()
    assert nonfinite == {}
    return read_back(path)[NAME], digest, path


def check_copied(bench: Bench) -> None:
    """The copy holds the pieces' bytes one after another, and its digest is its own."""
    tensor, digest, path = copy(bench)
    assert same_bits(tensor, torch.cat(bench.pieces[0]))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_pieces_are_copied_one_behind_the_other(bench):
    """The kernel's copy gives the sources' bytes, in their order."""
    check_copied(bench)


def test_the_header_is_the_plans(bench):
    """A shard starts with the header that the plan foresaw, byte for byte."""
    _, _, path = copy(bench)
    header = bench.plan().layers[0].header
    assert path.read_bytes()[: len(header)] == header


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EIO])
def test_where_the_kernel_cannot_copy_the_bytes_go_through_memory(bench, monkeypatch, number):
    """File systems that the kernel cannot copy between give the same bytes."""
    monkeypatch.setattr(disk, "copy_file_range", fail_with(number))
    monkeypatch.setattr(module, "MEMORY_BYTES", 100)
    check_copied(bench)


def test_a_copy_that_says_it_is_at_the_end_is_not_believed(bench, monkeypatch):
    """Some file systems answer 0 for files that have bytes: those are read, and nothing is lost."""
    monkeypatch.setattr(disk, "copy_file_range", lambda *_: 0)
    check_copied(bench)


def test_short_copies_and_short_writes_are_carried_on(bench, monkeypatch):
    """However few bytes the system takes at a time, all of them arrive."""
    real_copy, real_write = disk.copy_file_range, disk.pwrite
    few = iter(range(1, 10**6))
    monkeypatch.setattr(disk, "copy_file_range", lambda a, b, n, *at: real_copy(a, b, min(n, next(few)), *at))
    monkeypatch.setattr(disk, "pwrite", lambda file, data, at: real_write(file, data[:5], at))
    check_copied(bench)


def test_a_write_that_takes_nothing_is_an_error(bench, monkeypatch):
    """A write of no bytes ends in an error rather than in a loop."""
    monkeypatch.setattr(disk, "pwrite", lambda *_: 0)
    with pytest.raises(StorageError, match="cannot be written: nothing was written"):
        copy(bench)
    assert not (bench.folder / "shard").exists()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_reserves_nothing_is_written_all_the_same(bench, monkeypatch, number):
    """A reservation is a service, not a condition."""
    monkeypatch.setattr(disk, "allocate", fail_with(number))
    check_copied(bench)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["allocate", "pwrite", "copy_file_range", "fsync"])
def test_a_full_disk_is_told_with_its_numbers_and_leaves_nothing(bench, monkeypatch, call, number):
    """Whichever call finds the disk full: exit 6, the shard's size and what is free, and no unfinished file."""
    monkeypatch.setattr(disk, call, fail_with(number))
    with pytest.raises(
        StorageError, match=r"there is no space left in .*\n  why: 3,\d\d\d bytes are needed at once and .*(free|large)"
    ):
        copy(bench)
    assert not (bench.folder / "shard").exists()


def write_and_sync(bench: Bench, plan, sources) -> None:
    """Everything that a shard goes through but the reading back."""
    layer = plan.layers[0]
    with ShardWriter(bench.folder / "shard", layer) as shard:
        shard.copy(NAME, layer.tensors[0].sources[0], sources)
        shard.sync()


@pytest.mark.parametrize("call", ["open", "allocate", "pwrite", "fsync"])
def test_a_broken_disk_is_told_and_leaves_nothing(bench, monkeypatch, call):
    """Whichever call fails: exit 6 with the system's word, and no unfinished file."""
    plan = bench.plan()
    with OpenSources(plan, plan.layers[0], bench.folders) as sources:
        monkeypatch.setattr(disk, call, fail_with(errno.EIO))
        with pytest.raises(StorageError, match="cannot be written: Input/output error"):
            write_and_sync(bench, plan, sources)
        monkeypatch.undo()
    assert not (bench.folder / "shard").exists()


def test_a_source_that_became_shorter_is_named(bench):
    """A copy that meets the end of a source too early blames the source."""
    plan = bench.plan()
    with OpenSources(plan, plan.layers[0], bench.folders) as sources:
        os.truncate(bench.folders[0] / FILE, (bench.folders[0] / FILE).stat().st_size - 10)
        with pytest.raises(SourceChangedError, match=r"model0/model\.safetensors ends before piece9 does"):
            write_and_sync(bench, plan, sources)
    assert not (bench.folder / "shard").exists()


def test_bytes_that_were_not_written_are_no_shard(bench):
    """A shard with a hole is never sealed: zeros that nobody wrote would pass for weights."""
    layer = bench.plan().layers[0]
    with ShardWriter(bench.folder / "shard", layer) as shard:
        shard.write(NAME, 0, memoryview(bytes(100)))
        with pytest.raises(AssertionError, match="not every byte was written exactly once"):
            shard.seal()
        with pytest.raises(AssertionError):
            shard.write(NAME, layer.tensors[0].nbytes - 1, memoryview(bytes(2)))


def test_a_copy_answers_a_stop(bench):
    """A long copy ends when a stop is requested, and leaves nothing."""
    with stoppable():
        request_stop()
        with pytest.raises(Interrupted):
            copy(bench)
    assert not (bench.folder / "shard").exists()


def test_an_unfinished_file_that_a_sweep_took_is_made_again(bench, monkeypatch):
    """A file removed in the moment before it was locked is not written to."""
    taken: list[int] = []

    def take_first(descriptor):
        if not taken:
            taken.append(descriptor)
            (bench.folder / "shard").unlink()

    monkeypatch.setattr(module, "hold", take_first)
    check_copied(bench)
    assert taken

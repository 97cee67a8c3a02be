"""Space is taken before the first layer is made, given back as layers are made, and gone with the process."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import fail_with
from tests.small_merges import list_tree, make_plan, run, write_models
from xmerge import disk, reservation
from xmerge.errors import StorageError
from xmerge.reservation import estimate_entry, estimate_texts, hold_space, release_space
from xmerge.source_cards import MOST_BYTES
from xmerge.work import open_work_folder


@pytest.fixture
def sizes(monkeypatch):
    """How large the file that holds the space is, after each call."""
    seen: list[int] = []
    held: list[int] = []
    allocate, truncate = disk.allocate, disk.ftruncate

    def watch(call, descriptor, size):
        call(descriptor, size)
        stat = os.fstat(descriptor)
        if stat.st_nlink == 0 and stat.st_ino in (held or [stat.st_ino]):
            held.append(stat.st_ino)
            seen.append(size)

    monkeypatch.setattr(disk, "allocate", lambda descriptor, size: watch(allocate, descriptor, size))
    monkeypatch.setattr(disk, "ftruncate", lambda descriptor, size: watch(truncate, descriptor, size))
    return seen


def test_held_space_is_really_taken_and_has_no_name(tmp_path, sizes):
    """The bytes are the disk's and nobody else's while they are held; no file is seen, so none can be left behind."""
    with hold_space(tmp_path, 2**20):
        (descriptor,) = [each._descriptor for each in reservation._held[tmp_path]]
        assert os.fstat(descriptor).st_blocks * 512 >= 2**20
        assert list_tree(tmp_path) == []
        release_space(tmp_path, 2**19)
        assert os.fstat(descriptor).st_blocks * 512 < 2**20
    assert sizes == [2**20, 2**19]


@given(wanted=st.lists(st.integers(0, 10**6), max_size=5))
def test_no_more_is_given_back_than_was_taken(tmp_path_factory, wanted):
    """Whatever is released, what is left is between nothing and all."""
    folder = tmp_path_factory.mktemp("space")
    with hold_space(folder, 10**6):
        (held,) = reservation._held[folder]
        for count in wanted:
            release_space(folder, count)
        assert os.fstat(held._descriptor).st_size == max(0, 10**6 - sum(wanted))


def test_space_that_nobody_holds_is_not_released(tmp_path):
    """Before and after, and in another process, there is nothing to give back."""
    release_space(tmp_path, 1)
    with hold_space(tmp_path, 1):
        pass
    release_space(tmp_path, 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_or_a_quota_that_is_too_small_is_known_at_once(tmp_path, monkeypatch, number):
    """Also where the file system says that there is room: nothing is merged, and needed and free bytes are named."""
    plan = make_plan(write_models(tmp_path))[1]
    needed = sum(map(estimate_entry, plan.layers)) + estimate_texts(plan)
    monkeypatch.setattr(disk, "allocate", fail_with(number))
    monkeypatch.setattr(disk, "statvfs", lambda _: SimpleNamespace(f_blocks=1, f_bavail=10**9, f_frsize=1))
    with pytest.raises(StorageError) as caught, open_work_folder(tmp_path / "out", plan):
        pass
    assert caught.value.exit_code == 6
    assert f"{needed:,} bytes are needed and 1,000,000,000 are free ({os.strerror(number)})." in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "qwen3"]


@pytest.mark.parametrize("call", ["open", "allocate"])
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.EFBIG])
def test_where_space_cannot_be_held_the_merge_goes_on(tmp_path, monkeypatch, call, number):
    """A file system without nameless files or without reservations is no fault, nor is a limit to a file's size."""
    real = getattr(disk, call)

    def fail_for_nameless(*args: Any):
        if call == "allocate" or args[1] & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(disk, call, fail_for_nameless)
    with hold_space(tmp_path, 10):
        assert tmp_path not in reservation._held or not reservation._held[tmp_path]


def test_each_layer_gives_back_what_it_takes(tmp_path, sizes):
    """Before a layer is written what was held for it is free, and before the output is put together all of it is."""
    plan = make_plan(write_models(tmp_path))[1]
    run(tmp_path, workers=1)
    needed = [estimate_entry(layer) for layer in sorted(plan.layers, key=lambda layer: -layer.bytes_written)]
    left = [sum(needed[done:]) + estimate_texts(plan) for done in range(len(needed) + 1)]
    assert sizes == [*left, 0]


def test_what_is_estimated_is_enough(tmp_path):
    """No entry and no output takes more than was foreseen for it."""
    plan = make_plan(write_models(tmp_path))[1]
    run(tmp_path, store=tmp_path / "store")
    entries = {path.stem: path.stat().st_blocks * 512 for path in (tmp_path / "store").glob("*/*.safetensors")}
    records = {path.stem: path.stat().st_blocks * 512 for path in (tmp_path / "store").glob("*/*.json")}
    for layer in plan.layers:
        assert entries[layer.fingerprint] + records[layer.fingerprint] <= estimate_entry(layer)
    texts = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"]
    assert sum(path.stat().st_blocks * 512 for path in texts) <= estimate_texts(plan)


def test_licences_that_go_along_have_their_space(tmp_path):
    """A text of the largest size that is copied, of each model, fits into what was foreseen."""
    write_models(tmp_path)
    for number, config in enumerate(sorted(tmp_path.glob("*/config.json"))):
        (config.parent / "LICENSE").write_bytes(bytes([48 + number]) * MOST_BYTES)
    plan = make_plan(tmp_path)[1]
    run(tmp_path, store=tmp_path / "store")
    texts = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"]
    assert sum(path.stat().st_size >= MOST_BYTES for path in texts) == len(plan.models)
    assert sum(path.stat().st_blocks * 512 for path in texts) <= estimate_texts(plan)

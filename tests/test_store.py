"""The store: an entry is complete or invisible, and is used only if it is what it says."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.faults import fail_with
from tests.small_merges import make_plan, write_models
from xmerge import disk
from xmerge import store as module
from xmerge.engine import merge_layer
from xmerge.errors import SourceChangedError, StorageError
from xmerge.store import Store


@pytest.fixture
def made(tmp_path):
    """A plan, the folders of its models, a store with its second layer, and that entry's shard."""
    _, plan = make_plan(write_models(tmp_path))
    folders = [tmp_path / "llama", tmp_path / "qwen3"]
    store = Store(tmp_path / "store")
    store.path.mkdir()
    merge_layer(plan, 1, folders, store, "cpu")
    return plan, folders, store, store.shard_path(plan.layers[1].fingerprint)


def test_an_entry_that_is_whole_is_found_and_said_to_be_reused(made):
    """What an earlier run has made is used, and says so."""
    plan, folders, store, _ = made
    found = store.find(plan, 1, folders)
    assert found is not None and found.reused
    assert store.find(plan, 2, folders) is None
    assert store.holds_anything()


@pytest.mark.parametrize("place", [0, 8, 100, -1])
def test_a_flipped_bit_makes_an_entry_count_for_nothing(made, place):
    """An entry whose shard has changed in one bit, anywhere, is made again with the right bytes."""
    plan, folders, store, shard = made
    right = shard.read_bytes()
    wrong = bytearray(right)
    wrong[place] ^= 1
    shard.write_bytes(wrong)
    assert store.find(plan, 1, folders) is None
    assert not merge_layer(plan, 1, folders, store, "cpu").reused
    assert shard.read_bytes() == right
    assert store.find(plan, 1, folders) is not None


def test_an_entry_without_either_file_is_none(made):
    """A shard that nothing speaks of, and a word of a shard that is gone, are no entries."""
    plan, folders, store, shard = made
    said = shard.with_suffix(".json").read_text()
    shard.with_suffix(".json").unlink()
    assert store.find(plan, 1, folders) is None
    shard.with_suffix(".json").write_text(said)
    shard.unlink()
    assert store.find(plan, 1, folders) is None


def test_an_entry_that_says_something_else_is_none(made):
    """Damaged JSON, an unknown key, another fingerprint or other tensors: the layer is made again."""
    plan, folders, store, shard = made
    said = shard.with_suffix(".json")
    result = json.loads(said.read_text())
    for text in (
        "{",
        "\xff",
        json.dumps({**result, "more": 1}),
        json.dumps({**result, "fingerprint": "0" * 64}),
        json.dumps({**result, "tensors": result["tensors"][1:]}),
    ):
        said.write_text(text, encoding="latin-1")
        assert store.find(plan, 1, folders) is None


def test_an_entry_that_cannot_be_read_is_made_again(made):
    """A folder where a file should be is a damaged entry, not a traceback."""
    plan, folders, store, shard = made
    shard.unlink()
    shard.mkdir()
    assert store.find(plan, 1, folders) is None


def test_an_entry_made_from_other_files_does_not_count(made):
    """Weights that changed under an unchanged header are seen by the files' times, or refused."""
    plan, folders, store, _ = made
    path = folders[0] / "model.safetensors"
    stat = path.stat()
    shutil.copyfile(path, path.with_name("copy"))
    os.utime(path.with_name("copy"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.with_name("copy").rename(path)
    assert store.find(plan, 1, folders) is None
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError, match="changed since the plan was made"):
        merge_layer(plan, 2, folders, store, "cpu")


def test_an_entry_replaced_by_another_run_is_not_given_away(made, tmp_path):
    """Bytes that another run has put in an entry's place never reach an output that states other digests."""
    plan, folders, store, _ = made
    result = store.find(plan, 1, folders)
    assert result is not None
    other = result.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(StorageError, match=f"another run has replaced {result.label} in the store") as caught:
        store.give(other, tmp_path / "shard")
    assert caught.value.exit_code == 6


def test_an_entry_never_speaks_of_another_shard_than_its_own(made, monkeypatch):
    """When other bytes take an entry's place and the run dies in between, the entry is invisible."""
    plan, folders, store, shard = made
    result = store.find(plan, 1, folders)
    assert result is not None
    unfinished = store.reserve(plan.layers[1])
    unfinished.write_bytes(b"other bytes")
    monkeypatch.setattr(module, "replace_text", fail_with(5))
    with pytest.raises(StorageError, match="cannot be written"):
        store.commit(unfinished, result.model_copy(update={"sha256": "0" * 64}))
    assert not shard.with_suffix(".json").exists()


def test_a_sweep_takes_what_the_dead_left_and_nothing_of_the_living(made):
    """Unfinished files go when nobody holds them; entries and files in work stay."""
    plan, _, store, shard = made
    dead, living = store.reserve(plan.layers[1]), store.reserve(plan.layers[1])
    assert dead != living
    dead.write_bytes(b"")
    with living.open("wb") as file:
        module.hold(file.fileno())
        store.sweep()
        assert sorted(path.name for path in shard.parent.iterdir()) == sorted(
            [shard.name, shard.with_suffix(".json").name, living.name]
        )


def test_a_store_that_cannot_be_written_is_a_storage_error(made, monkeypatch):
    """No permission, at the reservation or at the rename, is exit 6 and names the store."""
    plan, folders, store, _ = made
    monkeypatch.setattr(disk, "mkdir", fail_with(13))
    with pytest.raises(StorageError, match="cannot be written: Permission denied"):
        store.reserve(plan.layers[2])
    monkeypatch.undo()
    monkeypatch.setattr(disk, "rename", fail_with(30))
    with pytest.raises(StorageError, match="cannot be written: Read-only file system"):
        merge_layer(plan, 2, folders, store, "cpu")
    assert not list(store.path.glob("*/*.tmp"))

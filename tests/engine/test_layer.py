"""Merging one layer: an entry of the store that says what it is, or nothing at all."""

from __future__ import annotations

import hashlib

import pytest
import torch

from tests.engine.bench import FILE, NAME, Bench, draw, read_back, same_bits
from tests.small_merges import list_tree
from xmerge.engine import merge_layer
from xmerge.errors import CheckpointError, Interrupted
from xmerge.interrupt import request_stop, stoppable
from xmerge.store import Store


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


def test_a_layer_becomes_an_entry_that_says_what_it_is(tmp_path, store):
    """Size, digest, the files it came from, and what was done to each tensor."""
    x, y = draw(1, 100), draw(2, 100)
    bench = Bench(tmp_path, [x, y])
    plan = bench.plan("linear", weight=(0.25, 0.75))
    result = merge_layer(plan, 0, bench.folders, store, "cpu")
    shard = store.shard_path(plan.layers[0].fingerprint)
    content = shard.read_bytes()
    assert (result.bytes, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [(stamp.pin, stamp.file) for stamp in result.stamps] == [("pin0", FILE), ("pin1", FILE)]
    assert result.tensors[0].coefficients == (0.25, 0.75)
    assert (result.device, result.reused, result.label) == ("cpu", False, "layer 0")
    assert same_bits(read_back(shard)[NAME], (x.float() + 0.75 * (y.float() - x.float())).bfloat16())


def test_a_layer_that_is_there_is_not_made_again(tmp_path, store):
    """The second time nothing is written, and the result says so."""
    bench = Bench(tmp_path, [draw(1, 100)])
    plan = bench.plan()
    made = merge_layer(plan, 0, bench.folders, store)
    stat = store.shard_path(made.fingerprint).stat()
    found = merge_layer(plan, 0, bench.folders, store)
    assert found == made.model_copy(update={"reused": True})
    assert store.shard_path(made.fingerprint).stat() == stat


def test_numbers_that_are_none_in_a_copied_tensor_are_counted(tmp_path, store):
    """A copy passes NaN and infinity on and says how many there are."""
    x = draw(1, 100)
    x[[3, 4, 90]] = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=x.dtype)
    bench = Bench(tmp_path, [x])
    result = merge_layer(bench.plan(), 0, bench.folders, store)
    assert result.tensors[0].nonfinite == 3


def test_a_layer_that_fails_leaves_nothing(tmp_path, store):
    """After an error there is neither an entry nor an unfinished file."""
    x = draw(1, 100)
    x[0] = float("nan")
    bench = Bench(tmp_path, [x, x])
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        merge_layer(bench.plan("linear", weight=(1.0, 1.0)), 0, bench.folders, store, "cpu")
    with stoppable():
        request_stop()
        with pytest.raises(Interrupted):
            merge_layer(bench.plan(), 0, bench.folders, store, "cpu")
    assert [name for name in list_tree(store.path) if "." in name] == []

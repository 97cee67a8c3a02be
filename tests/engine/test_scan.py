"""Scanning a shard: its digest, and every number that is none."""

from __future__ import annotations

import hashlib
import math
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.engine import scan
from xmerge.engine.scan import scan_shard
from xmerge.errors import Interrupted, StorageError
from xmerge.interrupt import request_stop, stoppable


def scan_file(path):
    """The scan of a whole file."""
    _, entries, start = read_local_shard(path, path.name)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return scan_shard(descriptor, start, entries)
    finally:
        os.close(descriptor)


@given(
    places=st.sets(st.integers(0, 99)),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from(
        [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e5m2, torch.float8_e4m3fn]
    ),
    block=st.sampled_from([8, 24, 2**20]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_number_that_is_none_is_counted(tmp_path, places, bad, dtype, block):
    """However the file is cut into blocks: how many in each tensor, where the first are, and the file's digest."""
    values = torch.ones(100, dtype=dtype)
    values[sorted(places)] = bad
    # One float of 8 bits has no infinity.
    places = set((~torch.isfinite(values.float())).nonzero().flatten().tolist())
    path = tmp_path / "shard.safetensors"
    save_file({"a": torch.ones(3, dtype=dtype), "b": values, "c": torch.zeros(2, dtype=torch.int64)}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "SCAN_BYTES", block)
        digest, found = scan_file(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == ({"b": (len(places), tuple(sorted(places)[:3]))} if places else {})


def test_finite_numbers_with_an_infinite_sum_are_finite(tmp_path):
    """Only numbers count, not what adding them up would give."""
    path = tmp_path / "shard.safetensors"
    save_file({"a": torch.full((100,), 3e38)}, path)
    assert scan_file(path)[1] == {}


def test_a_file_that_ends_too_early_is_told(tmp_path):
    """A shard shorter than its header says is an error of the disk, not a wrong digest."""
    path = tmp_path / "shard.safetensors"
    save_file({"a": torch.ones(100)}, path)
    _, entries, start = read_local_shard(path, path.name)
    os.truncate(path, path.stat().st_size - 1)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(StorageError, match="a shard is shorter than its header says"):
            scan_shard(descriptor, start, entries)
    finally:
        os.close(descriptor)


def test_a_scan_answers_a_stop(tmp_path):
    """A scan of a large shard ends when a stop is requested."""
    path = tmp_path / "shard.safetensors"
    save_file({"a": torch.ones(100)}, path)
    with stoppable():
        request_stop()
        with pytest.raises(Interrupted):
            scan_file(path)

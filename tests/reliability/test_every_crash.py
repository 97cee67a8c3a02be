"""A sample of `make faults`: whatever a power loss leaves that the syncs do not rule out, nothing finished is lost."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.reliability.every_call import open_bench
from tests.reliability.every_crash import Losses
from xmerge.engine.shard import ShardWriter

EVERY = 7
STATES = 2


@pytest.fixture(scope="module")
def bench():
    """Two small models, and what an undisturbed merge makes of them."""
    with open_bench() as opened:
        yield opened


@pytest.mark.slow
def test_fault_20_no_power_loss_can_leave_half_an_output(bench):
    """With any part of what was not synced lost: all or nothing, the same bytes in the end, no finished layer again."""
    losses = Losses(bench)
    assert [found for crash in losses.crashes[::EVERY] for found in losses.find_faults(crash, STATES)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("xmerge.files", "sync_file"),
        ("xmerge.files", "sync_folder"),
        ("xmerge.store", "sync_folder"),
        ("xmerge.output", "sync_file"),
        ("xmerge.output", "sync_folder"),
        (ShardWriter, "sync"),
    ],
)
def test_a_sync_that_is_left_out_is_found(bench, monkeypatch, place, name):
    """Not one of the syncs can be spared: without it, some power loss leaves half an output or loses a layer."""
    with monkeypatch.context() as patch:
        patch.setattr(import_module(place) if isinstance(place, str) else place, name, lambda *_: None)
        losses = Losses(bench)
    assert any(found for crash in reversed(losses.crashes) for found in losses.find_faults(crash, STATES))

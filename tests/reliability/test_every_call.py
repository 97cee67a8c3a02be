"""A sample of `make faults`: whichever call to the disk goes wrong, the output is whole or not there."""

from __future__ import annotations

import pytest

from tests.reliability.every_call import open_bench
from tests.reliability.failing_disk import KINDS, Fault, list_faults

EVERY = 13
"""One fault in so many, and so every part of a merge under every kind of fault."""


@pytest.fixture(scope="module")
def bench():
    """Two small models, and what an undisturbed merge makes of them."""
    with open_bench() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fault_20_no_call_to_the_disk_can_fail_and_leave_half_an_output(bench, kind):
    """Failed once, failed from then on, cut short or killed: all or nothing, and a second run gives the same bytes."""
    faults = [fault for fault in list_faults(bench.calls) if fault.kind == kind]
    assert {str(fault): found for fault in faults[::EVERY] if (found := bench.find_faults(fault))} == {}


@pytest.mark.slow
def test_a_merge_makes_its_calls_in_one_order(bench):
    """The n-th call is the same call in every run, so that failing each number in turn fails each call."""
    assert bench.record(bench.make_place() / "out") == bench.calls


@pytest.mark.slow
def test_a_second_run_that_differs_is_found(bench, monkeypatch):
    """The bench can fail: it tells of an output that is not the undisturbed one."""
    monkeypatch.setattr(bench, "whole", {})
    assert "the second run gave other bytes" in bench.find_faults(Fault("kill", len(bench.calls) // 2))

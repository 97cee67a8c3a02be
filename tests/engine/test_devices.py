"""Choosing a device: by name, and never one that is not there."""

from __future__ import annotations

import pytest
import torch

from xmerge.engine.devices import choose_device
from xmerge.errors import PlanError


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that says it has two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "device"),
    [("auto", "cuda:0"), ("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_a_name_means_one_device(name, device):
    """Every name means a device with its number; `auto` the first GPU where there is one."""
    assert choose_device(name) == torch.device(device)


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    """`auto` always means something."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cuda1", "cuda:", "cuda:-1", "cuda:x", "cuda:0:0", "CPU", "mps"])
def test_what_is_no_name_is_refused(name):
    """A name that means nothing anywhere is told with those that do."""
    with pytest.raises(PlanError) as caught:
        choose_device(name)
    assert str(caught.value) == f"there is no device '{name}'.\n  do: use auto, cpu, cuda or cuda:N."


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_here_is_refused():
    """A number beyond the machine's GPUs is told with how many there are."""
    with pytest.raises(PlanError, match="this machine has no device 'cuda:2'") as caught:
        choose_device("cuda:2")
    assert caught.value.why == f"torch {torch.__version__} sees 2 GPUs."
    assert caught.value.exit_code == 2

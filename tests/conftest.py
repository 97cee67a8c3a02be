"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.flows.tiny import Bench, write_llama

# Torch's threads spin while they wait for each other: on two cores tests take several times as long with two of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no fault of the code, and a failure must come back when the test is run again.
settings.register_profile("xmerge", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("xmerge")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with two tiny models, `base` and `donor`."""
    folder = Path(tmp_path_factory.mktemp("models"))
    for seed, name in enumerate(("base", "donor")):
        write_llama(folder / name, seed)
    return folder


@pytest.fixture
def bench(models, tmp_path) -> Bench:
    """A recipe for the two models, and a place for the output."""
    return Bench(models, tmp_path)

"""What `import xmerge` costs: a person who asks for --help does not wait for libraries that only a merge needs."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUDGET_SECONDS = 0.3
# Shared CI machines, and workers of pytest-xdist beside this one, slow an interpreter down several times.
SLACK = 4 if "CI" in os.environ or "PYTEST_XDIST_WORKER" in os.environ else 1
HEAVY = ("huggingface_hub", "prefect", "tokenizers", "torch", "transformers")


@pytest.mark.slow
def test_importing_xmerge_is_quick():
    """The median `import xmerge` of seven fresh interpreters takes less than 0.3 s (several times that under CI)."""
    code = "from time import perf_counter as now; start = now(); import xmerge; print(now() - start)"
    fresh(code)  # Writes the byte code that an installed package has.
    seconds = statistics.median(float(fresh(code)) for _ in range(7))
    assert seconds < BUDGET_SECONDS * SLACK


@pytest.mark.slow
@pytest.mark.parametrize("module", ["xmerge", "xmerge.config", "xmerge.architecture", "xmerge.planning", "xmerge.cli"])
def test_nothing_heavy_is_loaded_before_a_merge(module):
    """Neither the library, nor configuring and planning, nor the command line loads what only a merge needs."""
    assert heavy_loaded_by(f"import {module}") == []


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch", "huggingface_hub"])
def test_a_heavy_library_is_found(library):
    """The test above can fail: a heavy library that was imported is named."""
    assert library in heavy_loaded_by(f"import xmerge, {library}")


def heavy_loaded_by(code: str) -> list[str]:
    """The heavy libraries that a fresh interpreter has loaded after `code`."""
    return fresh(f"{code}\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules])").split()


def fresh(code: str) -> str:
    """What `code` prints in an interpreter of its own, started in the checkout."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

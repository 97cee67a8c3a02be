"""How much memory there is, and how much a person allows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.small_merges import run, write_models
from xmerge import memory
from xmerge.errors import ConfigError, PlanError
from xmerge.memory import LIMIT, allowed_bytes, available_bytes

ROOT = Path(__file__).parents[1]


@pytest.fixture
def said(tmp_path, monkeypatch):
    """A system that says what a test writes into its files."""
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)

    def say(**files: str) -> int | None:
        for path in tmp_path.iterdir():
            path.unlink()
        for name, text in files.items():
            (tmp_path / name.replace("_", ".", 1)).write_text(text)
        return available_bytes()

    return say


def test_the_least_of_what_is_told_counts(said):
    """The machine, the container and the process may each have less than the others; who says nothing has no bound."""
    assert said() is None
    assert said(meminfo="MemTotal: 9 kB\nMemAvailable:   8 kB\n") == 8192
    group = {"memory_max": "6000\n", "memory_current": "5000\n"}
    assert said(**group) == 1000
    assert said(meminfo="MemAvailable: 8 kB\n", **group) == 1000
    assert said(**group, memory_stat="active_file 7\ninactive_file 300\n") == 1300
    assert said(meminfo="MemAvailable: 8 kB\n", memory_max="max\n", memory_current="5000\n") == 8192
    assert said(memory_max="10", memory_current="20") == 0


def test_this_machine_says_something():
    """Where the system tells, it is more than nothing."""
    told = available_bytes()
    assert told is None or told > 2**20


@given(st.integers(0, 10**6), st.sampled_from(["", "B", " MB", "MiB", "G", "kB", "KB", "TiB"]))
def test_a_size_is_read_in_either_kind_of_unit(number, unit):
    """A thousand or 1024, with or without a space, and bytes where no unit stands."""
    factor = {"": 1, "B": 1, "MB": 10**6, "MiB": 2**20, "G": 10**9, "kB": 1000, "KB": 1000, "TiB": 2**40}[unit.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIMIT, f"{number}{unit}")
        assert allowed_bytes() == number * factor


@pytest.mark.parametrize("text", ["much", "-1", "1.5GB", "1 PB", "GB"])
def test_what_is_no_size_is_refused(monkeypatch, text):
    """A limit that cannot be read is an error and not no limit."""
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(ConfigError, match="is no size") as caught:
        allowed_bytes()
    assert caught.value.remedy == "write bytes, or a size such as 500MB or 4GiB."
    monkeypatch.delenv(LIMIT)
    assert allowed_bytes() is None


def test_a_limit_refuses_a_merge_before_anything_is_written(tmp_path, monkeypatch):
    """Too little memory is known from the plan: exit 2, and neither an output nor a work folder."""
    write_models(tmp_path)
    monkeypatch.setenv(LIMIT, "1kB")
    with pytest.raises(PlanError, match="there is too little memory for this merge"):
        run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "qwen3"]
    monkeypatch.setenv(LIMIT, "1GB")
    assert run(tmp_path).report is not None


BOUNDED = """
import resource
from xmerge.memory import available_bytes
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
print(available_bytes())
"""


def test_a_bound_of_the_process_counts():
    """What `ulimit -v` leaves is all there is."""
    told = subprocess.run([sys.executable, "-c", BOUNDED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(told.stdout) < 2**32

"""Same in, same out: under any hash seed, number of workers, and with or without Prefect."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.small_merges import RECIPE
from tests.tiny_models import write_tiny_llama, write_tiny_qwen3

HASH_SEEDS = range(20)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A Llama, a deeper Qwen3 with another MLP, and the recipe that crosses attention."""
    folder: Path = tmp_path_factory.mktemp("models")
    write_tiny_llama(folder / "llama", num_hidden_layers=4)
    write_tiny_qwen3(folder / "qwen3", num_hidden_layers=6, intermediate_size=96)
    (folder / "recipe.yml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_one_digest_over_hash_seeds_workers_and_ways_to_run(place):
    """20 hash seeds, 1, 2 and 4 workers, and the flow all give every file of the output the same bytes."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        seeds = pool.map(lambda seed: merge_directly(place, f"seed{seed}", seed, 1 + seed % 4), HASH_SEEDS)
        digests = {f"hash seed {seed}": digest for seed, digest in zip(HASH_SEEDS, seeds, strict=True)}
    for workers in (1, 2, 4):
        digests[f"{workers} workers"] = merge_directly(place, f"workers{workers}", 0, workers)
    digests["as a flow"] = run_merge(place, "flow", os.environ | {"PREFECT_HOME": str(place / "prefect")})
    assert len(set(digests.values())) == 1, digests


def merge_directly(place: Path, name: str, seed: int, workers: int) -> str:
    """Merge in a fresh interpreter with this hash seed."""
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    return run_merge(place, name, environment, "--direct", "--workers", str(workers))


def run_merge(place: Path, name: str, environment: dict[str, str], *words: str) -> str:
    """Merge through the command line; the digest of the output."""
    command = [sys.executable, "-m", "xmerge", "merge", "recipe.yml", f"out/{name}", "--quiet", "--skip-trial-load"]
    done = subprocess.run([*command, *words], cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return digest_folder(place / "out" / name)


def digest_folder(folder: Path) -> str:
    """One SHA-256 over the names and bytes of all files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

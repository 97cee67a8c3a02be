"""Repositories in Xet storage: whole shards come through its client, parts of shards over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub.samples import FIRST_READ, split_attention
from tests.hub.server import HubServer, running
from tests.small_merges import digest_files, run, write_model

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "stored": "F32"}
RECIPE = """\
merge_method: slerp
base_model: {0}llama
models: [{{model: {0}llama}}, {{model: {0}qwen3}}]
parameters:
  t: [{{filter: v_proj, value: 0.3}}]
"""
UPLOAD = "import sys; from huggingface_hub import HfApi; HfApi().create_repo(sys.argv[1]);"
UPLOAD += "HfApi().upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])"


@pytest.mark.slow
def test_shards_come_from_xet_and_parts_over_http(tmp_path: Path) -> None:
    """Both ways make the output of local models; only parts and headers are asked of the HTTP storage."""
    write_model(tmp_path / "llama", seed=1, **SIZES)
    write_model(tmp_path / "qwen3", "qwen3", seed=2, **SIZES)
    (tmp_path / "split").mkdir()
    for name, data in split_attention(tmp_path / "qwen3").items():
        (tmp_path / "split" / name).write_bytes(data)
    run(tmp_path, tmp_path / "here", RECIPE.format("./"))
    (tmp_path / "recipe.yml").write_text(RECIPE.format("org/"), encoding="utf-8")
    with running() as server:
        folders = {"org/llama": tmp_path / "llama", "org/qwen3": tmp_path / "split"}
        shards = [path for folder in folders.values() for path in sorted(folder.glob("*.safetensors"))]
        server.use_xet(tmp_path / "store", shards)
        for repo, folder in folders.items():
            start(server, tmp_path, "-c", UPLOAD, repo, str(folder))
        sent: dict[str, int] = {}
        for mode in ("shards", "tensors"):
            server.served.clear()
            words = ("merge", "recipe.yml", mode, "--direct", "--skip-trial-load", "--fetch", mode)
            start(server, tmp_path, "-m", "xmerge", *words, cache=mode)
            sent[mode] = sum(
                server.bytes_of(path.name) for each in folders.values() for path in each.glob("*.safetensors")
            )
            assert weights(tmp_path / mode) == weights(tmp_path / "here")
    assert sent["shards"] <= 3 * FIRST_READ < sent["tensors"], "more than headers"
    assert not list((tmp_path / "tensors-cache").rglob("*.safetensors"))


def start(server: HubServer, place: Path, *words: str, cache: str = "first") -> None:
    """Run Python with Xet, to its end."""
    environment = os.environ | server.environment(place / "home", xet=True)
    environment |= {"HF_HUB_CACHE": str(place / f"{cache}-cache"), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def weights(folder: Path) -> dict[str, str]:
    """The digests of a checkpoint's shards."""
    return {name: digest for name, digest in digest_files(folder).items() if name.endswith(".safetensors")}

"""A fetch that is killed: what it has brought stays, what it says is no secret, and the next run fetches the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub.samples import FIRST_READ, header_of, read_files
from tests.hub.server import SIGNATURE, TOKEN, HubServer, running
from tests.small_merges import digest_files, run, write_model
from xmerge.hub.pieces import AT_ONCE

LAYERS = 20
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": LAYERS, "stored": "F32"}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
PART = 2 * (64 + 32) * 64 * 4
"""Bytes of one layer's attention, which is one part of the donor."""
RECIPE = """\
merge_method: slerp
base_model: {base}
models: [{{model: {base}}}, {{model: {donor}}}]
parameters:
  t: [{{filter: q_proj, value: 0.3}}, {{filter: k_proj, value: 0.3}}, {{filter: v_proj, value: 0.3}},
    {{filter: o_proj, value: 0.3}}]
"""
PROGRAM = """\
import logging, sys
logging.basicConfig(level=logging.DEBUG)
for name in ("httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"):
    logging.getLogger(name).setLevel(logging.DEBUG)
from xmerge.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", [2, LAYERS - 1])
def test_a_kill_costs_the_parts_under_way(tmp_path: Path, part: int) -> None:
    """After kill -9 at any part the next run fetches what had not come and makes the same output; no secret is left."""
    write_model(tmp_path / "llama", seed=1, **SIZES)
    write_model(tmp_path / "qwen3", "qwen3", seed=2, **SIZES)
    run(tmp_path, tmp_path / "here", RECIPE.format(base="./llama", donor="./qwen3"))
    (tmp_path / "recipe.yml").write_text(RECIPE.format(base="org/llama", donor="org/qwen3"), encoding="utf-8")
    children: list[subprocess.Popen[str]] = []
    with running() as server:
        server.add("org/llama", read_files(tmp_path / "llama"), private=True)
        commit = server.add("org/qwen3", read_files(tmp_path / "qwen3"), private=True)
        asked = f"GET /org/qwen3/resolve/{commit}/model.safetensors"
        header = header_of((tmp_path / "qwen3" / "model.safetensors").read_bytes())
        before = 1 + (len(header) > FIRST_READ)
        server.fail(asked, times=before + part)  # The header, and the parts before.
        server.fail(asked, act=lambda: os.kill(children[0].pid, signal.SIGKILL))
        killed = start(server, tmp_path, children)
        assert children[0].returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
        assert find_secrets(tmp_path) == []
        assert server.bytes_of("model.safetensors") > (part - AT_ONCE) * PART

        finished = start(server, tmp_path, children)
        assert children[1].returncode == 0, finished
        base = (tmp_path / "llama" / "model.safetensors").stat().st_size + len(header) + FIRST_READ
        donor = server.bytes_of("model.safetensors") - base
        assert donor <= LAYERS * PART * 1.01 + len(header) + FIRST_READ + AT_ONCE * PART
    assert weights(tmp_path / "out") == weights(tmp_path / "here")
    assert not (tmp_path / ".out.xmerge").exists()
    assert find_secrets(tmp_path) == []
    for secret in (SIGNATURE, TOKEN):
        assert secret not in killed + finished
    assert "DEBUG" in killed


def start(server: HubServer, place: Path, children: list[subprocess.Popen[str]]) -> str:
    """Merge in a process that logs everything, and wait for its end; what it said."""
    words = ["merge", "recipe.yml", "out", "--direct", "--skip-trial-load", "--workers", "1"]
    environment = os.environ | server.environment(place / "home") | {"PYTHONPATH": os.getcwd()}
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    children.append(child)
    return child.communicate()[0]


def find_secrets(folder: Path) -> list[str]:
    """The files below a folder that hold the token or a signature."""
    secrets = (SIGNATURE.encode(), TOKEN.encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(secret in path.read_bytes() for secret in secrets)]


def weights(folder: Path) -> dict[str, str]:
    """The digests of a checkpoint's shards."""
    return {name: digest for name, digest in digest_files(folder).items() if name.endswith(".safetensors")}

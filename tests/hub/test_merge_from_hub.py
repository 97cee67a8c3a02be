"""From the Hub to the Hub: one recipe, the real client, a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_checkpoints import write_fake
from tests.hub.server import HubServer, running
from xmerge.checkpoints.headers import build_header

FIRST_READ = 8 * 1024
"""What a header costs at least: it is asked for before its length is known."""

RECIPE = """\
merge_method: slerp
base_model: org/llama@main
models:
- model: org/llama@main
- model: org/qwen3
layer_map: proportional
parameters:
  t: [{filter: v_proj, value: 0.3}]
publish: {repo: me/merged, branch: trial}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    """A Hub with a Llama in one file, and a deeper Qwen3 whose attention and MLP lie in different shards."""
    with running() as hub:
        yield hub


@pytest.mark.slow
def test_one_recipe_goes_from_the_hub_to_the_hub(server, tmp_path):
    """Models are pinned to commits, only shards that the plan uses are fetched, and the output is what is uploaded."""
    llama = server.add("org/llama", read_files(write_fake(tmp_path / "llama", dtype="F32")))
    donor = write_fake(tmp_path / "qwen3", "qwen3", num_hidden_layers=6, intermediate_size=2000, dtype="F32")
    qwen3 = server.add("org/qwen3", shard(donor))
    (tmp_path / "recipe.yml").write_text(RECIPE, encoding="utf-8")

    planned = run(server, tmp_path, "plan", "recipe.yml", "--json")
    assert [model["commit"] for model in json.loads(planned)["models"]] == [llama, qwen3]
    assert json.loads(planned)["models"][1]["files"] == ["attention.safetensors"]

    said = json.loads(run(server, tmp_path, "merge", "recipe.yml", "out", "--direct", "--json", "--skip-trial-load"))
    headers = 2 * FIRST_READ  # One for each command.
    assert server.bytes_of("rest.safetensors") <= headers, "more than the header of an unused shard was fetched"
    assert said["publication"]["repo"] == "me/merged"
    made = server.repositories["me/merged"]
    uploaded = made.commits[said["publication"]["commit"]]
    for path in sorted((tmp_path / "out").iterdir()):
        assert uploaded[path.name] == path.read_bytes(), path.name
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert '- "org/llama"\n- "org/qwen3"' in card
    assert llama in card


def run(server: HubServer, place: Path, *words: str) -> str:
    """Run xmerge against the server; what it prints."""
    environment = os.environ | server.environment(place / "home")
    command = [sys.executable, "-m", "xmerge", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_files(folder: Path) -> dict[str, bytes]:
    """A folder's files, as a repository has them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shard(folder: Path) -> dict[str, bytes]:
    """The same checkpoint in two shards: attention, and the rest."""
    raw = (folder / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:length])
    entries.pop("__metadata__")
    files = {"config.json": (folder / "config.json").read_bytes()}
    weight_map: dict[str, str] = {}
    for file, chosen in (
        ("attention.safetensors", [name for name in entries if "self_attn" in name]),
        ("rest.safetensors", [name for name in entries if "self_attn" not in name]),
    ):
        header, placed = build_header((name, entries[name]["dtype"], entries[name]["shape"]) for name in chosen)
        files[file] = header + b"\0" * placed[-1].end
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": len(raw) - length}, "weight_map": weight_map}
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}

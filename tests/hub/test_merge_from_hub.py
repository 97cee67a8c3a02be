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
from tests.hub.samples import FIRST_READ, read_files, split_attention
from tests.hub.server import HubServer, running

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


@pytest.fixture
def server() -> Iterator[HubServer]:
    """A Hub with a Llama in one file, and a deeper Qwen3 whose attention and MLP lie in different shards."""
    with running() as hub:
        yield hub


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [["--direct", "--fetch", "shards"], ["--fetch", "tensors"]], ids=["directly", "as a flow"]
)
def test_one_recipe_goes_from_the_hub_to_the_hub(tmp_path, server, how):
    """Models are pinned to commits, only shards that the plan uses are fetched, and the output is what is uploaded."""
    llama = server.add("org/llama", read_files(write_fake(tmp_path / "llama", dtype="F32")))
    donor = write_fake(tmp_path / "qwen3", "qwen3", num_hidden_layers=6, intermediate_size=2000, dtype="F32")
    qwen3 = server.add("org/qwen3", split_attention(donor))
    (tmp_path / "recipe.yml").write_text(RECIPE, encoding="utf-8")

    planned = run(server, tmp_path, "plan", "recipe.yml", "--json")
    assert [model["commit"] for model in json.loads(planned)["models"]] == [llama, qwen3]
    assert json.loads(planned)["models"][1]["files"] == ["attention.safetensors"]
    (_, download) = json.loads(planned)["downloads"]
    assert (download["repo"], download["commit"], download["file"]) == ("org/qwen3", qwen3, "attention.safetensors")
    assert download["bytes_fetched"] == {
        "auto": download["bytes_used"],
        "shards": download["bytes"],
        "tensors": download["bytes_used"],
    }

    said = json.loads(run(server, tmp_path, "merge", "recipe.yml", "out", *how, "--json", "--skip-trial-load"))
    assert server.bytes_of("rest.safetensors") <= FIRST_READ, "more than the header of an unused shard was fetched"
    cached = [path.name for path in (tmp_path / "home").rglob("*.safetensors")]
    assert sorted(cached) == ([] if "tensors" in how else ["attention.safetensors", "model.safetensors"])
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

"""`xmerge plan`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_checkpoints import write_fake

RECIPE = """\
merge_method: slerp
base_model: llama
models:
- model: llama
- model: qwen3
layer_map: proportional
parameters:
  t: [{filter: v_proj, value: 0.3}]
"""


@pytest.fixture
def planned(tmp_path, monkeypatch, xmerge):
    """Plan a Llama with a deeper Qwen3."""
    write_fake(tmp_path / "llama")
    write_fake(tmp_path / "qwen3", "qwen3", num_hidden_layers=6, intermediate_size=20)
    (tmp_path / "recipe.yml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return lambda *words: xmerge("plan", "recipe.yml", *words)


def test_the_table_says_what_is_merged_kept_and_dropped(planned):
    """A person reads each component once, with its layers, and what of the donor is left behind."""
    said = planned()
    assert said.exit_code == 0, said.err
    rows = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    assert "0-3" in rows["attn_v"]
    assert "slerp t=0.3" in rows["attn_v"]
    assert "keep" in rows["ffn_gate"]
    assert "attn_k_norm" in said.out
    assert "4 merge" in said.out


def test_json_has_every_tensor(planned):
    """A machine reads every tensor with its sources, every layer's fingerprint, and the sums."""
    plan = json.loads(planned("--json").out)
    tensors = {each["name"]: each for layer in plan["layers"] for each in layer["tensors"]}
    assert len(tensors) == 3 + 4 * 9
    merged = tensors["model.layers.1.self_attn.v_proj.weight"]
    assert [source["segments"][0]["tensor"] for source in merged["sources"]] == [
        "model.layers.1.self_attn.v_proj.weight",
        "model.layers.2.self_attn.v_proj.weight",
    ]
    assert plan["layer_map"] == [[0, 0], [1, 2], [2, 3], [3, 5]]
    assert all(len(layer["fingerprint"]) == 64 for layer in plan["layers"])
    assert plan["bytes_written"] == sum(2 * each["shape"][0] * (each["shape"] + [1])[1] for each in tensors.values())


def test_no_weight_is_read(planned, tmp_path):
    """A plan needs headers only: the weights may be a hole that cannot even be stored."""
    for model in ("llama", "qwen3"):
        blocks = (tmp_path / model / "model.safetensors").stat().st_blocks
        assert blocks * 512 < 64 * 1024
    assert planned().exit_code == 0


def test_a_reader_that_goes_away_is_no_failure(planned, tmp_path):
    """`xmerge plan ... | head` ends in exit 0, as does a plan that is read to its end."""
    planned()
    command = f"{sys.executable} -m xmerge plan recipe.yml | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["/bin/bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_device_is_no_bug(planned, tmp_path):
    """What cannot be printed ends in exit 6, in words."""
    planned()
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "xmerge", "plan", "recipe.yml", "--json"]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6
    assert "cannot be printed" in done.stderr
    assert "Traceback" not in done.stderr

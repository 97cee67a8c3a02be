"""provenance.json: everything that made an output, nothing of when and where, and read with suspicion."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from tests.small_merges import ATTENTION, load_weights, make_plan, run, write_model, write_models
from xmerge.provenance import read_provenance


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An output, what its provenance says, and the plan."""
    folder = write_models(tmp_path_factory.mktemp("models"))
    run(folder)
    return folder / "out", json.loads((folder / "out" / "provenance.json").read_text()), make_plan(folder)[1]


def test_every_shard_is_stated_with_its_digest(made):
    """Size and SHA-256 of every shard are what they say."""
    out, provenance, _ = made
    assert [shard["file"] for shard in provenance["shards"]] == sorted(path.name for path in out.glob("*.safetensors"))
    for shard in provenance["shards"]:
        content = (out / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_every_tensor_is_stated_with_what_was_done_to_it(made):
    """Every tensor of the output has its decision, its reason and its sources; a merged one what came of it."""
    out, provenance, _ = made
    assert set(provenance["tensors"]) == set(load_weights(out))
    for name, told in provenance["tensors"].items():
        merged = any(part in name for part in ATTENTION)
        assert told["decision"] == ("merge" if merged else "keep")
        assert told["sources"][0] == {"model": "llama", "tensors": [name]}
        assert len(told["sources"]) == (2 if merged else 1)
        assert ("coefficients" in told) == merged
        assert told.get("class") == (("C" if re.search("[qk]_proj", name) else "A") if merged else None)
        if merged:
            assert told["parameters"] == {"t": 0.3}
            assert -1 <= told["cosine_to_base"] <= 1 and told["norm_ratio_to_base"] > 0


def test_a_tensor_says_how_it_was_converted_and_in_what_it_differs(tmp_path):
    """Each source has the plan's steps and notes where there are any, and names a tensor once, however it is cut."""
    write_model(tmp_path / "llama", "internlm2", seed=1, hidden_size=16)
    write_model(tmp_path / "qwen3", "phi3", seed=2, hidden_size=16, rope_theta=500.0)
    recipe = (
        "merge_method: linear\nbase_model: llama\nmodels: [{model: llama}, {model: qwen3}]\nparameters: {weight: 1}\n"
    )
    run(tmp_path, recipe=recipe)
    tensors = json.loads((tmp_path / "out" / "provenance.json").read_text())["tensors"]
    seen: set[str] = set()
    for tensor in make_plan(tmp_path, recipe)[1].tensors:
        for source, told in zip(tensor.sources, tensors[tensor.name]["sources"], strict=True):
            assert told.get("steps", []) == list(source.steps)
            assert told.get("notes", []) == list(source.notes)
            assert told["tensors"] == list(dict.fromkeys(segment.tensor for segment in source.segments))
            seen |= {*told, *(["cut"] if len(source.segments) > len(told["tensors"]) else [])}
        assert tensors[tensor.name].get("class", "A") == tensor.fit
    assert seen == {"model", "tensors", "steps", "notes", "cut"}


def test_models_are_stated_with_what_was_not_carried_over(made):
    """Each model has its shards' headers and its foreign tensors, and no path."""
    _, provenance, plan = made
    base, donor = provenance["models"]
    assert base["name"] == "llama" and base["files"][0]["used"] and len(base["files"][0]["header_sha256"]) == 64
    assert any("attn_q_norm" in text for text in donor["foreign"])
    assert provenance["plan_fingerprint"] == plan.fingerprint
    assert provenance["layer_map"] == [list(each) for each in plan.layer_map]


def test_what_is_not_ours_says_nothing(made, tmp_path):
    """A provenance.json that another wrote, or that would name a file elsewhere, is as good as none."""
    _, provenance, _ = made
    shard = provenance["shards"][0]
    for content in (
        "", "[]", "{}", '{"plan_fingerprint": "x"}',
        json.dumps({"plan_fingerprint": 1, "shards": []}),
        *(
            json.dumps({"plan_fingerprint": "x", "shards": [entry]})
            for entry in (1, {}, {**shard, "file": "../x.safetensors"}, {**shard, "bytes": "1"}, {**shard, "sha256": 1})
        ),
    ):  # fmt: skip
        (tmp_path / "provenance.json").write_text(content)
        assert read_provenance(tmp_path) is None
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    assert read_provenance(tmp_path) == provenance

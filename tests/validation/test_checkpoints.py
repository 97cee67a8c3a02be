"""Verifying any checkpoint: each planted fault is found under its code, and nothing in a clean one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fake_checkpoints import write_headers
from tests.small_merges import run, write_model, write_models
from tests.tiny_models import WRITERS
from xmerge.architecture import describe_model
from xmerge.errors import CheckpointError
from xmerge.sources import Location
from xmerge.validation import verify

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def model(tmp_path):
    """A clean Llama."""
    return write_model(tmp_path / "model", torch_dtype="bfloat16")


def edit_weights(folder: Path, edit) -> None:
    """Change a checkpoint's tensors."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    """Change a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def codes(folder: Path, **options: Any) -> list[str]:
    """The codes of what is wrong with a checkpoint."""
    return sorted({finding.code for finding in verify(folder, trial=False, **options).findings})


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"])
def test_a_clean_checkpoint_has_no_finding(tmp_path, family):
    """Every family's own layout is what it should be."""
    report = verify(write_model(tmp_path / "model", family), trial=False)
    assert report.findings == () and report.ok
    assert dict(report.facts)["family"] == family


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(WRITERS))
def test_what_transformers_wrote_is_clean(tmp_path, family):
    """No false alarm: checkpoints that transformers writes pass, tied and untied."""
    for tied in (False, True):
        folder = WRITERS[family](tmp_path / f"{family} {tied}", tie_word_embeddings=tied, max_shard_size=50_000)
        assert verify(folder, trial=False).findings == ()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda w: w.update({"model.layers.1.self_attn.k_norm.weight": torch.ones(4).bfloat16()}), "foreign_tensor"),
        (lambda w: w.update({"model.extra": torch.ones(4).bfloat16()}), "foreign_tensor"),
        (lambda w: w.pop(Q), "missing_tensor"),
        (lambda w: w.update({Q: w[Q].T.contiguous()}), "wrong_shape"),
        (lambda w: w.update({"model.embed_tokens.weight": w["model.embed_tokens.weight"][:-2].clone()}), "wrong_shape"),
        (lambda w: w[Q].__setitem__((1, 2), math.nan), "nonfinite"),
        (lambda w: w[Q].__setitem__((1, 2), -math.inf), "nonfinite"),
        (lambda w: w.update({name: tensor.float() for name, tensor in w.items()}), "wrong_dtype"),
        (lambda w: [w.pop(name) for name in list(w) if ".layers.2." in name], "layer_count"),
    ],
)
def test_a_planted_fault_in_the_weights_is_found(model, edit, expected):
    """One fault, one code, whatever it is that was planted."""
    edit_weights(model, edit)
    assert codes(model) == [expected]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tie_word_embeddings": True}, "stray_head"),
        ({"num_hidden_layers": 3}, "layer_count"),
        ({"num_hidden_layers": 5}, "layer_count"),
        ({"num_hidden_layers": -1}, "config"),
        ({"num_hidden_layers": None}, "config"),
        ({"vocab_size": 34}, "wrong_shape"),
        ({"torch_dtype": "float32"}, "wrong_dtype"),
    ],
)
def test_a_planted_fault_in_the_configuration_is_found(model, changes, expected):
    """A config.json that says something else than the weights is found under the code of what differs."""
    edit_config(model, **changes)
    assert codes(model) == [expected]


def test_all_faults_are_found_at_once(model):
    """One fault does not hide another, even where config.json and weights contradict each other."""

    def spoil(weights):
        weights["x.k_norm"] = weights.pop(Q)
        weights["model.norm.weight"].fill_(math.nan)

    edit_weights(model, spoil)
    assert codes(model) == ["foreign_tensor", "missing_tensor", "nonfinite"]


def test_the_place_of_a_number_that_is_none_is_told(model):
    """Tensor, how many, and the first one's place."""
    edit_weights(model, lambda w: w[Q].view(-1)[9:11].fill_(math.nan))
    finding = verify(model, trial=False).findings[0]
    assert finding.text == f"'{Q}' holds 2 NaN or infinity, the first at element 9."


def test_a_wrong_total_size_warns(tmp_path):
    """An index that states other bytes is told, and the checkpoint is good all the same."""
    run(write_models(tmp_path))
    index_path = tmp_path / "out" / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    index["metadata"]["total_size"] += 1
    index_path.write_text(json.dumps(index))
    report = verify(tmp_path / "out", trial=False)
    assert report.ok and [each.code for each in report.findings] == ["wrong_total_size"]


def test_a_flipped_bit_is_found_by_the_provenance(tmp_path):
    """An output is compared with the digests that were taken when it was written."""
    run(write_models(tmp_path))
    assert codes(tmp_path / "out") == []
    path = tmp_path / "out" / "model-00003-of-00006.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert codes(tmp_path / "out") == ["wrong_digest"]


def test_a_provenance_that_says_nothing_is_told(model):
    """A provenance.json that cannot be read takes the digests with it, and that is said."""
    (model / "provenance.json").write_text("{}")
    report = verify(model, trial=False)
    assert report.ok and [each.code for each in report.findings] == ["provenance"]


def test_a_base_decides_what_there_should_be(tmp_path):
    """Against a base, also of a type without a family file, the set of tensors is the base's."""
    config = {"model_type": "unheard_of", "num_hidden_layers": 2}
    tensors = {f"h.{layer}.w": ("BF16", (2, 2)) for layer in range(2)}
    base = write_headers(tmp_path / "base", config, tensors)
    described = describe_model(Location(reference="base", label="base", folder=base))
    assert codes(base, base=described) == []
    other = write_headers(tmp_path / "other", config, {**tensors, "h.1.x": ("BF16", (1,))})
    assert codes(other) == []
    assert codes(other, base=described) == ["foreign_tensor"]


def test_damage_is_a_finding_and_nothing_is_an_error(model, tmp_path):
    """A cut file is a finding; a folder that is not there is a wrong question."""
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert codes(model) == ["damaged"]
    with pytest.raises(CheckpointError, match="there is no folder") as caught:
        verify(tmp_path / "nothing")
    assert caught.value.exit_code == 3


def test_the_trial_can_be_left_out(model):
    """A checkpoint that was not loaded says so."""
    assert dict(verify(model, trial=False).facts)["loaded with transformers"] == "no: skipped as asked"

"""Verifying any checkpoint: each planted fault is found under its code, and nothing in a clean one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.fake_checkpoints import write_headers
from tests.small_merges import run, write_model, write_models
from tests.tiny_models import WRITERS, build_tiny, list_kinds, write_tiny_llama
from xmerge.architecture import describe_model, list_families
from xmerge.checkpoints.checkpoint import INDEX_NAME
from xmerge.errors import CheckpointError
from xmerge.sources import Location
from xmerge.validation import verify
from xmerge.validation.checkpoints import find_indices

Q = "model.layers.1.self_attn.q_proj.weight"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


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


@pytest.mark.slow
@pytest.mark.parametrize("family", list_families(), ids=lambda family: family.family)
def test_what_transformers_wrote_of_any_family_is_clean(tmp_path, family):
    """Whatever config.json may say in a family, a model that transformers makes of it gives no finding."""
    import transformers

    if not hasattr(transformers, family.architectures[0]):
        pytest.skip("its class is no part of transformers")
    for number, kind in enumerate(list_kinds(family)):
        report = verify(build_tiny(family, kind).write(tmp_path / str(number)), trial=False)
        assert report.findings == (), kind


LOADED = ("cohere2", "falcon", "gemma3", "gpt2", "gpt_neox", "granite", "mixtral", "phi", "qwen2_moe", "starcoder2")


@pytest.mark.slow
@pytest.mark.parametrize("family", LOADED)
def test_what_transformers_wrote_loads(tmp_path, family):
    """Models of ten families, as transformers writes them, are loaded strictly and run, and nothing is found."""
    described = next(each for each in list_families() if each.family == family)
    report = verify(build_tiny(described, {}).write(tmp_path))
    assert report.findings == ()
    assert dict(report.facts)["loaded with transformers"].endswith("strictly; the logits of a short input are finite")


@pytest.mark.slow
def test_a_short_text_goes_through_the_model(tmp_path):
    """With a tokenizer it is a text that is read; one that does not load, or gives other numbers, is found."""
    folder = write_tiny_llama(tmp_path, tokenizer=True)
    report = verify(folder)
    assert report.findings == ()
    assert dict(report.facts)["loaded with transformers"].endswith("strictly; the logits of a short text are finite")
    (folder / "tokenizer.json").write_text('{"model": {"type": "unheard of"}}')
    assert [(each.code, each.text[:34]) for each in verify(folder).findings] == [
        ("load", "tokenizer.json does not load: data"[:34])
    ]


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
        (lambda w: w.update({Q: w[Q].float()}), "wrong_dtype"),
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
        ({"architectures": ["Qwen3ForCausalLM"]}, "config"),
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


def test_one_tensor_of_another_dtype_only_warns(model):
    """A program may keep a tensor wide; it is named, and the checkpoint is good all the same."""
    edit_weights(model, lambda w: w.update({Q: w[Q].float()}))
    report = verify(model, trial=False)
    assert report.ok and report.findings[0].text == f"{Q} is float32; config.json says bfloat16."


def test_weights_beside_the_model_only_warn(model):
    """A second copy of the weights is named, because nothing reads it."""
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    report = verify(model, trial=False)
    assert report.ok and [each.code for each in report.findings] == ["loose_shard"]
    assert report.findings[0].text == "consolidated.safetensors is no part of the model: no index names it."


def test_what_was_counted_is_told(model):
    """Tensors, layers, parameters and bytes are told of whatever was verified."""
    weights = load_file(model / "model.safetensors")
    facts = dict(verify(model, trial=False).facts)
    parameters = sum(weight.numel() for weight in weights.values())
    assert facts["tensors"] == str(len(weights)) and facts["layers"] == "4"
    assert facts["parameters"] == f"{parameters:,}" and facts["bytes"] == f"{parameters * 2:,}"


def test_the_place_of_a_number_that_is_none_is_told(model):
    """Tensor, how many, and where the first ones stand."""
    edit_weights(model, lambda w: w[Q].view(-1)[9:11].fill_(math.nan))
    finding = verify(model, trial=False).findings[0]
    assert finding.text == f"'{Q}' holds 2 NaN or infinity, at [1, 1], [1, 2]."


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_indices_are_the_place_of_an_element(shape, data):
    """An element's number and its indices say the same."""
    place = data.draw(st.integers(0, math.prod(shape) - 1))
    indices = find_indices(place, shape)
    assert torch.arange(math.prod(shape)).reshape(shape)[indices] == place


def write_shards(folder: Path) -> None:
    """The model's weights in two shards with an index, as other programs write them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {ONE: names[:20], TWO: names[20:]}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    metadata = {"mergekit_version": "0.1.4", "total_size": sum(each.nbytes for each in weights.values())}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def edit_index(folder: Path, edit) -> None:
    """Change the weight map."""
    index = json.loads((folder / INDEX_NAME).read_text())
    edit(index["weight_map"])
    (folder / INDEX_NAME).write_text(json.dumps(index))


def double(folder: Path) -> None:
    """Put a tensor of the first shard into the second too."""
    other, one = load_file(folder / TWO), load_file(folder / ONE)
    first = min(one)
    save_file({**other, first: one[first]}, folder / TWO, {"format": "pt"})


def cut_both(folder: Path) -> None:
    """Cut off both shards."""
    for file in (ONE, TWO):
        (folder / file).write_bytes((folder / file).read_bytes()[:-1])


def spoil_all(folder: Path) -> None:
    """Leave no file whole."""
    cut_both(folder)
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (Path.exists, []),
        (lambda folder: edit_index(folder, lambda index: index.pop(Q)), ["unindexed_tensor"]),
        (lambda folder: edit_index(folder, lambda index: index.update({"x.weight": ONE})), ["missing_tensor"]),
        (lambda folder: edit_index(folder, lambda index: index.update({"lm_head.weight": TWO})), ["missing_tensor"]),
        (lambda folder: edit_index(folder, lambda index: index.update({Q: "../x.safetensors"})), ["damaged"]),
        (double, ["duplicate_tensor"]),
        (lambda folder: (folder / ONE).unlink(), ["missing_shard"]),
        (cut_both, ["damaged", "damaged"]),
        (lambda folder: (folder / "config.json").unlink(), ["damaged"]),
        (spoil_all, ["damaged", "damaged", "damaged"]),
    ],
    ids=range(10),
)
def test_everything_that_is_wrong_with_index_and_shards_is_found(model, damage, expected):
    """What another program wrote without provenance is verified like ours, and each contradiction has a finding."""
    write_shards(model)
    damage(model)
    found = verify(model, trial=False).findings
    assert all(each.remedy and each.severity == "error" for each in found)
    assert [each.code for each in found] == expected


def test_a_damaged_checkpoint_says_where(model):
    """Two faults of one checkpoint are two findings, each with its file."""
    write_shards(model)
    cut_both(model)
    texts = [each.text for each in verify(model, trial=False).findings]
    for file, text in zip((ONE, TWO), texts, strict=True):
        assert text.startswith(f"model/{file} is damaged or no safetensors file; its tensors take")


def test_a_base_does_not_hide_what_config_json_says(model, tmp_path):
    """A checkpoint that has its base's tensors, and another config.json, is found all the same."""
    base = write_model(tmp_path / "base")
    edit_config(model, vocab_size=34)
    described = describe_model(Location(reference="base", label="base", folder=base))
    assert codes(model, base=described) == ["wrong_shape"]


def test_what_config_json_and_base_both_miss_is_told_once(model, tmp_path):
    """A tensor that is missing by either measure is one finding."""
    base = write_model(tmp_path / "base")
    edit_weights(model, lambda w: w.pop(Q))
    described = describe_model(Location(reference="base", label="base", folder=base))
    assert len(verify(model, described, trial=False).findings) == 1


def test_a_wrong_total_size_warns(tmp_path):
    """An index that states other bytes is told, and the checkpoint is good all the same."""
    run(write_models(tmp_path))
    index_path = tmp_path / "out" / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    index["metadata"]["total_size"] += 1
    index_path.write_text(json.dumps(index))
    report = verify(tmp_path / "out", trial=False)
    assert report.ok and [each.code for each in report.findings] == ["wrong_total_size", "changed_file"]


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

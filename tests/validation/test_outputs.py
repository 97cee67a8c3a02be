"""Validating an output: exactly what was planned, or it does not appear."""

from __future__ import annotations

import json
import math
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.small_merges import make_plan, run, write_models
from xmerge.engine import LayerResult
from xmerge.errors import InvalidMergeError
from xmerge.store import Store
from xmerge.validation import outputs, validate
from xmerge.validation.trial import skip_loading


@pytest.fixture
def made(tmp_path):
    """An output whose files are its own, its plan, and its layers' results."""
    write_models(tmp_path)
    (tmp_path / "llama" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    run(tmp_path, store=tmp_path / "store")
    plan = make_plan(tmp_path)[1]
    store, folders = Store(tmp_path / "store"), [tmp_path / "llama", tmp_path / "qwen3"]
    results = [store.find(plan, index, folders) for index in range(len(plan.layers))]
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return tmp_path / "out", plan, [result for result in results if result is not None]


def change(folder, layer: int, edit) -> None:
    """Change the tensors of one shard, and the index with them."""
    path = folder / f"model-{layer + 1:05d}-of-00006.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, {"format": "pt"})
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != path.name}
    index["weight_map"] |= dict.fromkeys(weights, path.name)
    index_path.write_text(json.dumps(index))


Q = "model.layers.1.self_attn.q_proj.weight"
K_NORM = "model.layers.1.self_attn.k_norm.weight"


def validate_now(made):
    """The findings of the output as it is now, by code."""
    out, plan, results = made
    report = validate(out, plan, results, trial=False)
    return report, {each.code: each for each in report.findings}


def test_an_output_as_planned_is_valid(made):
    """Nothing is found, and what was counted is told."""
    report, found = validate_now(made)
    assert report.ok and not found
    assert dict(report.facts) == {
        "tensors": "39 of 39 expected",
        "foreign tensors": "0",
        "layers": "4",
        "parameters": "3,272",
        "bytes": "6,544",
        "layers in the store": "6 of 6 copied, because they could not be linked",
        "loaded with transformers": "no: skipped as asked",
    }


def test_a_foreign_tensor_is_found(made):
    """A k_norm in a Llama is named with its layer and its remedy."""
    change(made[0], 2, lambda weights: weights.update({K_NORM: torch.ones(4).bfloat16()}))
    report, found = validate_now(made)
    assert not report.ok
    assert found["foreign_tensor"].text == f"layer 1: '{K_NORM}' is foreign: llama (llama) has no such tensor."
    assert found["foreign_tensor"].layer == 1
    assert dict(report.facts)["foreign tensors"] == "1"


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda weights: weights.pop(Q), "missing_tensor"),
        (lambda weights: weights.update({Q: weights[Q].T.contiguous()}), "wrong_shape"),
        (lambda weights: weights.update({Q: weights[Q].float()}), "wrong_dtype"),
    ],
)
def test_what_is_not_as_planned_is_found(made, edit, code):
    """A missing, a transposed and a converted tensor are each named."""
    change(made[0], 2, edit)
    report, found = validate_now(made)
    assert not report.ok and found[code].tensor == Q


def test_a_damaged_output_is_found(made):
    """An output that cannot be read is not valid."""
    (made[0] / "config.json").write_text("{")
    report, found = validate_now(made)
    assert not report.ok and "is not JSON" in found["damaged"].text


def test_numbers_that_are_none_are_found_where_they_were_copied(tmp_path):
    """NaN in a tensor that passes untouched keeps the output from appearing, and names the model it came from."""
    write_models(tmp_path)
    weights = load_file(tmp_path / "llama" / "model.safetensors")
    weights["model.norm.weight"][2] = math.nan
    save_file(weights, tmp_path / "llama" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidMergeError, match=r"'model\.norm\.weight', from llama, holds 1 NaN or infinity"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_fault_that_the_base_has_too_only_warns(tmp_path):
    """A tokenizer with more tokens than rows came from the base so, and does not stop the merge."""
    write_models(tmp_path)
    (tmp_path / "llama" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 99}}}')
    report = run(tmp_path).report
    assert report is not None and report.ok
    assert [(each.code, each.severity) for each in report.findings] == [("vocabulary", "warning")]


def test_an_output_that_does_not_validate_does_not_appear(tmp_path, monkeypatch):
    """Exit 4, no output, every layer kept."""
    write_models(tmp_path)
    loop = import_module("xmerge.run")
    real = loop.assemble

    def assemble_wrongly(plan, config, results, work):
        staged = real(plan, config, results, work)
        change(staged, 2, lambda weights: weights.pop(Q))
        return staged

    monkeypatch.setattr(loop, "assemble", assemble_wrongly)
    with pytest.raises(InvalidMergeError) as caught:
        run(tmp_path)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.xmerge" / "output").exists()


def test_the_trial_comes_last_and_can_be_left_out(made, monkeypatch):
    """What is wrong already is not loaded; what is not loaded says why."""
    out, plan, results = made
    monkeypatch.setattr(outputs, "try_loading", lambda folder, _: skip_loading(f"asked for {folder.name}"))
    assert dict(validate(out, plan, results).facts)["loaded with transformers"] == "no: asked for out"
    told = dict(validate(out, plan, results, trial=False).facts)
    assert told["loaded with transformers"] == "no: skipped as asked"
    change(out, 2, lambda weights: weights.pop(Q))
    assert "loaded with transformers" not in dict(validate(out, plan, results).facts)


def test_results_are_values():
    """A layer's result goes through JSON and comes back equal."""
    result = LayerResult(
        label="l", fingerprint="f", bytes=1, sha256="s", tensors=(), stamps=(), device="cpu", seconds=1
    )
    assert LayerResult.model_validate_json(result.model_dump_json()) == result

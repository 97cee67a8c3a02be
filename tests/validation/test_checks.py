"""Single checks: what is said against what is found."""

from __future__ import annotations

import json

import pytest

from tests.fake_checkpoints import write_headers
from xmerge.architecture import list_families
from xmerge.checkpoints import read_checkpoint
from xmerge.errors import InvalidMergeError
from xmerge.validation.checks import (
    check_dtype,
    check_head,
    check_tensors,
    check_total_size,
)
from xmerge.validation.companions import Companions, check_vocabulary
from xmerge.validation.findings import Finding, ValidationReport, count, join_reports

CONFIG = {"model_type": "llama", "dtype": "bfloat16"}
NAME = "model.layers.7.self_attn.q_proj.weight"


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of two tensors."""
    tensors = {NAME: ("BF16", (4, 2)), "model.norm.weight": ("F32", (2,))}
    return read_checkpoint(write_headers(tmp_path / "model", CONFIG, tensors), "model")


def test_tensors_as_expected_give_no_finding(checkpoint):
    """The right set, in the right shapes; a dtype only where one is expected."""
    expected = {NAME: ((4, 2), "BF16"), "model.norm.weight": ((2,), None)}
    assert list(check_tensors(expected, checkpoint, "llama")) == []


def test_every_difference_is_told_with_its_layer(checkpoint):
    """Foreign, missing, misshapen and of another dtype, each with a code, a text and a remedy."""
    expected = {NAME: ((2, 4), "F16"), "lm_head.weight": ((1,), None)}
    found = list(check_tensors(expected, checkpoint, "llama (base)"))
    assert [(each.code, each.layer, each.text) for each in found] == [
        ("foreign_tensor", None, "'model.norm.weight' is foreign: llama (base) has no such tensor."),
        ("missing_tensor", None, "'lm_head.weight' is missing: llama (base) has it."),
        ("wrong_shape", 7, f"layer 7: '{NAME}' has shape [4, 2]; llama (base) has [2, 4]."),
        ("wrong_dtype", 7, f"layer 7: '{NAME}' is BF16; F16 is expected."),
    ]
    assert all(each.remedy and each.severity == "error" for each in found)


@pytest.mark.parametrize(
    ("family", "head"), [("llama", "lm_head.weight"), ("gpt_neox", "embed_out.weight"), (None, "lm_head.weight")]
)
def test_a_head_is_stray_only_under_tied_embeddings(tmp_path, family, head):
    """A head of its own, whatever its family calls it, is part of an untied model, and stray in a tied one."""
    tensors = {head: ("BF16", (2, 2)), "other.weight": ("BF16", (2, 2))}
    model = read_checkpoint(write_headers(tmp_path, CONFIG, tensors), "model")
    described = next((each for each in list_families() if each.family == family), None)
    assert [(each.code, each.tensor) for each in check_head(model, described, tied=True)] == [("stray_head", head)]
    assert list(check_head(model, described, tied=False)) == []


def test_the_dtype_that_is_claimed_is_that_of_most_weights(tmp_path):
    """Bytes decide, not the number of tensors; a config that claims nothing claims nothing wrong."""
    tensors = {"a": ("F32", (100,)), "b": ("BF16", (2,)), "c": ("BF16", (2,)), "mask": ("I64", (1000,))}
    for claimed, codes in (("bfloat16", ["wrong_dtype"]), ("float32", []), (None, [])):
        model = read_checkpoint(write_headers(tmp_path / str(claimed), {"torch_dtype": claimed}, tensors), "model")
        assert [each.code for each in check_dtype(model)] == codes
    assert "config.json says bfloat16, and most of the weights are float32." in {
        each.text for each in check_dtype(read_checkpoint(tmp_path / "bfloat16", "model"))
    }


@pytest.mark.parametrize("stated", [None, 23, "24", {}])
def test_a_total_size_that_is_wrong_or_missing_is_a_warning(tmp_path, checkpoint, stated):
    """The index says the bytes of all tensors; nobody relies on it, so it only warns."""
    index = {"weight_map": {}, **({} if stated is None else {"metadata": {"total_size": stated}})}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = list(check_total_size(tmp_path, checkpoint))
    assert [(each.code, each.severity, each.remedy) for each in found] == [("wrong_total_size", "warning", "write 24.")]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 24}}))
    assert list(check_total_size(tmp_path, checkpoint)) == []


@pytest.mark.parametrize(
    ("tokenizer", "codes"),
    [
        ({"model": {"vocab": {"a": 31}}}, []),
        ({"model": {"vocab": {"a": 32}}}, ["vocabulary"]),
        ({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 40}]}, ["vocabulary"]),
        ({"model": {"vocab": [["a", 0.0]]}, "added_tokens": "?"}, []),
        ({}, []),
    ],
)
def test_the_tokenizer_knows_no_more_tokens_than_there_are_rows(tmp_path, tokenizer, codes):
    """A token without a row in the embedding is found, in whatever shape the tokenizer's file is."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert [each.code for each in check_vocabulary(Companions(tmp_path), 32)] == codes


def test_a_report_with_errors_is_raised_with_all_of_them():
    """The error counts the faults and lists them, each with its remedy; warnings are no faults."""
    faults = [Finding(code="x", text=f"fault {number}.", remedy=f"mend {number}.") for number in range(12)]
    warning = Finding(code="y", text="odd.", remedy="look.", severity="warning")
    ValidationReport(findings=(warning,), facts=()).raise_if_invalid()
    report = join_reports([
        ValidationReport(findings=(warning, faults[0]), facts=(("a", "1"),)),
        ValidationReport(findings=tuple(faults[1:]), facts=(("b", "2"),)),
    ])  # fmt: skip
    assert not report.ok
    assert report.summary[:4] == ("a: 1", "b: 2", "warning y: odd.", "error x: fault 0.")
    with pytest.raises(InvalidMergeError) as caught:
        report.raise_if_invalid()
    told = str(caught.value)
    assert told.startswith("the output has 12 faults.\n  why: \n    x: fault 0.\n      do: mend 0.\n    x: fault 1.")
    assert "x: fault 9.\n      do: mend 9.\n    and 2 more\n  do: mend what each of them names" in told
    assert "odd" not in told
    assert caught.value.exit_code == 4


def test_one_remedy_for_all_faults_is_told_once():
    """What mends every fault stands where every error has its remedy."""
    faults = tuple(Finding(code="x", text=f"fault {number}.", remedy="mend.") for number in range(2))
    with pytest.raises(InvalidMergeError) as caught:
        ValidationReport(findings=faults, facts=()).raise_if_invalid()
    assert str(caught.value) == "the output has 2 faults.\n  why: \n    x: fault 0.\n    x: fault 1.\n  do: mend."


def test_numbers_are_told_with_their_noun():
    """One fault, two faults."""
    assert [count(number, "fault") for number in (0, 1, 2)] == ["0 faults", "1 fault", "2 faults"]

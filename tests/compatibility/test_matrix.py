"""Every pair of models in a folder."""

from __future__ import annotations

import itertools

import pytest

from tests.compatibility.sketches import compare, write_config, write_shallow
from tests.fake_checkpoints import write_headers
from xmerge.compatibility import Compatibility, Matrix, compare_folder, list_popular_models
from xmerge.compatibility.matrix import Unrelated, grade_parts
from xmerge.errors import CheckpointError

NAMES = ("deepseek-v2-lite", "llama-3-8b", "phi-4-mini", "qwen3-8b")


@pytest.fixture
def zoo(tmp_path):
    """A folder of models: four that are known, one that nobody knows, and three that cannot be read."""
    for name in NAMES:
        write_shallow(tmp_path / name, name, 2)
    write_headers(tmp_path / "stranger", {"model_type": "unheard-of"}, {"h.0.w": ("F32", [2, 2])})
    write_config(tmp_path / "alone", {"model_type": "unheard-of"})
    (write_config(tmp_path / "torn", {}) / "config.json").write_text("{")
    (write_shallow(tmp_path / "cut", "gpt2", 2) / "model.safetensors").write_bytes(b"cut")
    return tmp_path


def test_every_pair_is_compared_both_ways(zoo):
    """Each readable model is base and donor of each, itself included, by name."""
    matrix = compare_folder(zoo)
    labels = [*NAMES, "stranger"]
    assert [model.label for model in matrix.models] == labels
    told = [
        (each.base, each.donor) if isinstance(each, Unrelated) else (each.base.label, each.donor.label)
        for each in matrix.pairs
    ]
    assert told == list(itertools.product(labels, labels))
    assert [len(matrix.row(number)) for number in range(5)] == [5] * 5


def test_what_cannot_be_read_stops_nobody(zoo):
    """A torn config.json, cut weights and an unknown type without weights are listed, each with its reason."""
    told = {each.folder: each.what for each in compare_folder(zoo).unreadable}
    assert set(told) == {"alone", "cut", "torn"}
    assert told["torn"] == "torn/config.json is not JSON."
    assert "no family file says what tensors a 'unheard-of' has" in told["alone"]
    assert told["cut"].startswith("cut/model.safetensors is damaged")


def test_a_stranger_has_no_relation_to_the_others(zoo):
    """Of an unknown type and any other nothing is said, and with itself it is compared by name."""
    matrix = compare_folder(zoo)
    *others, itself = matrix.row(4)
    for each in others:
        assert isinstance(each, Unrelated)
        assert "there is no family file for unheard-of" in each.what
    assert isinstance(itself, Compatibility)
    assert grade_parts(itself) == ("A",)


@pytest.mark.parametrize(
    ("base", "donor", "grades"),
    [
        ("llama-3-8b", "qwen3-8b", "CCAAD"),
        ("llama-3-8b", "internlm2-7b", "CCBAA"),
        ("phi-4-mini", "llama-3.2-3b", "CCCAB"),
        ("llama-3-8b", "gemma-2-9b", "DDDDD"),
        ("deepseek-v2-lite", "llama-3.2-1b", "EEEEE"),
        ("mixtral-8x7b", "llama-3-8b", "CCAAE"),
        ("gpt2", "gpt2", "AAAAA"),
    ],
)
def test_a_cell_is_the_worst_class_of_each_part(base, donor, grades):
    """q, k, v, o and the feed-forward, whichever tensors hold them; norms and biases have no say."""
    assert "".join(grade or "-" for grade in grade_parts(compare(base, donor))) == grades


def test_what_holds_keys_and_values_counts_for_both():
    """Latent attention has one matrix for keys and values, and its class is that of both."""
    found = compare("deepseek-v2-lite", "deepseek-v2-lite")
    components = [
        each.model_copy(update={"grade": "C"}) if each.component == "attn_kv_a" else each for each in found.components
    ]
    changed = found.model_copy(update={"components": tuple(components)})
    assert grade_parts(changed) == ("A", "C", "C", "A", "A")


def test_a_matrix_is_data_and_comes_back(zoo):
    """JSON holds all of it: reading it gives an equal value."""
    matrix = compare_folder(zoo)
    assert Matrix.model_validate_json(matrix.model_dump_json()) == matrix


def test_a_folder_of_which_nothing_can_be_read_is_refused(tmp_path):
    """Then there is nothing to show, and the first reason is the error's."""
    (write_config(tmp_path / "a", {}) / "config.json").write_text("{")
    write_config(tmp_path / "b", {"model_type": "unheard-of"})
    with pytest.raises(CheckpointError) as caught:
        compare_folder(tmp_path)
    assert caught.value.what == f"none of the 2 models in {tmp_path} can be read."
    assert caught.value.why == "a: a/config.json is not JSON."


def test_a_damaged_model_among_popular_ones(tmp_path):
    """Headers that lack what config.json promises are a reason like any other."""
    config = dict(list_popular_models()["gpt2"].config)
    write_headers(tmp_path / "bad", config, {"wte.weight": ("F32", [1, 1])})
    write_shallow(tmp_path / "good", "gpt2", 2)
    matrix = compare_folder(tmp_path)
    assert [model.label for model in matrix.models] == ["good"]
    assert matrix.unreadable[0].what.startswith("bad lacks wpe.weight")

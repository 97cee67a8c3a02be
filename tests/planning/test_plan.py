"""A plan's fingerprint names the bytes of its output: it changes with them, and with nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xmerge.planning.plan import LayerPlan, MergePlan, TensorPlan
from xmerge.values import Value

ROOT = Path(__file__).resolve().parents[2]
CROSSING = """
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters: {t: [{filter: self_attn, value: [0.2, 0.4]}, {filter: mlp, value: 1}]}
on_mismatch: base
layer_map: proportional
"""
BARE = CROSSING.partition("parameters")[0] + "layer_map: proportional\n"
PROGRAM = """
import sys
from pathlib import Path
from xmerge.architecture import resolve
from xmerge.config import load_config
from xmerge.planning import draw_plan, map_slices
config = load_config(Path(sys.argv[1]))
plan = map_slices(config, resolve(config))
print(plan.fingerprint, [layer.fingerprint for layer in plan.layers], draw_plan(plan), plan.warnings, plan.models)
"""


@pytest.fixture
def crossing(bench):
    """A Llama and a deeper Qwen3 with another vocabulary, and a recipe for them."""
    bench.write("A")
    bench.write("B", "qwen3", num_hidden_layers=6, vocab_size=50)
    (bench.folder / "recipe.yml").write_text(CROSSING)
    return bench


def describe(config: Path, cwd: Path, seed: str) -> str:
    """What a fresh interpreter says of a plan."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(config)]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


def fingerprints(plan: MergePlan) -> list[str]:
    """Of every layer."""
    return [layer.fingerprint for layer in plan.layers]


@pytest.mark.slow
def test_a_plan_depends_on_no_order_of_a_set(crossing, tmp_path_factory):
    """Fingerprints, table, warnings and models are the same under every PYTHONHASHSEED and in every folder."""
    config = crossing.folder / "recipe.yml"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    told = {describe(config, cwd, seed) for cwd, seed in ((crossing.folder, "0"), (elsewhere, "1"), (ROOT, "4242"))}
    assert len(told) == 1


def test_moving_the_models_changes_no_fingerprint(crossing, tmp_path_factory):
    """Folders and names of the models decide no byte."""
    before = crossing.plan(CROSSING)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (crossing.folder / "A").rename(elsewhere / "renamed")
    (crossing.folder / "B").rename(crossing.folder / "C")
    after = crossing.plan(
        CROSSING.replace("model: B", "model: C")
        .replace("model: A", f"model: {elsewhere / 'renamed'}")
        .replace("base_model: A", f"base_model: {elsewhere / 'renamed'}")
    )
    assert after.fingerprint == before.fingerprint
    assert fingerprints(after) == fingerprints(before)


def reworded(value: Value, **changes: object) -> Value:
    """The same value with other words."""
    return value.model_copy(update=changes)


def test_wording_is_no_part_of_a_fingerprint(crossing):
    """Reasons, steps, components and labels can be written better without making a merge anew."""
    layer = crossing.plan(CROSSING).layers[1]

    def reword(tensor: TensorPlan) -> Value:
        sources = tuple(reworded(source, steps=("otherwise",), model=source.model + 7) for source in tensor.sources)
        return reworded(tensor, reason="because", dropped=("x",), component="y", role="z", sources=sources)

    other = reworded(layer, label="another", index=99, tensors=tuple(reword(each) for each in layer.tensors))
    assert isinstance(other, LayerPlan)
    assert other.fingerprint == LayerPlan(**dict(layer)).fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"shape": (2, 64)},
        {"dtype": "F16"},
        {"decision": "copy"},
        {"method": "linear"},
        {"method_version": 99},
        {"parameters": (("t", 0.123),)},
        {"sources": ()},
        {"coefficients": (0.5, 0.5)},
        {"base": None},
    ],
)
def test_everything_that_decides_bytes_is_part_of_a_fingerprint(crossing, changes):
    """A field of a tensor's plan that is not wording makes another layer."""
    layer = crossing.plan(CROSSING).layers[1]
    at = next(i for i, tensor in enumerate(layer.tensors) if tensor.decision == "merge")
    tensors = list(layer.tensors)
    tensors[at] = reworded(tensors[at], **changes)
    other = LayerPlan(label=layer.label, index=layer.index, tensors=tuple(tensors))
    assert other.fingerprint != layer.fingerprint


def test_a_parameter_of_one_layer_changes_that_layer_only(crossing):
    """Layers whose parameters stay are the same entries of the store."""
    filters = "[{{filter: layers.2.self_attn, value: {}}}, {{filter: self_attn, value: 0.3}}]"
    text = BARE + "parameters: {t: FILTERS}"
    one, two = (crossing.plan(text.replace("FILTERS", filters.format(t))) for t in (0.5, 0.6))
    changed = [a.label for a, b in zip(one.layers, two.layers, strict=True) if a.fingerprint != b.fingerprint]
    assert changed == ["layer 2"]
    assert one.fingerprint != two.fingerprint


def test_other_weights_are_another_plan(crossing):
    """A model whose shards have other headers is another model."""
    before = crossing.plan(CROSSING)
    crossing.write("B", "qwen3", num_hidden_layers=6, vocab_size=51)
    assert crossing.plan(CROSSING).fingerprint != before.fingerprint


def test_a_donor_that_is_not_read_is_no_part_of_a_layer(crossing):
    """What is kept from the base is the same entry of the store, whoever else was asked."""
    kept = crossing.plan(BARE)
    alone = crossing.plan("merge_method: passthrough\nmodels: [{model: A}]")
    assert fingerprints(kept) == fingerprints(alone)


def test_a_shard_s_name_counts_all_shards(crossing):
    """Names follow the convention that every reader knows, and there is one for each layer of the plan."""
    plan = crossing.plan(CROSSING)
    assert plan.shard_name(0) == "model-00001-of-00006.safetensors"
    assert plan.title == "slerp A + B"


def test_bytes_add_up(crossing):
    """What is written is the sum over layers and tensors, and a header comes before each layer's data."""
    plan = crossing.plan(CROSSING)
    assert plan.bytes_written == sum(tensor.nbytes for tensor in plan.tensors)
    for layer in plan.layers:
        assert layer.bytes_copied + sum(t.nbytes for t in layer.tensors if not t.is_copied) == layer.bytes_written
        assert int.from_bytes(layer.header[:8], "little") + 8 == len(layer.header)

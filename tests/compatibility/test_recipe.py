"""The recipe that a comparison ends in: it plans, and merges exactly what it names."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compatibility.sketches import compare, make_shallow, write_config, write_shallow
from tests.fake_checkpoints import write_fake, write_headers
from xmerge.architecture import ResolvedArchitecture, ResolvedModel, list_families, resolve
from xmerge.architecture.models import list_references
from xmerge.compatibility import (
    Compatibility,
    compare_models,
    describe_models_named,
    list_popular_models,
    write_recipe,
)
from xmerge.compatibility.choices import list_choices
from xmerge.config import parse_config
from xmerge.planning import MergePlan, map_slices

# One of each family and of each trap; the pairs that fit are found among them.
NAMES = (
    "llama-2-7b", "llama-3-8b", "llama-3.2-1b", "llama-3.2-3b", "salamandra-7b", "mistral-7b-v0.3", "ministral-8b-2410",
    "ministral-3-8b", "mixtral-8x7b", "qwen2.5-14b", "qwen2.5-3b", "qwen3-8b", "qwen3-14b", "qwen3-30b-a3b", "gemma-2b",
    "gemma-2-9b", "gemma-3-1b", "gemma-3-4b", "phi-2", "phi-3-mini", "phi-4-mini", "olmo-2-7b", "smollm3-3b",
    "internlm2-7b", "exaone-3.5-7.8b", "command-r7b", "glm-4-9b-0414", "granite-3.1-8b", "granite-3.1-2b",
    "starcoder2-3b", "pythia-6.9b", "gpt2", "deepseek-v2-lite", "r1-distill-qwen-14b", "llama-3.1-8b",
    "mistral-7b-v0.1",
)  # fmt: skip
QUICK = ("llama", "deepseek_v3", "glm4", "gpt2", "phi3", "qwen3_moe")
"""Families whose pairs are among the quick tests: plain, latent, fused, transposed, with dense layers and without."""
DEPTHS = (4, 6)
"""Two depths for each model, so that bases and donors differ; four layers have one without rotation."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Iterator[dict[tuple[str, int], ResolvedModel]]:
    """(name, layers) -> a popular model with its real widths and few layers, headers only."""
    folder = tmp_path_factory.mktemp("zoo")
    paths = [
        (name, depth, write_shallow(folder / f"{name}-{depth}", name, depth)) for name in NAMES for depth in DEPTHS
    ]
    yield {(name, depth): describe_models_named([str(path)])[0] for name, depth, path in paths}
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("base", NAMES)
def test_a_recipe_merges_exactly_what_the_table_says(zoo, base):
    """Whatever the donor, the recipe merges what has class A or B where it has it, and nothing else but C for the #."""
    own = NAMES.index(base)
    for number, depth in zip(range(own % 3, len(NAMES), 3), itertools.cycle(DEPTHS), strict=False):
        check_recipe(zoo[base, 4], zoo[NAMES[number], depth])


@pytest.mark.slow
@pytest.mark.parametrize("base", list_popular_models())
def test_a_recipe_of_any_two_popular_models_merges_exactly_what_the_table_says(popular, base):
    """As above, for every pair of the table."""
    for donor in list_popular_models():
        check_recipe(popular[base, DEPTHS[0]], popular[donor, DEPTHS[1]])


@pytest.mark.parametrize(
    "family",
    [pytest.param(each.family, marks=[] if each.family in QUICK else pytest.mark.slow) for each in list_families()],
)
def test_a_recipe_of_any_two_families_merges_exactly_what_the_table_says(families, family):
    """As above, for models of equal sizes, of which some layers are dense and others hold experts."""
    for donor in families.values():
        check_recipe(families[family], donor)


@pytest.fixture(scope="module")
def popular(tmp_path_factory) -> dict[tuple[str, int], ResolvedModel]:
    """(name, layers) -> a popular model of few layers, in a folder, where a plan looks for a tokenizer."""
    folder, models = tmp_path_factory.mktemp("popular"), {}
    for (name, model), depth in itertools.product(list_popular_models().items(), DEPTHS):
        place = write_config(folder / f"{name}-{depth}", make_shallow(model.config, depth))
        (models[name, depth],) = describe_models_named([str(place)])
    return models


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, ResolvedModel]:
    """A fake model of each family; where headers alone tell, layers 1 and 2 of four hold experts."""

    def sparse(role: str, layer: int | None) -> bool:
        return ("_exps" in role or role == "ffn_gate_inp") == (layer in (1, 2))

    folder = tmp_path_factory.mktemp("families")
    paths = {each.family: write_fake(folder / each.family, each.family, maybe=sparse) for each in list_families()}
    return {name: describe_models_named([str(path)])[0] for name, path in paths.items()}


def check_recipe(base: ResolvedModel, donor: ResolvedModel) -> None:
    """Whether a recipe merges what the table says, with the # of what is approximate and without."""
    if base.location == donor.location:
        return
    found = compare_models(base, donor)
    recipe = write_recipe(found)
    wanted = list_graded(found, base, "AB")
    told = (base.label, donor.label)
    assert (recipe is None) == (not wanted), told
    if recipe is not None:
        assert list_merged(recipe, base, donor) == wanted, told
        everything = recipe.replace("    #- ", "    - ")
        assert list_merged(everything, base, donor) == list_graded(found, base, "ABC"), told


def list_graded(found: Compatibility, base: ResolvedModel, classes: str) -> set[str]:
    """The matrices of these classes; all experts of a layer have one filter, so that the worst of them decides."""
    graded = {
        (each.component, layer): each.grade for each in found.components if each.is_projection for layer in each.layers
    }
    chosen = {}
    for spec in base.tensors:
        if spec.role and spec.layer is not None and (spec.role, spec.layer) in graded:
            beginning = spec.line.partition("{expert}")[0] if "{expert}" in spec.line else spec.name
            chosen[spec.name] = (spec.layer, beginning), graded[spec.role, spec.layer]
    worst: dict[object, str] = {}
    for key, grade in chosen.values():
        worst[key] = max(worst.get(key, ""), grade or "")
    return {name for name, (key, _) in chosen.items() if worst[key] and worst[key] in classes}


def list_merged(recipe: str, base: ResolvedModel, donor: ResolvedModel) -> set[str]:
    """The tensors that the plan of a recipe merges, but for the biases of those; everything else is the base's."""
    config = parse_config(recipe, "recipe.yml", Path("/"))
    architecture = ResolvedArchitecture((base, donor), tuple(dict.fromkeys(list_references(config))), 0)
    made = map_slices(config, architecture)
    merged = {tensor.name: tensor.role or "" for tensor in made.tensors if tensor.decision == "merge"}
    assert {tensor.decision for tensor in made.tensors} <= {"merge", "keep"}
    biases = {name for name, role in merged.items() if role.endswith("_bias")}
    assert {name.removesuffix("bias") + "weight" for name in biases} <= merged.keys()
    return merged.keys() - biases


def plan(recipe: str) -> MergePlan:
    """The plan of a recipe."""
    config = parse_config(recipe, "recipe.yml", Path("/"))
    return map_slices(config, resolve(config))


def test_the_zoo_has_recipes_of_every_kind(zoo):
    """The test above is about something: recipes with conversions, without any, and with what only fits."""
    bases = ("llama-3-8b", "phi-4-mini", "qwen2.5-14b")
    found = [compare_models(zoo[base, 4], zoo[donor, 6]) for base, donor in itertools.product(bases, NAMES)]
    offered = [each for each in found if write_recipe(each)]
    grades = [{choice.grade for choice in list_choices(each)} for each in offered]
    assert len(offered) > 10
    assert any("B" in each for each in grades)
    assert any("C" in each for each in grades)
    assert any(each == {"A"} for each in grades)


TOWER = {
    f"vision_tower.encoder.layers.{layer}.{name}.weight": ("BF16", [4, 4])
    for layer in range(2)
    for name in ("self_attn.q_proj", "mlp.down_proj")
}


def test_a_tower_stays_where_the_language_model_is_merged(tmp_path):
    """A tower's names hold those of the language model's matrices; a recipe that names these leaves it to the base."""
    folders = [write_fake(tmp_path / name, "gemma3_multimodal", extra=TOWER) for name in "ab"]
    base, donor = describe_models_named([str(folder) for folder in folders])
    check_recipe(base, donor)
    recipe = write_recipe(compare_models(base, donor))
    assert recipe is not None
    assert recipe.count("value: 0}") == 1
    assert "- {filter: vision_tower., value: 0}" in recipe


def test_layers_that_only_predict_further_stay(tmp_path):
    """They are numbered on from the last layer and named like the others, and no recipe merges them."""
    layer = {f"model.layers.4.mlp.{name}_proj.weight": ("BF16", [4, 4]) for name in ("gate", "up", "down")}
    folders = [
        write_fake(tmp_path / name, "deepseek_v3", extra=layer, maybe=are_dense, num_nextn_predict_layers=1)
        for name in "ab"
    ]
    check_recipe(*describe_models_named([str(folder) for folder in folders]))


def are_dense(role: str, layer: int | None) -> bool:
    """For `maybe`: no layer holds experts."""
    return role.startswith("ffn_") and not role.endswith(("_exps", "_shexp", "_gate_inp", "_bias"))


def test_the_fewest_filters_choose_some_layers(tmp_path):
    """Where most layers cross the others are named and kept, and where few do those are named."""
    write_fake(tmp_path / "llama", num_hidden_layers=6)
    written = {}
    for dense in ((0,), (0, 1, 2, 3, 4)):

        def choose(role: str, layer: int | None, dense: tuple[int, ...] = dense) -> bool:
            return ("_exps" in role or role == "ffn_gate_inp") != (layer in dense)

        write_fake(tmp_path / "moe", "qwen3_moe", num_hidden_layers=6, maybe=choose)
        base, donor = describe_models_named([str(tmp_path / "llama"), str(tmp_path / "moe")])
        check_recipe(base, donor)
        recipe = write_recipe(compare_models(base, donor))
        assert recipe is not None
        written[dense] = [line.strip() for line in recipe.splitlines() if "down_proj" in line]
    assert written == {
        (0,): ["- {filter: model.layers.0.mlp.down_proj, value: 0.1}   # ffn_down: exact in layer 0"],
        (0, 1, 2, 3, 4): [
            "- {filter: model.layers.5.mlp.down_proj, value: 0}",
            "- {filter: mlp.down_proj, value: 0.1}   # ffn_down: exact in layers 0-4",
        ],
    }


# --- packed weights


def pack(name: str) -> dict[str, tuple[str, list[int]]]:
    """A weight as AWQ packs it."""
    stem = name.removesuffix("weight")
    return {f"{stem}{part}": ("I32", [1, 2]) for part in ("qweight", "qzeros")} | {f"{stem}scales": ("F16", [1, 2])}


@pytest.mark.parametrize("packed", ["base", "donor"])
def test_what_is_packed_in_some_layers_is_merged_in_the_others(tmp_path, packed):
    """Packed weights are class E, whoever holds them, and a recipe names the layers that are plain."""
    weight = "model.layers.{layer}.mlp.up_proj.weight"
    said: dict[str, Any] = {"quantization_config": {"quant_method": "awq"}}
    held = pack(weight.format(layer=2)) | pack(weight.format(layer=3))
    names = (weight.format(layer=2), weight.format(layer=3))
    write_fake(tmp_path / packed, extra=held, without=names, **said)
    write_fake(tmp_path / ("base" if packed == "donor" else "donor"))
    base, donor = describe_models_named([str(tmp_path / "base"), str(tmp_path / "donor")])
    found = compare_models(base, donor)
    rows = {each.layers: each for each in found.components if each.component == "ffn_up"}
    assert {layers: (each.grade, each.packed) for layers, each in rows.items()} == {
        (0, 1): ("A", False),
        (2, 3): ("E", True),
    }
    assert rows[2, 3].reasons == (f"{packed} holds it packed (AWQ)",)
    assert found.dropped == ()
    check_recipe(base, donor)


def test_what_an_unknown_model_packs_stays(tmp_path):
    """Merged by name, what is packed has filters that leave it to the base, because a plan would refuse it."""
    config = {"model_type": "unheard-of", "num_hidden_layers": 4, "quantization_config": {"quant_method": "awq"}}
    held: dict[str, tuple[str, list[int]]] = {"h.0.v.weight": ("F32", [2, 2]), "embed": ("F32", [4, 2])}
    for layer in range(4):
        held |= pack(f"h.{layer}.w.weight")
    # Packed in one layer and plain in another: only the layer's number tells them apart.
    held |= {"h.0.x.weight": ("F8_E4M3", [2, 2]), "h.1.x.weight": ("F32", [2, 2])}
    for name in "ab":
        write_headers(tmp_path / name, config, held)
    recipe = write_recipe(compare_models(*describe_models_named([str(tmp_path / "a"), str(tmp_path / "b")])))
    assert recipe is not None
    merged = {tensor.name for tensor in plan(recipe).tensors if tensor.decision == "merge"}
    assert merged == {"embed", "h.0.v.weight", "h.1.x.weight"}
    kept = re.findall(r"filter: (\S+), value: 0}", recipe)
    assert kept == ["w.qweight", "w.qzeros", "w.scales", "h.0.x."]


def test_the_recipe_of_llama_and_qwen():
    """Line by line: what crosses, what fits and why it is left out, and what does not fit."""
    assert (
        write_recipe(compare("llama-3-8b", "qwen3-8b"))
        == """\
# What of qwen3-8b crosses into llama-3-8b exactly or by conversion.
# Of tensors that have nothing in common, slerp at t 0.1 takes 0.988 of the base and 0.156 of the donor.
merge_method: slerp
base_model: meta-llama/Meta-Llama-3-8B
models:
  - model: meta-llama/Meta-Llama-3-8B
  - model: Qwen/Qwen3-8B
layer_map: proportional   # 32 layers meet 36
parameters:
  t:   # 0 is the base, 1 the donor; what no filter names is the base's, byte for byte
    - {filter: self_attn.v_proj, value: 0.1}   # attn_v: exact
    - {filter: self_attn.o_proj, value: 0.1}   # attn_output: exact
    # These fit and mean something else. Take the # before a filter away to merge it too.
    # attn_q, attn_k: qwen3-8b normalizes every query and key head and llama-3-8b does not: its q
    #   and k lose their scale. Measured, no formula makes up for that; filtering to
    #   'self_attn.v_proj' and 'self_attn.o_proj' avoids it; positions turn q and k at other speeds,
    #   which no weights make up for: theta 500000 in llama-3-8b, theta 1e+06 in qwen3-8b
    #- {filter: self_attn.q_proj, value: 0.1}
    #- {filter: self_attn.k_proj, value: 0.1}
    # These stay the base's:
    # ffn_gate, ffn_up, ffn_down: feed-forward width 14336 in llama-3-8b, 12288 in qwen3-8b
"""
    )


def test_a_bias_that_would_be_dropped_is_told():
    """Qwen2.5's v comes without its bias into Qwen3: it is left out, and the comment says what is lost."""
    recipe = write_recipe(compare("qwen3-14b", "qwen2.5-14b"))
    assert recipe is not None
    assert "# attn_v: qwen2.5-14b adds a bias and qwen3-14b does not; qwen2.5-14b's is dropped\n" in recipe
    assert re.findall(r"^ +- .*filter: (\S+),", recipe, re.MULTILINE) == ["self_attn.o_proj"]


def test_a_trap_is_told():
    """Equal shapes with other heads stay the base's, and the comment names the key that would let them."""
    recipe = write_recipe(compare("smollm2-1.7b", "falcon3-1b"))
    assert recipe is not None
    told = " ".join(recipe.replace("#", " ").split())
    assert "equal shapes and heads of other sizes" in told
    assert "'on_different_heads: merge' lets them" in told


@pytest.mark.parametrize(("base", "donor"), [("llama-3-8b", "gemma-2-9b"), ("llama-3-8b", "command-r7b")])
def test_no_recipe_is_offered_where_nothing_crosses(base, donor):
    """Neither where nothing fits nor where everything that fits means something else."""
    assert write_recipe(compare(base, donor)) is None


def test_experts_of_one_filter_go_together(tmp_path):
    """`mlp.experts` chooses gate, up and down: where one of them does not cross, none is offered."""
    for name, ffn in (("a", 6), ("b", 6), ("c", 8)):
        write_fake(tmp_path / name, "mixtral", intermediate_size=ffn)
    alike, other = (
        compare_models(*describe_models_named([str(tmp_path / "a"), str(tmp_path / name)])) for name in "bc"
    )
    assert choose(alike) == {"block_sparse_moe.experts": ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")}
    assert choose(other) == {}


def choose(found) -> dict[str, tuple[str, ...]]:
    """What a recipe offers of the experts: filter -> components."""
    choices = [each for each in list_choices(found) if "experts" in each.filter]
    return {each.filter: each.components for each in choices}


def test_a_filter_is_as_good_as_the_worst_that_it_chooses():
    """A filter that is a part of another component's name chooses that too, and is offered only if both cross."""
    found = compare("mistral-7b-v0.3", "mistral-7b-v0.3")
    name = "model.layers.{layer}.self_attn.v_proj_2.weight"
    for grade, offered in (("A", "A"), ("C", "C"), ("D", None), (None, "A")):
        changed = {"filter": "self_attn.v_proj_2", "names": (name,), "grade": grade}
        components = [
            each.model_copy(update=changed) if each.component == "attn_q" else each for each in found.components
        ]
        choices = list_choices(found.model_copy(update={"components": tuple(components)}))
        assert {each.filter: each.grade for each in choices}.get("self_attn.v_proj") == offered


def test_models_of_one_unknown_type_merge_whole(tmp_path):
    """Where nobody knows what tensors do there is nothing to filter by: all that matches is merged, the rest stays."""
    config = {"model_type": "unheard-of", "num_hidden_layers": 1}
    write_headers(tmp_path / "a", config, {"h.0.w": ("F32", [2, 2]), "embed": ("F32", [4, 2]), "only": ("F32", [2])})
    write_headers(tmp_path / "b", config, {"h.0.w": ("F32", [2, 2]), "embed": ("F32", [5, 2])})
    recipe = write_recipe(compare_models(*describe_models_named([str(tmp_path / "a"), str(tmp_path / "b")])))
    assert recipe is not None
    assert "on_mismatch: base" in recipe
    assert {tensor.name: tensor.decision for tensor in plan(recipe).tensors} == {
        "embed": "keep",
        "h.0.w": "merge",
        "only": "keep",
    }


HOSTILE = (
    "two words", "a: b", "# no comment", "it's", 'say "so"', "new\nline", "tab\there", "a, b}", "{x}", "[bold]", "null",
    "1e3", "yes", "\x1b[31mred", "a@b", "a+b", "ünï", "💥", "- x", "&x", "*x", "!x", "%x", "~x", "trailing ",
    "many words " * 15,
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_of_any_name_comes_back_from_the_recipe(tmp_path, name):
    """A recipe is YAML whatever its folders are called, and names those folders again."""
    check_round_trip(tmp_path, name)


@pytest.mark.parametrize("name", ["null", "1e3", "yes", "0x1f", "2024-01-01", "~x", "- x", "a+b", "plain"])
def test_a_folder_that_is_named_from_here_comes_back_too(tmp_path, monkeypatch, name):
    """A relative name is all that a recipe holds, and no word of YAML."""
    monkeypatch.chdir(tmp_path)
    for part in (name, f"{name}.b"):
        write_fake(tmp_path / part, num_hidden_layers=1)
    recipe = write_recipe(compare_models(*describe_models_named([name, f"{name}.b"])))
    assert recipe is not None
    config = parse_config(recipe, "recipe.yml", tmp_path)
    assert [each.model.model.path for each in config.models] == [name, f"{name}.b"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_folder_of_whatever_name_comes_back_from_the_recipe(tmp_path, name):
    """As above, for names that nobody has thought of."""
    if name not in (".", "..") and len(name.encode()) < 200 and not name.startswith("~"):
        check_round_trip(tmp_path, name)


def check_round_trip(folder: Path, name: str) -> None:
    """Whether the recipe for a folder of this name is read as naming it, and plans."""
    for part in ("base", "donor"):
        shutil.rmtree(folder / part, ignore_errors=True)
        write_fake(folder / part / name, num_hidden_layers=1)
    paths = [str(folder / part / name) for part in ("base", "donor")]
    recipe = write_recipe(compare_models(*describe_models_named(paths)))
    assert recipe is not None
    config = parse_config(recipe, "recipe.yml", folder)
    assert [each.model.model.path for each in config.models] == paths
    assert config.base_model is not None
    assert config.base_model.model.path == paths[0]
    assert all(sign.isprintable() or sign == "\n" for sign in recipe)
    assert len(re.findall(r'^(?:base_model| +- model): (?:\S+|.*["}])$', recipe, re.MULTILINE)) == 3
    assert map_slices(config, resolve(config)).fingerprint


def test_a_config_alone_has_a_recipe_too(tmp_path):
    """The recipe names the folder, for when the weights are there."""
    config = dict(list_popular_models()["llama-3-8b"].config)
    paths = [str(write_config(tmp_path / name, config)) for name in ("a", "b")]
    recipe = write_recipe(compare_models(*describe_models_named(paths)))
    assert recipe is not None
    assert all(f"- model: {path}\n" in recipe for path in paths)

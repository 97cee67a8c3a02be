"""Whose architecture the output has, and what is said of models that contradict themselves."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fake_checkpoints import Choose, everywhere, write_fake, write_headers
from xmerge.architecture import ResolvedModel, describe_model, list_families, resolve
from xmerge.architecture.models import config_dtype, list_references
from xmerge.config import parse_config
from xmerge.errors import CheckpointError, PlanError, XmergeError
from xmerge.sources import Location

ODD = {
    "model.embed_tokens.weight": ("BF16", (4, 2)),
    "model.layers.0.mixer.weight": ("BF16", (2, 2)),
    "model.layers.1.mixer.weight": ("BF16", (2, 2)),
}


def describe(folder: Path, override: str | None = None) -> ResolvedModel:
    """The model in a folder, called `m`."""
    return describe_model(Location(reference="m", label="m", folder=folder), override)


def refuse(folder: Path, kind: type[XmergeError] = CheckpointError, override: str | None = None) -> str:
    """What is said of a model that must be refused."""
    with pytest.raises(kind) as caught:
        describe(folder, override)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("models: [{model: a}, {model: b}]", "a"),
        ("models: [{model: b}, {model: a}]", "b"),
        ("models: [{model: a}, {model: b}]\nbase_model: b", "b"),
        ("models: [{model: a}, {model: b}]\nbase_model: b\narchitecture: a", "a"),
        ("models: [{model: a}, {model: b}]\nbase_model: b\narchitecture: base", "b"),
        ("models: [{model: a}]\nbase_model: b", "b"),
        ("slices: [{sources: [{model: b, layer_range: [0, 1]}]}, {sources: [{model: a, layer_range: [1, 2]}]}]", "b"),
        ("modules: {default: {models: [{model: b}, {model: a}]}}", "b"),
    ],
)
def test_the_output_has_the_architecture_that_is_asked_for(tmp_path: Path, text: str, target: str):
    """The target is `architecture`, else `base_model`, else the first model that the configuration names."""
    write_fake(tmp_path / "a")
    write_fake(tmp_path / "b", "qwen3")
    architecture = resolve(parse_config(f"merge_method: linear\n{text}", folder=tmp_path))
    assert architecture.target.label == target
    assert architecture.target.kind == {"a": "llama", "b": "qwen3"}[target]
    assert architecture.index_of(architecture.references[architecture.target_index]) == architecture.target_index


def test_an_architecture_that_is_no_model_of_the_configuration_is_refused(tmp_path: Path):
    """`architecture` names one of the models that are merged; the refusal lists them."""
    config = parse_config("merge_method: linear\nmodels: [{model: a}, {model: b}]\narchitecture: c", "r.yml", tmp_path)
    with pytest.raises(PlanError) as caught:
        resolve(config)
    assert str(caught.value) == (
        "'architecture' names c, which is no model of this configuration.\n"
        "  at: r.yml, line 3: architecture\n  do: name one of: a, b."
    )


def test_a_model_named_twice_is_read_once(tmp_path: Path):
    """The models are those of the configuration, each once, in the order in which it names them, the base first."""
    config = parse_config(
        "merge_method: linear\nbase_model: c\nslices:\n"
        "- {sources: [{model: b, layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}], base_model: d}\n"
        "- {sources: [{model: a, layer_range: [1, 2]}, {model: c, layer_range: [1, 2]}]}\n"
    )
    assert [str(each) for each in list_references(config)] == ["c", "b", "a", "d", "a", "c"]
    for name in "abcd":
        write_fake(tmp_path / name)
    resolved = resolve(
        config.with_source(parse_config("merge_method: linear\nmodels: [{model: a}]", folder=tmp_path).source)
    )
    assert [model.label for model in resolved.models] == ["c", "b", "a", "d"]


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path):
    """Models whose folders are called alike have different labels."""
    write_fake(tmp_path / "one" / "model")
    write_fake(tmp_path / "two" / "model")
    text = f"merge_method: linear\nmodels: [{{model: {tmp_path}/one/model}}, {{model: {tmp_path}/two/model}}]"
    assert [model.label for model in resolve(parse_config(text)).models] == ["model", "model#2"]


def test_a_tensor_is_found_by_its_role_its_template_and_its_layer(tmp_path: Path):
    """A model knows where the numbers of each role lie, also within a tensor that holds several."""
    model = describe(write_fake(tmp_path, "phi3"))
    ((spec, part),) = model.by_role[2, "attn_v"]
    assert (spec.name, part.offset, part.shape) == ("model.layers.2.self_attn.qkv_proj.weight", 24 * 8, (8, 8))
    assert part.loops == (("kv_heads", 2, 4 * 8), ("head_dim", 4, 8), ("hidden", 8, 1))
    assert model.by_template[2, "model.layers.{layer}.self_attn.qkv_proj.weight"] is spec
    assert spec in model.by_layer[2]
    assert [each.name for each in model.by_layer[None] if each.after_layers] == ["lm_head.weight", "model.norm.weight"]
    assert (spec.shape, spec.dtype) == ((32, 8), "BF16")


def test_a_tensor_that_the_family_does_not_know_has_no_role(tmp_path: Path):
    """What no line of the family file names is kept in the list, with its layer and without a role."""
    extra = {
        "model.layers.1.self_attn.rotary_emb.inv_freq": ("F32", (2,)),
        "model.layers.01.x": ("F32", (2,)),
        "extra": ("I64", ()),
    }
    model = describe(write_fake(tmp_path, extra=extra))
    strange = {spec.name: (spec.layer, spec.template) for spec in model.tensors if spec.role is None}
    assert strange == {
        "extra": (None, "extra"),
        "model.layers.01.x": (None, "model.layers.01.x"),
        "model.layers.1.self_attn.rotary_emb.inv_freq": (1, "model.layers.{layer}.self_attn.rotary_emb.inv_freq"),
    }


def test_a_model_without_a_family_file_is_known_by_its_names(tmp_path: Path):
    """A model of an unknown type has its layers counted, and all its tensors listed without roles."""
    model = describe(write_headers(tmp_path, {"model_type": "odd", "tie_word_embeddings": True}, ODD))
    assert (model.family, model.kind, model.layers, model.tied) == (None, "odd", 2, True)
    assert [(spec.layer, spec.role) for spec in model.tensors] == [(None, None), (0, None), (1, None)]


@pytest.mark.parametrize(
    ("told", "layers"),
    [
        ({"n_layer": 7}, 7),
        ({"num_hidden_layers": 3, "n_layer": 7}, 3),
        ({"num_layers": "x", "n_layer": -1}, 2),
        ({}, 2),
    ],
    ids=str,
)
def test_config_json_says_how_many_layers_there_are(tmp_path: Path, told: dict[str, Any], layers: int):
    """A model of an unknown type has as many layers as its config.json says, else as many as its names count."""
    assert describe(write_headers(tmp_path, {"model_type": "odd", **told}, ODD)).layers == layers


@pytest.mark.parametrize(
    ("said", "method"),
    [({"quant_method": "gptq"}, "gptq"), ({}, "unknown"), (None, None)],
    ids=repr,
)
def test_packed_weights_are_recognised(tmp_path: Path, said: object, method: str | None):
    """A config.json that speaks of quantization makes the model known as packed."""
    assert (
        describe(write_headers(tmp_path, {"model_type": "odd", "quantization_config": said}, ODD)).quantization
        == method
    )


def test_a_tensor_of_another_shape_than_config_json_says_is_refused(tmp_path: Path):
    """Weights and config.json of two different models are not taken for one."""
    write_fake(tmp_path, extra={"model.layers.1.mlp.up_proj.weight": ("BF16", (16, 8))})
    assert refuse(tmp_path) == (
        "m contradicts itself: model.layers.1.mlp.up_proj.weight has shape [16, 8], and its config.json asks for "
        "[12, 8].\n  do: fetch config.json and weights of one and the same revision."
    )


def test_layers_beyond_the_last_are_refused(tmp_path: Path):
    """A layer that config.json does not count is told, and not left out in silence."""
    write_fake(tmp_path, extra={"model.layers.4.mlp.up_proj.weight": ("BF16", (12, 8))})
    assert refuse(tmp_path) == (
        "m contradicts itself: it holds model.layers.4.mlp.up_proj.weight, and its config.json says 4 layers.\n"
        "  do: fetch config.json and weights of one and the same revision."
    )


def test_missing_tensors_are_refused(tmp_path: Path):
    """A model that lacks tensors of its family is told with their names."""
    folder = write_fake(tmp_path / "a", num_hidden_layers=1)
    tensors = {spec.name: (spec.dtype, spec.shape) for spec in describe(folder).tensors}
    gone = ["model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    config = dict(describe(folder).checkpoint.config)
    write_headers(tmp_path / "b", config, {name: each for name, each in tensors.items() if name not in gone})
    assert refuse(tmp_path / "b") == (
        "m lacks model.layers.0.mlp.up_proj.weight, model.layers.0.mlp.down_proj.weight, model.norm.weight.\n"
        "  why: its config.json describes a llama that has them.\n  do: fetch the whole model again."
    )
    write_headers(tmp_path / "c", config, {"model.norm.weight": tensors["model.norm.weight"]})
    assert refuse(tmp_path / "c").splitlines()[0].endswith(" and 8 more.")


def test_a_tied_model_may_hold_its_output_matrix_all_the_same(tmp_path: Path):
    """A checkpoint that ties its embeddings and stores the output matrix too is whole."""
    model = describe(write_fake(tmp_path, tie_word_embeddings=True, extra={"lm_head.weight": ("BF16", (32, 8))}))
    assert model.tied
    assert [spec.name for spec, _ in model.by_role[None, "output"]] == ["lm_head.weight"]


def test_an_override_chooses_the_family(tmp_path: Path):
    """`override_architecture` decides which family a model is read as, and a class that no family has is refused."""
    folder = write_fake(tmp_path, model_type="mine", architectures=["Mine"])
    assert describe(folder).family is None
    assert describe(folder, "LlamaForCausalLM").kind == "llama"
    assert refuse(folder, PlanError, "LlamaForCausalML") == (
        "no family has the architecture 'LlamaForCausalML', which 'override_architecture' asks for.\n"
        "  at: m\n  do: did you mean 'LlamaForCausalLM'?"
    )


def test_a_dtype_is_read_in_both_spellings():
    """The dtype that config.json claims is read from `dtype`, else from `torch_dtype`, with or without `torch.`."""
    assert config_dtype({"dtype": "bfloat16", "torch_dtype": "float16"}) == "bfloat16"
    assert config_dtype({"torch_dtype": "torch.float16"}) == "float16"
    assert config_dtype({"dtype": None}) is None
    assert config_dtype({"dtype": {"": "float32"}}) is None


def test_a_depth_beyond_all_tensors_is_refused_at_once(tmp_path):
    """Ten million layers in config.json are a contradiction, not work for minutes."""
    folder = write_fake(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10_000_000}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="says 10000000 layers, and it holds 39 tensors"):
        describe_model(Location(reference="model", label="model", folder=folder))


def test_a_quantised_checkpoint_is_called_so(tmp_path):
    """What does not fit a quantised model's config.json may be packed in a way that nobody knows: the error says so."""
    packed = {"model.layers.1.mlp.up_proj.weight": ("BF16", (48, 1))}
    folder = write_fake(tmp_path / "model", extra=packed, quantization_config={"quant_method": "bitsandbytes"})
    told = refuse(folder)
    assert told.startswith("m is quantised (bitsandbytes), and what it holds are not a llama's own tensors.")
    assert "model.layers.1.mlp.up_proj.weight has shape [48, 1]" in told
    assert "quantise the result" in told


@pytest.mark.parametrize("family", [family.family for family in list_families()])
@pytest.mark.parametrize("maybe", [None, everywhere])
def test_every_family_describes_what_its_file_lists(tmp_path: Path, family: str, maybe: Choose | None):
    """A checkpoint with exactly the tensors of a family file, in any of its spellings, has a role for each of them."""
    described = next(each for each in list_families() if each.family == family)
    for number in range(len(described.spellings)):
        model = describe(write_fake(tmp_path / str(number), family, maybe=maybe, spelling=number))
        assert model.kind == family
        assert [spec.name for spec in model.tensors if not spec.parts] == []
        assert model.packed == {}


def test_a_name_with_braces_is_a_name(tmp_path: Path):
    """What a stranger writes between braces is no place for a number."""
    extra = {"model.layers.2.{x}.{0}": ("F32", (2,))}
    (spec,) = (each for each in describe(write_fake(tmp_path, extra=extra)).tensors if each.role is None)
    assert (spec.name, spec.name_in(3)) == ("model.layers.2.{x}.{0}", "model.layers.3.{x}.{0}")


@pytest.mark.parametrize(
    ("family", "said", "told"),
    [
        ("gemma3_multimodal", {"text_config": "x"}, "m/config.json says text_config = 'x', which is no mapping."),
        ("gemma3_multimodal", {"text_config": []}, "m/config.json says text_config = [], which is no mapping."),
        (
            "llama",
            {"tie_word_embeddings": 1},
            "m/config.json says tie_word_embeddings = 1, which is neither true nor false.",
        ),
        (
            "qwen3_moe",
            {"num_experts": 9_000, "num_hidden_layers": 9_000},
            "m contradicts itself: its config.json says 81000000 experts in all its layers, and it holds ",
        ),
    ],
    ids=str,
)
def test_what_config_json_says_of_the_whole_model_is_judged_first(
    tmp_path: Path, family: str, said: dict[str, Any], told: str
):
    """Where the language model is described, whether it is tied, and names without end, are refused in a moment."""
    folder = write_fake(tmp_path, family, maybe=everywhere)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | said), encoding="utf-8")
    assert refuse(folder).startswith(told)

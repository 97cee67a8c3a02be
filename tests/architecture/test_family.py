"""Family files: each says of a real checkpoint of its family what every tensor is."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.tiny_models import SIZES, WRITERS
from xmerge.architecture import Family, ResolvedModel, RolePart, describe_model, find_family, list_families
from xmerge.architecture.traits import _WANTED
from xmerge.errors import CheckpointError
from xmerge.sources import Location

# What a name means in any family, unless the family is named with it.
ROLES = {
    "embed_tokens.weight": "token_embd",
    "input_layernorm.weight": "attn_norm",
    "q_proj.weight": "attn_q",
    "k_proj.weight": "attn_k",
    "v_proj.weight": "attn_v",
    "o_proj.weight": "attn_output",
    "q_proj.bias": "attn_q_bias",
    "k_proj.bias": "attn_k_bias",
    "v_proj.bias": "attn_v_bias",
    "o_proj.bias": "attn_output_bias",
    "q_norm.weight": "attn_q_norm",
    "k_norm.weight": "attn_k_norm",
    "qkv_proj.weight": "attn_q+attn_k+attn_v",
    "post_attention_layernorm.weight": "ffn_norm",
    "gemma2 post_attention_layernorm.weight": "post_attention_norm",
    "pre_feedforward_layernorm.weight": "ffn_norm",
    "post_feedforward_layernorm.weight": "post_ffw_norm",
    "gate_proj.weight": "ffn_gate",
    "up_proj.weight": "ffn_up",
    "down_proj.weight": "ffn_down",
    "gate_proj.bias": "ffn_gate_bias",
    "up_proj.bias": "ffn_up_bias",
    "down_proj.bias": "ffn_down_bias",
    "gate_up_proj.weight": "ffn_gate+ffn_up",
    "norm.weight": "output_norm",
    "lm_head.weight": "output",
}
FLAGS: dict[str, list[dict[str, Any]]] = {
    "llama": [{"attention_bias": True}, {"mlp_bias": True}, {"num_key_value_heads": 4}],
    "qwen3": [{"attention_bias": True}],
    "gemma2": [{"attention_bias": True}],
}
SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "intermediate_size": 5,
    "vocab_size": 9,
}
CASES = [
    (family, options)
    for family in sorted(WRITERS)
    for options in (
        {},
        {"tie_word_embeddings": True},
        {"max_shard_size": 20_000},
        {"max_shard_size": 20_000, "tie_word_embeddings": True},
        *FLAGS.get(family, []),
    )
]


def describe(folder: Path) -> ResolvedModel:
    """The model in a folder."""
    return describe_model(Location(reference="model", label="model", folder=folder))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, read by the reference library."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def take(weights: dict[str, torch.Tensor], name: str, part: RolePart) -> torch.Tensor:
    """The numbers of one role, out of the tensor that holds them."""
    counts, strides = [count for _, count, _ in part.loops], [stride for _, _, stride in part.loops]
    return torch.as_strided(weights[name], counts, strides, part.offset).reshape(part.shape).contiguous()


def compute(folder: Path) -> torch.Tensor:
    """What the model in a folder answers to a short text, in float32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([[5, 17, 3, 250, 9]])).logits
    return logits


@pytest.mark.parametrize(("family", "options"), CASES, ids=str)
def test_a_family_file_knows_a_real_checkpoint(tmp_path: Path, family: str, options: dict[str, Any]):
    """Every tensor that transformers writes has the role its name means, and the family expects no other tensor."""
    folder = WRITERS[family](tmp_path, **options)
    weights = read_weights(folder)
    model = describe(folder)
    assert model.kind == family
    assert {spec.name: spec.shape for spec in model.tensors} == {
        name: tuple(each.shape) for name, each in weights.items()
    }
    for spec in model.tensors:
        end = ".".join(spec.name.split(".")[-2:])
        assert spec.role == ROLES.get(f"{family} {end}", ROLES[end]), spec.name
        assert spec.layer == (int(spec.name.split(".")[2]) if ".layers." in spec.name else None)
        assert sum(math.prod(part.shape) for part in spec.parts) == math.prod(spec.shape)
    assert model.tied is bool(options.get("tie_word_embeddings"))
    assert ("lm_head.weight" in weights) is not model.tied
    assert len(model.checkpoint.shards) == len(list(folder.glob("*.safetensors")))
    assert (len(model.checkpoint.shards) > 1) is ("max_shard_size" in options)


@pytest.mark.parametrize("family", sorted(WRITERS))
def test_the_sizes_of_a_family_are_those_of_config_json(tmp_path: Path, family: str):
    """Each axis has the size that config.json gives it, also where heads x head_dim is not the hidden size."""
    assert describe(WRITERS[family](tmp_path)).axes == {
        "layers": SIZES["num_hidden_layers"],
        "hidden": SIZES["hidden_size"],
        "heads": SIZES["num_attention_heads"],
        "kv_heads": SIZES["num_key_value_heads"],
        "head_dim": SIZES["head_dim"],
        "ffn": SIZES["intermediate_size"],
        "vocab": SIZES["vocab_size"],
    }


@pytest.mark.parametrize(
    ("family", "options"), [("mistral", {}), ("phi3", {}), ("qwen2", {"attention_bias": True})], ids=str
)
def test_roles_mean_what_the_tensors_do(tmp_path: Path, family: str, options: dict[str, Any]):
    """A model rewritten tensor by tensor into Llama's layout, by nothing but roles, computes the same."""
    shared = {"rms_norm_eps": 1e-5, "dtype": "float32"}
    donor = WRITERS[family](tmp_path / family, seed=1, **shared)
    target = WRITERS["llama"](tmp_path / "llama", seed=2, **shared, **options)
    weights = read_weights(donor)
    roles = describe(donor).by_role
    rewritten = {}
    for (layer, role), ((spec, _),) in describe(target).by_role.items():
        if role == "attn_output_bias":  # Qwen2 has none; adding zero is having none.
            rewritten[spec.name] = torch.zeros(spec.shape)
            continue
        ((source, part),) = roles[layer, role]
        rewritten[spec.name] = take(weights, source.name, part)
    from safetensors.torch import save_file

    save_file(rewritten, target / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(compute(target), compute(donor), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", sorted(WRITERS))
def test_the_gain_of_a_norm_is_as_the_family_says(tmp_path: Path, family: str):
    """A norm whose stored weight means a gain of one leaves a vector of length one per element, and two doubles it."""
    from transformers import AutoModelForCausalLM

    described = next(each for each in list_families() if each.family == family)
    model = AutoModelForCausalLM.from_pretrained(WRITERS[family](tmp_path), dtype=torch.float32)
    norm = model.model.norm
    x = torch.linspace(-1, 1, SIZES["hidden_size"])
    with torch.no_grad():
        norm.weight.fill_(0.0 if described.norm_gain == "1+w" else 1.0)
        once = norm(x)
        norm.weight.fill_(1.0 if described.norm_gain == "1+w" else 2.0)
        twice = norm(x)
    torch.testing.assert_close(once.square().mean(), torch.tensor(1.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("family", sorted(WRITERS))
def test_what_config_json_leaves_out_is_as_transformers_reads_it(tmp_path: Path, family: str):
    """Where config.json does not say whether embeddings are tied, the family's default is transformers' own."""
    from transformers import AutoConfig

    described = next(each for each in list_families() if each.family == family)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": described.model_types[0]}), encoding="utf-8")
    assert described.tied_by_default is AutoConfig.from_pretrained(tmp_path).tie_word_embeddings


@pytest.mark.parametrize("family", list_families(), ids=lambda family: family.family)
def test_a_family_names_each_role_and_each_tensor_once(family: Family):
    """Within the layers, and outside them, a role belongs to one tensor and a name to one line."""
    outside, inside = (*family.before, *family.after), family.layer
    for templates in (outside, inside):
        roles = [role for template in templates for role in template.roles]
        assert len(roles) == len(set(roles))
    names = [template.name for template in (*outside, *inside)]
    assert len(names) == len(set(names))
    assert all("{layer}" in template.name for template in inside)
    assert not any("{layer}" in template.name for template in outside)


def test_a_model_is_known_by_its_type_before_its_class():
    """`model_type` decides; the class in `architectures` only where no family has the type; an override before both."""
    kinds: dict[str, dict[str, Any]] = {
        "llama": {"model_type": "llama", "architectures": ["Qwen3ForCausalLM"]},
        "qwen3": {"model_type": "unheard_of", "architectures": ["Qwen3ForCausalLM"]},
        "phi3": {"architectures": ["Unheard", "Phi3ForCausalLM"]},
    }
    for kind, config in kinds.items():
        family = find_family(config)
        assert family is not None
        assert family.family == kind
    overridden = find_family({"model_type": "llama"}, "MistralForCausalLM")
    assert overridden is not None
    assert overridden.family == "mistral"


@pytest.mark.parametrize("architectures", [None, "LlamaForCausalLM", 3, {}, [3, None, []], ["Unheard"]], ids=repr)
@pytest.mark.parametrize("model_type", [None, "unheard_of", 3, [], {}], ids=repr)
def test_config_json_may_say_what_it_likes(architectures: object, model_type: object):
    """A config.json that names no known family, in whatever way, is a model without a family."""
    assert find_family({"architectures": architectures, "model_type": model_type}) is None


@pytest.mark.parametrize("family", list_families(), ids=lambda family: family.family)
def test_the_names_of_a_tower_are_each_other_s(family: Family):
    """Whichever name a tensor beside the language model has, it has the same names, its own among them."""
    for beginnings in family.towers:
        for beginning in beginnings:
            assert set(family.list_names(f"{beginning}x.0.weight")) == {f"{each}x.0.weight" for each in beginnings}
    assert family.list_names("another.tower.weight") == ("another.tower.weight",)


def test_an_axis_is_the_first_key_that_is_there():
    """A size is read from the first key that says something; a head's size is else derived, if it is whole."""
    family = find_family({"model_type": "llama"})
    assert family is not None
    assert family.read_axes(SMALL, "m")["kv_heads"] == 4
    assert family.read_axes(SMALL, "m")["head_dim"] == 3
    assert family.read_axes(SMALL | {"num_key_value_heads": 2, "head_dim": 7}, "m")["kv_heads"] == 2
    assert family.read_axes(SMALL | {"head_dim": 7}, "m")["head_dim"] == 7
    assert family.read_axes(SMALL | {"head_dim": None}, "m")["head_dim"] == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": "12"}, "m/config.json says hidden_size = '12', which is no size."),
        ({"hidden_size": 0}, "m/config.json says hidden_size = 0, which is no size."),
        ({"hidden_size": 12.0}, "m/config.json says hidden_size = 12.0, which is no size."),
        ({"hidden_size": True}, "m/config.json says hidden_size = true, which is no size."),
        ({"hidden_size": 2**41}, f"m/config.json says hidden_size = {2**41}, which is no size."),
        (
            {"hidden_size": None},
            (
                "m/config.json does not say how large 'hidden' is.\n  why: it has none of: hidden_size.\n"
                "  do: complete config.json from the model's page."
            ),
        ),
        (
            {"hidden_size": 13},
            (
                "m/config.json says hidden_size = 13 and num_attention_heads = 4, and 13 is no multiple of 4.\n"
                "  why: it says no head_dim, and head_dim is hidden / heads in a llama.\n"
                "  do: add head_dim to config.json, or take config.json from the model's page again."
            ),
        ),
    ],
    ids=str,
)
def test_a_config_json_without_sizes_is_refused(change: dict[str, Any], told: str):
    """A size that is missing or is none is told with its key."""
    family = find_family({"model_type": "llama"})
    assert family is not None
    with pytest.raises(CheckpointError) as caught:
        family.read_axes(SMALL | change, "m")
    assert str(caught.value).removesuffix("\n  do: take config.json from the model's page again.") == told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("model.norm.weight", "is not of the form"),
        ("model.norm.weight [hidden] when tied", "is not of the form"),
        ("model.norm.weight [width]", r"model.norm.weight has the unknown axes \['width'\]"),
        ("model.norm.weight [hidden + hidden]", "holds 1 roles in 2 blocks"),
        ("model.norm.weight [hidden, hidden]", "has an axis twice in one block"),
        ("model.norm.weight [hidden,]", "an axis, a number or '\\(' is missing"),
        ("model.{expert}.norm.weight [hidden]", "numbers what has no axis, 'experts'"),
    ],
)
def test_a_family_file_with_a_mistake_is_refused(line: str, told: str):
    """A line of a family file that cannot be read, or that uses an axis it does not define, is named."""
    whole: dict[str, Any] = {
        "family": "mine",
        "model_types": ["mine"],
        "architectures": [],
        "axes": {"hidden": "hidden_size"},
    }
    whole |= {"norm_gain": "w", "rope": "half", "tied_by_default": False, "before": {}, "layer": {}}
    assert Family.model_validate({**whole, "after": {"output_norm": "model.norm.weight [hidden]"}}).family == "mine"
    with pytest.raises(ValidationError, match=told):
        Family.model_validate({**whole, "after": {"output_norm": line}})


@pytest.mark.parametrize("field", [*_WANTED, "further_layers", "sliding_rope_theta"])
def test_a_rule_with_a_mistake_is_refused(field: str):
    """A rule that cannot be read is named, in whatever field it stands."""
    llama = next(each for each in list_families() if each.family == "llama").model_dump()
    assert getattr(Family.model_validate({**llama, field: "key | 3"}), field) == "key | 3"
    with pytest.raises(ValidationError, match="'hidden // heads' is no rule"):
        Family.model_validate({**llama, field: "key | hidden // heads"})


def test_a_tensor_may_depend_on_a_key_of_config_json():
    """A line with `if` or `unless` speaks of a tensor that a model has only where its config.json says so."""
    family = find_family({"model_type": "llama"})
    assert family is not None
    bias = next(each for each in family.layer if each.role == "attn_q_bias")
    head = next(each for each in family.after if each.role == "output")
    norm = next(each for each in family.after if each.role == "output_norm")
    assert [bias.exists(config, tied=False) for config in ({}, {"attention_bias": True})] == [False, True]
    assert [head.exists({}, tied=tied) for tied in (False, True)] == [True, False]
    assert norm.exists({}, tied=True)

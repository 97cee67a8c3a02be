"""What no shape shows is read from config.json, and what cannot be meant is refused where it is used."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_checkpoints import make_config
from xmerge.architecture import list_families
from xmerge.architecture.family import RULES
from xmerge.architecture.rules import show
from xmerge.architecture.traits import Rope, Traits
from xmerge.errors import CheckpointError

FAMILIES = {family.family: family for family in list_families()}
DO = "take config.json from the model's page again."
HUGE = 10**400
POSITIVE = "number above 0"
SHARE = "share above 0 and at most 1"
TOKENS = "number of tokens, and not null"
PLAIN = "number, text or list of numbers"


def read(family: str = "llama", **config: Any) -> Traits:
    """The traits of a model of 4 layers, called `m`."""
    described = FAMILIES[family]
    language = described.language_config(make_config(described, **config))
    return Traits(described, language, described.read_axes(language, "m"), "m")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tells_every_trait(family):
    """With a config.json of sizes alone, every trait of every layer is known, as transformers has it by default."""
    traits = read(family)
    for trait in RULES:
        traits.tell(trait)
    for layer in range(4):
        window = traits.window_of(layer)
        assert window is None or window > 0
        rope = traits.rope_of(layer)
        assert rope is None or (rope.theta > 0 and rope.kind == "default")
    assert traits.tell("softmax_scale") > 0
    assert isinstance(traits.tell("activation"), str)


@pytest.mark.parametrize(
    ("family", "key", "value", "wanted"),
    [
        ("llama", "rope_theta", "x", POSITIVE),
        ("llama", "rope_theta", 0, POSITIVE),
        ("llama", "rope_theta", -1.5, POSITIVE),
        ("llama", "rope_theta", True, POSITIVE),
        ("llama", "rope_theta", float("nan"), POSITIVE),
        ("llama", "rope_theta", float("inf"), POSITIVE),
        ("llama", "rope_theta", {"a": 1}, POSITIVE),
        ("llama", "rms_norm_eps", "1e-5", POSITIVE),
        ("llama", "hidden_act", ["silu"], "text"),
        ("llama", "rope_scaling", "yarn", "mapping"),
        ("llama", "rope_scaling", [], "mapping"),
        ("llama", "rope_parameters", 4.0, "mapping"),
        ("phi3", "partial_rotary_factor", 1.5, SHARE),
        ("phi3", "partial_rotary_factor", 0, SHARE),
        ("phi3", "partial_rotary_factor", "all", SHARE),
        ("gemma3", "rope_local_base_freq", "x", POSITIVE),
        ("gemma2", "query_pre_attn_scalar", "x", POSITIVE),
        ("gemma2", "query_pre_attn_scalar", -3, POSITIVE),
        ("gemma2", "query_pre_attn_scalar", 0, POSITIVE),
        ("gemma2", "query_pre_attn_scalar", [256], POSITIVE),
        ("gemma2", "attn_logit_softcapping", "50", f"{POSITIVE}, and not null"),
        ("gemma2", "final_logit_softcapping", -30, f"{POSITIVE}, and not null"),
        ("gemma2", "sliding_window", "4096", TOKENS),
        ("gemma2", "sliding_window", -1, TOKENS),
        ("gemma2", "sliding_window", 4096.5, TOKENS),
        ("gemma2", "layer_types", "full_attention", "list of names of kinds of layers"),
        ("gemma2", "layer_types", [0, 1, 0, 1], "list of names of kinds of layers"),
        ("gemma2", "hidden_activation", 3, "text"),
        ("smollm3", "no_rope_layers", ["a"] * 4, "list of a 0 or a 1 for each layer"),
        ("smollm3", "no_rope_layers", {"a": 0}, "number or list of layers"),
        ("granite", "attention_multiplier", "x", POSITIVE),
        ("granite", "logits_scaling", 0, POSITIVE),
        ("cohere2", "sliding_window_pattern", "x", "number or list of layers"),
        ("cohere2", "sliding_window_pattern", ["x"], "list of a 0 or a 1 for each layer"),
        ("qwen2", "max_window_layers", -2, "number of layers"),
        ("llama4", "attn_scale", "x", "number"),
        ("llama4", "floor_scale", 0, "number of tokens above 0"),
        ("llama4", "moe_layers", 3, "list of layers"),
        ("qwen3_moe", "mlp_only_layers", ["x"], "list of layers"),
        ("qwen3_moe", "decoder_sparse_step", -1, "number of layers"),
        ("deepseek_v3", "first_k_dense_replace", "3", "number of layers"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(family, key, value, wanted):
    """A wrong type, NaN, a negative or a nested value is told with its key, what belongs there and what to do."""
    with pytest.raises(CheckpointError) as caught:
        tell_all(read(family, **{key: value}))
    assert str(caught.value) == f"m/config.json says {key} = {show(value)}, which is no {wanted}.\n  do: {DO}"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"rope_type": 5}, "rope_type = 5 of its rotation, which is no text"),
        ({"type": ["x"]}, "type = ['x'] of its rotation, which is no text"),
        ({"rope_theta": "1e4"}, "rope_theta = '1e4' of its rotation, which is no number above 0"),
        ({"partial_rotary_factor": 2}, f"partial_rotary_factor = 2 of its rotation, which is no {SHARE}"),
        ({"type": "yarn", "factor": {"x": [1]}}, f"factor = {{'x': [1]}} of its rotation, which is no {PLAIN}"),
        ({"type": "yarn", "factor": float("nan")}, f"factor = nan of its rotation, which is no {PLAIN}"),
        ({"type": "longrope", "long_factor": [1, "x"]}, f"long_factor = [1, 'x'] of its rotation, which is no {PLAIN}"),
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_rotation_that_cannot_be_meant_is_refused(key, said, told):
    """What stands in the mappings of the rotation is judged like what stands at the top."""
    with pytest.raises(CheckpointError) as caught:
        read(**{key: said}).rope_of(0)
    assert str(caught.value) == f"m/config.json says {told}.\n  do: {DO}"


@pytest.mark.parametrize("key", ["factor", "mscale_all_dim"])
def test_what_multiplies_scores_is_a_number(key):
    """A factor of yarn that is no number is told before scores are multiplied by it."""
    said = {"type": "yarn", "factor": 4, "mscale_all_dim": 1, key: "x"}
    with pytest.raises(CheckpointError) as caught:
        read("deepseek_v3", rope_scaling=said).tell("softmax_scale")
    assert caught.value.what == f"m/config.json says {key} = 'x' of its rotation, which is no number."


def test_scores_grow_only_where_config_json_says_from_where():
    """Without the length from which they grow, scores do not grow with the position."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.1}
    assert read("ministral3", rope_parameters=rope).temperature_of(0) is None
    grown = read("ministral3", rope_parameters={**rope, "original_max_position_embeddings": 16384}).temperature_of(0)
    assert str(grown) == "by 1 + 0.1 log(1 + position / 16384)"


def test_the_rotation_of_a_kind_of_layers_is_judged_where_a_layer_of_it_is():
    """Each kind of layers has a rotation of its own, and garbage in one is none of the other's."""
    said = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": -1}}
    traits = read("gemma3", layer_types=["full_attention"] * 3 + ["sliding_attention"], rope_parameters=said)
    assert traits.rope_of(0) is not None
    with pytest.raises(CheckpointError, match="rope_theta = -1 of its rotation"):
        traits.rope_of(3)


@pytest.mark.parametrize(
    ("family", "key", "listed"),
    [("gemma2", "layer_types", ["full_attention"]), ("smollm3", "no_rope_layers", [1, 1, 0])],
)
def test_a_list_that_leaves_layers_out_is_refused(family, key, listed):
    """A list with an item for each layer has one for every layer."""
    with pytest.raises(CheckpointError) as caught:
        tell_all(read(family, **{key: listed}))
    assert caught.value.what == f"m/config.json says {key} = {listed!r}, which is fewer than its 4 layers."


def tell_all(traits: Traits) -> None:
    """Ask for everything that two models are compared by."""
    for trait in RULES:
        traits.tell(trait)
    for layer in range(traits.axes["layers"]):
        traits.tell_sight(layer)
        traits.rope_of(layer)
        traits.tell_head_norm(layer)
        traits.temperature_of(layer)
        traits.has_experts(layer)


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_numbers_that_no_float_holds_are_refused_in_short(key):
    """A number of four hundred digits is refused, and not printed."""
    with pytest.raises(CheckpointError) as caught:
        tell_all(read("llama", **{key: HUGE}))
    assert f"says {key} = 1000" in caught.value.what
    assert len(caught.value.what) < 150


def test_a_trait_that_nobody_asks_for_is_not_judged():
    """A value is checked where it is used: garbage in one key is no reason to refuse what does not depend on it."""
    traits = read(rope_theta="x", rms_norm_eps=1e-5)
    assert traits.tell("norm_eps") == 1e-5
    with pytest.raises(CheckpointError):
        traits.rope_of(0)


def test_both_generations_of_config_json_say_the_same_of_the_rotation():
    """Old files have `rope_theta` and `rope_scaling`, new ones `rope_parameters`; 8 and 8.0 are one factor."""
    old = read(rope_theta=500000, rope_scaling={"type": "linear", "factor": 8})
    new = read(rope_parameters={"rope_theta": 500000.0, "rope_type": "linear", "factor": 8.0})
    assert old.rope_of(0) == new.rope_of(3) == Rope(500000.0, "linear", (("factor", "8"),), 4)
    assert str(old.rope_of(0)) == "theta 500000, linear scaling by 8"


def test_layers_of_several_kinds_turn_by_their_own_parameters():
    """Where config.json has a rotation for each kind of layers, every layer has that of its kind."""
    kinds = ["sliding_attention", "full_attention"] * 2
    parameters = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 5e4}}
    traits = read("gemma3", layer_types=kinds, rope_parameters=parameters)
    assert [rope.theta for layer in range(4) if (rope := traits.rope_of(layer))] == [5e4, 1e6, 5e4, 1e6]
    assert [traits.window_of(layer) for layer in range(4)] == [4096, None, 4096, None]
    only_one = read("gemma3", layer_types=kinds, rope_parameters={"full_attention": {"rope_theta": 2e6}})
    assert [rope.theta for layer in range(4) if (rope := only_one.rope_of(layer))] == [1e4, 2e6, 1e4, 2e6]


def test_a_kind_of_layers_that_config_json_leaves_out_turns_as_the_family_does():
    """What is said of other kinds of layers says nothing of a layer."""
    traits = read("gemma3", layer_types=["full_attention"] * 4, rope_parameters={"sliding_attention": {"factor": 2}})
    assert traits.rope_of(0) == Rope(1e6, "default", (), 4)


def test_null_may_mean_that_there_is_none():
    """A window or a cap that config.json says is null is none, and not the family's default."""
    known = read("gemma2")
    nulls = dict.fromkeys(("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"))
    traits = Traits(known.family, {**known.config, **nulls}, known.axes, "m")
    for trait in ("window", "attention_softcap", "output_softcap"):
        assert known.tell(trait) != "none"
        assert traits.tell(trait) == "none"
    assert (known.window_of(0), traits.window_of(0)) == (4096, None)


def test_an_unknown_rope_type_is_kept_as_it_is_called():
    """What a rope type means need not be known to see that two models have the same."""
    rope = read(rope_scaling={"rope_type": "mystery", "factor": 2}).rope_of(0)
    assert rope is not None and rope.kind == "mystery"
    assert rope == read(rope_scaling={"type": "mystery", "factor": 2.0}).rope_of(0)


@pytest.mark.parametrize(
    ("family", "config", "windows", "rotated"),
    [
        ("llama", {}, [None] * 4, [True] * 4),
        ("mistral", {"sliding_window": 7}, [7] * 4, [True] * 4),
        ("mistral", {"sliding_window": 0}, [None] * 4, [True] * 4),
        ("gemma2", {"sliding_window": 7}, [7, None] * 2, [True] * 4),
        ("qwen2", {"sliding_window": 7}, [None] * 4, [True] * 4),
        (
            "qwen2",
            {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 3},
            [None] * 3 + [7],
            [True] * 4,
        ),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, [None] * 4, [True, False, True, False]),
        ("smollm3", {"no_rope_layer_interval": 2}, [None] * 4, [True, False, True, False]),
        ("cohere2", {"sliding_window": 7, "sliding_window_pattern": 2}, [7, None] * 2, [True, False] * 2),
        ("gpt2", {}, [None] * 4, [False] * 4),
    ],
    ids=str,
)
def test_windows_and_rotation_layer_by_layer(family, config, windows, rotated):
    """Which layers see a window, and which turn queries and keys, follows from config.json as transformers reads it."""
    traits = read(family, **config)
    assert [traits.window_of(layer) for layer in range(4)] == windows
    assert [traits.rope_of(layer) is not None for layer in range(4)] == rotated

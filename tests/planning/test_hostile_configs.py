"""Whatever a config.json says, the answer is a plan or a refusal in words."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fake_checkpoints import everywhere, make_config, write_fake
from xmerge.architecture import describe_model, list_families, resolve
from xmerge.config import parse_config
from xmerge.errors import CheckpointError, ConfigError, PlanError
from xmerge.planning import draw_plan, map_slices
from xmerge.sources import Location

FAMILIES = {family.family: family for family in list_families()}
KEYS = (
    "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "no_rope_layers", "no_rope_layer_interval",
    "sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern", "partial_rotary_factor",
    "query_pre_attn_scalar", "quantization_config", "text_config", "head_dim", "hidden_act", "hidden_activation",
    "rms_norm_eps", "attn_logit_softcapping", "final_logit_softcapping", "attention_multiplier", "residual_multiplier",
    "logits_scaling", "rope_local_base_freq", "max_position_embeddings", "tie_word_embeddings", "attention_bias",
    "torch_dtype", "mlp_only_layers", "num_nextn_predict_layers", "model_type", "architectures",
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 6), st.integers(), st.floats(), st.sampled_from([10**6, 10**12, 2**63, 10**400, 1e-300, 1e308])
)
WORDS = st.sampled_from(["", "x", "none", "yarn", "default", "mystery", "gptq", "full_attention", "sliding_attention"])
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
NAMES = st.sampled_from(
    ["rope_type", "type", "factor", "rope_theta", "full_attention", "sliding_attention", "quant_method", "x"]
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
SLERP = "merge_method: slerp\nmodels: [{model: A}, {model: B}]\nparameters: {t: 0.5}\non_mismatch: base\n"
STACK = (
    "merge_method: passthrough\nbase_model: A\non_mismatch: base\nslices:\n"
    "- sources: [{model: A, layer_range: [0, 2]}]\n- sources: [{model: B, layer_range: [1, 4]}]\n"
)
FOLDS = "folds: [input_norm, softmax_scale, residual_scale]\non_different_heads: merge\n"
RECIPES = (f"{SLERP}base_model: A\n", f"{SLERP}base_model: B\n{FOLDS}", STACK)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=3),
    st.data(),
    st.sampled_from(RECIPES),
)
def test_no_config_json_is_a_bug(tmp_path: Path, name: str, said: list[tuple[str, Any]], data, recipe: str):
    """Values of any type, size and depth, under any key that matters, end in a plan or in an error with words."""
    family = FAMILIES[name]
    sizes = data.draw(st.dictionaries(st.sampled_from(sorted(make_config(family))), VALUES, max_size=1))
    write_fake(tmp_path / "A", name, maybe=everywhere)
    folder = write_fake(tmp_path / "B", name, maybe=everywhere)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.get(family.config, config).update(said)
    (folder / "config.json").write_text(json.dumps({**config, **sizes}), encoding="utf-8")
    read = parse_config(recipe, "recipe.yml", tmp_path)
    with suppress(ConfigError, PlanError, CheckpointError):
        plan = map_slices(read, resolve(read))
        assert draw_plan(plan)
        assert plan.config_text.encode()


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("number", [2**31 - 1, 2**39])
def test_no_size_of_a_config_json_is_counted_up_to(tmp_path: Path, family: str, number: int):
    """Whichever size is huge, and in whichever family, the answer comes at once."""
    folder = write_fake(tmp_path / "m", family)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in [key for key, value in told.items() if type(value) is int]:
        (folder / "config.json").write_text(json.dumps({**told, key: number}), encoding="utf-8")
        started = time.perf_counter()
        with suppress(CheckpointError):
            describe_model(Location(reference="m", label="m", folder=folder))
        assert time.perf_counter() - started < 2.0, key

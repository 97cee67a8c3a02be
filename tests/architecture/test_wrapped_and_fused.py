"""Fused, transposed, grouped and wrapped tensors: what transformers computes is what the roles of the file compute."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.fake_checkpoints import write_fake, write_headers
from tests.watched_models import (
    CASES,
    DENSE,
    LATENT,
    LATENT_CASES,
    SPARSE_CASES,
    TOKENS,
    WHOLE_HEADS,
    WITH_HEADS,
    Run,
    run_case,
)
from xmerge.architecture import Family, ResolvedModel, describe_model, find_family, find_unfit, list_families
from xmerge.architecture.models import describe_checkpoint
from xmerge.architecture.traits import Traits
from xmerge.errors import CheckpointError
from xmerge.sources import Location, read_model
from xmerge.validation.checks import check_family


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Each case, run once."""
    return run_case(CASES[request.param], tmp_path_factory.mktemp("model"))


def over(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test with each of these cases."""
    return pytest.mark.parametrize("run", list(names), indirect=True)


def turn(x: torch.Tensor, run: Run, layer: int) -> torch.Tensor:
    """[tokens, heads, head_dim] turned and normed as the traits say."""
    traits = run.file.traits
    assert traits is not None
    rope = traits.rope_of(layer)
    if rope is None:
        return x
    half = rope.rotary // 2
    speeds = rope.theta ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(len(x)), speeds).float()[:, None]
    aside = traits.family.rope == "interleaved"
    part = x[..., : rope.rotary]
    a, b = (part[..., ::2], part[..., 1::2]) if aside else (part[..., :half], part[..., half:])
    turned = (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin())
    joined = torch.stack(turned, -1).flatten(-2) if aside else torch.cat(turned, -1)
    whole = torch.cat((joined, x[..., rope.rotary :]), -1)
    if traits.tell("head_norm") == "none":
        return whole
    return whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + traits.tell("norm_eps"))


def compare_attention(run: Run, layer: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(what the roles compute, what transformers computes) for q, k, v and the output of one attention."""
    step, call = run.steps[layer], run.calls[layer]
    size = call.query.shape[-1]
    x, given = step.attended
    q, k, v = (run.expand(x, role, layer).reshape(len(x), -1, size) for role in ("attn_q", "attn_k", "attn_v"))
    repeats = call.key.shape[0] // k.shape[1]
    yield turn(q, run, layer), call.query.transpose(0, 1)
    yield turn(k, run, layer).repeat_interleave(repeats, 1), call.key.transpose(0, 1)
    yield v.repeat_interleave(repeats, 1), call.value.transpose(0, 1)
    heads = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    axes = [axis for axis in run.read("attn_output", layer)[1] if axis != "hidden"]
    yield run.shrink(heads if len(axes) > 1 else heads.flatten(1), "attn_output", layer), given


@over(WITH_HEADS)
def test_attention_is_computed_by_its_roles(run: Run):
    """After rotation and norms q, k and v of every head, and what attention gives, are what the roles give."""
    for layer in range(run.file.layers):
        for ours, theirs in compare_attention(run, layer):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@over(CASES)
def test_attention_is_scaled_and_sees_as_the_traits_say(run: Run):
    """The scale and the window that each layer's attention is called with are those of the traits."""
    traits = run.file.traits
    assert traits is not None
    for layer, call in enumerate(run.calls):
        if run.case.model_type == "falcon":
            assert traits.tell("softmax_scale") == call.query.shape[-1] ** -0.5
        else:
            assert traits.tell("softmax_scale") == pytest.approx(call.scale)
            if run.case.family not in {"llama4", "llama4_multimodal"}:  # Theirs is in the mask.
                assert traits.window_of(layer) == call.window


@over(CASES)
def test_the_layers_are_wired_as_the_traits_say(run: Run):
    """Each half of a layer reads the norm that has its role, of the layer's input or after attention, and is added."""
    traits = run.file.traits
    assert traits is not None
    parallel = traits.tell("block") == "parallel"
    ends = [*(step.entered for step in run.steps[1:]), None]
    for layer, (step, end) in enumerate(zip(run.steps, ends, strict=True)):
        x, (read, attended), (thinking, thought) = step.entered, step.attended, step.thought
        second = "ffn_norm" if run.has("ffn_norm", layer) else "attn_norm"
        torch.testing.assert_close(run.norm(x, "attn_norm", layer), read, rtol=1e-4, atol=2e-5)
        middle = x if parallel else x + attended
        torch.testing.assert_close(run.norm(middle, second, layer), thinking, rtol=1e-4, atol=2e-5)
        if end is not None:
            torch.testing.assert_close(x + attended + thought, end, rtol=1e-4, atol=2e-5)


@over(CASES)
def test_the_ends_are_computed_by_their_roles(run: Run):
    """The first layer reads the embeddings, and the logits are those of the output matrix after the last norm."""
    tokens = torch.tensor(TOKENS)
    embedded = run.read("token_embd")[0][tokens]
    if run.has("position_embd"):
        embedded = embedded + run.read("position_embd")[0][: len(tokens)]
    torch.testing.assert_close(embedded, run.steps[0].entered)
    last = run.steps[-1]
    after = last.entered + last.attended[1] + last.thought[1]
    logits = run.norm(after, "output_norm") @ run.read("output")[0].T
    torch.testing.assert_close(logits, run.logits, rtol=1e-4, atol=2e-4)


def think(run: Run, x: torch.Tensor, layer: int, end: str = "", expert: int = 0) -> torch.Tensor:
    """What the roles of a feed-forward compute: `end` tells experts and shared experts from the dense layers."""
    from transformers.activations import ACT2FN

    traits = run.file.traits
    assert traits is not None
    told = traits.tell("activation")
    if run.has("ffn_in", layer):
        return run.shrink(ACT2FN[told](run.expand(x, "ffn_in", layer)), "ffn_out", layer)
    gate, up = (run.expand(x, f"ffn_{role}{end}", layer, expert) for role in ("gate", "up"))
    if told == "clamped swiglu":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        inner = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    else:
        inner = ACT2FN[told](gate) * up
    return run.shrink(inner, f"ffn_down{end}", layer, expert)


@over(DENSE)
def test_dense_layers_are_computed_by_their_roles(run: Run):
    """Gate, up and down, or the two matrices of a feed-forward without a gate, give what transformers' module gives."""
    dense = [layer for layer in range(run.file.layers) if not run.has("ffn_gate_inp", layer)]
    assert dense
    for layer in dense:
        x, given = run.steps[layer].thought
        torch.testing.assert_close(think(run, x, layer), given, rtol=1e-4, atol=5e-5)


def ask_expert(run: Run, layer: int, x: torch.Tensor, expert: int) -> torch.Tensor:
    """What one expert of transformers' module gives."""
    module = run.network.get_submodule(f"{run.case.layers}.{layer}.{run.case.feed_forward}.experts")
    if run.case.family.startswith("llama4"):
        every: torch.Tensor = module(x.repeat(run.file.axes["experts"], 1))
        return every.view(-1, *x.shape)[expert]
    chosen = torch.full((len(x), 1), expert)
    given: torch.Tensor = module(x, chosen, torch.ones(len(x), 1))
    return given


def sparse_layers(run: Run) -> list[int]:
    """The layers with experts."""
    return [layer for layer in range(run.file.layers) if run.has("ffn_gate_inp", layer)]


@over(SPARSE_CASES)
def test_experts_are_computed_by_their_roles(run: Run):
    """Every expert, the shared one and the router give what transformers' modules give."""
    for layer in sparse_layers(run):
        x, _ = run.steps[layer].thought
        place = f"{run.case.layers}.{layer}.{run.case.feed_forward}"
        with torch.no_grad():
            for expert in range(run.file.axes["experts"]):
                ours = think(run, x, layer, "_exps", expert)
                torch.testing.assert_close(ours, ask_expert(run, layer, x, expert), rtol=1e-4, atol=5e-5)
            for name in ("shared_expert", "shared_experts"):
                if hasattr(run.network.get_submodule(place), name):
                    shared = run.network.get_submodule(f"{place}.{name}")(x)
                    torch.testing.assert_close(think(run, x, layer, "_shexp"), shared, rtol=1e-4, atol=5e-5)
            router = run.network.get_submodule(place)
            told = (router.router if hasattr(router, "router") else router.gate)(x)
        logits = told[1] if run.case.family.startswith("llama4") else told[0]
        torch.testing.assert_close(run.expand(x, "ffn_gate_inp", layer), logits, rtol=1e-4, atol=5e-5)


@over(LATENT_CASES)
def test_latent_attention_is_computed_by_its_roles(run: Run):
    """Queries, keys and values of latent attention, and what it gives, follow from its own roles."""
    axes, traits = run.file.axes, run.file.traits
    assert traits is not None

    def apply(x: torch.Tensor, role: str, layer: int) -> torch.Tensor:
        weight = run.read(role, layer)[0]
        bias = run.read(f"{role}_bias", layer)[0] if run.has(f"{role}_bias", layer) else 0
        return x @ weight.reshape(-1, x.shape[-1]).T + bias

    for layer, (step, call) in enumerate(zip(run.steps, run.calls, strict=True)):
        x, given = step.attended
        if run.has("attn_q_mla", layer):
            q = apply(x, "attn_q_mla", layer)
        else:
            q = apply(run.norm(apply(x, "attn_q_a", layer), "attn_q_a_norm", layer), "attn_q_b", layer)
        latent = apply(x, "attn_kv_a", layer)
        normed = run.norm(latent[:, : axes["kv_rank"]], "attn_kv_a_norm", layer)
        kv = apply(normed, "attn_kv_b", layer).view(len(x), axes["heads"], -1)
        k, v = kv[..., : axes["nope_dim"]], kv[..., axes["nope_dim"] :]
        q = q.view(len(x), axes["heads"], -1)
        for ours, theirs in ((q, call.query), (k, call.key)):
            plain = theirs.transpose(0, 1)[..., : axes["nope_dim"]]
            torch.testing.assert_close(ours[..., : axes["nope_dim"]], plain, rtol=1e-4, atol=2e-5)
        parts = (q[..., axes["nope_dim"] :], latent[:, None, axes["kv_rank"] :].expand(-1, axes["heads"], -1))
        for ours, theirs in zip(parts, (call.query, call.key), strict=True):
            turned, seen = turn(ours, run, layer), theirs.transpose(0, 1)[..., axes["nope_dim"] :]
            if run.case.family == "deepseek_v3":  # It leaves pairs apart once they are turned.
                turned = torch.cat((turned[..., ::2], turned[..., 1::2]), -1)
            torch.testing.assert_close(turned, seen, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(v, call.value.transpose(0, 1), rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(apply(v.flatten(1), "attn_output_mla", layer), given, rtol=1e-4, atol=2e-5)


def reread(run: Run, role: str, layout: str) -> Run:
    """A run whose family file has another layout for a tensor."""
    family, location = run.file.family, run.file.location
    assert family is not None
    lines = [line.model_copy(update={"layout": layout}) if line.role == role else line for line in family.layer]
    assert lines != list(family.layer)
    other = family.model_copy(update={"layer": tuple(lines)})
    return replace(run, file=describe_checkpoint(location, read_model(location), other))


QKV = "attn_q+attn_k+attn_v"
BIASES = "attn_q_bias+attn_k_bias+attn_v_bias"


@pytest.mark.parametrize(
    ("run", "role", "layout"),
    [
        ("gpt_neox", QKV, "heads*head_dim + heads*head_dim + heads*head_dim, hidden"),
        ("gpt_neox", BIASES, "heads*head_dim + heads*head_dim + heads*head_dim"),
        ("gpt2", QKV, "hidden, head_dim*(heads + kv_heads + kv_heads)"),
        ("gpt2", BIASES, "head_dim*(heads + kv_heads + kv_heads)"),
        ("gpt2", "attn_output", "hidden, heads*head_dim"),
        ("falcon", QKV, "head_dim*(heads + kv_heads + kv_heads), hidden"),
        ("falcon_old", QKV, "heads*head_dim + heads*head_dim + heads*head_dim, hidden"),
        ("falcon_old", BIASES, "heads*head_dim + heads*head_dim + heads*head_dim"),
        ("falcon_new", QKV, "kv_heads*group*head_dim + kv_heads*head_dim + kv_heads*head_dim, hidden"),
        ("falcon_new", BIASES, "kv_heads*group*head_dim + kv_heads*head_dim + kv_heads*head_dim"),
        ("falcon2", QKV, "kv_heads*group*head_dim + kv_heads*head_dim + kv_heads*head_dim, hidden"),
        ("falcon2", "attn_output", "heads*head_dim, hidden"),
    ],
    indirect=["run"],
)
def test_another_layout_of_attention_would_be_seen(run: Run, role: str, layout: str):
    """With the same shape laid out otherwise, the roles do not compute what transformers computes."""
    pairs = list(compare_attention(reread(run, role, layout), 1))
    assert any(not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2) for ours, theirs in pairs)


@pytest.mark.parametrize(
    ("run", "role", "layout"),
    [
        ("gpt_oss", "ffn_gate_exps+ffn_up_exps", "experts, hidden, expert_ffn + expert_ffn"),
        ("gpt_oss", "ffn_gate_exps_bias+ffn_up_exps_bias", "experts, expert_ffn + expert_ffn"),
        ("llama4", "ffn_gate_exps+ffn_up_exps", "experts, hidden, expert_ffn*(1 + 1)"),
        ("llama4_multimodal", "ffn_gate_exps+ffn_up_exps", "experts, hidden, expert_ffn*(1 + 1)"),
    ],
    indirect=["run"],
)
def test_another_layout_of_experts_would_be_seen(run: Run, role: str, layout: str):
    """With gate and up beside each other where they take turns, or the other way round, experts compute otherwise."""
    other, layer = reread(run, role, layout), 1
    x, _ = run.steps[layer].thought
    with torch.no_grad():
        assert not torch.allclose(think(other, x, layer, "_exps"), ask_expert(run, layer, x, 0), rtol=1e-2, atol=1e-2)


@over(CASES)
def test_every_tensor_of_the_language_model_has_a_role(run: Run):
    """What transformers writes of the language model is in the file; the vision model beside it has no role."""
    eyes = ("vision", "visual", "multi_modal_projector")
    assert run.file.kind == run.case.family
    for spec in run.file.tensors:
        assert (spec.role is None) is spec.name.startswith(eyes), spec.name
        assert spec.role is not None or spec.layer is None


def describe(folder: Path) -> ResolvedModel:
    """The model in a folder."""
    return describe_model(Location(reference="m", label="m", folder=folder))


def family_of(**config: Any) -> str | None:
    """The name of the family that a config.json means."""
    family = find_family(config)
    return family.family if family else None


def test_a_falcon_is_known_by_its_layout():
    """One model type has four layouts; what config.json leaves out is what transformers takes for it."""
    falcon = {"model_type": "falcon"}
    assert family_of(**falcon) == "falcon"
    assert family_of(**falcon, multi_query=True, new_decoder_architecture=False) == "falcon"
    assert family_of(**falcon, multi_query=False) == "falcon_old"
    for multi_query in (True, False):
        new = falcon | {"new_decoder_architecture": True, "multi_query": multi_query}
        assert family_of(**new) == "falcon_new"
        assert family_of(**new, num_ln_in_parallel_attn=None) == "falcon_new"
        assert family_of(**new, num_ln_in_parallel_attn=2) == "falcon_new"
        assert family_of(**new, num_ln_in_parallel_attn=1) == "falcon2"
        assert family_of(**new, num_ln_in_parallel_attn=3) is None


def test_a_layout_that_no_file_describes_has_no_family():
    """What changes the meaning of weights as no file says makes the model one of an unknown family."""
    assert family_of(model_type="gpt2") == "gpt2"
    assert family_of(model_type="gpt2", add_cross_attention=True) is None
    assert family_of(model_type="gpt2", scale_attn_by_inverse_layer_idx=True) is None
    assert family_of(model_type="deepseek_v3") == family_of(model_type="deepseek_v3", rope_interleave=True)
    assert family_of(model_type="deepseek_v3", rope_interleave=False) is None


@pytest.mark.parametrize(
    ("said", "family", "wanted", "told"),
    [
        ({"model_type": "deepseek_v3"}, "deepseek_v3", "rope_interleave = true", "rope_interleave = false"),
        ({"model_type": "gpt2"}, "gpt2", "add_cross_attention = false", "add_cross_attention = true"),
        ({"model_type": "gpt_oss"}, "gpt_oss", "swiglu_limit = 7.0", "swiglu_limit = 14.0"),
        (
            {"model_type": "falcon", "new_decoder_architecture": True},
            "falcon2",
            "num_ln_in_parallel_attn = 1",
            "num_ln_in_parallel_attn = 3",
        ),
    ],
)
def test_what_keeps_a_model_from_its_family_file_is_told(
    tmp_path: Path, said: dict[str, Any], family: str, wanted: str, told: str
):
    """Of the files for one `model_type` the one that fits furthest says which key of config.json it cannot have."""
    key, value = told.split(" = ")
    said = {**said, key: json.loads(value)}
    write_headers(tmp_path, said, {"model.norm.weight": ("BF16", (8,))})
    expected = f"the family file of {family} describes only models with {wanted}, and config.json says {told}"
    assert str(describe(tmp_path).unfit) == str(find_unfit(said)) == expected


@pytest.mark.parametrize("said", [{"model_type": "deepseek_v3"}, {"model_type": "falcon"}, {"model_type": "nobody"}])
def test_nothing_keeps_a_model_from_a_file_that_fits_or_is_not_there(said: dict[str, Any]):
    """What a file describes, and what has no file at all, is not told to be unfit."""
    assert find_unfit(said) is None


SPELLED = [(family, at) for family in list_families() for at in range(len(family.spellings))]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "at"), SPELLED, ids=lambda each: getattr(each, "family", str(each)))
def test_a_family_is_read_in_each_of_its_spellings(tmp_path: Path, family: Family, at: int, tied: bool):
    """However a checkpoint begins its names, every tensor has the role and layer that it has in the first spelling."""
    told: dict[str, Any] = {"maybe": lambda *_: True, "tie_word_embeddings": tied}
    first, other = (
        describe(write_fake(tmp_path / str(spelling), family.family, spelling=spelling, **told)) for spelling in (0, at)
    )
    assert all(spec.role for spec in other.tensors)
    assert sorted(map(str, other.by_role)) == sorted(map(str, first.by_role))
    assert (at == 0) is ({spec.name for spec in other.tensors} == {spec.name for spec in first.tensors})


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_wrapper_may_describe_its_language_model_at_the_top(tmp_path: Path, family: str):
    """A config.json of before language models were described apart means the same as one of after."""
    apart = write_fake(tmp_path / "apart", family)
    said = json.loads((apart / "config.json").read_text(encoding="utf-8"))
    flat = tmp_path / "flat"
    flat.mkdir()
    nested = said.pop("text_config")
    (flat / "config.json").write_text(json.dumps({**nested, **said}), encoding="utf-8")
    (flat / "model.safetensors").write_bytes((apart / "model.safetensors").read_bytes())
    ours, theirs = describe(flat), describe(apart)
    assert ours.kind == theirs.kind == family
    assert ours.axes == theirs.axes
    assert [spec.role for spec in ours.tensors] == [spec.role for spec in theirs.tensors]
    assert ours.traits is not None
    assert theirs.traits is not None
    assert ours.traits.rope_of(0) == theirs.traits.rope_of(0)


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        (
            "gpt_neox",
            {
                "gpt_neox.layers.0.attention.bias": ("BOOL", (1, 1, 16, 16)),
                "gpt_neox.layers.0.attention.masked_bias": ("BF16", ()),
                "gpt_neox.layers.0.attention.rotary_emb.inv_freq": ("F32", (2,)),
            },
        ),
        (
            "gpt2",
            {"transformer.h.0.attn.bias": ("F32", (1, 1, 16, 16)), "transformer.h.0.attn.masked_bias": ("F32", ())},
        ),
    ],
)
def test_buffers_are_no_weights(tmp_path: Path, family: str, buffers: dict[str, Any]):
    """What old files hold beside the weights is known as such, and no weight's name ends like it."""
    model = describe(write_fake(tmp_path, family, extra=buffers))
    described = model.family
    assert described is not None
    assert {spec.name for spec in model.tensors if spec.name.endswith(described.buffers)} == set(buffers)
    assert all((spec.role is None) is (spec.name in buffers) for spec in model.tensors)


def test_who_is_tied_is_what_the_checkpoint_holds_where_nothing_says(tmp_path: Path):
    """Mistral 3 ties by default and its published files say nothing of it and hold an output: that output is used."""
    head = {"language_model.lm_head.weight": ("BF16", (32, 8))}
    assert describe(write_fake(tmp_path / "none", "mistral3")).tied
    assert not describe(write_fake(tmp_path / "silent", "mistral3", extra=head)).tied
    assert describe(write_fake(tmp_path / "said", "mistral3", extra=head, tie_word_embeddings=True)).tied
    assert not describe(write_fake(tmp_path / "denied", "mistral3", tie_word_embeddings=False)).tied


def test_the_published_experts_of_gpt_oss_may_be_packed(tmp_path: Path):
    """Where the experts are in blocks and scales, their matrices are not missed, and everything else has its role."""
    packed = {
        f"model.layers.{layer}.mlp.experts.{matrix}_proj_{part}": ("U8", shape)
        for layer in range(4)
        for matrix in ("gate_up", "down")
        for part, shape in (("blocks", (4, 12, 1, 16)), ("scales", (4, 12, 1)))
    }
    model = describe(write_fake(tmp_path, "gpt_oss", extra=packed))
    assert {spec.name for spec in model.tensors if spec.role is None} == set(packed)
    assert not {"ffn_gate_exps", "ffn_down_exps"} & model.roles
    assert {"ffn_gate_exps_bias", "ffn_down_exps_bias", "ffn_gate_inp", "attn_sinks"} <= model.roles


def test_layers_without_rotation_are_those_of_config_json():
    """An empty list of layers without rotation, as published, means every fourth; a list means its zeros."""
    family = find_family({"model_type": "llama4_text"})
    assert family is not None
    sizes = {"num_hidden_layers": 8, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 4}
    sizes |= {"intermediate_size_mlp": 4, "num_local_experts": 2, "vocab_size": 9, "attention_chunk_size": 16}
    said: list[dict[str, Any]] = [
        {"no_rope_layers": []}, {}, {"no_rope_layers": [1, 1, 1, 0] * 2}, {"no_rope_layer_interval": 2},
    ]  # fmt: skip
    unturned = []
    for config in said:
        traits = Traits(family, sizes | config, family.read_axes(sizes | config, "m"))
        unturned.append([layer for layer in range(8) if traits.rope_of(layer) is None])
        assert unturned[-1] == [layer for layer in range(8) if traits.window_of(layer) is None]
    assert unturned == [[3, 7], [3, 7], [3, 7], [1, 3, 5, 7]]


def test_internlm2_is_cut_as_its_own_code_cuts_it(tmp_path: Path):
    """Rows are (kv head; its query heads, then key, then value; place in the head), the formula of its authors."""
    drawn = torch.Generator().manual_seed(1)
    kv, group, size, hidden = 2, 3, 4, 24
    folder = write_fake(
        tmp_path, "internlm2", num_attention_heads=kv * group, num_key_value_heads=kv, hidden_size=hidden, bias=True
    )
    shapes = {spec.name: spec.shape for spec in describe(folder).tensors}
    weights = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    file = describe(folder)
    for end, rest in (("weight", (hidden,)), ("bias", ())):
        whole = weights[f"model.layers.1.attention.wqkv.{end}"]
        # "(h gs d) -> h gs d" with gs = group + 2; queries are gs[:group], the key gs[-2], the value gs[-1].
        cut = whole.reshape(kv, group + 2, size, *rest)
        wanted = {"attn_q": cut[:, :group], "attn_k": cut[:, -2], "attn_v": cut[:, -1]}
        for role, numbers in wanted.items():
            spec, part = file.by_role[1, role if end == "weight" else f"{role}_bias"][0]
            sizes, strides = [count for _, count, _ in part.loops], [step for _, _, step in part.loops]
            assert torch.equal(torch.as_strided(weights[spec.name], sizes, strides, part.offset), numbers)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        (
            "internlm2",
            {
                "attn_norm": "attention_norm", "attn_output": "attention.wo", "ffn_norm": "ffn_norm",
                "ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2",
            },
        ),
        (
            "exaone",
            {
                "attn_norm": "ln_1", "attn_q": "attn.attention.q_proj", "attn_k": "attn.attention.k_proj",
                "attn_v": "attn.attention.v_proj", "attn_output": "attn.attention.out_proj", "ffn_norm": "ln_2",
                "ffn_gate": "mlp.c_fc_0", "ffn_up": "mlp.c_fc_1", "ffn_down": "mlp.c_proj",
            },
        ),
    ],
)  # fmt: skip
def test_a_family_that_transformers_lacks_says_so(tmp_path: Path, family: str, names: dict[str, str]):
    """Its file says why nothing confirms it; the names mean what the public programs that read it take them for."""
    model = describe(write_fake(tmp_path, family))
    assert model.family is not None
    assert str(model.family.unchecked).startswith("transformers has no class for")
    assert model.traits is not None
    found = {role: model.by_role[2, role][0][0].name.split(".2.")[1] for role in names}
    assert found == {role: f"{name}.weight" for role, name in names.items()}


def test_a_mixture_needs_no_expert_in_a_dense_layer(tmp_path: Path):
    """Which layers are dense is what the headers say: neither half is missed where the other is."""
    folder = write_fake(tmp_path / "both", "deepseek_v3", maybe=lambda *_: True, q_lora_rank=6)
    dense = re.compile(r"layers\.\d\.mlp\.(gate|up|down)_proj")
    held = {
        spec.name: (spec.dtype, spec.shape)
        for spec in describe(folder).tensors
        if ".mlp." not in spec.name or (spec.layer == 0) is bool(dense.search(spec.name))
    }
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = describe(write_headers(tmp_path / "one", said, held))
    assert all(spec.role for spec in model.tensors)
    assert [layer for layer in range(4) if (layer, "ffn_down") in model.by_role] == [0]
    assert [layer for layer in range(4) if (layer, "ffn_down_exps") in model.by_role] == [1, 2, 3]
    assert len(model.by_role[1, "ffn_gate_exps"]) == model.axes["experts"]
    assert not {"attn_q", "attn_k", "attn_v", "attn_output"} & model.roles


@pytest.mark.parametrize(
    ("run", "renamed"),
    [
        ("gpt2", {"transformer.": ""}),
        ("mistral3", {"language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head"}),
        ("qwen2_vl", {"model.": "model.language_model."}),
        ("qwen2_5_vl", {"model.": "model.language_model."}),
    ],
    indirect=["run"],
)
def test_what_transformers_also_reads_is_a_spelling(tmp_path: Path, run: Run, renamed: dict[str, str]):
    """Names that transformers takes for the same weights have the same roles in the family."""

    def rename(name: str) -> str:
        begin = next((begin for begin in renamed if name.startswith(begin)), "")
        return renamed.get(begin, "") + name.removeprefix(begin)

    (tmp_path / "config.json").write_bytes((run.folder / "config.json").read_bytes())
    weights = {rename(name): weight for name, weight in run.weights.items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    other = describe(tmp_path)
    assert set(weights) != set(run.weights)
    for key, found in run.file.by_role.items():
        assert [rename(spec.name) for spec, _ in found] == [spec.name for spec, _ in other.by_role[key]]
    assert len(other.by_role) == len(run.file.by_role)
    read, told = type(run.network).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    for ours, theirs in zip(read.parameters(), run.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("model_type", "said", "theta", "rotary"),
    [
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500}, 500, 5),
        ("gpt_neox", {}, 10_000, 2),
        ("falcon", {}, 10_000, 10),
        ("llama4_text", {"head_dim": 8}, 500_000, 8),
        ("gpt_oss", {"head_dim": 8, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 150_000, 8),
        ("qwen2_vl", {}, 1_000_000, 10),
        ("qwen2_vl", {"rope_theta": 500.0}, 500, 10),
        ("qwen2_5_vl", {}, 1_000_000, 10),
        ("deepseek_v3", LATENT, 10_000, 4),
    ],
    ids=str,
)
def test_rotation_is_read_from_old_files_too(
    tmp_path: Path, model_type: str, said: dict[str, Any], theta: float, rotary: int
):
    """Theta and the rotated part come from the keys of before `rope_parameters`, and from transformers' defaults."""
    from transformers import AutoConfig

    sizes = {"intermediate_size_mlp": 9, "num_local_experts": 2}
    config = {**sizes, **WHOLE_HEADS, **said, "model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    theirs = AutoConfig.from_pretrained(tmp_path).get_text_config()
    family = find_family(config)
    assert family is not None
    rope = Traits(family, config, family.read_axes(config, "m")).rope_of(0)
    assert rope is not None
    assert (rope.theta, rope.rotary) == (theta, rotary)
    assert theirs.rope_parameters["rope_theta"] == theta
    share = theirs.rope_parameters.get("partial_rotary_factor", 1)
    size = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert int(size * share) == rotary


def test_layers_that_predict_further_tokens_are_none_of_the_models(tmp_path: Path):
    """What lies behind the last layer has no role and no layer where config.json says so, and is refused elsewhere."""
    further = {"model.layers.4.eh_proj.weight": ("BF16", (8, 16)), "model.layers.4.mlp.gate.weight": ("BF16", (4, 8))}
    model = describe(write_fake(tmp_path / "told", "deepseek_v3", extra=further, num_nextn_predict_layers=1))
    apart = {spec.name: spec for spec in model.tensors if spec.name in further}
    assert model.layers == 4
    assert model.has_further_layers
    assert all((spec.role, spec.layer, spec.after_layers) == (None, None, True) for spec in apart.values())
    assert all(spec.template == name for name, spec in apart.items())
    assert not describe(write_fake(tmp_path / "none", "deepseek_v3", num_nextn_predict_layers=1)).has_further_layers
    for count in (0, None, "1"):
        folder = write_fake(tmp_path / str(count), "deepseek_v3", extra=further, num_nextn_predict_layers=count)
        with pytest.raises(CheckpointError, match=r"holds model.layers.4.eh_proj.weight.* says 4 layers"):
            describe(folder)


def test_a_damaged_checkpoint_is_not_blamed_for_its_further_layers(tmp_path: Path):
    """Looking for what is wrong, layers that predict further tokens are not counted."""
    further = {"model.layers.4.eh_proj.weight": ("BF16", (8, 16))}
    folder = write_fake(tmp_path, "deepseek_v3", extra=further, num_nextn_predict_layers=1)
    checkpoint, family = read_model(describe(folder).location), find_family({"model_type": "deepseek_v3"})
    assert family is not None
    axes = family.read_axes(checkpoint.config, "m")
    assert list(check_family(checkpoint, family, axes, tied=False)) == []
    untold = {key: value for key, value in checkpoint.config.items() if key != "num_nextn_predict_layers"}
    (finding,) = check_family(replace(checkpoint, config=untold), family, axes, tied=False)
    assert finding.code == "layer_count"

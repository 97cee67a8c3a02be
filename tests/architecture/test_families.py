"""Every family file against the classes it speaks of: what they write to disk, what they read, what they compute."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.reference_model import ACTIVATIONS, ReferenceModel
from tests.tiny_models import SMALL, TinyModel, build_tiny, list_kinds, say_config
from xmerge.architecture import Family, ResolvedModel, describe_model, list_families
from xmerge.architecture.family import RULES
from xmerge.architecture.models import expect_tensors
from xmerge.architecture.traits import Traits
from xmerge.errors import CheckpointError
from xmerge.sources import Location

CHECKED = [family for family in list_families() if family.unchecked is None]
UNCHECKED = [family for family in list_families() if family.unchecked is not None]
TOKENS = torch.tensor([[5, 17, 3, 40, 9, 11, 2, 30, 8, 21, 17]])
TOLD_BY_LAYER = {"layer_period", "rope_theta", "rotary_factor", "nope", "window", "first_window"}
"""The rules that only say something together with the kind of a layer."""
BEFORE = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
"""Older names for theta and the rotated part."""


@dataclass(frozen=True, repr=False)  # What a failing test shows of it would take minutes.
class Case:
    """A tiny model of a family, what it writes, and what xmerge makes of that."""

    family: Family
    kind: Mapping[str, Any]
    tiny: TinyModel
    described: ResolvedModel
    weights: Mapping[str, Tensor]

    @property
    def traits(self) -> Traits:
        """What no shape shows."""
        assert self.described.traits is not None
        return self.described.traits

    @property
    def decoder(self) -> nn.Module:
        """The language model without its output."""
        decoder: nn.Module = self.tiny.model.get_decoder()
        return decoder

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the language model."""
        found: nn.ModuleList = next(
            each
            for each in self.decoder.modules()
            if isinstance(each, nn.ModuleList) and len(each) == self.described.layers
        )
        return found


@dataclass(frozen=True, repr=False)
class Bench:
    """Where models are written, each once."""

    folder: Path
    made: dict[str, Case] = field(default_factory=dict)

    def list_cases(self, family: Family) -> Iterator[Case]:
        """Models of a family, one for each kind."""
        yield from (self.open(family, kind) for kind in list_kinds(family))

    def open(self, family: Family, kind: Mapping[str, Any]) -> Case:
        """One model."""
        key = f"{family.family} {json.dumps(kind, sort_keys=True)}"
        if key not in self.made:
            tiny = build_tiny(family, kind)
            folder = tiny.write(self.folder / str(len(self.made)))
            self.made[key] = Case(family, kind, tiny, describe(folder), read_weights(folder))
        return self.made[key]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Tiny models of every family."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Threads that wait for one another cost more than such models.
    yield Bench(tmp_path_factory.mktemp("families"))
    torch.set_num_threads(threads)


def describe(folder: Path) -> ResolvedModel:
    """The model in a folder."""
    return describe_model(Location(reference="model", label="model", folder=folder))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, read by the reference library."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def count_language(model: PreTrainedModel) -> int:
    """How many numbers transformers keeps for the language model and its output."""
    parts = [model.get_decoder(), model.get_output_embeddings()]
    kept = {tensor.data_ptr(): tensor.numel() for part in parts for tensor in part.state_dict().values()}
    return sum(kept.values())


def read_traits(family: Family, config: Mapping[str, Any]) -> Traits:
    """What a family file says of a config.json."""
    language = family.language_config(config)
    return Traits(family, language, family.read_axes(language, "model"), "model")


def tell_layers(traits: Traits) -> list[object]:
    """The traits of every layer."""
    layers = range(traits.axes["layers"])
    return [(traits.rope_of(layer), traits.window_of(layer)) for layer in layers]


def over(families: list[Family]) -> pytest.MarkDecorator:
    """A law that is looked at in every family."""
    return pytest.mark.parametrize("family", families, ids=lambda family: family.family)


@pytest.mark.slow
@over(CHECKED)
def test_a_family_knows_all_that_its_classes_write(bench: Bench, tmp_path: Path, family: Family):
    """Of a real checkpoint, all that belongs to the language model has a role, and nothing expected is missing."""
    for number, architecture in enumerate(family.architectures):
        for case in bench.list_cases(family):
            tiny = case.tiny if number == 0 else build_tiny(family, case.kind, architecture)
            folder = tiny.write(tmp_path / f"{number} {len(list(tmp_path.iterdir()))}")
            described = describe(folder)
            assert described.kind == family.family, case.kind
            known = [spec for spec in described.tensors if spec.role is not None]
            assert sum(math.prod(spec.shape) for spec in known) == count_language(tiny.model), case.kind
            assert len(known) == len(described.tensors) or family.config is not None, case.kind
            assert described.tied is tiny.model.config.tie_word_embeddings, case.kind


@over([family for family in CHECKED if family.config is not None or family.fused])
def test_a_model_is_known_as_transformers_holds_it(bench: Bench, tmp_path: Path, family: Family):
    """Every role has the same numbers under the names that transformers holds in memory as under those it writes."""
    case = bench.open(family, {})
    case.tiny.model.save_pretrained(tmp_path, save_original_format=False)
    held, weights = describe(tmp_path), read_weights(tmp_path)
    changed = len(family.spellings) > 1 or bool(family.fused)
    assert ({spec.name for spec in held.tensors} != set(case.weights)) is changed
    assert sorted(map(str, held.by_role)) == sorted(map(str, case.described.by_role))
    for layer, role in held.by_role:
        ours, theirs = read_role(held, weights, layer, role), read_role(case.described, case.weights, layer, role)
        assert torch.equal(ours, theirs), (layer, role)
    read, told = type(case.tiny.model).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    for ours, theirs in zip(read.parameters(), case.tiny.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@over([family for family in CHECKED if family.config is not None])
def test_what_is_beside_the_language_model_meets_under_either_name(bench: Bench, tmp_path: Path, family: Family):
    """A tensor of a tower is found by the name that transformers holds it under and by that which it writes."""
    case = bench.open(family, {})
    case.tiny.model.save_pretrained(tmp_path, save_original_format=False)
    held, weights = describe(tmp_path), read_weights(tmp_path)
    beside = [spec for spec in held.tensors if spec.role is None]
    assert beside
    met = [case.described.by_template[None, spec.template] for spec in beside]
    assert len({spec.name for spec in met}) == len(met)
    for ours, theirs in zip(beside, met, strict=True):
        assert torch.equal(weights[ours.name], case.weights[theirs.name])
        assert held.by_template[None, theirs.template] is ours


def read_role(model: ResolvedModel, weights: Mapping[str, Tensor], layer: int | None, role: str) -> Tensor:
    """All numbers of a role, expert by expert, in the order of its axes."""
    return torch.cat(
        [
            weights[spec.name]
            .as_strided([count for _, count, _ in part.loops], [step for *_, step in part.loops], part.offset)
            .flatten()
            for spec, part in model.by_role[layer, role]
        ]
    )


@over(CHECKED)
def test_a_line_says_in_which_models_its_tensor_is(bench: Bench, family: Family):
    """A tensor is there where its line says so, and only there; only `maybe` leaves it open."""
    for case in bench.list_cases(family):
        assert case.described.family is not None
        for name, place in expect_tensors(case.described.family, case.described.axes).items():
            if not place.template.maybe:
                told = place.template.exists(case.described.config, tied=case.described.tied)
                assert (name in case.weights) is told, (name, case.kind)


@over([family for family in CHECKED if "experts" in family.axes])
def test_layers_have_experts_where_config_json_says_so(bench: Bench, family: Family):
    """What config.json says of dense layers, or leaves out, is how transformers builds them."""
    for case in bench.list_cases(family):
        silent = {key: value for key, value in case.tiny.config.items() if key != family.sparse_layers}
        if family.config is None and case.kind.get(str(family.sparse_layers)) is None:
            assert list_sparse(read_traits(family, silent)) == list_sparse(case.traits), case.kind
        held = {spec.layer for spec in case.described.tensors if spec.role == "ffn_gate_inp"}
        assert set(list_sparse(case.traits)) == held, case.kind
        for spec in case.described.tensors:
            line = next((line for line in family.layer if line.name == spec.line and line.maybe), None)
            kind = None if line is None else line.feed_forward
            assert kind is None or (kind == "sparse") is (spec.layer in held), spec.name


def list_sparse(traits: Traits) -> list[int]:
    """The layers with experts."""
    return [layer for layer in range(traits.axes["layers"]) if traits.has_experts(layer)]


@over(CHECKED)
def test_every_line_is_met(bench: Bench, family: Family):
    """No line of a family file speaks of what no model has: some kind of model has each of them."""
    met = {spec.line for case in bench.list_cases(family) for spec in case.described.tensors if spec.role}
    spelled = bench.open(family, {}).described.family
    assert spelled is not None
    unmet = [line.name for line in spelled.templates if line.name not in met]
    assert not unmet


@over(CHECKED)
def test_a_family_says_enough_to_compute_its_models(bench: Bench, family: Family):
    """A model computed from roles, layouts, axes and traits alone answers as transformers does."""
    computed = 0
    for case in bench.list_cases(family):
        if find_reason_not_to_compute(case) is None:
            computed += 1
            with torch.no_grad():
                theirs = case.tiny.model(TOKENS).logits[0]
                ours = ReferenceModel(case.described, case.weights).compute(TOKENS[0])
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda text: f"{case.kind}: {text}")  # noqa: B023
    assert computed or family.family.startswith("deepseek")


def find_reason_not_to_compute(case: Case) -> str | None:
    """Why the reference does not go so far."""
    if "attn_kv_a" in case.described.roles:
        return "attention passes through a latent vector"
    if case.described.config.get("alibi"):
        return "scores have a bias by distance"
    if case.family.family.startswith("llama4") and "ffn_gate_inp" in case.described.roles:
        return "the router is no softmax"
    return None


# --- one trait at a time


@over(CHECKED)
def test_norms_add_what_the_family_says(bench: Bench, family: Family):
    """`norm_eps` is what transformers gives to every norm of a layer."""
    for case in bench.list_cases(family):
        for name, module in case.decoder.named_modules():
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            weight = getattr(module, "weight", None)
            if isinstance(eps, float) and isinstance(weight, Tensor) and weight.shape == (SMALL["hidden_size"],):
                assert case.traits.tell("norm_eps") == eps, (name, case.kind)


@over(CHECKED)
def test_scores_are_scaled_as_the_family_says(bench: Bench, family: Family):
    """`softmax_scale` is what transformers multiplies attention scores by."""
    for case in bench.list_cases(family):
        scales = [
            float(scale)
            for module in case.layers.modules()
            for scale in [getattr(module, "scaling", getattr(module, "inv_norm_factor", None))]
            if isinstance(scale, int | float)
        ]
        assert scales, case.kind
        assert [case.traits.tell("softmax_scale")] * len(scales) == pytest.approx(scales, rel=1e-12), case.kind


@over(CHECKED)
def test_heads_turn_as_the_family_says(bench: Bench, family: Family):
    """The angles of transformers are those of theta and the rotated part of a head, for every kind of layer."""
    for case in bench.list_cases(family):
        told = {case.traits.kind_of(layer): case.traits.rope_of(layer) for layer in range(case.described.layers)}
        ropes = [each for each in case.decoder.modules() if type(each).__name__.endswith("RotaryEmbedding")]
        assert bool(ropes) or family.rope == "none" or case.described.config.get("alibi"), case.kind
        for kind, rope in told.items():
            angles = [getattr(each, "inv_freq", getattr(each, f"{kind}_inv_freq", None)) for each in ropes]
            assert rope is None or angles, case.kind
            for theirs in angles if rope is not None and rope.kind == "default" else ():
                assert isinstance(theirs, Tensor)
                assert rope is not None
                ours = rope.theta ** (-torch.arange(rope.rotary // 2) / (rope.rotary // 2))
                torch.testing.assert_close(theirs, ours, msg=lambda text: f"{case.kind}, {kind}: {text}")  # noqa: B023


@over(CHECKED)
def test_layers_turn_where_the_family_says(bench: Bench, family: Family):
    """A layer answers otherwise at other places where the family says that it rotates, and only there."""
    for case in bench.list_cases(family):
        for layer, (module, args, kwargs) in enumerate(record_layers(case)):
            moved = {key: flip(value) if key == "position_embeddings" else value for key, value in kwargs.items()}
            with torch.no_grad():
                here, there = (first_tensor(module(*args, **said)) for said in (kwargs, moved))
            assert (not torch.equal(here, there)) is (case.traits.rope_of(layer) is not None), (layer, case.kind)


@over(CHECKED)
def test_layers_see_as_far_as_the_family_says(bench: Bench, family: Family):
    """The mask that transformers gives to a layer leaves as many tokens as the layer's window, or all."""
    length = TOKENS.shape[1]
    for case in bench.list_cases(family):
        for layer, (_, args, kwargs) in enumerate(record_layers(case)):
            given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            masks = [each for each in given if each.shape[-2:] == (length, length)]
            window = case.traits.window_of(layer)
            if window is not None and case.traits.tell("looks") == "both ways":
                window = window // 2 + 1  # Itself, and one half of the window before it.
            chunked = "chunked" in str(case.traits.kind_of(layer))
            told = length if window is None else (length - 1) % window + 1 if chunked else min(window, length)
            seen = [int((mask[0, 0, -1] > -1).sum()) for mask in masks]
            assert seen == [told], (layer, case.kind)


def record_layers(case: Case) -> list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """With what transformers calls every layer."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((module, args, kwargs)), with_kwargs=True
        )
        for layer in case.layers
    ]
    with torch.no_grad():
        case.tiny.model(TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return calls


def flip(positions: Any) -> Any:
    """The same places in another order."""
    return positions.flip(1) if isinstance(positions, Tensor) else tuple(map(flip, positions))


def first_tensor(output: Any) -> Tensor:
    """What a layer passes on."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


@over(CHECKED)
def test_activations_are_as_the_family_says(bench: Bench, family: Family):
    """`activation` is the function that the feed-forward of transformers applies."""
    x = torch.linspace(-4, 4, 101)
    for case in bench.list_cases(family):
        told = case.traits.tell("activation")
        if told not in ACTIVATIONS:
            assert told == "clamped swiglu"
            continue
        found = [
            function
            for name, module in case.layers.named_modules()
            if name.split(".")[-1] in ("act_fn", "act", "activation_fn")
            for function in [module]
        ]
        assert found, case.kind
        for function in found:
            torch.testing.assert_close(ACTIVATIONS[told](x), function(x), rtol=1e-5, atol=1e-6)


# --- what config.json leaves out, or says in an older way


@over(CHECKED)
def test_what_config_json_leaves_out_is_as_transformers_has_it(family: Family):
    """A config.json that says nothing but sizes is read like the same one with all that transformers adds to it."""
    named = {"model_type", "rope_parameters", *re.findall(r"\w+", " ".join([*family.axes.values(), *family.requires]))}
    said = say_config(family, {})
    language = said[family.config] if family.config else said
    language = {key: value for key, value in language.items() if key in named}
    brief = {**said, family.config: language} if family.config else language
    full = write_config(family, brief)
    ours, theirs = (read_traits(family, {"model_type": family.model_types[0], **config}) for config in (brief, full))
    assert tell_layers(ours) == tell_layers(theirs)
    for trait in sorted(set(RULES) - TOLD_BY_LAYER):
        assert ours.tell(trait) == theirs.tell(trait), trait
    for line in family.templates:
        assert line.exists(ours.config, tied=True) is line.exists(theirs.config, tied=True), line.name


@over(CHECKED)
def test_a_size_that_config_json_leaves_out_is_that_of_transformers(family: Family):
    """Where a size is missing, a model is refused, or has the size that transformers' config class gives it."""
    full = write_config(family, say_config(family, {}))
    language = full[family.config] if family.config else full
    deciding = {line.when for line in family.templates}
    for axis, rule in family.axes.items():
        key = rule.split("|")[0].strip()
        if key not in language or key in deciding:
            continue
        less = {name: value for name, value in language.items() if name not in (key, "layer_types")}
        config = {**full, family.config: less} if family.config else less
        try:
            told = family.read_axes(family.language_config(config), "model")[axis]
        except CheckpointError:
            continue
        expected = getattr(find_config_class(family)(**config).get_text_config(), key, None)
        # None: transformers works it out where it is needed.
        derived = language["hidden_size"] // language["num_attention_heads"] if key == "head_dim" else told
        assert told == (derived if expected is None else expected), key


NULLABLE = ("num_key_value_heads", "num_kv_heads", "head_dim")


@pytest.mark.parametrize(
    ("family", "axis", "key"),
    [
        pytest.param(family, axis, key, id=f"{family.family}-{axis}")
        for family in CHECKED
        for axis, rule in family.axes.items()
        for key in [rule.split("|")[0].strip()]
        if key in NULLABLE
    ],
)
def test_null_for_a_size_is_what_transformers_takes_it_for(family: Family, axis: str, key: str):
    """Null is what the config class makes of it, be it another size than that of a key left out; or no size at all."""
    full = write_config(family, say_config(family, {}))
    language = full[family.config] if family.config else full
    said = {name: value for name, value in language.items() if name != "layer_types"} | {key: None}
    told = family.language_config({**full, family.config: said} if family.config else said)
    meant = read_null(family, said, key)
    if meant is not None:
        assert family.read_axes(told, "model")[axis] == meant
    elif "/" in family.axes[axis]:  # Where the class makes nothing of it, what others make of it does no harm.
        assert family.read_axes(told, "model")[axis] == SMALL["hidden_size"] // SMALL["num_attention_heads"]
    else:
        with pytest.raises(CheckpointError, match=f"{key} = null, which is no size"):
            family.read_axes(told, "model")


def read_null(family: Family, language: Mapping[str, Any], key: str) -> int | None:
    """What a config class makes of null, whether or not it would refuse it; None: nothing that is a size."""
    made = type(find_config_class(family)().get_text_config())
    config = made(**{name: value for name, value in language.items() if name != key})
    object.__setattr__(config, key, None)
    config.__post_init__()
    found: int | None = getattr(config, key)
    return found


@over(CHECKED)
def test_older_files_are_read_like_newer_ones(bench: Bench, family: Family):
    """What the first transformers that had a family wrote, and what it writes today, is read alike."""
    for case in bench.list_cases(family):
        before = say_as_before(family, case.tiny.config)
        assert tell_layers(read_traits(family, before)) == tell_layers(case.traits), case.kind


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotations_are_read_alike_in_older_and_newer_files(rope: dict[str, Any]):
    """How a rotation reaches longer texts does not depend on which transformers wrote it down."""
    family = next(each for each in CHECKED if each.family == ("phi3" if rope["rope_type"] == "longrope" else "llama"))
    full = write_config(family, {**say_config(family, {}), "rope_parameters": rope})
    before = say_as_before(family, full)
    assert "rope_parameters" not in before
    before["rope_scaling"].pop("original_max_position_embeddings", None)
    told = read_traits(family, before).rope_of(0)
    assert told == read_traits(family, full).rope_of(0)
    assert told is not None
    assert (told.kind, told.theta) == (rope["rope_type"], SMALL["rope_theta"])


def write_config(family: Family, said: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that transformers writes when it is told this."""
    written: dict[str, Any] = json.loads(find_config_class(family)(**said).to_json_string())
    return written


def read_layers(family: Family, said: Mapping[str, Any]) -> object:
    """What transformers understands of layers and rotation when it is told this."""
    read = find_config_class(family)(**said).get_text_config()
    ropes = getattr(read, "rope_parameters", None) or {}
    return {key: value for key, value in ropes.items() if key != "type"}, getattr(read, "layer_types", None)


def say_as_before(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json in the words of transformers 4, as far as they say the same: rope_theta, and no kinds of layers."""
    said = dict(config)
    for change in (_say_ropes_as_before, _leave_out_kinds):
        language = change(said[family.config] if family.config else said, family)
        changed = {**said, family.config: language} if family.config else language
        if read_layers(family, changed) == read_layers(family, config):
            said = changed
    return said


def _say_ropes_as_before(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    language = dict(config)
    ropes = language.pop("rope_parameters", None) or {}
    rope, local = dict(ropes.get("full_attention", ropes)), ropes.get("sliding_attention", {})
    language |= {"rope_local_base_freq": local["rope_theta"]} if local else {}
    theta, factor = BEFORE.get(family.family, ("rope_theta", "partial_rotary_factor"))
    for key, name in (("rope_theta", theta), ("partial_rotary_factor", factor)):
        language |= {name: rope.pop(key)} if key in rope else {}
    kind = rope.pop("rope_type", "default")
    return language | ({"rope_scaling": {"type": kind, **rope}} if kind != "default" or rope else {})


def _leave_out_kinds(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "layer_types"}


@over(CHECKED)
def test_the_output_is_tied_by_default_where_transformers_ties_it(family: Family):
    """Where config.json does not say whether embeddings are tied, the family's default is transformers' own."""
    assert family.tied_by_default is find_config_class(family)().tie_word_embeddings


@pytest.mark.parametrize("same", [True, False])
def test_a_head_beside_a_tied_embedding_is_read_where_it_differs(tmp_path: Path, same: bool):
    """What is said of stray heads: transformers 5 uses one whose numbers differ, and ties one whose numbers do not."""
    family = next(each for each in CHECKED if each.family == "llama")
    tiny = build_tiny(family, {"tie_word_embeddings": True})
    folder = tiny.write(tmp_path)
    weights = read_weights(folder)
    embedding = weights["model.embed_tokens.weight"]
    head = embedding.clone() if same else embedding + 1
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    read = type(tiny.model).from_pretrained(folder)
    assert torch.equal(read.get_output_embeddings().weight, head)
    assert (read.get_output_embeddings().weight is read.get_input_embeddings().weight) is same
    assert describe(folder).tied


def find_config_class(family: Family) -> Any:
    """What transformers reads a config.json of the family with."""
    return getattr(transformers, family.architectures[0]).config_class


# --- families that nothing can confirm


@over(UNCHECKED)
def test_an_unchecked_family_says_why(family: Family):
    """A family that no class of transformers can confirm says so in a sentence, and it is true."""
    assert family.unchecked is not None
    assert family.unchecked.endswith(".")
    assert len(family.unchecked.split()) > 3
    assert not set(family.model_types) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not any(hasattr(transformers, name) for name in family.architectures)

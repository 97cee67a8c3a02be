"""A family: how a line of models names and arranges its tensors, read from one YAML file in `xmerge/families/`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal, Self

import yaml
from pydantic import model_validator

from xmerge.architecture.layout import (
    Block,
    Node,
    count_blocks,
    list_axes,
    name_loops,
    parse_shape,
    place_blocks,
    size_of_node,
)
from xmerge.architecture.rules import (
    check_rule,
    evaluate_rule,
    find_choice,
    find_null,
    is_constant,
    refuse_said,
    show,
    tell_said,
)
from xmerge.errors import CheckpointError
from xmerge.values import Value

_TEMPLATE = re.compile(r"(?P<name>\S+) \[(?P<shape>[^\]]*)\](?: (?P<word>if|unless) (?P<key>\w+)| (?P<maybe>maybe))?")
EXPERT_ROLES = ("_exps", "_shexp")
"""What the roles of experts end with."""
_NUMBERED = {"{expert}": "experts", "{head}": "heads", "{kv_head}": "kv_heads"}


class TensorTemplate(Value):
    """One line of a family file."""

    name: str
    """With `{layer}` in the layers, and with `{expert}`, `{head}` or `{kv_head}` where each of them has its own."""
    roles: tuple[str, ...]
    """What the tensor's blocks do, in the order in which `layout` names them."""
    layout: str
    """Its dimensions in named axes, with `+` between blocks: `heads*(head_dim + head_dim), hidden`."""
    when: str | None = None
    """The key of config.json that decides whether the tensor exists."""
    when_not: str | None = None
    maybe: bool = False
    """Some models have it in some layers, and only the headers say which."""

    @property
    def role(self) -> str:
        """What the tensor does; several roles joined by `+` for a fused tensor."""
        return "+".join(self.roles)

    @property
    def numbered(self) -> str | None:
        """The axis along which there is a tensor for each: `experts`."""
        return next((axis for place, axis in _NUMBERED.items() if place in self.name), None)

    @property
    def feed_forward(self) -> Literal["dense", "sparse"] | None:
        """Which kind of feed-forward it belongs to, in families that have both; None: to neither."""
        kinds = {role.removesuffix("_bias") for role in self.roles}
        if kinds <= {"ffn_gate", "ffn_up", "ffn_down"}:
            return "dense"
        return (
            "sparse" if all(role.startswith("ffn_gate_inp") or role.endswith(EXPERT_ROLES) for role in kinds) else None
        )

    def name_of(self, layer: int | None, number: int | None) -> str:
        """The name of a layer's tensor, and of an expert's or head's; None leaves a number open."""
        name = self.name if layer is None else self.name.replace("{layer}", str(layer))
        return name if number is None else re.sub(r"\{(?!layer\})\w+\}", str(number), name)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The dimensions as trees."""
        return parse_shape(self.layout)

    def shape(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """The tensor's shape in a model with these axes."""
        return tuple(size_of_node(node, axes) for node in self.nodes)

    def blocks(self, axes: Mapping[str, int]) -> tuple[Block, ...]:
        """Where each role's numbers lie, in the order of `roles`."""
        return place_blocks(self.nodes, axes)

    def exists(self, config: Mapping[str, Any], *, tied: bool) -> bool:
        """Whether every model with this config.json has the tensor."""
        if self.maybe:
            return False
        if "tie_word_embeddings" in (self.when, self.when_not):
            return not tied if self.when_not else tied
        if self.when is not None:
            return bool(config.get(self.when))
        return self.when_not is None or not config.get(self.when_not)


class Unfit(Value):
    """What a config.json says that the family file for its `model_type` does not describe."""

    family: str
    key: str
    """The key of config.json."""
    wanted: Any
    """What it says in the models that the file describes; nothing and no are the same."""
    said: Any
    """What it says here, or means by saying nothing."""
    met: int
    """How many things that the file requires before are as it requires them."""

    def __str__(self) -> str:
        return (
            f"the family file of {self.family} describes only models with {self.key} = {show(self.wanted)}, and "
            f"config.json says {self.key} = {show(self.said)}"
        )


class Family(Value):
    """A line of models that name and arrange their tensors alike.

    The fields from `norm_eps` on are rules (see `xmerge.architecture.rules`) for what no shape shows.
    """

    family: str
    model_types: tuple[str, ...]
    """The values of `model_type` in config.json that mean this family."""
    architectures: tuple[str, ...]
    requires: dict[str, Any] = {}
    """What rules must give for the file to fit, where a model type has several layouts; no and nothing are the same."""
    defaults: dict[str, Any] = {}
    """What keys mean where config.json leaves them out, if not no."""
    config: str | None = None
    """The key of config.json below which the language model is described; None: it is described at the top."""
    spellings: tuple[dict[str, str], ...] = ({},)
    """Beginnings of names as the lines below write them -> as a checkpoint may; the one that fits best is taken."""
    towers: tuple[tuple[str, ...], ...] = ()
    """For each part beside the language model, the beginnings of names under which checkpoints hold it."""
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Endings of names that old checkpoints hold and no program reads."""
    unchecked: str | None = None
    """Why no class of transformers can confirm the file; None: the tests compare it with one."""
    axes: dict[str, str]
    """For each axis the keys of config.json that give it, in order of preference, or how to derive it."""
    norm: Literal["rms", "layer"] = "rms"
    """What a norm does before its gain: divide by the root mean square, or also take away the mean."""
    norm_gain: Literal["w", "1+w"]
    """What a norm multiplies by, given its stored weight."""
    rope: Literal["half", "interleaved", "none"]
    """Which rows of a head turn together: i and i + half, or 2i and 2i + 1."""
    tied_by_default: bool
    """Whether the output shares the embedding when config.json does not say."""
    layer_types: tuple[str, ...] = ()
    """The kinds of layers, in turn, when config.json has no `layer_types`."""
    further_layers: str = "0"
    """How many layers behind the last only predict further tokens; they are carried by name."""
    layer_period: str = "'none'"
    """Where a key says how the kinds come: every n-th layer, or each with a 0 in a list, is of the last kind; others
    are of the first."""
    norm_eps: str = "rms_norm_eps | 1e-6"
    activation: str = "hidden_act | 'silu'"
    block: str = "'sequential'"
    """`sequential`, or `parallel` where attention and feed-forward read the same input."""
    rope_theta: str = "rope_theta | 10000"
    sliding_rope_theta: str | None = None
    """For layers with a window, where it is another."""
    rotary_factor: str = "1"
    """The share of each head that is rotated."""
    nope: str = "'none'"
    """The layers without rotation: a list with a 0 for each, every n-th, a kind of layer, or a yes for all of them."""
    window: str = "'none'"
    """How far back a layer sees; layers of a kind that is neither `sliding` nor `chunked` see everything."""
    first_window: str = "0"
    """The first layer with a window, where layers have no kinds."""
    looks: str = "'backwards'"
    """Which way a token sees the others."""
    softmax_scale: str = "head_dim ^ -0.5"
    yarn_in_scores: bool = False
    """Whether yarn's `mscale_all_dim` multiplies the scores too, once for queries and once for keys."""
    temperature: str = "'none'"
    """By how much scores grow with the logarithm of the position."""
    temperature_length: str = "'none'"
    """After how many tokens they begin to."""
    temperature_layers: Literal["all", "unrotated"] = "all"
    temperature_start: Literal[0, 1] = 0
    """What the first position counts as."""
    residual_scale: str = "1"
    """What attention and feed-forward are multiplied by before they are added."""
    embedding_scale: str = "1"
    logit_scale: str = "1"
    positions: str = "'none'"
    """What tells positions beside rotation, or in its stead."""
    experts_used: str = "num_experts_per_tok | 'none'"
    """How many experts a token goes through."""
    dense_layers: str | None = None
    """The key of config.json that lists the layers without experts."""
    sparse_layers: str | None = None
    """The key that lists those with experts; where it says nothing, the next two rules do."""
    sparse_period: str = "1"
    """Every n-th layer has experts."""
    first_sparse: str = "0"
    """The first layer that may have experts."""
    routing: str = "'a softmax over all'"
    """How the experts that are chosen are weighed."""
    routed_scale: str = "routed_scaling_factor | 1"
    head_norm: str = "'none'"
    """What q and k are normalized by without a weight of its own, in the layers that rotate them."""
    attention_softcap: str = "'none'"
    output_softcap: str = "'none'"
    before: tuple[TensorTemplate, ...]
    layer: tuple[TensorTemplate, ...]
    after: tuple[TensorTemplate, ...]
    fused: tuple[TensorTemplate, ...] = ()
    """Lines of layers that some checkpoints have in place of those above with the same roles."""

    @model_validator(mode="before")
    @classmethod
    def _read_lines(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {
            key: [_read_template(roles, line) for roles, line in value.items()]
            if isinstance(value, dict) and key in _SECTIONS
            else value
            for key, value in data.items()
        }

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        rules = (*self.requires, *self.axes.values(), *(getattr(self, name) for name in RULES))
        for rule in (*rules, self.further_layers, self.sliding_rope_theta or "1"):
            check_rule(rule)
        for template in (*self.templates, *self.fused):
            if any(len(loops) > len(set(loops)) for loops in name_loops(template.nodes)):
                raise ValueError(f"{self.family}: {template.name} has an axis twice in one block")
            unknown = set(list_axes(template.nodes)) - set(self.axes)
            if unknown:
                raise ValueError(f"{self.family}: {template.name} has the unknown axes {sorted(unknown)}")
            if template.numbered and template.numbered not in self.axes:
                raise ValueError(f"{self.family}: {template.name} numbers what has no axis, '{template.numbered}'")
        return self

    @property
    def templates(self) -> tuple[TensorTemplate, ...]:
        """Every line, in the order of the file."""
        return (*self.before, *self.layer, *self.after)

    @property
    def layer_beginnings(self) -> tuple[str, ...]:
        """What the names of the layers' tensors begin with."""
        return tuple(dict.fromkeys(template.name.split("{layer}")[0] for template in self.layer))

    def spelled_like(self, names: Collection[str]) -> Self:
        """The family with the names that a checkpoint uses; the first spelling where none fits better."""
        spelled = map(self.spell, self.spellings)
        found = max(spelled, key=lambda each: sum(line.name in names for line in (*each.before, *each.after)))
        return found.fuse() if found.is_fused(names) else found

    def is_fused(self, names: Collection[str]) -> bool:
        """Whether a checkpoint has a tensor that only the fused lines name."""
        plain = {line.name for line in self.layer}
        ends = [line.name.split("{layer}") for line in self.fused if line.name not in plain]
        return any(name.endswith(tail) and name.startswith(head) for head, tail in ends for name in names)

    def fuse(self) -> Self:
        """The family with its fused lines, each where the first line of one of its roles was."""
        fused = {role: line for line in self.fused for role in line.roles}
        lines = [next((fused[role] for role in line.roles if role in fused), line) for line in self.layer]
        return self.model_copy(update={"layer": tuple(dict.fromkeys(lines))})

    def spell(self, spelling: Mapping[str, str]) -> Self:
        """The family with other beginnings of names."""
        if not spelling:
            return self
        sections = {
            section: tuple(
                template.model_copy(update={"name": _respell(template.name, spelling)})
                for template in getattr(self, section)
            )
            for section in _SECTIONS
        }
        return self.model_copy(update=sections)

    def list_names(self, name: str) -> tuple[str, ...]:
        """Every name under which checkpoints hold a tensor beside the language model, its own first."""
        for beginnings in self.towers:
            fitting = [each for each in beginnings if name.startswith(each)]
            if fitting:
                tail = name.removeprefix(max(fitting, key=len))
                return tuple(dict.fromkeys((name, *(beginning + tail for beginning in beginnings))))
        return (name,)

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether config.json says what the file requires."""
        return self.find_unfit(config) is None

    def find_unfit(self, config: Mapping[str, Any]) -> Unfit | None:
        """The first thing that config.json says otherwise than the file requires."""
        language = self.language_config(config)
        for met, (rule, wanted) in enumerate(self.requires.items()):
            said = evaluate_rule(rule, language, {})
            if (said or False) != (wanted or False):
                key = rule.partition("|")[0].strip()
                return Unfit(family=self.family, key=key, wanted=wanted, said=said, met=met)
        return None

    def language_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of config.json that describes the language model."""
        nested = config.get(self.config) if self.config else None
        if not isinstance(nested, Mapping):
            return {**self.defaults, **config}
        tied = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
        return {**self.defaults, **nested, **tied}

    def read_axes(self, config: Mapping[str, Any], label: str) -> dict[str, int]:
        """The size of every axis in a model.

        Args:
            config: The part of config.json that describes the language model.
            label: The model's, for errors.

        Raises:
            CheckpointError: config.json lacks a key, or says something that is no size.
        """
        axes: dict[str, int] = {}
        for axis in self.axes:
            axes[axis] = self._read_axis(axis, config, axes, label)
        return axes

    def _read_axis(self, axis: str, config: Mapping[str, Any], axes: Mapping[str, int], label: str) -> int:
        rule = self.axes[axis]
        choice, value = find_choice(rule, config, axes)
        if value is None:
            raise self._refuse_unsaid(axis, config, axes, label)
        null = find_null(rule, config)
        # A number stands for a key that is left out; the classes of transformers do not take it for null either.
        if null is not None and is_constant(choice):
            raise refuse_said(label, f"{null} = null", "no size")
        if type(value) is not int or not 0 < value < 2**40:
            raise refuse_said(label, tell_said(choice, config, value), "no size")
        return value

    def _refuse_unsaid(
        self, axis: str, config: Mapping[str, Any], axes: Mapping[str, int], label: str
    ) -> CheckpointError:
        """The error for a size that config.json does not say and that does not follow from what it says."""
        key, _, derived = self.axes[axis].rpartition(" | ")
        whole, _, part = derived.partition(" / ")
        if not part:
            return CheckpointError(
                f"{label}/config.json does not say how large '{axis}' is.",
                why=f"it has none of: {self.axes[axis]}.",
                remedy="complete config.json from the model's page.",
            )
        told = (tell_said(find_choice(self.axes[each], config, axes)[0], config, axes[each]) for each in (whole, part))
        return CheckpointError(
            f"{label}/config.json says {' and '.join(told)}, and {axes[whole]} is no multiple of {axes[part]}.",
            why=f"{f'it says no {key}, and ' if key else ''}{axis} is {whole} / {part} in a {self.family}.",
            remedy=f"{f'add {key} to config.json, or ' if key else ''}take config.json from the model's page again.",
        )

    def count_further_layers(self, config: Mapping[str, Any], axes: Mapping[str, int]) -> int:
        """How many layers behind the last only predict further tokens."""
        said = evaluate_rule(self.further_layers, config, axes)
        return max(said, 0) if type(said) is int else 0

    def is_tied(self, config: Mapping[str, Any], names: Collection[str] = ()) -> bool:
        """Whether the output matrix is the embedding.

        Where config.json does not say, a checkpoint with an output matrix among its `names` uses that one.
        """
        if "tie_word_embeddings" in config:
            return bool(config["tie_word_embeddings"])
        return self.tied_by_default and not any(line.role == "output" and line.name in names for line in self.after)


_SECTIONS = ("before", "layer", "after", "fused")
RULES = (
    "norm_eps", "activation", "block", "layer_period", "rope_theta", "rotary_factor", "nope", "window", "first_window",
    "softmax_scale", "residual_scale", "embedding_scale", "logit_scale", "head_norm", "attention_softcap",
    "output_softcap", "sparse_period", "first_sparse", "looks", "temperature", "temperature_length", "positions",
    "experts_used", "routing", "routed_scale",
)  # fmt: skip
"""The fields of a family that are rules for config.json; `sliding_rope_theta` is one where it is there."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where PyYAML was built with libyaml, and reads the same."""


def _read_template(roles: str, line: str) -> dict[str, Any]:
    match = _TEMPLATE.fullmatch(line)
    if match is None:
        raise ValueError(f"'{line}' is not of the form: name [axes] (if key | unless key | maybe)")
    names, blocks = [role.strip() for role in roles.split("+")], count_blocks(parse_shape(match["shape"]))
    if len(names) != blocks:
        raise ValueError(f"{match['name']} holds {len(names)} roles in {blocks} blocks")
    condition = {"when" if match["word"] == "if" else "when_not": match["key"]} if match["word"] else {}
    return {
        "name": match["name"],
        "roles": names,
        "layout": match["shape"],
        "maybe": bool(match["maybe"]),
        **condition,
    }


def _respell(name: str, spelling: Mapping[str, str]) -> str:
    for ours, theirs in spelling.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@cache
def _load_families() -> Mapping[str, Family]:
    found = {}
    for file in sorted(resources.files("xmerge.families").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml"):
            said = yaml.load(file.read_text(encoding="utf-8"), _LOADER)  # noqa: S506 - a safe one
            family = Family.model_validate(said)
            found[family.family] = family
    return found


def list_families() -> tuple[Family, ...]:
    """Every family that has a file, by name."""
    return tuple(_load_families().values())


def find_family(config: Mapping[str, Any], override: str | None = None) -> Family | None:
    """The family of a model: by `override` (a class name), else `model_type`, else `architectures`; None: no file."""
    told = config.get("architectures")
    architectures = [override] if override else told if isinstance(told, list) else []
    fitting = [family for family in list_families() if family.fits(config)]
    for family in fitting:
        if not override and config.get("model_type") in family.model_types:
            return family
    for family in fitting:
        if any(name in family.architectures for name in architectures):
            return family
    return None


def find_unfit(config: Mapping[str, Any]) -> Unfit | None:
    """What keeps a model from a family file for its `model_type`, of several files the nearest; None: there is none."""
    named = [family for family in list_families() if config.get("model_type") in family.model_types]
    found = [family.find_unfit(config) for family in named]
    return max((each for each in found if each), key=lambda unfit: unfit.met, default=None) if all(found) else None

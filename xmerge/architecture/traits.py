"""What no shape shows: norms, rotation, windows, scales; read from config.json by the rules of the family file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xmerge.architecture.family import Family
from xmerge.architecture.rules import find_choice, refuse_said, show, tell_said

ROPE_KINDS = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "mrope", "proportional"})
"""The values of `rope_type` that transformers knows, with those of older files."""

_RENAMED = {"su": "longrope", "mrope": "default"}
_LENGTH, _TRAINED_LENGTH = "max_position_embeddings", "original_max_position_embeddings"
_FROM_TRAINED_LENGTH = ("llama3", "yarn", "longrope", "su")
"""The kinds that start from the length a model was trained with; old files say it outside, or not at all."""

_MAY_BE_NONE = ("window", "attention_softcap", "output_softcap")
_MOST = 1e300
_TOLD_ELSEWHERE = ("rope_theta", "rope_type", "type", "partial_rotary_factor")


@dataclass(frozen=True)
class Rope:
    """How positions turn queries and keys."""

    theta: float
    kind: str
    """`default`, or how longer texts are reached."""
    scaling: tuple[tuple[str, str], ...]
    rotary: int
    """How many of a head's numbers are rotated."""

    def __str__(self) -> str:
        told = [f"theta {self.theta:g}"]
        factor = dict(self.scaling).get("factor")
        if self.kind != "default":
            told.append(f"{self.kind} scaling" + (f" by {factor}" if factor else ""))
        return ", ".join(told)


@dataclass(frozen=True)
class Temperature:
    """How attention scores grow with the position, so that long texts are not thinned out."""

    growth: float
    length: int
    """In tokens."""
    start: int
    """What the first position counts as."""

    def __str__(self) -> str:
        return f"by 1 + {self.growth:g} log(1 + position / {self.length})"


@dataclass(frozen=True)
class Traits:
    """A model's traits, with those of its layers."""

    family: Family
    config: Mapping[str, Any]
    """The part of config.json that describes the language model."""
    axes: Mapping[str, int]
    label: str = "the model"
    """What people call it, for errors."""

    def tell(self, trait: str) -> Any:
        """What a rule of the family file says for this model: `softmax_scale`, `activation`, ...

        Raises:
            CheckpointError: config.json says something that cannot be meant.
        """
        if trait not in self._told:
            self._told[trait] = self._read(trait)
        return self._told[trait]

    @cached_property
    def _told(self) -> dict[str, Any]:
        return {}

    def _read(self, trait: str) -> Any:
        config = self._answered if trait in _MAY_BE_NONE else self.config
        choice, value = find_choice(getattr(self.family, trait), config, self.axes)
        wanted, is_wanted = _WANTED[trait]
        if value is not None and not is_wanted(value):
            raise refuse_said(self.label, tell_said(choice, self.config, value), f"no {wanted}")
        if trait == "softmax_scale" and self.family.yarn_in_scores:
            value *= self._read_yarn_scale() ** 2
        return value

    def _read_yarn_scale(self) -> float:
        """What yarn multiplies queries and keys by, each."""
        kind = self.kind_of(0)
        said = self._find_rope(kind)
        factor, share = (said.get(key) or 0 for key in ("factor", "mscale_all_dim"))
        for key, value in (("factor", factor), ("mscale_all_dim", share)):
            if not _is_number(value):
                raise refuse_said(self.label, f"{key} = {show(value)} of its rotation", "no number")
        return 1 + 0.1 * share * math.log(factor) if self._rope_of_kind(kind).kind != "default" and factor > 1 else 1.0

    @cached_property
    def _answered(self) -> dict[str, Any]:
        """config.json where null is an answer: there is none."""
        return {key: "none" if value is None else value for key, value in self.config.items()}

    @cached_property
    def rotary(self) -> int:
        """How many of a head's numbers are rotated, where any are."""
        return self._rope_of_kind(self.kind_of(0)).rotary

    def kind_of(self, layer: int) -> str | None:
        """The kind of a layer, where config.json or the family has several."""
        if not self._kinds:
            return None
        period = self.tell("layer_period")
        if self._kinds is not self.family.layer_types or period in ("none", 0):
            return self._kinds[layer % len(self._kinds)]
        return self._kinds[-1 if self._is_chosen("layer_period", layer) else 0]

    def _is_chosen(self, trait: str, layer: int) -> bool:
        """Whether a layer is every n-th, or has a 0 in a list, whichever a trait says."""
        chosen: int | list[int] = self.tell(trait)
        if isinstance(chosen, int):
            return chosen > 0 and (layer + 1) % chosen == 0
        key, _ = find_choice(getattr(self.family, trait), self.config, self.axes)
        self._check_list(key, chosen, lambda number: number in (0, 1), "a 0 or a 1 for each layer")
        return chosen[layer] == 0

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        """The kinds of layers that config.json lists for every layer, else the family in turn."""
        listed = self.config.get("layer_types")
        if listed is None or listed == []:
            return self.family.layer_types
        self._check_list("layer_types", listed, lambda kind: isinstance(kind, str), "names of kinds of layers")
        return tuple(listed)

    def window_of(self, layer: int) -> int | None:
        """How far back a layer sees; None: to the beginning."""
        window, kind = self.tell("window"), self.kind_of(layer)
        if type(window) is not int or window <= 0:
            return None
        if kind is None:
            first = self.tell("first_window")
            return None if type(first) is int and layer < first else window
        return window if "sliding" in kind or "chunked" in kind else None

    def tell_sight(self, layer: int) -> str:
        """How far back a layer sees, in words."""
        window = self.window_of(layer)
        if window is None:
            return "everything"
        chunked = "chunked" in (self.kind_of(layer) or "")
        return f"a chunk of {window} tokens" if chunked else f"{window} tokens"

    def tell_head_norm(self, layer: int) -> str:
        """What a layer normalizes q and k by without a weight of its own."""
        return "none" if self.rope_of(layer) is None else str(self.tell("head_norm"))

    def has_experts(self, layer: int) -> bool:
        """Whether config.json says that a layer has experts, in a family whose layers may have them."""
        dense, sparse = (self._list_layers(key) for key in (self.family.dense_layers, self.family.sparse_layers))
        if sparse is not None:
            return layer in sparse
        return (
            layer >= self.tell("first_sparse")
            and self._is_chosen("sparse_period", layer)
            and layer not in (dense or ())
        )

    def _list_layers(self, key: str | None) -> Sequence[int] | None:
        """The layers whose numbers a key of config.json lists; None: it says nothing."""
        listed = None if key is None else self.config.get(key)
        if listed is not None and not (isinstance(listed, list) and all(map(_is_number_of_layers, listed))):
            raise refuse_said(self.label, f"{key} = {show(listed)}", "no list of layers")
        return listed

    def temperature_of(self, layer: int) -> Temperature | None:
        """How a layer's attention scores grow with the position; None: not at all."""
        growth, length = self.tell("temperature"), self.tell("temperature_length")
        if "none" in (growth, length) or (
            self.family.temperature_layers == "unrotated" and self.rope_of(layer) is not None
        ):
            return None
        return Temperature(float(growth), int(length), self.family.temperature_start)

    def rope_of(self, layer: int) -> Rope | None:
        """How positions turn a layer's queries and keys; None: not at all."""
        if self.family.rope == "none" or self._is_nope(layer):
            return None
        return self._rope_of_kind(self.kind_of(layer))

    def _is_nope(self, layer: int) -> bool:
        nope = self.tell("nope")
        if isinstance(nope, bool):
            return nope
        if isinstance(nope, list | int):
            return self._is_chosen("nope", layer)
        return nope is not None and nope == self.kind_of(layer)

    def _rope_of_kind(self, kind: str | None) -> Rope:
        if kind not in self._ropes:
            self._ropes[kind] = self._read_rope(kind)
        return self._ropes[kind]

    @cached_property
    def _ropes(self) -> dict[str | None, Rope]:
        return {}

    def _read_rope(self, kind: str | None) -> Rope:
        said = self._find_rope(kind)
        for key, value in said.items():
            wanted, is_wanted = _WANTED_OF_ROPE.get(key, ("number, text or list of numbers", _is_plain))
            if value is not None and not is_wanted(value):
                raise refuse_said(self.label, f"{key} = {show(value)} of its rotation", f"no {wanted}")
        theta, factor = (
            self.tell(trait) if said.get(key) is None else said[key]
            for key, trait in (("rope_theta", "rope_theta"), ("partial_rotary_factor", "rotary_factor"))
        )
        kind_of_rope = said.get("rope_type") or said.get("type") or "default"
        return Rope(
            theta=float(theta),
            kind=_RENAMED.get(kind_of_rope, kind_of_rope),
            scaling=tuple(
                sorted((key, _tell(value)) for key, value in said.items() if key not in _TOLD_ELSEWHERE and value)
            ),
            rotary=int(self.axes.get("head_dim", 0) * float(factor)),
        )

    def _find_rope(self, kind: str | None) -> dict[str, Any]:
        """What config.json says of the rotation in layers of a kind, in the spelling of either of its generations."""
        scaling, parameters = (self._find_mapping(key, self.config) for key in ("rope_scaling", "rope_parameters"))
        if parameters and all(isinstance(each, Mapping) for each in parameters.values()):
            # One for each kind of layers; for a kind that it leaves out it says nothing.
            if kind is not None and kind in parameters:
                return dict(parameters[kind])
            parameters = {}
        if kind == "sliding_attention" and self.family.sliding_rope_theta is not None:
            choice, theta = find_choice(self.family.sliding_rope_theta, self.config, self.axes)
            if not _is_positive(theta):
                raise refuse_said(self.label, tell_said(choice, self.config, theta), "no number above 0")
            return {"rope_theta": theta}
        said = {**scaling, **parameters}
        kind_of_rope, longest = said.get("rope_type") or said.get("type"), self.config.get(_LENGTH)
        if kind_of_rope in _FROM_TRAINED_LENGTH:
            lengths = (self.config.get(_TRAINED_LENGTH), said.get(_TRAINED_LENGTH), longest)
            trained = next((each for each in lengths if each is not None), None)
            said[_TRAINED_LENGTH] = trained
            if said.get("factor") is None and trained is not None and _is_positive(trained) and _is_positive(longest):
                said["factor"] = longest / trained
        if kind_of_rope == "dynamic":
            said[_LENGTH] = longest
        return said

    def _find_mapping(self, key: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        said = config.get(key)
        if said is not None and not isinstance(said, Mapping):
            raise refuse_said(self.label, f"{key} = {show(said)}", "no mapping")
        return said or {}

    def _check_list(self, key: str, listed: Any, is_wanted: Callable[[Any], bool], wanted: str) -> None:
        layers = self.axes["layers"]
        if not isinstance(listed, list) or not all(map(is_wanted, listed)):
            raise refuse_said(self.label, f"{key} = {show(listed)}", f"no list of {wanted}")
        if len(listed) < layers:
            raise refuse_said(self.label, f"{key} = {show(listed)}", f"fewer than its {layers} layers")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _MOST


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_number, value))
    return isinstance(value, str | bool) or _is_number(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_MOST <= value <= _MOST


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number_of_layers(value: Any) -> bool:
    return type(value) is int and value >= 0


def _tell(value: Any) -> str:
    """A value of the rotation, so that 8 and 8.0 are one."""
    if isinstance(value, list):
        return ", ".join(map(_tell, value))
    return f"{value:.15g}" if type(value) in (int, float) else str(value)


_POSITIVE = ("number above 0", _is_positive)
_CAP = ("number above 0, and not null", lambda value: value == "none" or _is_positive(value))
_SHARE = ("share above 0 and at most 1", lambda value: _is_positive(value) and value <= 1)
_TEXT = ("text", _is_text)
_WANTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("norm_eps", "rope_theta", "softmax_scale", "residual_scale"), _POSITIVE),
    **dict.fromkeys(("embedding_scale", "logit_scale"), _POSITIVE),
    **dict.fromkeys(("attention_softcap", "output_softcap"), _CAP),
    **dict.fromkeys(("activation", "block", "head_norm", "looks", "positions", "routing"), _TEXT),
    "experts_used": ("number of experts", lambda value: value == "none" or _is_number_of_layers(value)),
    "routed_scale": _POSITIVE,
    "rotary_factor": _SHARE,
    "layer_period": (
        "number or list of layers",
        lambda value: value == "none" or isinstance(value, list) or _is_number_of_layers(value),
    ),
    "temperature": ("number", lambda value: value == "none" or _is_number(value)),
    "temperature_length": ("number of tokens above 0", lambda value: value == "none" or _is_positive(value)),
    **dict.fromkeys(("first_window", "first_sparse", "sparse_period"), ("number of layers", _is_number_of_layers)),
    "window": ("number of tokens, and not null", lambda value: value == "none" or _is_number_of_layers(value)),
    "nope": ("list of layers, number or kind of them", lambda value: isinstance(value, str | int | list)),
}
"""What each trait must be, in words and as a test."""
_WANTED_OF_ROPE: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "rope_theta": _POSITIVE,
    "partial_rotary_factor": _SHARE,
    "rope_type": _TEXT,
    "type": _TEXT,
}

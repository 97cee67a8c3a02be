"""What no shape shows: norms, rotation, windows, scales; read from config.json by the rules of the family file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xmerge.architecture.family import Family
from xmerge.architecture.rules import evaluate_rule

ROPE_KINDS = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "mrope", "proportional"})
"""The values of `rope_type` that transformers knows, with those of older files."""

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
class Traits:
    """A model's traits, with those of its layers."""

    family: Family
    config: Mapping[str, Any]
    """The part of config.json that describes the language model."""
    axes: Mapping[str, int]

    def tell(self, trait: str) -> Any:
        """What a rule of the family file says for this model: `softmax_scale`, `activation`, ..."""
        return self._told[trait]

    @cached_property
    def _told(self) -> Mapping[str, Any]:
        rules = (
            "norm_eps", "activation", "block", "softmax_scale", "residual_scale", "embedding_scale", "logit_scale",
            "attention_softcap", "output_softcap", "nope", "window", "rotary_factor",
            "head_norm",
        )  # fmt: skip
        return {rule: evaluate_rule(getattr(self.family, rule), self.config, self.axes) for rule in rules}

    @cached_property
    def rotary(self) -> int:
        """How many of a head's numbers are rotated, where any are."""
        return self._ropes[self.kind_of(0)].rotary

    def kind_of(self, layer: int) -> str | None:
        """The kind of a layer, where config.json or the family has several."""
        kinds = self.config.get("layer_types") or self.family.layer_types
        if not isinstance(kinds, list | tuple) or not kinds:
            return None
        return str(kinds[layer % len(kinds)])

    def window_of(self, layer: int) -> int | None:
        """How far back a layer sees; None: to the beginning."""
        window, kind = self.tell("window"), self.kind_of(layer)
        if type(window) is not int or self.config.get("use_sliding_window") is False:
            return None
        return window if kind is None or "sliding" in kind or "chunked" in kind else None

    def rope_of(self, layer: int) -> Rope | None:
        """How positions turn a layer's queries and keys; None: not at all."""
        if self.family.rope == "none" or self._is_nope(layer):
            return None
        return self._ropes[self.kind_of(layer)]

    def _is_nope(self, layer: int) -> bool:
        nope = self.tell("nope")
        if isinstance(nope, list):
            return layer < len(nope) and nope[layer] == 0
        if type(nope) is int:
            return nope > 0 and (layer + 1) % nope == 0
        return nope == self.kind_of(layer)

    @cached_property
    def _ropes(self) -> Mapping[str | None, Rope]:
        kinds = self.config.get("layer_types") or self.family.layer_types
        named: list[str | None] = sorted(set(map(str, kinds))) if isinstance(kinds, list | tuple) else []
        return {kind: self._read_rope(kind) for kind in [None, *named]}

    def _read_rope(self, kind: str | None) -> Rope:
        parameters = self.config.get("rope_parameters")
        if isinstance(parameters, Mapping) and isinstance(parameters.get(kind), Mapping):
            said: dict[str, Any] = dict(parameters[kind])
            sliding = False
        else:
            scaling = self.config.get("rope_scaling")
            said = dict(scaling) if isinstance(scaling, Mapping) else {}
            said |= parameters if isinstance(parameters, Mapping) else {}
            sliding = kind == "sliding_attention" and self.family.sliding_rope_theta is not None
        if sliding:
            assert self.family.sliding_rope_theta is not None
            said = {"rope_theta": evaluate_rule(self.family.sliding_rope_theta, self.config, self.axes)}
        theta = said.get("rope_theta") or evaluate_rule(self.family.rope_theta, self.config, self.axes)
        factor = said.get("partial_rotary_factor") or self.tell("rotary_factor")
        return Rope(
            theta=float(theta),
            kind=str(said.get("rope_type", said.get("type", "default"))),
            scaling=tuple(
                sorted((key, str(value)) for key, value in said.items() if key not in _TOLD_ELSEWHERE and value)
            ),
            rotary=int(self.axes["head_dim"] * float(factor)),
        )

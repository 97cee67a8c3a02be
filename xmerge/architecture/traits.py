"""What no shape shows: norms, rotation, windows, scales; read from config.json by the rules of the family file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xmerge.architecture.family import RULES, Family
from xmerge.architecture.rules import evaluate_rule
from xmerge.errors import CheckpointError

ROPE_KINDS = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "mrope", "proportional"})
"""The values of `rope_type` that transformers knows, with those of older files."""

_RENAMED = {"su": "longrope"}
_TRAINED_LENGTH = "original_max_position_embeddings"
_FROM_TRAINED_LENGTH = frozenset({"llama3", "yarn", "longrope", "su"})
"""The kinds that start from the length a model was trained with; old files say it outside, or not at all."""

_NUMBERS = ("norm_eps", "softmax_scale", "residual_scale", "embedding_scale", "logit_scale")
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
    label: str = "the model"
    """What people call it, for errors."""

    def tell(self, trait: str) -> Any:
        """What a rule of the family file says for this model: `softmax_scale`, `activation`, ...

        Raises:
            CheckpointError: config.json has something else where a number belongs.
        """
        return self._told[trait]

    @cached_property
    def _told(self) -> Mapping[str, Any]:
        told = {rule: evaluate_rule(getattr(self.family, rule), self.config, self.axes) for rule in RULES}
        for trait in _NUMBERS:
            if told[trait] is not None:
                self._check_number(trait, told[trait])
        return told

    @cached_property
    def rotary(self) -> int:
        """How many of a head's numbers are rotated, where any are."""
        return self._ropes[self.kind_of(0)].rotary

    def kind_of(self, layer: int) -> str | None:
        """The kind of a layer, where config.json or the family has several."""
        if not self._kinds:
            return None
        period = self.tell("layer_period")
        if self._kinds is self.family.layer_types and type(period) is int and period > 0:
            return self._kinds[-1 if (layer + 1) % period == 0 else 0]
        return self._kinds[layer % len(self._kinds)]

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        """The kinds of layers that config.json lists for every layer, else the family in turn."""
        listed = self.config.get("layer_types")
        return tuple(map(str, listed)) if isinstance(listed, list) and listed else self.family.layer_types

    def window_of(self, layer: int) -> int | None:
        """How far back a layer sees; None: to the beginning."""
        window, kind = self.tell("window"), self.kind_of(layer)
        if type(window) is not int or window <= 0:
            return None
        if kind is None:
            first = self.tell("first_window")
            return None if type(first) is int and layer < first else window
        return window if "sliding" in kind or "chunked" in kind else None

    def rope_of(self, layer: int) -> Rope | None:
        """How positions turn a layer's queries and keys; None: not at all."""
        if self.family.rope == "none" or self._is_nope(layer):
            return None
        return self._ropes[self.kind_of(layer)]

    def _is_nope(self, layer: int) -> bool:
        nope = self.tell("nope")
        if isinstance(nope, list):
            return layer < len(nope) and nope[layer] == 0
        if isinstance(nope, bool):
            return nope
        if type(nope) is int:
            return nope > 0 and (layer + 1) % nope == 0
        return nope is not None and nope == self.kind_of(layer)

    @cached_property
    def _ropes(self) -> Mapping[str | None, Rope]:
        return {kind: self._read_rope(kind) for kind in (None, *dict.fromkeys(self._kinds))}

    def _read_rope(self, kind: str | None) -> Rope:
        said = self._find_rope(kind)
        theta = said.get("rope_theta") or self.tell("rope_theta")
        factor = said.get("partial_rotary_factor") or self.tell("rotary_factor")
        self._check_number("rope_theta", theta)
        self._check_number("partial_rotary_factor", factor, most=1)
        kind_of_rope = str(said.get("rope_type", said.get("type", "default")))
        return Rope(
            theta=float(theta),
            kind=_RENAMED.get(kind_of_rope, kind_of_rope),
            scaling=tuple(
                sorted((key, str(value)) for key, value in said.items() if key not in _TOLD_ELSEWHERE and value)
            ),
            rotary=int(self.axes.get("head_dim", 0) * float(factor)),
        )

    def _find_rope(self, kind: str | None) -> dict[str, Any]:
        """What config.json says of the rotation in layers of a kind, in the spelling of either of its generations."""
        scaling, parameters = (
            told if isinstance(told, Mapping) else {}
            for told in (self.config.get("rope_scaling"), self.config.get("rope_parameters"))
        )
        if isinstance(parameters.get(kind), Mapping):
            return dict(parameters[kind])
        if kind == "sliding_attention" and self.family.sliding_rope_theta is not None:
            return {"rope_theta": evaluate_rule(self.family.sliding_rope_theta, self.config, self.axes)}
        said = {**scaling, **parameters}
        if str(said.get("rope_type", said.get("type"))) in _FROM_TRAINED_LENGTH:
            lengths = (
                self.config.get(_TRAINED_LENGTH), said.get(_TRAINED_LENGTH), self.config.get("max_position_embeddings")
            )  # fmt: skip
            said[_TRAINED_LENGTH] = next((each for each in lengths if each is not None), None)
        return said

    def _check_number(self, what: str, value: Any, most: float = 1e300) -> None:
        if type(value) not in (int, float) or not 0 < value <= most:
            raise CheckpointError(f"{self.label}/config.json says {value!r} for '{what}', which cannot be.")

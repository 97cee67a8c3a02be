"""What a merge method is: one decorated function, whose keyword parameters are its configuration.

A method sees its inputs through their Gram matrix (all inner products, float64) and gives one coefficient for each of
them; the engine streams the weights. Input 0 is the base where the method has one, the others are the donors in the
order of the configuration. A method that does not look at the Gram matrix for some parameters has coefficients
that are known when the merge is planned.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from xmerge.errors import ConfigError, nearest

Base = Literal["required", "optional", "as_input"]


@dataclass(frozen=True)
class Range:
    """What a parameter is for and which values it takes."""

    text: str
    least: float = -math.inf
    most: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if math.isinf(self.least) and math.isinf(self.most):
            return "any number"
        if math.isinf(self.most):
            return f"{self.least:g} or more"
        if math.isinf(self.least):
            return f"{self.most:g} or less"
        return f"{self.least:g} to {self.most:g}"


PerModel = Sequence[float]
"""The annotation of a parameter that has one value for each input (0 for a base that needs none).

Its default is a tuple of one number, which holds for every input.
"""


@dataclass(frozen=True)
class Parameter:
    """One keyword parameter of a method."""

    name: str
    argument: str
    """The function's name for it: with a `_` behind it where the name is a word of Python."""
    per_model: bool
    is_switch: bool
    default: float | None
    """None: a tensor for which the configuration gives no value keeps the base's bytes."""
    range: Range


class GramUnknownError(Exception):
    """A method asked for the Gram matrix before the weights were read."""


class Gram:
    """Inner products of the inputs, in float64; unreadable while the weights have not been read."""

    def __init__(self, products: Sequence[Sequence[float]] | None = None) -> None:
        self._products = products

    def dot(self, i: int, j: int) -> float:
        """The inner product of inputs i and j."""
        if self._products is None:
            raise GramUnknownError
        return self._products[i][j]

    def norm(self, i: int) -> float:
        """The Frobenius norm of input i."""
        return math.sqrt(max(self.dot(i, i), 0.0))


Combine = Callable[..., Sequence[float]]


@dataclass(frozen=True)
class MergeMethod:
    """A registered merge method."""

    name: str
    combine: Combine
    """(Gram, number of inputs, **parameters) -> one coefficient for each input."""
    base: Base
    """`required`: input 0, left out of per-model parameters' duties; `as_input`: one more input like the others."""
    inputs: tuple[int, int | None]
    """How many inputs it takes, the base included; None: no limit."""
    version: int
    parameters: tuple[Parameter, ...]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.text.splitlines()[0]

    @property
    def text(self) -> str:
        """Its docstring: formula, source, limits."""
        return inspect.getdoc(self.combine) or ""

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, if it has one."""
        return next((each for each in self.parameters if each.name == name), None)

    def coefficients(self, gram: Gram, count: int, parameters: Mapping[str, Any]) -> tuple[float, ...]:
        """One float for each of `count` inputs.

        Raises:
            GramUnknownError: The coefficients depend on weights that have not been read.
            ValueError: The parameters have no meaning together; the text says why.
        """
        arguments = {each.argument: parameters[each.name] for each in self.parameters}
        return tuple(float(c) for c in self.combine(gram, count, **arguments))


_found: dict[str, MergeMethod] = {}


def merge_method(*, base: Base, inputs: tuple[int, int | None], version: int = 1) -> Callable[[Combine], Combine]:
    """Register a function as the merge method of its name; its keyword parameters become the configuration's.

    Annotate each as `Annotated[float, Range(...)]`, `Annotated[bool, Range(...)]` or `Annotated[PerModel, Range(...)]`.
    """

    def register(function: Combine) -> Combine:
        name = function.__name__.removesuffix("_")
        other = _found.get(name)
        assert other is None or other.combine.__module__ == function.__module__, f"there are two methods '{name}'"
        _found[name] = MergeMethod(name, function, base, inputs, version, tuple(_read_parameters(function)))
        return function

    return register


def _read_parameters(function: Combine) -> list[Parameter]:
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for item in inspect.signature(function).parameters.values():
        if item.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        kind, spec = typing.get_args(hints[item.name])
        default = item.default[0] if isinstance(item.default, tuple) else item.default
        default = None if default is inspect.Parameter.empty else float(default)
        name = item.name.removesuffix("_")
        found.append(Parameter(name, item.name, kind is not float and kind is not bool, kind is bool, default, spec))
    return found


@cache
def _load_methods() -> Mapping[str, MergeMethod]:
    import xmerge.methods as folder

    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"xmerge.methods.{module.name}")
    return dict(sorted(_found.items()))


def list_methods() -> tuple[MergeMethod, ...]:
    """Every registered method, by name."""
    return tuple(_load_methods().values())


def find_method(name: str) -> MergeMethod:
    """The method of that name.

    Raises:
        ConfigError: There is none.
    """
    methods = _load_methods()
    if name not in methods:
        raise ConfigError(f"there is no merge method '{name}'; {nearest(name, methods)}")
    return methods[name]


__all__ = [
    "Annotated",
    "Gram",
    "GramUnknownError",
    "MergeMethod",
    "PerModel",
    "Range",
    "find_method",
    "list_methods",
    "merge_method",
]

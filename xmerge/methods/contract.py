"""What a merge method is: one decorated function, whose keyword parameters are its configuration.

There are two kinds, and the engine streams the weights for both. Input 0 is the base where the method has one, the
others are the donors in the order of the configuration.

A combination (`merge_method`) sees its inputs through their Gram matrix (all inner products, float64, of the whole
tensors or of each row or column) and gives one coefficient for each of them, or one for each row or column. One that
does not look at the Gram matrix for some parameters has coefficients that are known when the merge is planned.

A rule (`merge_rule`) asks for statistics of the whole tensor first (sums, the k-th largest number), and then gives what
becomes of each element from the elements at its place.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias

from xmerge.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Base = Literal["required", "optional", "as_input"]

Axis = Literal[-1, 0] | None
"""Along which axis the slices of a tensor lie: the last (the rows of a matrix), the first (its columns); None: one
slice, the whole tensor. A tensor of one dimension is one slice either way."""


@dataclass(frozen=True)
class Range:
    """What a parameter is for and which values it takes."""

    text: str
    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    """Whether only whole numbers will do."""
    above: bool = False
    """Whether `least` itself is out of range."""

    def __contains__(self, value: float) -> bool:
        if self.above and value == self.least:
            return False
        return self.least <= value <= self.most and (not self.whole or float(value).is_integer())

    def __str__(self) -> str:
        number = "a whole number" if self.whole else "any number"
        if math.isinf(self.least) and math.isinf(self.most):
            return number
        told = f"{number}, " if self.whole else ""
        if math.isinf(self.most):
            return f"{told}{self.least:g} or more"
        if math.isinf(self.least):
            return f"{told}{self.most:g} or less"
        if self.above:
            return f"{told}above {self.least:g}, up to {self.most:g}"
        return f"{told}{self.least:g} to {self.most:g}"


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


class ParameterError(ValueError):
    """An input's parameters have no meaning together; the text says why."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number
        """Which input."""


class GramUnknownError(Exception):
    """A method asked for the Gram matrix before the weights were read."""


class Measure(Protocol):
    """Takes the inner products of the inputs, by reading all of them once."""

    def __call__(self, *, deltas: bool, axis: Axis) -> Sequence[Sequence[Tensor]]:
        """For inputs i and j the products of their slices, in float64: [1, 1], [rows, 1] or [1, columns].

        Args:
            deltas: Of the differences from input 0, taken before anything is multiplied; else of the inputs.
            axis: Which slices.
        """
        ...


class Slices:
    """Inner products of the slices of the inputs, in float64: [1, 1], [rows, 1] or [1, columns]."""

    def __init__(self, products: Sequence[Sequence[Tensor]]) -> None:
        self._products = products

    def dot(self, i: int, j: int) -> Tensor:
        """The inner products of each slice of input i with that of input j."""
        return self._products[i][j]

    def norm(self, i: int) -> Tensor:
        """The norm of each slice of input i."""
        return self.dot(i, i).sqrt()


class Gram:
    """Inner products of the inputs, in float64, taken when a method asks for them and not before.

    Args:
        measure: What takes them; None while the weights have not been read.
        has_base: Whether input 0 is a base that the others are measured from, for a method that can do without.
        of_deltas: Whether they are those of the differences from input 0.
    """

    def __init__(self, measure: Measure | None = None, *, has_base: bool = False, of_deltas: bool = False) -> None:
        self._measure, self.has_base, self._of_deltas = measure, has_base, of_deltas

    @property
    def deltas(self) -> Gram:
        """The same of the differences from input 0: task vectors, where that is the base."""
        return Gram(self._measure, has_base=self.has_base, of_deltas=True)

    def dot(self, i: int, j: int) -> float:
        """The inner product of inputs i and j."""
        return float(self.slices(None).dot(i, j))

    def norm(self, i: int) -> float:
        """The Frobenius norm of input i."""
        return math.sqrt(self.dot(i, i))

    def slices(self, axis: Axis) -> Slices:
        """The inner products of slices.

        Raises:
            GramUnknownError: The weights have not been read.
        """
        if self._measure is None:
            raise GramUnknownError
        return Slices(self._measure(deltas=self._of_deltas, axis=axis))


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive elements of a tensor, from all of its inputs, in float32.

    One-dimensional, or whole rows of shape [rows, row] for a rule that is declared `by_rows`. The inputs are buffers
    that the next block fills again: a rule changes none of them and keeps none of them.
    """

    start: int
    """The first element's place in the tensor."""
    inputs: Sequence[Tensor]

    @property
    def base(self) -> Tensor:
        """The first input."""
        return self.inputs[0]

    @property
    def deltas(self) -> list[Tensor]:
        """The donors' task vectors here: each donor less the base, in float32."""
        return [donor - self.inputs[0] for donor in self.inputs[1:]]


class Selection(Protocol):
    """The k largest numbers of a tensor; of equal numbers at the threshold those that stand first."""

    @property
    def threshold(self) -> float:
        """The k-th largest number; infinity where k is 0."""
        ...

    def mask(self, values: Tensor, start: int) -> Tensor:
        """Which of these numbers are among them.

        Args:
            values: The same function of the block that was selected by.
            start: The place of the block.
        """
        ...

    def trim(self, numbers: Tensor, start: int) -> Tensor:
        """Numbers of either sign, with 0 for those whose magnitude is not among them; for a selection by magnitude."""
        ...


class Streamed(Protocol):
    """A tensor that is merged by a rule: its size, and statistics that take a reading or two of all of its inputs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the output."""
        ...

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        ...

    @property
    def count(self) -> int:
        """How many inputs there are, the base included."""
        ...

    def total(self, measure: Callable[[Block], Sequence[Tensor]]) -> list[float]:
        """The sum over all elements of each of the tensors that `measure` gives for a block, in float64."""
        ...

    def largest(
        self, values: Callable[[Block], Sequence[Tensor]], wanted: Sequence[tuple[int, int]]
    ) -> Sequence[Selection]:
        """Select exactly the k largest numbers of a tensor, without sorting it.

        Args:
            values: For a block the tensors to select from: float32, no number below 0.
            wanted: For each selection which of these tensors, and k.
        """
        ...

    def chance(self, donor: int, probability: float, block: Block) -> Tensor:
        """Which elements of a block a donor (from 1 on) keeps: 1 with a probability from 0 to 1, else 0, in float32.

        The same numbers are drawn whenever the same elements of the same donor are asked for. Only for a rule that is
        declared to draw.
        """
        ...

    def chance_by_rank(self, donor: int, middle: float, spread: float, block: Block) -> Tensor:
        """The same for whole rows, with a probability that grows with the rank of a task vector's magnitude in its row.

        It is `middle - spread` for the smallest number of a row, `middle + spread` for the largest, and grows evenly
        from rank to rank; of equal numbers the first rank lowest. A row of one number has the probability `middle`.
        """
        ...


Coefficient: TypeAlias = "float | Tensor"
"""What an input is multiplied by: a number, or float64 numbers [rows, 1] or [1, columns]."""
Combine = Callable[..., Sequence[Any]]
Rule = Callable[[Block], "Tensor"]
"""What becomes of a block, in float32 and in its shape."""


@dataclass(frozen=True)
class MergeMethod:
    """A registered merge method."""

    name: str
    function: Callable[..., Any]
    """A combination: (Gram, number of inputs, **parameters) -> one `Coefficient` for each input.
    A rule: (Streamed, **parameters) -> Rule."""
    is_rule: bool
    by_rows: bool
    """Whether a rule wants whole rows."""
    readings: int | Callable[..., int]
    """How often a rule's statistics read all inputs, as a rule; or the function of its parameters that says it."""
    draws: str | None
    """The parameter of a rule that draws random numbers: a donor draws one for each element where it is below 1."""
    check: Callable[..., None] | None
    """What a rule refuses of its parameters before anything is read, with a ValueError."""
    base: Base
    """`required`: input 0, left out of per-model parameters' duties; `optional`: the same, where the configuration
    names a base; `as_input`: one more input like the others."""
    inputs: tuple[int, int | None]
    """How many inputs it takes, a base that is required included and one that is optional not; None: no limit."""
    version: int
    parameters: tuple[Parameter, ...]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.text.splitlines()[0]

    @property
    def text(self) -> str:
        """Its docstring: formula, source, limits."""
        return inspect.getdoc(self.function) or ""

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, if it has one."""
        return next((each for each in self.parameters if each.name == name), None)

    def coefficients(self, gram: Gram, count: int, parameters: Mapping[str, Any]) -> tuple[Coefficient, ...]:
        """One coefficient for each of `count` inputs; numbers where there is one slice.

        Raises:
            GramUnknownError: The coefficients depend on weights that have not been read, or the method is a rule.
            ValueError: The parameters have no meaning together; the text says why.
        """
        if self.is_rule:
            if self.check is not None:
                self.check(**self._arguments(parameters))
            raise GramUnknownError
        found = self.function(gram, count, **self._arguments(parameters))
        return tuple(float(c) if isinstance(c, int | float) or c.numel() == 1 else c for c in found)

    def rule(self, tensor: Streamed, parameters: Mapping[str, Any]) -> Rule:
        """What becomes of each block of a tensor; the statistics have been taken when it is there.

        Raises:
            ValueError: The parameters have no meaning together; the text says why.
        """
        rule: Rule = self.function(tensor, **self._arguments(parameters))
        return rule

    def count_readings(self, parameters: Mapping[str, Any]) -> int:
        """How often every input is read at most, where the coefficients are not known before."""
        if not self.is_rule:
            return 2
        taken = self.readings
        return 1 + (taken if isinstance(taken, int) else taken(**self._arguments(parameters)))

    def _arguments(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {each.argument: parameters[each.name] for each in self.parameters}


_found: dict[str, MergeMethod] = {}
ENTRY_POINTS = "xmerge.methods"
"""The group of entry points by which other packages name modules with methods."""


def merge_method(*, base: Base, inputs: tuple[int, int | None], version: int = 1) -> Callable[[Combine], Combine]:
    """Register a function as the combination of its name; its keyword parameters become the configuration's.

    Annotate each as `Annotated[float, Range(...)]`, `Annotated[bool, Range(...)]` or `Annotated[PerModel, Range(...)]`.
    """

    def register(function: Combine) -> Combine:
        _register(function, base, inputs, version, is_rule=False)
        return function

    return register


def merge_rule(
    *,
    base: Base,
    inputs: tuple[int, int | None],
    by_rows: bool = False,
    readings: int | Callable[..., int] = 0,
    draws: str | None = None,
    check: Callable[..., None] | None = None,
    version: int = 1,
) -> Callable[[Callable[..., Rule]], Callable[..., Rule]]:
    """Register a function as the elementwise rule of its name; its keyword parameters are as a combination's.

    Args:
        base: What input 0 is.
        inputs: How many it takes, None for no limit.
        by_rows: Whether it wants whole rows.
        readings: How often its statistics read the inputs (`total` once, `largest` once and rarely four times), or a
            function of its parameters that says it. Only what a plan tells of reading depends on it.
        draws: The parameter by which a donor draws random numbers where it is below 1; a rule without it draws none.
        check: A function of its parameters that raises a ValueError for what they cannot be together.
        version: Raised whenever it gives other numbers.
    """

    def register(function: Callable[..., Rule]) -> Callable[..., Rule]:
        _register(
            function, base, inputs, version, is_rule=True, by_rows=by_rows, readings=readings, draws=draws, check=check
        )
        return function

    return register


def _register(
    function: Callable[..., Any],
    base: Base,
    inputs: tuple[int, int | None],
    version: int,
    *,
    is_rule: bool,
    by_rows: bool = False,
    readings: int | Callable[..., int] = 0,
    draws: str | None = None,
    check: Callable[..., None] | None = None,
) -> None:
    name = function.__name__.removesuffix("_")
    other = _found.get(name)
    if other is not None and other.function.__module__ != function.__module__:
        raise ValueError(f"there is a method '{name}' already, in {other.function.__module__}")
    _found[name] = MergeMethod(
        name,
        function,
        is_rule,
        by_rows,
        readings,
        draws,
        check,
        base,
        inputs,
        version,
        tuple(_read_parameters(function)),
    )


def _read_parameters(function: Callable[..., Any]) -> list[Parameter]:
    # Only these: what is in front of them may be annotated with names that are not imported when nothing is computed.
    keywords = [
        item for item in inspect.signature(function).parameters.values() if item.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    annotated = types.SimpleNamespace(__annotations__={item.name: item.annotation for item in keywords})
    hints = typing.get_type_hints(annotated, function.__globals__, include_extras=True)
    found = []
    for item in keywords:
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
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda each: (each.name, each.value)):
        _load_plugin(point)
    return dict(sorted(_found.items()))


def _load_plugin(point: EntryPoint) -> None:
    """Import a module of another package that holds merge methods."""
    package = point.dist.name if point.dist else point.value
    try:
        point.load()
    except Exception as error:
        raise ConfigError(
            f"the merge methods of the package {package} cannot be loaded: {type(error).__name__}: {error}.",
            where=f"entry point {ENTRY_POINTS}: {point.name} = {point.value}",
            remedy=f"repair or uninstall {package}.",
        ) from error


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
    "Block",
    "Gram",
    "GramUnknownError",
    "MergeMethod",
    "ParameterError",
    "PerModel",
    "Range",
    "Rule",
    "Selection",
    "Streamed",
    "find_method",
    "list_methods",
    "merge_method",
    "merge_rule",
]

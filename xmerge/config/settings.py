"""Parameter settings: a number, a gradient over the layers, or a list of filters; what one is worth for a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_serializer

from xmerge.config.strict import Strict, complain, show

LARGEST = 2.0**127
"""About the largest float32; sums of such numbers are still finite in float64."""

_NumberText = Annotated[str, Field(pattern=r"^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$")]
RawNumber = float | bool | _NumberText
RawGradient = Annotated[list[RawNumber], Field(min_length=1)]


def parse_gradient(raw: Any) -> tuple[float, ...]:
    """One number or a list of them, as a tuple of finite floats."""
    if isinstance(raw, list | tuple):
        if not raw:
            raise complain("an empty list has no value; give a number, or leave the parameter out")
        return tuple(parse_number(item, index) for index, item in enumerate(raw))
    return (parse_number(raw),)


def parse_number(raw: Any, *at: int) -> float:
    """A finite float from a number, a boolean (1 or 0) or a numeric text."""
    if isinstance(raw, bool | int | float | str):
        try:
            number = float(raw)
        except (ValueError, OverflowError):
            number = math.nan
        if abs(number) <= LARGEST:
            return number
        if math.isfinite(number):
            raise complain(f"{show(raw)} is too large: the arithmetic is that of float32", *at)
    raise complain(f"expected a finite number, got {show(raw)}", *at)


class FilteredValue(Strict):
    """A gradient for the tensors whose name contains `filter`; for every tensor when there is none."""

    filter: str | None = None
    """A plain, case-sensitive part of the tensor's name; `*` is the same as none."""
    value: Annotated[tuple[float, ...], BeforeValidator(parse_gradient, json_schema_input_type=RawNumber | RawGradient)]
    """One number, or several spread evenly over the layers."""

    @field_validator("filter")
    @classmethod
    def _star_is_none(cls, value: str | None) -> str | None:
        return None if value in ("*", "") else value

    def matches(self, names: Sequence[str]) -> bool:
        """Whether one of the names a tensor goes by contains the filter."""
        return self.filter is None or any(self.filter in name for name in names)


class Setting(Strict):
    """What a person wrote for one parameter; the first entry that matches a tensor decides."""

    entries: tuple[FilteredValue, ...]

    def evaluate(self, names: Sequence[str], position: float) -> float | None:
        """The value for a tensor, None where no entry matches.

        Args:
            names: The names the tensor goes by.
            position: Where its layer stands in its slice, 0 (first) to 1 (last).
        """
        for entry in self.entries:
            if entry.matches(names):
                return interpolate(entry.value, position)
        return None

    @model_serializer
    def _as_written(self) -> list[FilteredValue]:
        return list(self.entries)


def interpolate(gradient: Sequence[float], position: float) -> float:
    """The value of a gradient at a position from 0 to 1, by linear interpolation between its numbers."""
    scaled = position * (len(gradient) - 1)
    below = int(scaled)
    above = min(len(gradient) - 1, below + 1)
    fraction = scaled - below
    return (1 - fraction) * gradient[below] + fraction * gradient[above]


def parse_setting(raw: Any) -> Any:
    """Bring the three ways to write a setting into one: a list of filtered values."""
    if isinstance(raw, Setting):
        return raw
    if isinstance(raw, dict):
        raise complain("a filter stands in a list: write '- filter: ...' with its 'value' below it")
    if isinstance(raw, list | tuple) and any(isinstance(item, dict | FilteredValue) for item in raw):
        if not all(isinstance(item, dict | FilteredValue) for item in raw):
            raise complain("numbers and filters cannot be mixed in one list; give each filter its own 'value'")
        return {"entries": list(raw)}
    return {"entries": [{"value": parse_gradient(raw)}]}


RawSetting = RawNumber | RawGradient | Annotated[list[FilteredValue], Field(min_length=1)]
AnySetting = Annotated[Setting, BeforeValidator(parse_setting, json_schema_input_type=RawSetting)]
Parameters = dict[str, AnySetting]

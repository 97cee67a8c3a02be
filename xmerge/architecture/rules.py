"""Rules of a family file: how a size or a trait is read from config.json.

`num_key_value_heads | heads` means: the first of these that is there. A choice is a key of config.json (with dots into
what it nests), an axis, a number, a text in quotes, or two of them joined by `/`, `*`, `^` or `+`; an empty list is not
there. `sliding_window if use_sliding_window` is there only where config.json says yes to the key behind `if`,
`'sequential' if parallel_attn is false` only where it says no, and `heads if num_key_value_heads is null` only where it
says null, which may mean something else than saying nothing.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from xmerge.errors import CheckpointError

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_OPERATION = re.compile(r"(\S+)\s*([/*^]|(?<=\s)\+)\s*(\S+)")
_TERM = re.compile(rf"{_NUMBER.pattern}|'[^']*'|\w+(\.\w+)*")
_NAME = re.compile(r"(?<![\w'])[A-Za-z_]\w*(?:\.\w+)*")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_CONDITION = re.compile(r"(\w+(?:\.\w+)*)(?: is (false|null))?")


def check_rule(rule: str) -> None:
    """Look whether a rule is written as one.

    Raises:
        ValueError: It is not.
    """
    for choice in map(str.strip, rule.split("|")):
        told, condition = _split_condition(choice)
        operation = _OPERATION.fullmatch(told)
        terms = [told] if operation is None else [operation[1], operation[3]]
        if not all(map(_TERM.fullmatch, terms)) or (condition is not None and not _CONDITION.fullmatch(condition)):
            raise ValueError(f"'{choice}' is no rule")


def find_choice(rule: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> tuple[str, Any]:
    """The first choice of a rule that says something for a config.json, and what; the value is None where none does."""
    for choice in map(str.strip, rule.split("|")):
        value = _evaluate_choice(choice, config, axes)
        if value is not None and value != []:
            return choice, value
    return rule, None


def evaluate_rule(rule: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> Any:
    """What a rule says for a config.json; None where it says nothing."""
    return find_choice(rule, config, axes)[1]


def is_told(key: str, config: Mapping[str, Any]) -> bool:
    """Whether config.json has a key, were it only to say null."""
    above, _, last = key.rpartition(".")
    inner = _evaluate_term(above, config, {}) if above else config
    return isinstance(inner, Mapping) and last in inner


def find_null(rule: str, config: Mapping[str, Any]) -> str | None:
    """The first key of a rule to which config.json says null."""
    keys = (key for choice in rule.split("|") for key in list_names(choice))
    return next((key for key in keys if is_told(key, config) and _evaluate_term(key, config, {}) is None), None)


def is_constant(choice: str) -> bool:
    """Whether a choice of a rule says the same of every model."""
    return not list_names(choice) and _split_condition(choice)[1] is None


def list_names(choice: str) -> list[str]:
    """The keys of config.json and the axes that a choice of a rule is made of."""
    return _NAME.findall(_split_condition(choice)[0])


def tell_said(choice: str, config: Mapping[str, Any], value: Any) -> str:
    """`rope_theta = 'x'`: the keys of config.json that a choice of a rule reads, and what they say.

    Args:
        choice: The choice.
        config: What it was found in.
        value: What it came to, which is told where no key stands behind it.
    """
    keys = {key: _evaluate_term(key, config, {}) for key in list_names(choice)}
    told = [f"{key} = {show(said)}" for key, said in keys.items() if said is not None]
    return " and ".join(told) or f"{choice} = {show(value)}"


def show(value: Any) -> str:
    """A value of config.json as it stands there, cut short where it is long or deep."""
    return json.dumps(value) if value is None or isinstance(value, bool) else _SHORT.repr(value)


def refuse_said(label: str, said: str, fault: str) -> CheckpointError:
    """The error for something in config.json that cannot be meant.

    Args:
        label: The model's.
        said: The key, and what it says.
        fault: What that is not.
    """
    return CheckpointError(
        f"{label}/config.json says {said}, which is {fault}.", remedy="take config.json from the model's page again."
    )


def _evaluate_choice(choice: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> Any:
    told, condition = _split_condition(choice)
    if condition is not None and not _holds(condition, config, axes):
        return None
    operation = _OPERATION.fullmatch(told)
    if operation is None:
        return _evaluate_term(told, config, axes)
    left, right = (_evaluate_term(operation[side], config, axes) for side in (1, 3))
    if left is None or right is None:
        return None
    # What is said and is no number cannot be passed over for the next choice.
    if type(left) not in (int, float) or type(right) not in (int, float):
        return math.nan
    try:
        return _calculate(left, operation[2], right)
    except (OverflowError, ZeroDivisionError):
        return math.nan


def _split_condition(choice: str) -> tuple[str, str | None]:
    told, found, condition = choice.partition(" if ")
    return told.strip(), condition.strip() if found else None


def _holds(condition: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> bool:
    told = _CONDITION.fullmatch(condition)
    assert told is not None
    said = _evaluate_term(told[1], config, axes)
    if told[2] == "null":
        return said is None and is_told(told[1], config)
    return said is False if told[2] else bool(said)


def _calculate(left: float, operator: str, right: float) -> float | None:
    if operator == "*":
        return left * right
    if operator == "+":
        return left + right
    if operator == "^":
        return float(left) ** right if left > 0 else math.nan
    if type(left) is int and type(right) is int:
        # Two sizes give a size or nothing.
        return left // right if left % right == 0 else None
    return left / right


def _evaluate_term(term: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> Any:
    if _NUMBER.fullmatch(term):
        return float(term) if re.search(r"[.eE]", term) else int(term)
    if term[0] == "'":
        return term.strip("'")
    if term in axes:
        return axes[term]
    value: Any = config
    for key in term.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value

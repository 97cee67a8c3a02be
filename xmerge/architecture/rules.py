"""Rules of a family file: how a size or a trait is read from config.json.

`num_key_value_heads | heads` means: the first of these that is there. A choice is a key of config.json (with dots into
what it nests), an axis, a number, a text in quotes, or two of them joined by `/`, `*`, `^` or `+`; an empty list is not
there. `sliding_window if use_sliding_window` is there only where config.json says yes to the key behind `if`, and
`'sequential' if parallel_attn is false` only where it says no.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from xmerge.errors import CheckpointError

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_OPERATION = re.compile(r"(\S+)\s*([/*^]|(?<=\s)\+)\s*(\S+)")
_TERM = re.compile(rf"{_NUMBER.pattern}|'[^']*'|\w+(\.\w+)*")
_KEY = re.compile(r"(?<![\w'])[A-Za-z_]\w*(?:\.\w+)*")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_CONDITION = re.compile(r"(\w+(?:\.\w+)*)( is false)?")


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


def tell_said(choice: str, config: Mapping[str, Any], value: Any) -> str:
    """`rope_theta = 'x'`: the keys of config.json that a choice of a rule reads, and what they say.

    Args:
        choice: The choice.
        config: What it was found in.
        value: What it came to, which is told where no key stands behind it.
    """
    keys = {key: _evaluate_term(key, config, {}) for key in _KEY.findall(_split_condition(choice)[0])}
    told = [f"{key} = {show(said)}" for key, said in keys.items() if said is not None]
    return " and ".join(told) or f"{choice} = {show(value)}"


def show(value: Any) -> str:
    """A value of config.json as it stands there, cut short where it is long or deep."""
    return _SHORT.repr(value)


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
    said = _evaluate_term(condition.removesuffix(" is false"), config, axes)
    return said is False if condition.endswith(" is false") else bool(said)


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

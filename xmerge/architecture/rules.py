"""Rules of a family file: how a size or a trait is read from config.json.

`num_key_value_heads | heads` means: the first of these that is there. A choice is a key of config.json (with dots into
what it nests), an axis, a number, a text in quotes, or two of them joined by `/`, `*`, `^` or `+`; an empty list is not
there. `sliding_window if use_sliding_window` is there only where config.json says yes to the key behind `if`, and
`'sequential' if parallel_attn is false` only where it says no.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_OPERATION = re.compile(r"(\S+)\s*([/*^]|(?<=\s)\+)\s*(\S+)")
_TERM = re.compile(rf"{_NUMBER.pattern}|'[^']*'|\w+(\.\w+)*")
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


def _evaluate_choice(choice: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> Any:
    told, condition = _split_condition(choice)
    if condition is not None and not _holds(condition, config, axes):
        return None
    operation = _OPERATION.fullmatch(told)
    if operation is None:
        return _evaluate_term(told, config, axes)
    left, right = (_evaluate_term(operation[side], config, axes) for side in (1, 3))
    if type(left) not in (int, float) or type(right) not in (int, float):
        return None
    try:
        return _calculate(left, operation[2], right)
    except (OverflowError, ZeroDivisionError):
        return None


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
        return float(left) ** right if left > 0 else None
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

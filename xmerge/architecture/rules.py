"""Rules of a family file: how a size or a trait is read from config.json.

`num_key_value_heads | heads` means: the first of these that is there. A choice is a key of config.json (with dots into
what it nests), an axis, a number, a text in quotes, or two of them joined by `/`, `*` or `^`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_OPERATION = re.compile(r"(\S+)\s*([/*^])\s*(\S+)")


def find_choice(rule: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> tuple[str, Any]:
    """The first choice of a rule that says something for a config.json, and what; the value is None where none does."""
    for choice in map(str.strip, rule.split("|")):
        value = _evaluate_choice(choice, config, axes)
        if value is not None:
            return choice, value
    return rule, None


def evaluate_rule(rule: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> Any:
    """What a rule says for a config.json; None where it says nothing."""
    return find_choice(rule, config, axes)[1]


def _evaluate_choice(choice: str, config: Mapping[str, Any], axes: Mapping[str, int]) -> Any:
    operation = _OPERATION.fullmatch(choice)
    if operation is None:
        return _evaluate_term(choice, config, axes)
    left, right = (_evaluate_term(operation[side], config, axes) for side in (1, 3))
    if type(left) not in (int, float) or type(right) not in (int, float):
        return None
    match operation[2]:
        case "*":
            return left * right
        case "^":
            return float(left) ** right if left > 0 else None
        case _:
            if right == 0:
                return None
            # Two sizes give a size or nothing.
            whole = type(left) is int and type(right) is int
            return (left // right if left % right == 0 else None) if whole else left / right


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

"""Rules of family files: what they read from a config.json, whatever it says."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmerge.architecture.rules import check_rule, evaluate_rule, find_choice

AXES = {"hidden": 64, "heads": 4}
HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**63, 10**400, -(10**400)])
    | st.floats()
    | st.text(max_size=5),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.sampled_from(["b", "hidden"]), value, max_size=2),
    max_leaves=5,
)
TERMS = st.sampled_from(["a", "a.b", "a.b.b", "hidden", "4", "0", "-0.5", "1e-6", "'text'", "''"])
CONDITIONS = st.sampled_from(["a", "a.b", "hidden", "a is false", "a.b is false", "a is null", "a.b is null"])
CHOICES = (
    TERMS
    | st.builds("{} {} {}".format, TERMS, st.sampled_from("/*^+"), TERMS)
    | st.builds("{} if {}".format, TERMS, CONDITIONS)
    | st.builds("{} ^ {} if {}".format, TERMS, TERMS, CONDITIONS)
)
RULES = st.lists(CHOICES, min_size=1, max_size=3).map(" | ".join)


@given(RULES, st.fixed_dictionaries({}, optional={"a": HOSTILE}))
def test_a_rule_gives_something_or_nothing(rule: str, config: dict[str, Any]):
    """No config.json makes a rule fail, and what is told is told by one of its choices."""
    check_rule(rule)
    choice, value = find_choice(rule, config, AXES)
    assert value is None or choice in rule
    assert repr(evaluate_rule(rule, config, AXES)) == repr(value)


@given(RULES, RULES, st.fixed_dictionaries({}, optional={"a": HOSTILE}))
def test_the_first_choice_that_is_there_wins(first: str, second: str, config: dict[str, Any]):
    """Of two rules joined by `|`, the second speaks only where the first says nothing."""
    told = evaluate_rule(first, config, AXES)
    joined = evaluate_rule(f"{first} | {second}", config, AXES)
    assert repr(joined) == repr(evaluate_rule(second, config, AXES) if told is None else told)


@given(TERMS, st.sampled_from(["a", "a.b", "hidden"]), st.fixed_dictionaries({}, optional={"a": HOSTILE}))
def test_a_condition_only_takes_away(term: str, key: str, config: dict[str, Any]):
    """A choice with a condition says what it says without, or nothing: that is what the key decides."""
    said = evaluate_rule(f"{key} | 'nothing'", config, AXES)
    told = repr(evaluate_rule(term, config, AXES))
    assert repr(evaluate_rule(f"{term} if {key}", config, AXES)) == (told if said and said != "nothing" else "None")
    assert repr(evaluate_rule(f"{term} if {key} is false", config, AXES)) == (told if said is False else "None")


@pytest.mark.parametrize(
    ("rule", "config", "value"),
    [
        ("a | b", {"a": None, "b": 2}, 2),
        ("a | b", {"a": 0, "b": 2}, 0),
        ("a | b", {"a": False, "b": 2}, False),
        ("a.b", {"a": {"b": 7}}, 7),
        ("a.b", {"a": [7]}, None),
        ("hidden", {"hidden": 3}, 64),
        ("hidden / heads", {}, 16),
        ("hidden / a", {"a": 3}, None),
        ("hidden / a", {"a": 0}, math.nan),
        ("hidden / a", {"a": 0.0}, math.nan),
        ("hidden / a", {}, None),
        ("hidden / a", {"a": True}, math.nan),
        ("a * heads", {"a": True}, math.nan),
        ("a / 2 | 7", {"a": "4"}, math.nan),
        ("hidden / a", {"a": "4"}, math.nan),
        ("1.0 / a", {"a": 8}, 0.125),
        ("4 * hidden", {}, 256),
        ("a * 0.5", {"a": 10**400}, math.nan),
        ("hidden ^ 0.5", {}, 8.0),
        ("a ^ -0.5", {"a": 16}, 0.25),
        ("a ^ -0.5", {"a": 0}, math.nan),
        ("a ^ -0.5", {"a": -16}, math.nan),
        ("a ^ a", {"a": 10**6}, math.nan),
        ("'parallel' if a | 'sequential'", {"a": True}, "parallel"),
        ("'parallel' if a | 'sequential'", {"a": False}, "sequential"),
        ("'parallel' if a | 'sequential'", {}, "sequential"),
        ("'sequential' if a is false | 'parallel'", {"a": False}, "sequential"),
        ("'sequential' if a is false | 'parallel'", {"a": None}, "parallel"),
        ("a | hidden if a is null | 8", {"a": None}, AXES["hidden"]),
        ("a | hidden if a is null | 8", {}, 8),
        ("a.b | hidden if a.b is null | 8", {"a": {"b": None}}, AXES["hidden"]),
        ("a.b | hidden if a.b is null | 8", {"a": None}, 8),
        ("a | b", {"a": [], "b": [0]}, [0]),
        ("a + heads", {"a": 3}, 7),
        ("1e-5", {}, 1e-5),
        ("-2", {}, -2),
    ],
)
def test_a_rule_says_what_it_is_written_to_say(rule: str, config: dict[str, Any], value: object):
    """A null is not there, an axis goes before a key of its name, and what cannot be reckoned with is no number."""
    told = evaluate_rule(rule, config, AXES)
    assert type(told) is type(value)
    assert repr(told) == repr(value)


@pytest.mark.parametrize("size", [7, 2**53 + 1, 2**70])
def test_sizes_stay_whole(size: int):
    """A size divided by a size is exact, or nothing."""
    assert evaluate_rule("a / 7", {"a": 7 * size}, {}) == size
    assert evaluate_rule("a / 7", {"a": 7 * size + 1}, {}) is None
    assert math.isclose(evaluate_rule("a / 7.0", {"a": 7 * size}, {}), size)


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "a |",
        "| a",
        "hidden // heads",
        "a+b",
        "(a)",
        "'text",
        "a b",
        "a if",
        "a if b c",
        "a if b if c",
        "a if b is true",
    ],
)
def test_what_is_no_rule_is_refused(rule: str):
    """A rule that could never say anything is a mistake of the family file, and is named."""
    with pytest.raises(ValueError, match="is no rule"):
        check_rule(rule)

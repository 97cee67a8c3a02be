"""Values, and the names they get from what they say."""

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xmerge.values import Fingerprinted, canonical_json, fingerprint_json

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


class Point(Fingerprinted):
    """A value to test with."""

    x: int
    label: str = "p"


@given(json_values)
def test_canonical_json_says_all_of_a_value(value: Any):
    """What was written reads back equal, in ASCII and without a space that is not part of a text."""
    text = canonical_json(value)
    assert json.loads(text) == value
    assert text.isascii()


@given(st.dictionaries(st.text(), json_values, min_size=2, max_size=5))
def test_the_order_of_keys_does_not_count(value: dict[str, Any]):
    """Two mappings that say the same have the same fingerprint."""
    assert fingerprint_json(dict(reversed(value.items()))) == fingerprint_json(value)


@given(json_values, json_values)
def test_other_values_have_other_fingerprints(one: Any, other: Any):
    """Values that are written differently have different fingerprints."""
    assert (fingerprint_json(one) == fingerprint_json(other)) == (canonical_json(one) == canonical_json(other))


def test_a_fingerprint_is_the_digest_of_the_json():
    """A fingerprint can be computed without this library: SHA-256 of JSON with sorted keys and no spaces."""
    assert Point(x=1).fingerprint == hashlib.sha256(b'{"label":"p","x":1}').hexdigest()


def test_what_is_no_number_has_no_fingerprint():
    """NaN and infinity are not JSON, and are refused rather than written in somebody's dialect."""
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            fingerprint_json([value])


def test_a_value_cannot_be_changed_or_extended():
    """A value stays what it was, takes no keys it does not know, and can be a key itself."""
    point = Point(x=1)
    with pytest.raises(ValidationError, match="frozen"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Point.model_validate({"x": 1, "y": 2})
    assert {point: 1}[Point(x=1)] == 1

"""JSON and names that somebody else wrote: bounded before anything is built from them, and read without surprises."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_DEPTH = 100
MAX_NAME = 512
"""Characters of a tensor's name, and of a file's."""

_TENSOR_NAME = re.compile(rf"[A-Za-z0-9_][\x21-\x7e]{{0,{MAX_NAME - 1}}}")
_MARKS = (b",", b"[", b"{")


class Bounds(NamedTuple):
    """How much JSON is read at most, so that nobody's file takes all the memory."""

    nbytes: int
    """Of its text, each character as wide as the widest."""
    values: int
    """Counted before it is parsed, as are the keys: each takes up to 300 bytes."""
    keys: int
    """Those of an object are held twice while it is parsed."""


SMALL = Bounds(25_000_000, 750_000, 400_000)
"""Of a header, an index or a config.json: what huggingface_hub reads of a header, and 90,000 tensors in one file."""
LARGE = Bounds(2**28, 2**22, 2**22)
"""Of a tokenizer."""


class UntrustedError(ValueError):
    """What is wrong with a text, as the end of a sentence that begins with its name."""


def parse_object(raw: bytes, bounds: Bounds = SMALL, *, unique: bool = True) -> dict[str, Any]:
    """The JSON object in UTF-8 bytes, with no key twice in one object if keys are to be `unique`.

    Raises:
        UntrustedError: It is no such object, or larger or deeper than anything real.
    """
    if len(raw) * (1 if raw.isascii() else 4) > bounds.nbytes:
        raise UntrustedError(f"takes more than {bounds.nbytes:,} bytes")
    if sum(map(raw.count, _MARKS)) > bounds.values:
        raise UntrustedError(f"holds more than {bounds.values:,} values")
    if raw.count(b":") > bounds.keys:
        raise UntrustedError(f"holds more than {bounds.keys:,} keys")
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_take_unique if unique else None)
    except UntrustedError:
        raise
    except (ValueError, RecursionError):
        raise UntrustedError("is not JSON") from None
    if not isinstance(data, dict):
        raise UntrustedError("is not a JSON object")
    if _is_deep(data):
        raise UntrustedError(f"is nested more than {MAX_DEPTH} deep")
    return data


def is_tensor_name(name: Any) -> bool:
    """Whether a text may name a tensor: printable ASCII without spaces, which begins with a letter, a digit or `_`."""
    return isinstance(name, str) and _TENSOR_NAME.fullmatch(name) is not None


def is_plain_shard_name(name: Any) -> bool:
    """Whether a name from an index can only mean a file beside the index."""
    return (
        isinstance(name, str)
        and len(name) <= MAX_NAME
        and name.endswith(".safetensors")
        and name.isprintable()
        and not name.startswith(".")
        and not any(part in name for part in ("/", "\\", ":", "\0"))
    )


def _take_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise UntrustedError(f"has the key {key[:80]!r} twice")
        data[key] = value
    return data


def _is_deep(data: Mapping[str, Any]) -> bool:
    """Whether anything that looks into the data level by level could run out of stack."""
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True

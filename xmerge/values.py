"""Values: frozen, comparable, and named by the SHA-256 of what they say."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen record that refuses unknown keys; sequences in it are tuples, never lists or sets."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Fingerprinted(Value):
    """A value that is named by all it says."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the value's JSON with sorted keys."""
        return fingerprint_json(self.model_dump(mode="json"))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint_json(value: Any) -> str:
    """SHA-256, in hex, of a JSON-able value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()

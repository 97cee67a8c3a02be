"""The base of every configuration object: an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from xmerge.errors import nearest
from xmerge.values import Fingerprinted


class Strict(Fingerprinted):
    """A value that says which key it does not know, and which one was probably meant."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()} | set(cls.model_fields)
            for key in data:
                if key not in known:
                    raise complain(f"unknown key '{key}'; {nearest(str(key), known)}", key)
        return data


def complain(text: str, *at: str | int) -> PydanticCustomError:
    """An error whose place in the file is `at`, counted from the object under validation."""
    return PydanticCustomError("xmerge", text, {"at": at})

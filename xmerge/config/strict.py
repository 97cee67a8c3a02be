"""The base of every configuration object: an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from xmerge.errors import nearest
from xmerge.values import Fingerprinted


class Strict(Fingerprinted):
    """A value that says which key it does not know, and which one was probably meant."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        known = cls.model_fields
        unknown = [key for key in data if key not in known] if isinstance(data, dict) else []
        if not unknown:
            return validate(data)
        remedies = {key: nearest(str(key), known) for key in unknown}
        faults = [
            InitErrorDetails(type=complain(f"unknown key {show(key)}; {remedy}", str(key)), loc=(), input=None)
            for key, remedy in remedies.items()
        ]
        # The known keys are read all the same, so that their faults are told too.
        try:
            validate({key: value for key, value in data.items() if key in known})
        except ValidationError as error:
            faults += [_repeat(fault) for fault in error.errors(include_url=False) if not _is_misspelt(fault, remedies)]
        raise ValidationError.from_exception_data(cls.__name__, faults)


def complain(text: str, *at: str | int) -> PydanticCustomError:
    """An error whose place in the file is `at`, counted from the object under validation."""
    return PydanticCustomError("xmerge", text, {"at": at})


def show(raw: Any) -> str:
    """A value of the file as an error shows it: short, and on one line."""
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return str(raw).lower()
    return _short.repr(raw)


_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = 60


def _is_misspelt(fault: Any, remedies: Mapping[Any, str]) -> bool:
    """Whether a missing key is there under another name."""
    return fault["type"] == "missing" and f"did you mean '{fault['loc'][-1]}'?" in remedies.values()


def _repeat(fault: Any) -> InitErrorDetails:
    error = PydanticCustomError(fault["type"], fault["msg"], fault.get("ctx", {}))
    return InitErrorDetails(type=error, loc=fault["loc"], input=fault["input"])

"""What a stopped task is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from prefect.states import Cancelled

from xmerge.errors import Interrupted

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


def cancelled_when_stopped(work: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Let a task that its run's stop has ended be Cancelled, and not Failed, which would be red among the pages."""

    @wraps(work)
    def carried_out(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        try:
            return work(*args, **kwargs)
        except Interrupted as error:
            # A state that a task returns becomes its own.
            return cast("Value", Cancelled(name="Interrupted", message=str(error)))

    return carried_out

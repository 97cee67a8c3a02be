"""What a stopped task is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from prefect.states import Cancelled
from prefect.transactions import get_transaction

from xmerge.errors import Interrupted
from xmerge.interrupt import check_stop

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


def cancelled_when_stopped(work: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Let a task that its run's stop has ended be Cancelled, and not Failed, which would be red among the pages."""

    @wraps(work)
    def carried_out(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        try:
            # A task that was waiting for its next try would begin it.
            check_stop()
            return work(*args, **kwargs)
        except Interrupted as error:
            _keep_no_record()
            # A state that a task returns becomes its own.
            return cast("Value", Cancelled(name="Interrupted", message=str(error)))

    return carried_out


def _keep_no_record() -> None:
    """Else Prefect records what a task has returned: no result, which a later run would find and believe."""
    transaction = get_transaction()
    if transaction is not None:
        transaction.write_on_commit = False

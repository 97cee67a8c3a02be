"""Which failures are worth a second try: those that may pass by themselves, never a person's mistake."""

from __future__ import annotations

import errno
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from xmerge.errors import HubUnavailableError, XmergeError

PASSING_FAULTS = ("EAGAIN", "EBUSY", "EINTR", "EIO", "ENETDOWN", "ENETUNREACH", "ESTALE", "ETIMEDOUT")


def may_pass(error: BaseException | None) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, HubUnavailableError):
        return True
    if isinstance(error, XmergeError):
        return isinstance(error.__cause__, OSError) and may_pass(error.__cause__)
    # By name, because importing torch to ask would cost more than a whole run of small layers.
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in PASSING_FAULTS


def is_worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Prefect's question before a retry."""
    return isinstance(state.data, BaseException) and may_pass(state.data)

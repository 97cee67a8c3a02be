"""How the log of a run tells of an error: what a person can mend in its own words, a bug with its traceback."""

from __future__ import annotations

import logging
from weakref import WeakSet

from xmerge.errors import XmergeError

LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
"""Where Prefect logs that a run has raised, each time with the traceback."""


class PlainErrors(logging.Filter):
    """Puts an error that xmerge raises on purpose in the place of its traceback, and passes each of them once."""

    def __init__(self) -> None:
        super().__init__()
        self._told = WeakSet[XmergeError]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, XmergeError):
            return True
        # A task raises it, then its flow, then the process of the flow: three times the same.
        is_new = error not in self._told
        self._told.add(error)
        record.msg, record.args, record.exc_info = f"{type(error).__name__}: {error}", (), None
        return is_new


def tell_plainly() -> None:
    """Let every run of this process tell its errors plainly."""
    plain = PlainErrors()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(plain)

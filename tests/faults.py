"""Faults of a disk, as the system tells them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn


def fail_with(number: int) -> Callable[..., NoReturn]:
    """A function that fails with this errno, whatever it is called with."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail

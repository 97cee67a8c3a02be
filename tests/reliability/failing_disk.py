"""A disk that goes wrong at one chosen call, once or from then on."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xmerge import disk

CALLS = tuple(name for name in disk.__all__ if callable(getattr(disk, name)))
MOVES_BYTES = ("copy_file_range", "preadv", "pwrite")
TAKES_SPACE = ("allocate", "copy_file_range", "fsync", "ftruncate", "link", "mkdir", "pwrite", "rename")
KINDS = ("EIO", "ENOSPC", "short", "kill")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, at which call, counted from 1."""

    kind: str
    call: int
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {'from' if self.lasting else 'at'} call {self.call}"

    def strikes(self, call: int) -> bool:
        """Whether a call is hit."""
        return call == self.call or (self.lasting and call > self.call)


@dataclass(frozen=True)
class Call:
    """One call that was made."""

    name: str
    takes_space: bool

    def may_fail_with(self, kind: str) -> bool:
        """Whether a system could answer this call so."""
        return {"ENOSPC": self.takes_space, "short": self.name in MOVES_BYTES}.get(kind, True)


@contextmanager
def record_calls() -> Iterator[list[Call]]:
    """Every call that is made, in order."""
    made: list[Call] = []

    def record(name: str, real: Callable[..., Any], *args: Any) -> Any:
        made.append(_describe(name, args))
        return real(*args)

    with replaced(record):
        yield made


@contextmanager
def failing(fault: Fault) -> Iterator[None]:
    """A disk on which a fault strikes."""
    numbers = itertools.count(1)

    def call(name: str, real: Callable[..., Any], *args: Any) -> Any:
        if not fault.strikes(next(numbers)) or not _describe(name, args).may_fail_with(fault.kind):
            return real(*args)
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "short":
            return _move_few(name, real, *args)
        if name == "close":
            real(*args)  # A descriptor is gone even if its closing tells of an error.
        number = getattr(errno, fault.kind)
        raise OSError(number, os.strerror(number))

    with replaced(call):
        yield


def list_faults(calls: list[Call]) -> list[Fault]:
    """Every fault that can strike a run that makes these calls."""
    return [
        Fault(kind, number, lasting)
        for kind in KINDS
        for lasting in ((False,) if kind == "kill" else (False, True))
        for number, call in enumerate(calls, start=1)
        if call.may_fail_with(kind)
    ]


@contextmanager
def replaced(instead: Callable[..., Any]) -> Iterator[None]:
    """Ask `instead(name, real, *arguments)` at every call."""
    reals = {name: getattr(disk, name) for name in CALLS}

    def replace(name: str) -> Callable[..., Any]:
        return lambda *args: instead(name, reals[name], *args)

    for name in CALLS:
        setattr(disk, name, replace(name))
    try:
        yield
    finally:
        for name, real in reals.items():
            setattr(disk, name, real)


def _describe(name: str, args: tuple[Any, ...]) -> Call:
    creates = name == "open" and bool(args[1] & os.O_CREAT)
    return Call(name, creates or name in TAKES_SPACE)


def _move_few(name: str, real: Callable[..., int], *args: Any) -> int:
    """Half the bytes that were asked for, and one at least."""
    if name == "copy_file_range":
        source, target, count, *places = args
        return real(source, target, max(1, count // 2), *places)
    descriptor, data, place = args
    if name == "preadv":
        return real(descriptor, [data[0][: max(1, len(data[0]) // 2)]], place)
    return real(descriptor, data[: max(1, len(data) // 2)], place)

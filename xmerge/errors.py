"""Every error xmerge raises on purpose, as one tree; the class decides the exit code.

XmergeError                      (1: never raised itself)
├── ConfigError                  2  the configuration file is wrong
├── PlanError                    2  the plan it asks for cannot be carried out
│   └── OutputExistsError        2  OUT holds something that is not ours to replace
├── CheckpointError              3  an input is missing, damaged or of a kind that cannot be merged
│   ├── NonfiniteInputError      3  an input that is merged holds NaN or infinity
│   ├── SourceChangedError       3  an input changed between the plan and the reading
│   └── HubError                 3  the Hub refused or could not be reached
│       └── HubUnavailableError  3  for now only: the same request may succeed later
├── InvalidMergeError            4  the output did not validate
├── InUseError                   5  another run holds the output or the store
├── StorageError                 6  no space, no permission, I/O error
├── WorkerLostError              6  workers of a cluster die, or none is left
└── Interrupted                  130  stopped by a signal; run again to resume
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class XmergeError(Exception):
    """An error that tells a person what went wrong, where, why, and what to do.

    Args:
        what: The fault, in one sentence.
        where: File, key, model, tensor or layer concerned.
        why: The reason, where the fault alone does not say it.
        remedy: What the person can do about it.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | None = None, why: str | None = None, remedy: str | None = None
    ) -> None:
        self.what, self.where, self.why, self.remedy = what, where, why, remedy
        super().__init__(what, where, why, remedy)

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  at: {self.where}"] if self.where else []
        lines += [f"  why: {self.why}"] if self.why else []
        lines += [f"  do: {self.remedy}"] if self.remedy else []
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.why, self.remedy))


def _rebuild(kind: type[XmergeError], what: str, where: str | None, why: str | None, remedy: str | None) -> XmergeError:
    return kind(what, where=where, why=why, remedy=remedy)


class ConfigError(XmergeError):
    """The configuration file is wrong."""

    exit_code = 2


class PlanError(XmergeError):
    """The configuration is well formed, but what it asks for cannot be carried out."""

    exit_code = 2


class OutputExistsError(PlanError):
    """The output folder holds something that this run must not replace."""


class CheckpointError(XmergeError):
    """An input is missing, damaged, or of a kind that cannot be merged."""

    exit_code = 3


class NonfiniteInputError(CheckpointError):
    """An input that is merged holds NaN or infinity."""


class SourceChangedError(CheckpointError):
    """An input changed between the plan and the reading."""


class HubError(CheckpointError):
    """The Hub refused a request or could not be reached."""


class HubUnavailableError(HubError):
    """The Hub or the way to it is disturbed for now; the only Hub error worth retrying."""


class InvalidMergeError(XmergeError):
    """The output did not validate."""

    exit_code = 4


class InUseError(XmergeError):
    """Another run holds the output or the store."""

    exit_code = 5


class StorageError(XmergeError):
    """No space, no permission, or an I/O error."""

    exit_code = 6


class WorkerLostError(XmergeError):
    """The workers of a cluster die of the work, or are out of reach."""

    exit_code = 6


class Interrupted(XmergeError):
    """The run was stopped by a signal; running it again resumes."""

    exit_code = 130


def nearest(name: str, valid: Iterable[str]) -> str:
    """A remedy that names the nearest valid name, or all of them when none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"valid here: {', '.join(names)}." if names else "there are none."

"""Whether every worker sees the storage of a merge: asked before any weight is read, by files with a random token.

The flow leaves the token in the folders that workers write to; each worker reads it and leaves an answer, which the
flow must see. The files of the models are compared by size, time and inode, as the store compares them later.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from xmerge import disk
from xmerge.errors import PlanError, StorageError
from xmerge.files import read_text, remove_file, write_text
from xmerge.planning import MergePlan, pack_layers
from xmerge.planning.memory import fit_workers
from xmerge.units import SHARE, UnitOfWork, read_plan
from xmerge.values import Value

SECONDS_UNTIL_SEEN = 5.0
"""How long a network file system may keep an answer from other machines."""


class FileSeen(Value):
    """A file as one machine sees it."""

    path: str
    size: int
    modified_ns: int
    inode: int


class Question(Value):
    """What each worker is asked."""

    token: str
    folders: tuple[str, ...]
    """Where workers write, and the flow reads."""
    sources: tuple[FileSeen, ...]
    """What workers read."""
    unit: UnitOfWork
    """With no layers: where everything else is, and the device."""
    version: str
    """Of xmerge."""


class Answer(Value):
    """What a worker that sees the storage says."""

    name: str
    """Of the answer that it has left there."""
    host: str
    fits: int
    """How many layers' buffers fit into the memory of its machine together."""


@contextmanager
def ask(plan: MergePlan, unit: UnitOfWork, folders: Sequence[Path]) -> Iterator[Question]:
    """Leave a token in the folders for as long as it is asked about.

    Raises:
        StorageError: A folder cannot be written, or a source cannot be looked at.
    """
    token = uuid.uuid4().hex
    sources = [
        Path(folder) / shard[0]
        for folder, model in zip(unit.folders, plan.models, strict=True)
        for shard in model.shards
    ]
    try:
        for folder in folders:
            write_text(folder / _name(token), token)
        yield Question(
            token=token,
            folders=tuple(map(str, folders)),
            sources=tuple(_look_at(path) for path in sources if path.exists()),
            unit=unit,
            version=version("xmerge"),
        )
    finally:
        for folder in folders:
            for path in sorted(folder.glob(f"{_name(token)}*")):
                remove_file(path)


def answer(question: Question) -> Answer:
    """Look at the storage from a worker, and leave an answer there.

    Raises:
        StorageError: Something is not there, not the same, or cannot be written.
        PlanError: This worker has another version of xmerge, or too little memory for a single layer.
    """
    host, name = socket.gethostname(), f"{socket.gethostname()}.{os.getpid()}"
    if version("xmerge") != question.version:
        raise PlanError(
            f"{host} has xmerge {version('xmerge')}, and this merge is made by {question.version}.",
            remedy="install the same version on every machine.",
        )
    for folder in question.folders:
        _answer_in(Path(folder), question.token, host, name)
    for seen in question.sources:
        _compare(seen, host)
    plan = read_plan(question.unit.plan_file, question.unit.fingerprint)
    return Answer(name=name, host=host, fits=_count_fitting(plan, question.unit.device))


def _count_fitting(plan: MergePlan, device: str) -> int:
    """How many layers fit here at once; whether a GPU is here shows when the cluster gives it to a layer."""
    from xmerge.engine.devices import choose_device

    return fit_workers(plan, "cuda" if device.startswith("cuda") else choose_device(device).type, sys.maxsize)


def check_memory(plan: MergePlan, answers: Mapping[str, Answer], calls: Mapping[str, int]) -> None:
    """See whether the layers that a machine gets at once fit into its memory together.

    Args:
        plan: What is merged.
        answers: Of the workers, by address.
        calls: How many calls can be under way at once at each address.

    Raises:
        PlanError: They do not.
    """
    units = len(pack_layers(plan))
    for host in sorted({each.host for each in answers.values()}):
        here = [address for address in answers if answers[address].host == host]
        at_once = min(units, sum(calls.get(address, 0) for address in here))
        fits = min(answers[address].fits for address in here)
        if at_once > fits:
            raise PlanError(
                f"{host} has too little memory for its workers.",
                why=f"{at_once} layers are under way there at once, and the buffers of {fits} fit.",
                remedy=f"start workers for at most {fits} layers there.",
            )


def _answer_in(folder: Path, token: str, host: str, name: str) -> None:
    try:
        _wait_for(folder / _name(token))
        write_text(folder / f"{_name(token)}.{name}", token)
    except OSError as error:
        raise StorageError(
            f"{host} does not see the storage of this merge.",
            where=str(folder),
            why=f"{error.strerror}: what the flow has written there is to be read and answered.",
            remedy=SHARE,
        ) from error


def _compare(seen: FileSeen, host: str) -> None:
    try:
        here = _look_at(Path(seen.path))
    except OSError as error:
        raise StorageError(
            f"{host} does not see a model of this merge.", where=seen.path, why=f"{error.strerror}.", remedy=SHARE
        ) from error
    if here != seen:
        raise StorageError(
            f"{host} sees another file of a model than the flow does.",
            where=seen.path,
            why="size, time of change and inode are to be the same.",
            remedy=SHARE,
        )


def check_answers(question: Question, names: dict[str, str]) -> None:
    """See whether the answers of all workers have come to the flow.

    Args:
        question: What was asked.
        names: The name of each worker's answer.

    Raises:
        StorageError: One has not: that worker writes somewhere else.
    """
    for worker, name in names.items():
        for folder in question.folders:
            path = Path(folder) / f"{_name(question.token)}.{name}"
            try:
                _wait_for(path)
                same = read_text(path) == question.token
            except OSError:
                same = False
            if not same:
                raise StorageError(f"what {worker} writes is not seen by the flow.", where=folder, remedy=SHARE)


def _wait_for(path: Path) -> None:
    """Return when a file is there, and before a network file system must have shown it.

    Raises:
        OSError: It is not there.
    """
    deadline = time.monotonic() + SECONDS_UNTIL_SEEN
    while True:
        try:
            disk.stat(path)
        except FileNotFoundError:
            if time.monotonic() > deadline or not path.parent.is_dir():
                raise
            time.sleep(0.1)
        else:
            return


def _look_at(path: Path) -> FileSeen:
    status = disk.stat(path)
    return FileSeen(path=str(path), size=status.st_size, modified_ns=status.st_mtime_ns, inode=status.st_ino)


def _name(token: str) -> str:
    return f"probe-{token}"

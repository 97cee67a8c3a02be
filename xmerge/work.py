"""The work folder beside the output: one lock, the store, and the output in the making."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmerge.checkpoints.checkpoint import INDEX_NAME
from xmerge.errors import InUseError, OutputExistsError, PlanError, StorageError
from xmerge.files import free_bytes, storage_error, write_text
from xmerge.planning.plan import MergePlan
from xmerge.provenance import PROVENANCE_NAME, read_provenance
from xmerge.store import Store

LOCK_NAME = "lock"
ATTEMPTS = 100


@dataclass(frozen=True)
class WorkFolder:
    """A locked place to work in."""

    out: Path
    path: Path
    store: Store
    finished: bool
    """Whether the output is there already, made by this very plan: nothing is to do."""

    @property
    def staged(self) -> Path:
        """The output in the making."""
        return self.path / "output"

    @property
    def records(self) -> Path:
        """Prefect's records of finished tasks."""
        return self.store.path / "records"

    @property
    def plan_file(self) -> Path:
        """The plan, for tasks that run in other processes."""
        return self.path / "plan.json"


@contextlib.contextmanager
def open_work_folder(out: Path, plan: MergePlan, store: Path | None = None) -> Iterator[WorkFolder]:
    """Lock the work folder of an output and hold the lock while working.

    Afterwards the folder is there only if it holds finished layers, and the output is not.

    Args:
        out: Where the output is to appear.
        plan: What it is to be.
        store: A store to keep and share; default: one in the work folder, which goes away with it.

    Raises:
        OutputExistsError: `out` holds something that this plan did not make, or is or lies in an input.
        PlanError: The store is no place for a store.
        InUseError: Another run holds the output.
        StorageError: The folder cannot be made, or the disk has no room for the output.
    """
    out = _resolve(out)
    _refuse_inputs(out, plan)
    finished = is_finished(out, plan)
    path = out.with_name(f".{out.name}.xmerge")
    own = Store(path / "store" if store is None else _resolve(store))
    _refuse_store(own.path, out, plan)
    if finished and not _exists(path):
        yield WorkFolder(out, path, own, finished=True)
        return
    with _locked(path, out) as lock:
        # Once more, because the run that held the lock until now may have made the output.
        work = WorkFolder(out, path, own, is_finished(out, plan))
        try:
            shutil.rmtree(work.staged, ignore_errors=True)
            if not work.finished:
                _prepare_store(work, plan)
            yield work
        finally:
            if _is_still_there(lock, path / LOCK_NAME):
                shutil.rmtree(work.staged, ignore_errors=True)
                if work.finished or not _is_worth_resuming(path):
                    remove_work_folder(work)


def remove_work_folder(work: WorkFolder) -> None:
    """Remove the work folder as far as it can be; the lock's file goes last, while the lock is held."""
    with contextlib.suppress(OSError):
        for entry in sorted(work.path.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK_NAME:
                entry.unlink(missing_ok=True)
        (work.path / LOCK_NAME).unlink(missing_ok=True)
        work.path.rmdir()


def is_finished(out: Path, plan: MergePlan) -> bool:
    """Whether the output is there and is what the plan would make.

    Raises:
        OutputExistsError: Something else is there.
        StorageError: It cannot be read.
    """
    out = _resolve(out)
    if not _exists(out):
        return False
    if not out.is_dir():
        raise OutputExistsError(f"{out} exists and is no folder.", remedy="name another output.")
    try:
        names = sorted(os.listdir(out))
    except OSError as error:
        raise StorageError(f"{out} cannot be read: {error.strerror}.") from error
    if not names:
        if os.path.ismount(out):
            raise OutputExistsError(
                f"{out} is the root of a mounted file system, and an output appears by a rename.",
                remedy=f"name a folder in it, such as {out / 'merged'}.",
            )
        return False
    provenance = read_provenance(out) if PROVENANCE_NAME in names else None
    if provenance is None:
        raise OutputExistsError(
            f"{out} exists and was not made by xmerge (it holds {', '.join(names[:3])}).",
            remedy="name another output, or remove it yourself.",
        )
    _refuse_another_merge(out, plan, provenance)
    damaged = _list_damage(out, plan, provenance)
    if damaged:
        raise OutputExistsError(
            f"{out} is this merge's output and has lost or changed {', '.join(damaged[:3])}.",
            remedy="remove the folder and run again.",
        )
    return True


def write_plan(work: WorkFolder, plan: MergePlan) -> None:
    """Leave the plan in the work folder.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        write_text(work.plan_file, json.dumps(plan.model_dump(mode="json")))
    except OSError as error:
        raise storage_error(error, work.path) from error


def _refuse_another_merge(out: Path, plan: MergePlan, provenance: dict[str, Any]) -> None:
    remedy = "name another output, or remove it yourself."
    if provenance["plan_fingerprint"] != plan.fingerprint:
        raise OutputExistsError(
            f"{out} is the output of another merge, or of other versions of these models.",
            why=f"its plan is {provenance['plan_fingerprint'][:12]}, this one's {plan.fingerprint[:12]}.",
            remedy=remedy,
        )
    if provenance.get("config_fingerprint") != plan.config_fingerprint:
        raise OutputExistsError(
            f"{out} is the output of another configuration.",
            why="it has the same plan, so the weights are the same; what its files say of their making is not.",
            remedy=remedy,
        )


def _list_damage(out: Path, plan: MergePlan, provenance: dict[str, Any]) -> list[str]:
    """Files that are not there, or not as this plan would make them, as far as that is seen without reading weights."""
    damaged = [shard["file"] for shard in provenance["shards"] if not _has_size(out / shard["file"], shard["bytes"])]
    names = ("config.json", INDEX_NAME, *plan.side_files)
    return damaged + [name for name in names if not (out / name).is_file()]


def _resolve(path: Path) -> Path:
    """A path without symbolic links: an output behind a link appears where the link points to."""
    return Path(os.path.realpath(path.expanduser()))


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageError(f"{path} cannot be looked at: {error.strerror}.") from error
    return True


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _refuse_inputs(out: Path, plan: MergePlan) -> None:
    for model in plan.models:
        if model.folder is not None and out.is_relative_to(_resolve(model.folder)):
            lies = "is" if out == _resolve(model.folder) else "lies in"
            raise OutputExistsError(f"the output {out} {lies} the input {model.label}.", remedy="name another output.")


def _refuse_store(store: Path, out: Path, plan: MergePlan) -> None:
    places = [(out, "the output")]
    places += [(_resolve(m.folder), f"the input {m.label}") for m in plan.models if m.folder is not None]
    for place, told in places:
        if store.is_relative_to(place):
            raise PlanError(f"the store {store} lies in {told}.", remedy="name another folder with --store.")


def _prepare_store(work: WorkFolder, plan: MergePlan) -> None:
    try:
        work.store.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the store {work.store.path} cannot be made: {error.strerror}.") from error
    work.store.sweep()
    _require_space(work, plan)


def _require_space(work: WorkFolder, plan: MergePlan) -> None:
    """Refuse now what would fill the disk later; the output takes no space of its own beside its store."""
    missing = [layer for layer in plan.layers if not work.store.shard_path(layer.fingerprint).exists()]
    needs = {work.store.path: sum(len(layer.header) + layer.bytes_written for layer in missing)}
    if os.stat(work.store.path).st_dev != os.stat(work.path).st_dev:
        needs[work.path] = plan.bytes_written
    for folder, needed in needs.items():
        free = free_bytes(folder)
        if free is not None and free < needed:
            raise StorageError(
                f"there is too little space in {folder}.",
                why=f"{needed:,} bytes are needed and {free:,} are free.",
                remedy="free some space, or name another output or store.",
            )


def _is_worth_resuming(path: Path) -> bool:
    """Whether the work folder itself holds finished layers; a store elsewhere does not need it."""
    return Store(path / "store").holds_anything()


@contextlib.contextmanager
def _locked(path: Path, out: Path) -> Iterator[int]:
    """Hold the kernel's lock on a file in the folder: it ends with the process, however that ends."""
    made = [parent for parent in path.parents if not _exists(parent)]
    try:
        lock = _take_lock(path, out)
    except BaseException:
        _remove_empty(made)
        raise
    try:
        yield lock
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
        os.close(lock)
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove what was made for the work folder, from the inside out, unless something has come into it."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _take_lock(path: Path, out: Path) -> int:
    for attempt in range(ATTEMPTS):
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            # The holder may have removed the folder in this very moment.
            if isinstance(error, FileNotFoundError) and attempt + 1 < ATTEMPTS:
                continue
            raise StorageError(f"the work folder {path} cannot be made: {error.strerror}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_signature(lock)
            os.close(lock)
            raise InUseError(
                f"{out} is being merged by {holder}.", remedy="wait for it to end, or name another output."
            ) from None
        except OSError as error:
            os.close(lock)
            raise StorageError(f"the work folder {path} cannot be locked: {error.strerror}.") from error
        if _is_still_there(lock, path / LOCK_NAME):
            _sign(lock)
            return lock
        os.close(lock)
    raise StorageError(f"the work folder {path} is removed as often as it is made.", remedy="run again.")


def _is_still_there(lock: int, path: Path) -> bool:
    """Whether the locked file still has its name: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except OSError:
        return False


def _sign(lock: int) -> None:
    # A signature that cannot be written, on a full disk, is missed by nobody but a second run.
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()} since {when}\n".encode(), 0)


def _read_signature(lock: int) -> str:
    """Who holds the lock; it may have been taken in this very moment and not be signed yet."""
    for _ in range(20):
        holder = os.pread(lock, 4096, 0).decode(errors="replace").strip()
        if holder:
            return holder
        time.sleep(0.01)
    return "another process"

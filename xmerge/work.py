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

from xmerge.errors import InUseError, OutputExistsError, StorageError
from xmerge.planning.plan import MergePlan
from xmerge.provenance import PROVENANCE_NAME, read_provenance
from xmerge.store import Store


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

    Args:
        out: Where the output is to appear.
        plan: What it is to be.
        store: A store to keep and share; default: one in the work folder, which goes away with it.

    Raises:
        OutputExistsError: `out` holds something that this plan did not make, or is or lies in an input.
        InUseError: Another run holds the output.
        StorageError: The folder cannot be made.
    """
    out = out.expanduser().absolute()
    _refuse_inputs(out, plan)
    finished = is_finished(out, plan)
    path = out.with_name(f".{out.name}.xmerge")
    with _locked(path, out):
        _clear_leftovers(path)
        own = Store(path / "store") if store is None else Store(store.expanduser().absolute())
        try:
            own.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the store {own.path} cannot be made: {error.strerror}.") from error
        if store is None:
            own.sweep()
        yield WorkFolder(out, path, own, finished)


def remove_work_folder(work: WorkFolder) -> None:
    """Remove the work folder; the lock's file goes last, while the lock is held."""
    for entry in work.path.iterdir():
        if entry.name != LOCK_NAME:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (work.path / LOCK_NAME).unlink(missing_ok=True)
    work.path.rmdir()


def is_finished(out: Path, plan: MergePlan) -> bool:
    """Whether the output is there and is what the plan would make.

    Raises:
        OutputExistsError: Something else is there.
    """
    if not out.exists() and not out.is_symlink():
        return False
    if not out.is_dir():
        raise OutputExistsError(f"{out} exists and is no folder.", remedy="name another output.")
    try:
        names = sorted(os.listdir(out))
    except OSError as error:
        raise StorageError(f"{out} cannot be read: {error.strerror}.") from error
    if not names:
        return False
    provenance = read_provenance(out) if PROVENANCE_NAME in names else None
    if provenance is None:
        raise OutputExistsError(
            f"{out} exists and was not made by xmerge (it holds {', '.join(names[:3])}).",
            remedy="name another output, or remove it yourself.",
        )
    same = provenance.get("plan_fingerprint") == plan.fingerprint
    if not same or provenance.get("config_fingerprint") != plan.config_fingerprint:
        raise OutputExistsError(
            f"{out} is the output of another merge, or of other versions of these models.",
            why=f"its plan is {str(provenance.get('plan_fingerprint'))[:12]}, this one's {plan.fingerprint[:12]}.",
            remedy="name another output, or remove it yourself.",
        )
    damaged = [
        shard["file"] for shard in provenance.get("shards", []) if not _has_size(out / shard["file"], shard["bytes"])
    ]
    if damaged:
        raise OutputExistsError(
            f"{out} is this merge's output and has lost or changed {', '.join(damaged[:3])}.",
            remedy="remove the folder and run again.",
        )
    return True


LOCK_NAME = "lock"


@contextlib.contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    """Hold the kernel's lock on a file in the folder: it ends with the process, however that ends."""
    file = _take_lock(path, out)
    try:
        yield
    finally:
        os.close(file)


def _take_lock(path: Path, out: Path) -> int:
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            file = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # The holder removed the folder in this very moment.
        except OSError as error:
            raise StorageError(f"the work folder {path} cannot be made: {error.strerror}.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 4096, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise InUseError(
                f"{out} is being merged by {holder}.", remedy="wait for it to end, or name another output."
            ) from None
        if _is_still_there(file, path / LOCK_NAME):
            _sign(file)
            return file
        os.close(file)


def _is_still_there(file: int, path: Path) -> bool:
    """Whether the locked file still has its name: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: int) -> None:
    os.ftruncate(file, 0)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {when}\n".encode(), 0)


def _clear_leftovers(path: Path) -> None:
    shutil.rmtree(path / "output", ignore_errors=True)


def _refuse_inputs(out: Path, plan: MergePlan) -> None:
    place = out.resolve()
    for model in plan.models:
        if model.folder is not None and (place == model.folder or model.folder in place.parents):
            lies = "is" if place == model.folder else "lies in"
            raise OutputExistsError(f"the output {out} {lies} the input {model.label}.", remedy="name another output.")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def write_plan(work: WorkFolder, plan: MergePlan) -> None:
    """Leave the plan in the work folder."""
    work.plan_file.write_text(json.dumps(plan.model_dump(mode="json")), encoding="utf-8")

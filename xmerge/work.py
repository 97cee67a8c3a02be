"""The work folder beside the output: one lock, the store, and the output in the making."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xmerge import disk
from xmerge.errors import OutputExistsError, PlanError, StorageError
from xmerge.files import DISK_FULL, free_bytes, make_folders, remove_file, remove_tree, storage_error, write_text
from xmerge.finished import check_contents, exists, is_finished, resolve_path
from xmerge.lock import hold_folder, is_lock
from xmerge.planning.plan import MergePlan
from xmerge.reservation import estimate_entry, estimate_texts, hold_space
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
    def fetched(self) -> Path:
        """Parts of shards on the Hub, for as long as the output is not there."""
        return self.path / "fetched"

    @property
    def plan_file(self) -> Path:
        """The plan, for tasks that run in other processes."""
        return self.path / "plan.json"


def name_work_folder(out: Path) -> Path:
    """Where an output is worked on: beside it, so that one rename makes it appear."""
    return out.with_name(f".{out.name}.xmerge")


@contextlib.contextmanager
def open_work_folder(out: Path, plan: MergePlan, store: Path | None = None) -> Iterator[WorkFolder]:
    """Lock the work folder of an output and hold the lock while working.

    Afterwards the folder is there only if it holds finished layers, and the output is not.

    Args:
        out: Where the output is to appear.
        plan: What it is to be.
        store: A store to keep and share; default: one in the work folder, which goes away with it.

    Raises:
        OutputExistsError: `out` holds something that this plan did not make, or an input, or is or lies in one.
        PlanError: The store is no place for a store.
        InUseError: Another run holds the output.
        StorageError: The folder cannot be made, or the disk has no room for the output.
    """
    out = resolve_path(out)
    _refuse_inputs(out, plan)
    finished = is_finished(out, plan)
    path = name_work_folder(out)
    own = Store(path / "store" if store is None else resolve_path(store))
    _refuse_store(own.path, out, plan)
    if finished and not exists(path):
        check_contents(out)
        yield WorkFolder(out, path, own, finished=True)
        return
    missing = _list_missing(path)
    try:
        with hold_folder(path, str(out)) as lock, contextlib.ExitStack() as space:
            # Once more, because the run that held the lock until now may have made the output.
            work = WorkFolder(out, path, own, is_finished(out, plan))
            try:
                remove_tree(work.staged)
                if work.finished:
                    check_contents(out)
                else:
                    _prepare_store(work)
                    space.enter_context(_take_space(work, plan))
                yield work
            finally:
                if lock.is_held():
                    remove_tree(work.staged)
                    if work.finished or not _is_worth_resuming(path):
                        remove_work_folder(work)
    finally:
        _remove_empty(missing)


def remove_work_folder(work: WorkFolder) -> None:
    """Remove the work folder as far as it can be; the lock's file goes last, while the lock is held."""
    with contextlib.suppress(OSError):
        for name in sorted(disk.listdir(work.path)):
            if not is_lock(name):
                remove_tree(work.path / name)
        for name in sorted(disk.listdir(work.path)):
            remove_file(work.path / name)
        disk.rmdir(work.path)


def write_plan(work: WorkFolder, plan: MergePlan) -> None:
    """Leave the plan in the work folder.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        write_text(work.plan_file, json.dumps(plan.model_dump(mode="json")))
    except OSError as error:
        raise storage_error(error, work.path) from error


def _refuse_inputs(out: Path, plan: MergePlan) -> None:
    for model in plan.models:
        if model.folder is None:
            continue
        folder = resolve_path(model.folder)
        for lies, inner, outer in (("is", out, folder), ("lies in", out, folder), ("holds", folder, out)):
            if _is_same(inner, outer) if lies == "is" else _lies_in(inner, outer):
                raise OutputExistsError(
                    f"the output {out} {lies} the input {model.label}.", remedy="name another output."
                )


def _refuse_store(store: Path, out: Path, plan: MergePlan) -> None:
    places = [(out, "the output")]
    places += [(resolve_path(m.folder), f"the input {m.label}") for m in plan.models if m.folder is not None]
    for place, told in places:
        if _lies_in(store, place):
            raise PlanError(f"the store {store} lies in {told}.", remedy="name another folder with --store.")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths mean one folder: by name, or by what the system says of names that differ in case alone."""
    try:
        return one == other or os.path.samestat(disk.stat(one), disk.stat(other))
    except OSError:
        return False


def _lies_in(inner: Path, outer: Path) -> bool:
    """Whether one path is another folder or is below it."""
    return any(_is_same(place, outer) for place in (inner, *inner.parents))


def _prepare_store(work: WorkFolder) -> None:
    try:
        make_folders(work.store.path)
    except OSError as error:
        raise StorageError(f"the store {work.store.path} cannot be made: {error.strerror}.") from error
    work.store.sweep()


@contextlib.contextmanager
def _take_space(work: WorkFolder, plan: MergePlan) -> Iterator[None]:
    """Refuse now what would fill the disk later; the output takes no space of its own beside its store."""
    missing = [layer for layer in plan.layers if not exists(work.store.shard_path(layer.fingerprint))]
    needed = sum(estimate_entry(layer) for layer in missing) + estimate_texts(plan)
    _refuse_narrow(work.store.path, needed)
    if os.stat(work.store.path).st_dev != os.stat(work.path).st_dev:
        _refuse_narrow(work.path, plan.bytes_written)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold_space(work.store.path, needed))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise _tell_narrow(work.store.path, needed, error.strerror) from error
            raise storage_error(error, work.store.path) from error
        yield


def _refuse_narrow(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise _tell_narrow(folder, needed)


def _tell_narrow(folder: Path, needed: int, told: str | None = None) -> StorageError:
    free = free_bytes(folder)
    known = "" if free is None else f" and {free:,} are free"
    return StorageError(
        f"there is too little space in {folder}.",
        why=f"{needed:,} bytes are needed{known}{f' ({told})' if told else ''}.",
        remedy="free some space, or name another output or store.",
    )


def _is_worth_resuming(path: Path) -> bool:
    """Whether the work folder itself holds finished layers, or what was fetched; a store elsewhere does not need it."""
    return Store(path / "store").holds_anything() or exists(path / "fetched")


def _list_missing(path: Path) -> list[Path]:
    """The folders above a path that are not there yet, the innermost first."""
    return [parent for parent in path.parents if not exists(parent)]


def _remove_empty(folders: list[Path]) -> None:
    """Remove what was made for the work folder, unless something has come into it."""
    with contextlib.suppress(OSError):
        for folder in folders:
            disk.rmdir(folder)

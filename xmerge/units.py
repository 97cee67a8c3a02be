"""A unit of work: the layers that one task run merges, in this process or in any other that sees the same folders."""

from __future__ import annotations

import socket
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge.errors import StorageError
from xmerge.files import read_text
from xmerge.planning import MergePlan
from xmerge.store import Store
from xmerge.values import Value

if TYPE_CHECKING:
    from xmerge.engine import LayerResult

SHARE = "give every machine the same storage at the same paths (docs/scaling.md), then run the same command again."


class UnitOfWork(Value):
    """Some layers of a plan, and where everything is: names of files and folders, no weights."""

    plan_file: str
    fingerprint: str
    """The plan's."""
    layers: tuple[int, ...]
    folders: tuple[str, ...]
    """Of each model of the plan."""
    store: str
    device: str

    def list_folders(self) -> list[Path]:
        """Where the shards of each model lie."""
        return [Path(folder) for folder in self.folders]


def merge_unit(unit: UnitOfWork) -> list[LayerResult]:
    """Merge the layers of a unit into the store.

    Raises:
        XmergeError: As `xmerge.engine.merge_layer`; or this machine does not see the plan or the store.
    """
    # Here, because it imports torch, and everything that lists or deploys the flow imports this module.
    from xmerge import engine

    plan, store = read_plan(unit.plan_file, unit.fingerprint), Store(Path(unit.store))
    # The flow has made it; a worker that made one here would leave its layers where nobody looks.
    if not store.path.is_dir():
        raise StorageError(f"{socket.gethostname()} does not see the store.", where=unit.store, remedy=SHARE)
    return [engine.merge_layer(plan, index, unit.list_folders(), store, unit.device) for index in unit.layers]


@lru_cache(maxsize=4)
def read_plan(path: str, fingerprint: str) -> MergePlan:
    """The plan in a file, which must be the one that the flow speaks of; read once in each process.

    Raises:
        StorageError: It cannot be read here, or is another one.
    """
    try:
        plan = MergePlan.model_validate_json(read_text(Path(path)))
    except OSError as error:
        raise StorageError(
            f"{socket.gethostname()} cannot read the plan of this merge.",
            where=path,
            why=f"{error.strerror}.",
            remedy=SHARE,
        ) from error
    if plan.fingerprint != fingerprint:
        raise StorageError("the plan in the work folder is not the one that this run made.", where=path)
    return plan

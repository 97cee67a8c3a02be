"""What stands where an output is to appear: nothing, this merge already, or something of somebody else's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from xmerge import disk
from xmerge.checkpoints.checkpoint import INDEX_NAME
from xmerge.errors import OutputExistsError, StorageError
from xmerge.files import hash_file, storage_error
from xmerge.interrupt import open_pool
from xmerge.planning.plan import MergePlan
from xmerge.provenance import PROVENANCE_NAME, read_provenance
from xmerge.source_cards import CARD_NAME

CHAT_TEMPLATE_NAME = "chat_template.jinja"
READERS = 4


def is_finished(out: Path, plan: MergePlan) -> bool:
    """Whether the output is there and is what the plan would make, as far as that shows without reading weights.

    Raises:
        OutputExistsError: Something else is there, or something of it is lost.
        StorageError: It cannot be read.
    """
    out = resolve_path(out)
    if not exists(out):
        return False
    if not out.is_dir():
        raise OutputExistsError(f"{out} exists and is no folder.", remedy="name another output.")
    try:
        names = sorted(disk.listdir(out))
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
    damaged = [shard["file"] for shard in provenance["shards"] if not _has_size(out, shard)]
    damaged += [name for name in (*draw_texts(plan), *plan.side_files) if not (out / name).is_file()]
    if damaged:
        raise _tell_damage(out, damaged)
    return True


def check_contents(out: Path) -> None:
    """Read a finished output from end to end, but for its card, which people may write on.

    Raises:
        OutputExistsError: Some of its bytes are not the ones that were written.
        StorageError: It cannot be read.
        Interrupted: A stop was requested.
    """
    provenance = read_provenance(out)
    if provenance is None or not isinstance(provenance.get("files"), dict):
        raise _tell_damage(out, [PROVENANCE_NAME])
    digests = {shard["file"]: shard["sha256"] for shard in provenance["shards"]} | provenance["files"]
    digests.pop(CARD_NAME, None)
    try:
        present = disk.listdir(out)
        with open_pool(READERS, "digest") as pool:
            whole = pool.map(lambda name: name in present and hash_file(out / name)[1] == digests[name], digests)
            damaged = [name for name, is_whole in zip(digests, whole, strict=True) if not is_whole]
    except OSError as error:
        raise storage_error(error, out, doing="read") from error
    if damaged:
        raise _tell_damage(out, damaged)


def draw_texts(plan: MergePlan) -> dict[str, str]:
    """Name and text of the files that the plan alone decides."""
    texts = {"config.json": plan.config_text, INDEX_NAME: _draw_index(plan)}
    return texts if plan.chat_template is None else texts | {CHAT_TEMPLATE_NAME: plan.chat_template}


def resolve_path(path: Path) -> Path:
    """A path without symbolic links: an output behind a link appears where the link points to."""
    return Path(os.path.realpath(path.expanduser()))


def exists(path: Path) -> bool:
    """Whether anything is there, also a link to nothing.

    Raises:
        StorageError: That cannot be told.
    """
    try:
        disk.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageError(f"{path} cannot be looked at: {error.strerror}.") from error
    return True


def _draw_index(plan: MergePlan) -> str:
    weight_map = {
        tensor.name: plan.shard_name(index) for index, layer in enumerate(plan.layers) for tensor in layer.tensors
    }
    index = {"metadata": {"total_size": plan.bytes_written}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2) + "\n"


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


def _tell_damage(out: Path, damaged: list[str]) -> OutputExistsError:
    more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
    return OutputExistsError(
        f"{out} is this merge's output and has lost or changed {', '.join(damaged[:3])}{more}.",
        remedy="remove the folder and run again.",
    )


def _has_size(out: Path, shard: dict[str, Any]) -> bool:
    path = out / shard["file"]
    size: int = shard["bytes"]
    return path.is_file() and disk.stat(path).st_size == size

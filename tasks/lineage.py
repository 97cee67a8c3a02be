"""Lineage as Prefect's assets: the models of a plan become the output. Keys name no folder and no user."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from prefect.assets import Asset, AssetProperties

from tasks.markdown import show_plain
from xmerge.planning import MergePlan

UNNAMED = Asset(key="xmerge://output")
"""Stands where a task that makes an output is defined, before anyone knows which."""
LONGEST_NAME = 80


def list_sources(plan: MergePlan) -> list[Asset]:
    """The models that a plan reads."""
    return [
        _name_repo(model.repo) if model.repo else _name_folder(model.folder or Path(model.label))
        for model in plan.models
    ]


def list_outputs(plan: MergePlan, out: Path, repo: str | None) -> list[Asset]:
    """What a merge makes: a folder, and the repository that it is published in."""
    told = f"{plan.title}, plan {plan.fingerprint}"
    return [_name_folder(out, told), *([_name_repo(repo, told)] if repo else [])]


def _name_repo(repo: str, told: str | None = None) -> Asset:
    return _make_asset(f"hf://{re.sub(r'[^A-Za-z0-9._/-]', '-', repo)}", repo, told)


def _name_folder(folder: Path, told: str | None = None) -> Asset:
    """A folder by its name and eight digits of the path's digest, so that output and later source are one asset."""
    place = os.path.realpath(folder)
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    name = Path(place).name
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:LONGEST_NAME]
    return _make_asset(f"xmerge://{slug}-{digest}", name, told)


def _make_asset(key: str, name: str, told: str | None) -> Asset:
    description = show_plain(told, 1000) if told else None
    return Asset(key=key, properties=AssetProperties(name=show_plain(name), description=description))

"""Verifying any checkpoint, whoever wrote it: against its config.json, its family, a base, and its provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmerge.architecture import ResolvedModel, describe_model, find_family
from xmerge.checkpoints import Checkpoint, read_checkpoint
from xmerge.checkpoints.checkpoint import list_names, open_inside, read_local_shard
from xmerge.checkpoints.headers import HeaderEntry
from xmerge.errors import CheckpointError
from xmerge.files import hash_open
from xmerge.provenance import PROVENANCE_NAME, read_provenance
from xmerge.sources import Location
from xmerge.validation.checks import (
    Expected,
    check_architecture,
    check_dtype,
    check_family,
    check_head,
    check_layers,
    check_other_dtypes,
    check_tensors,
    check_total_size,
)
from xmerge.validation.companions import check_companions
from xmerge.validation.damage import list_damage, tell_damage
from xmerge.validation.findings import Finding, ValidationReport, join_reports
from xmerge.validation.trial import AS_ASKED, PACKED, skip_loading, try_loading

if TYPE_CHECKING:
    from xmerge.engine.scan import Nonfinite


def verify(folder: Path, base: ResolvedModel | None = None, *, trial: bool = True) -> ValidationReport:
    """Everything that is wrong with a checkpoint.

    Args:
        folder: The checkpoint.
        base: A model whose architecture it should have.
        trial: Load it with transformers, where that is possible and nothing else is wrong.

    Raises:
        CheckpointError: There is no such folder, or a file in it cannot be read.
        Interrupted: A stop was requested.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}.", remedy="name the folder that holds config.json.")
    label = folder.resolve().name
    try:
        checkpoint = read_checkpoint(folder, label)
    except CheckpointError as error:
        return _report_damage(folder, label, error)
    try:
        model = describe_model(Location(reference=str(folder), label=label, folder=folder))
    except CheckpointError as error:
        return _report_contradictions(folder, checkpoint, error)
    findings = [*_check_model(folder, model, base), *_check_contents(folder, checkpoint)]
    tensors = checkpoint.tensors.values()
    counted = [] if model.quantization else [("parameters", f"{sum(math.prod(each.shape) for each in tensors):,}")]
    facts = (
        ("family", model.kind if model.family else f"{model.kind} (no family file: names are not judged)"),
        *([("packed", f"{model.quantization}: names are not judged")] if model.packed else []),
        ("tensors", str(len(tensors))),
        ("layers", str(model.layers)),
        *counted,
        ("bytes", f"{sum(tensor.nbytes for tensor in tensors):,}"),
    )
    report = ValidationReport(findings=tuple(findings), facts=facts)
    if not report.ok:
        return report
    skipped = PACKED.format(model.quantization) if trial and model.quantization else AS_ASKED
    trying = try_loading(folder) if trial and not model.quantization else skip_loading(skipped)
    return join_reports([report, trying])


def _report_damage(folder: Path, label: str, error: CheckpointError) -> ValidationReport:
    """Everything that is damaged, where `error` names the first."""
    return ValidationReport(findings=tuple(list_damage(folder, label)) or (tell_damage(error),), facts=())


def _report_contradictions(folder: Path, checkpoint: Checkpoint, error: CheckpointError) -> ValidationReport:
    """Every place where config.json and the headers contradict each other, where `error` names the first."""
    found = find_family(checkpoint.config)
    if found is None:
        return ValidationReport(findings=(tell_damage(error),), facts=())
    family = found.spelled_like(checkpoint.tensors)
    config = family.language_config(checkpoint.config)
    try:
        axes = family.read_axes(config, checkpoint.label)
    except CheckpointError as fault:
        return ValidationReport(findings=(tell_damage(fault, "config"),), facts=())
    tied = family.is_tied(config, checkpoint.tensors)
    findings = (
        *check_family(checkpoint, family, axes, tied=tied),
        *check_head(checkpoint, family, tied=tied),
        *check_dtype(checkpoint),
        *check_total_size(folder, checkpoint),
        *_check_contents(folder, checkpoint),
    )
    report = ValidationReport(findings=findings, facts=(("family", family.family),))
    return report if not report.ok else ValidationReport(findings=(tell_damage(error),), facts=report.facts)


def _check_model(folder: Path, model: ResolvedModel, base: ResolvedModel | None) -> Iterator[Finding]:
    yield from check_head(model.checkpoint, model.family, tied=model.tied)
    yield from check_companions(folder, model)
    yield from check_architecture(model.checkpoint, model.family)
    yield from check_dtype(model.checkpoint)
    yield from check_other_dtypes(model.checkpoint)
    yield from check_total_size(folder, model.checkpoint)
    yield from _check_loose_shards(folder, model.checkpoint)
    yield from check_layers(model, model.layers)
    told: set[tuple[str, str | None]] = set()
    if model.family is not None and not model.packed:
        for finding in check_family(model.checkpoint, model.family, model.axes, tied=model.tied):
            told.add((finding.code, finding.tensor))
            yield finding
    if base is not None:
        owner, expected = f"{base.kind} ({base.label})", expect_from_base(base, model.layers)
        compared = check_tensors(expected, model.checkpoint, owner)
        yield from (finding for finding in compared if (finding.code, finding.tensor) not in told)


def _check_loose_shards(folder: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Weights beside the model's that are none of it: a copy in one file, or what an earlier model has left."""
    own = {shard.file for shard in checkpoint.shards}
    for name in list_names(folder, checkpoint.label):
        if name.endswith(".safetensors") and name not in own:
            yield Finding(
                code="loose_shard",
                text=f"{name} is no part of the model: no index names it.",
                remedy="remove it, if it is no copy in another form.",
                severity="warning",
            )


def expect_from_base(base: ResolvedModel, layers: int) -> Expected:
    """What a model of the base's architecture with so many layers holds; any of its float dtypes will do."""
    expected: dict[str, tuple[tuple[int, ...], str | None]] = {}
    for spec in base.by_layer.get(None, ()):
        expected[spec.name] = (spec.shape, None)
    for layer in range(layers):
        for spec in base.by_layer.get(min(layer, base.layers - 1), ()):
            expected[spec.name_in(layer)] = (spec.shape, None)
    return expected


def _check_contents(folder: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Read every shard: NaN and infinity, and digests where the provenance states them."""
    from xmerge.engine.scan import scan_shard

    provenance = read_provenance(folder)
    if provenance is None and (folder / PROVENANCE_NAME).exists():
        yield Finding(
            code="provenance",
            text=f"{PROVENANCE_NAME} cannot be read, so no digest was compared.",
            remedy="fetch the file again.",
            severity="warning",
        )
    stated = {shard["file"]: shard["sha256"] for shard in (provenance or {}).get("shards", ())}
    for shard in checkpoint.shards:
        _, entries, start = read_local_shard(folder / shard.file, shard.file)
        try:
            with open_inside(folder / shard.file, shard.file) as descriptor:
                digest, nonfinite = scan_shard(descriptor, start, entries)
        except OSError as error:
            raise CheckpointError(f"{shard.file} cannot be read: {error.strerror}.") from error
        if stated and stated.get(shard.file) != digest:
            yield Finding(
                code="wrong_digest",
                text=f"{shard.file} is not what {PROVENANCE_NAME} says was written.",
                remedy="make or fetch the checkpoint again.",
            )
        yield from (_tell_nonfinite(entry, nonfinite[entry.name]) for entry in entries if entry.name in nonfinite)
    yield from _check_small_files(folder, (provenance or {}).get("files"))


def _check_small_files(folder: Path, stated: Any) -> Iterator[Finding]:
    """What lies beside the shards, against the digests that the provenance states; people do edit their cards."""
    present = list_names(folder, folder.name)
    for name, digest in sorted(stated.items()) if isinstance(stated, dict) else ():
        try:
            with open_inside(folder / name, name) if name in present else nullcontext() as descriptor:
                found = None if descriptor is None else hash_open(descriptor)[1]
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error.strerror}.") from error
        if found != digest:
            yield Finding(
                code="changed_file",
                text=f"{name} {'is missing' if found is None else f'is not what {PROVENANCE_NAME} says was written'}.",
                remedy="nothing, if you have changed it; else make or fetch the checkpoint again.",
                severity="warning",
            )


def _tell_nonfinite(entry: HeaderEntry, found: Nonfinite) -> Finding:
    places = ", ".join(str(list(find_indices(place, entry.shape))) for place in found.places)
    more = ", ..." if found.number > len(found.places) else ""
    return Finding(
        code="nonfinite",
        text=f"'{entry.name}' holds {found.number} NaN or infinity, at {places}{more}.",
        remedy="make the checkpoint again from models without them.",
        tensor=entry.name,
    )


def find_indices(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Where an element stands in a tensor, counted from 0 in each dimension."""
    indices = []
    for size in reversed(shape):
        place, index = divmod(place, size)
        indices.append(index)
    return tuple(reversed(indices))

"""Verifying any checkpoint, whoever wrote it: against its config.json, its family, a base, and its provenance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from xmerge.architecture import ResolvedModel, describe_model, find_family
from xmerge.checkpoints import Checkpoint, read_checkpoint
from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.checkpoints.headers import HeaderEntry
from xmerge.errors import CheckpointError
from xmerge.provenance import PROVENANCE_NAME, read_provenance
from xmerge.sources import Location
from xmerge.validation.checks import (
    Expected,
    check_dtype,
    check_family,
    check_head,
    check_layers,
    check_tensors,
    check_total_size,
    check_vocabulary,
)
from xmerge.validation.findings import Finding, ValidationReport, join_reports
from xmerge.validation.trial import AS_ASKED, PACKED, skip_loading, try_loading


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
        return _report_damage(error)
    try:
        model = describe_model(Location(reference=str(folder), label=label, folder=folder))
    except CheckpointError as error:
        return _report_contradictions(folder, checkpoint, error)
    findings = [*_check_model(folder, model, base), *_check_contents(folder, checkpoint)]
    tensors = checkpoint.tensors.values()
    facts = (
        ("family", model.kind if model.family else f"{model.kind} (no family file: names are not judged)"),
        *([("packed", f"{model.quantization}: names are not judged")] if model.packed else []),
        ("tensors", str(len(tensors))),
        ("layers", str(model.layers)),
        ("bytes", f"{sum(tensor.nbytes for tensor in tensors):,}"),
    )
    report = ValidationReport(findings=tuple(findings), facts=facts)
    if not report.ok:
        return report
    skipped = PACKED.format(model.quantization) if trial and model.quantization else AS_ASKED
    trying = try_loading(folder) if trial and not model.quantization else skip_loading(skipped)
    return join_reports([report, trying])


def _report_damage(error: CheckpointError) -> ValidationReport:
    finding = Finding(code="damaged", text=str(error), remedy=error.remedy or "fetch or make it again.")
    return ValidationReport(findings=(finding,), facts=())


def _report_contradictions(folder: Path, checkpoint: Checkpoint, error: CheckpointError) -> ValidationReport:
    """Every place where config.json and the headers contradict each other, where `error` names the first."""
    found = find_family(checkpoint.config)
    if found is None:
        return _report_damage(error)
    family = found.spelled_like(checkpoint.tensors)
    config = family.language_config(checkpoint.config)
    try:
        axes = family.read_axes(config, checkpoint.label)
    except CheckpointError as fault:
        finding = Finding(code="config", text=str(fault), remedy=fault.remedy or "complete config.json.")
        return ValidationReport(findings=(finding,), facts=())
    tied = family.is_tied(config, checkpoint.tensors)
    findings = (
        *check_family(checkpoint, family, axes, tied=tied),
        *check_head(checkpoint, family, tied=tied),
        *check_dtype(checkpoint),
        *check_total_size(folder, checkpoint),
        *_check_contents(folder, checkpoint),
    )
    report = ValidationReport(findings=findings, facts=(("family", family.family),))
    return report if not report.ok else _report_damage(error)


def _check_model(folder: Path, model: ResolvedModel, base: ResolvedModel | None) -> Iterator[Finding]:
    yield from check_head(model.checkpoint, model.family, tied=model.tied)
    yield from check_vocabulary(model, folder)
    yield from check_dtype(model.checkpoint)
    yield from check_total_size(folder, model.checkpoint)
    yield from check_layers(model, model.layers)
    if base is not None:
        yield from check_tensors(expect_from_base(base, model.layers), model.checkpoint, f"{base.kind} ({base.label})")
    elif model.family is not None and not model.packed:
        yield from check_family(model.checkpoint, model.family, model.axes, tied=model.tied)


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
            descriptor = os.open(folder / shard.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{shard.file} cannot be read: {error.strerror}.") from error
        try:
            digest, nonfinite = scan_shard(descriptor, start, entries)
        finally:
            os.close(descriptor)
        if stated and stated.get(shard.file) != digest:
            yield Finding(
                code="wrong_digest",
                text=f"{shard.file} is not what {PROVENANCE_NAME} says was written.",
                remedy="make or fetch the checkpoint again.",
            )
        yield from (_tell_nonfinite(entry, *nonfinite[entry.name]) for entry in entries if entry.name in nonfinite)


def _tell_nonfinite(entry: HeaderEntry, count: int, first: int) -> Finding:
    return Finding(
        code="nonfinite",
        text=f"'{entry.name}' holds {count} NaN or infinity, the first at element {first}.",
        remedy="make the checkpoint again from models without them.",
        tensor=entry.name,
    )

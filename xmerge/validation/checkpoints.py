"""Verifying any checkpoint, whoever wrote it: against its config.json, its family, a base, and its provenance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmerge.architecture import ResolvedModel, describe_model
from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.checkpoints.headers import HeaderEntry
from xmerge.errors import CheckpointError
from xmerge.provenance import read_provenance
from xmerge.sources import Location
from xmerge.validation.checks import (
    Expected,
    check_dtype,
    check_head,
    check_layers,
    check_tensors,
    check_total_size,
    check_vocabulary,
)
from xmerge.validation.findings import Finding, ValidationReport, join_reports
from xmerge.validation.trial import try_loading


def verify(folder: Path, base: ResolvedModel | None = None) -> ValidationReport:
    """Everything that is wrong with a checkpoint.

    Args:
        folder: The checkpoint.
        base: A model whose architecture it should have.

    Raises:
        CheckpointError: There is no such folder, or nothing in it that could be a checkpoint.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}.")
    try:
        model = describe_model(Location(reference=str(folder), label=folder.resolve().name, folder=folder))
    except CheckpointError as error:
        finding = Finding(code="damaged", text=str(error), remedy=error.remedy or "fetch or make it again.")
        return ValidationReport(findings=(finding,), facts=())
    findings = [
        *check_head(model.checkpoint, tied=model.tied),
        *check_vocabulary(model, folder),
        *check_dtype(model.checkpoint),
        *check_total_size(folder, model.checkpoint),
        *check_layers(model, model.layers),
    ]
    if base is not None:
        expected = expect_from_base(base, model.layers)
        findings += check_tensors(expected, model.checkpoint, f"{base.kind} ({base.label})")
    elif model.family is not None:
        findings += _check_strangers(model)
    findings += _check_contents(folder, model, read_provenance(folder))
    tensors = model.checkpoint.tensors.values()
    facts = (
        ("family", model.kind if model.family else f"{model.kind} (no family file: names are not judged)"),
        ("tensors", str(len(tensors))),
        ("layers", str(model.layers)),
        ("bytes", f"{sum(tensor.nbytes for tensor in tensors):,}"),
    )
    report = ValidationReport(findings=tuple(findings), facts=facts)
    return join_reports([report, try_loading(folder)]) if report.ok else report


def expect_from_base(base: ResolvedModel, layers: int) -> Expected:
    """What a model of the base's architecture with so many layers holds; any of its float dtypes will do."""
    expected: dict[str, tuple[tuple[int, ...], str | None]] = {}
    for spec in base.by_layer.get(None, ()):
        expected[spec.name] = (spec.shape, None)
    for layer in range(layers):
        for spec in base.by_layer.get(min(layer, base.layers - 1), ()):
            expected[spec.template.format(layer=layer)] = (spec.shape, None)
    return expected


def _check_strangers(model: ResolvedModel) -> Iterator[Finding]:
    """Tensors that the family does not know, in a layer or beside the layers."""
    for spec in model.tensors:
        if spec.role is None and not spec.name.endswith("rotary_emb.inv_freq"):
            layer = f"layer {spec.layer}: " if spec.layer is not None else ""
            yield Finding(
                code="foreign_tensor",
                text=f"{layer}'{spec.name}' is foreign: {model.kind} has no such tensor.",
                remedy="remove it, or make the checkpoint again.",
                tensor=spec.name,
                layer=spec.layer,
            )


def _check_contents(folder: Path, model: ResolvedModel, provenance: dict[str, Any] | None) -> Iterator[Finding]:
    """Read every shard: NaN and infinity, and digests where the provenance states them."""
    from xmerge.engine.scan import scan_shard

    stated = {each["file"]: each["sha256"] for each in (provenance or {}).get("shards", [])}
    for shard in model.checkpoint.shards:
        _, entries, start = read_local_shard(folder / shard.file, shard.file)
        descriptor = os.open(folder / shard.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            digest, nonfinite = scan_shard(descriptor, start, entries)
        finally:
            os.close(descriptor)
        if shard.file in stated and stated[shard.file] != digest:
            yield Finding(
                code="wrong_digest",
                text=f"{shard.file} is not what provenance.json says was written.",
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

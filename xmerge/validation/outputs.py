"""Validating a merge before it is called done: against its plan, against its own config.json, and by loading it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xmerge.architecture import describe_model
from xmerge.checkpoints import read_checkpoint
from xmerge.errors import CheckpointError
from xmerge.files import storage_error
from xmerge.lost_biases import list_bias_losses
from xmerge.planning.plan import MergePlan
from xmerge.sources import Location
from xmerge.validation.checks import (
    Expected,
    check_dtype,
    check_head,
    check_layers,
    check_tensors,
    check_total_size,
)
from xmerge.validation.companions import check_companions
from xmerge.validation.findings import Finding, ValidationReport, join_reports
from xmerge.validation.trial import AS_ASKED, PACKED, skip_loading, try_loading

if TYPE_CHECKING:
    from xmerge.engine.results import LayerResult


def validate(staged: Path, plan: MergePlan, results: Sequence[LayerResult], *, trial: bool = True) -> ValidationReport:
    """Whether an assembled output is exactly what was planned, and a whole model.

    Digests are not taken again: every layer was hashed in this run, when it was made or when it was found in the store.

    Args:
        staged: The folder with the output.
        plan: What it should be.
        results: One for each layer of the plan, in its order.
        trial: Load it with transformers, where that is possible.

    Raises:
        StorageError: The disk does not give back what was written.
    """
    expected = {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan.tensors}
    target = plan.models[plan.target]
    owner = f"{target.kind} ({target.label})"
    try:
        model = describe_model(Location(reference=str(staged), label="the output", folder=staged))
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise storage_error(error.__cause__, staged, doing="read back") from error
        finding = Finding(code="damaged", text=str(error), remedy="run the merge again.")
        return ValidationReport(findings=(finding, *_check_names(staged, expected, owner)), facts=())
    findings = (
        *check_tensors(expected, model.checkpoint, owner),
        *check_layers(model, sum(layer.index is not None for layer in plan.layers)),
        *check_head(model.checkpoint, model.family, tied=model.tied),
        # What goes along is the target's own, and no reason to refuse what was made of it.
        *(finding.model_copy(update={"severity": "warning"}) for finding in check_companions(staged, model)),
        *check_dtype(model.checkpoint),
        *check_total_size(staged, model.checkpoint),
        *_check_nonfinite(plan, results),
        *_check_biases(plan, results),
        *_tell_notes(results),
    )
    foreign = sum(finding.code == "foreign_tensor" for finding in findings)
    tensors = model.checkpoint.tensors.values()
    facts = (
        ("tensors", f"{len(tensors)} of {len(expected)} expected"),
        ("foreign tensors", str(foreign)),
        ("layers", str(model.layers)),
        ("parameters", f"{sum(tensor.elements for tensor in plan.tensors):,}"),
        ("bytes", f"{sum(tensor.nbytes for tensor in tensors):,}"),
        ("layers in the store", _tell_links(staged)),
    )
    report = ValidationReport(findings=findings, facts=facts)
    if not report.ok:
        return report
    carried = {tensor.name for tensor in plan.tensors if tensor.role is None}
    skipped = PACKED.format(model.quantization) if trial and model.quantization else AS_ASKED
    trying = try_loading(staged, carried) if trial and not model.quantization else skip_loading(skipped)
    return join_reports([report, trying])


def _check_names(staged: Path, expected: Expected, owner: str) -> Iterator[Finding]:
    """What the headers show of an output that contradicts itself."""
    try:
        checkpoint = read_checkpoint(staged, "the output")
    except CheckpointError:
        return
    yield from check_tensors(expected, checkpoint, owner)


def _tell_links(staged: Path) -> str:
    shards = list(staged.glob("*.safetensors"))
    copied = sum(shard.stat().st_nlink == 1 for shard in shards)
    return f"{copied} of {len(shards)} copied, because they could not be linked" if copied else "linked"


def _tell_notes(results: Sequence[LayerResult]) -> Iterator[Finding]:
    for result in results:
        for note in result.notes:
            yield Finding(
                code="out_of_memory",
                text=f"{result.label}: {note}.",
                remedy="use fewer workers, or another device; the last digits of what was merged there may differ.",
                severity="warning",
            )


def _check_nonfinite(plan: MergePlan, results: Sequence[LayerResult]) -> Iterator[Finding]:
    for layer, result in zip(plan.layers, results, strict=True):
        for tensor, outcome in zip(layer.tensors, result.tensors, strict=True):
            if outcome.replaced:
                yield Finding(
                    code="kept_base",
                    text=f"{layer.label}: '{tensor.name}' is the base's: {outcome.replaced}.",
                    remedy="repair the model, and merge again.",
                    tensor=tensor.name,
                    layer=layer.index,
                    severity="warning",
                )
            if outcome.nonfinite:
                label = plan.models[tensor.sources[0].model].label
                yield Finding(
                    code="nonfinite",
                    text=f"{layer.label}: '{tensor.name}', from {label}, holds {outcome.nonfinite} NaN or infinity.",
                    remedy=f"repair {label}.",
                    tensor=tensor.name,
                    layer=layer.index,
                    # What no family knows may be a mask, where infinity is meant.
                    severity="error" if tensor.role and tensor.on_nonfinite != "propagate" else "warning",
                )


def _check_biases(plan: MergePlan, results: Sequence[LayerResult]) -> Iterator[Finding]:
    for loss in list_bias_losses(plan, results):
        if loss.matters:
            yield Finding(
                code="lost_bias",
                text=str(loss),
                remedy=f"leave {loss.component} out of the merge, or choose a base with biases.",
                severity="warning",
            )

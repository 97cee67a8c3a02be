"""provenance.json: which models at which commits, what was done to each tensor, and what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmerge.checkpoints.checkpoint import read_json_object
from xmerge.errors import CheckpointError
from xmerge.planning.plan import ENGINE_VERSION, MergePlan, TensorPlan

if TYPE_CHECKING:
    from xmerge.config import MergeConfig
    from xmerge.engine.results import LayerResult, TensorResult

PROVENANCE_NAME = "provenance.json"


def build_provenance(plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult]) -> dict[str, Any]:
    """Everything that made this output, and nothing of when and where: the same merge gives the same text."""
    return {
        "xmerge": metadata.version("xmerge"),
        "engine": ENGINE_VERSION,
        "plan_fingerprint": plan.fingerprint,
        "config_fingerprint": plan.config_fingerprint,
        "configuration": config.model_dump(mode="json"),
        "architecture": plan.models[plan.target].label,
        "models": [
            {
                "name": model.label,
                "repo": model.repo,
                "commit": model.commit,
                "pin": model.pin,
                "family": model.kind,
                "layers": model.layers,
                "files": [
                    {"file": file, "bytes": size, "header_sha256": digest, "used": file in model.files}
                    for file, size, digest, _ in model.shards
                ],
                "foreign": list(model.dropped),
            }
            for model in plan.models
        ],
        "layer_map": [list(meeting) for meeting in plan.layer_map],
        "config_edits": list(plan.config_edits),
        "warnings": list(plan.warnings),
        "shards": [
            {"file": plan.shard_name(index), "layer": result.label, "bytes": result.bytes, "sha256": result.sha256}
            for index, result in enumerate(results)
        ],
        "tensors": {
            tensor.name: _describe_tensor(plan, tensor, outcome)
            for layer, result in zip(plan.layers, results, strict=True)
            for tensor, outcome in zip(layer.tensors, result.tensors, strict=True)
        },
    }


def write_provenance(folder: Path, provenance: dict[str, Any]) -> None:
    """Write it beside the weights."""
    (folder / PROVENANCE_NAME).write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """What a folder says of its making; None if it says nothing that can be read."""
    try:
        provenance = read_json_object(folder / PROVENANCE_NAME, PROVENANCE_NAME)
    except CheckpointError:
        return None
    return provenance if isinstance(provenance.get("plan_fingerprint"), str) else None


def _describe_tensor(plan: MergePlan, tensor: TensorPlan, outcome: TensorResult) -> dict[str, Any]:
    described: dict[str, Any] = {
        "decision": tensor.decision,
        "reason": tensor.reason,
        "sources": [
            {"model": plan.models[source.model].label, "tensors": [segment.tensor for segment in source.segments]}
            | ({"steps": list(source.steps)} if source.steps else {})
            for source in tensor.sources
        ],
    }
    if not tensor.is_copied:
        described["method"] = tensor.method
        described["parameters"] = dict(tensor.parameters)
        described["coefficients"] = list(outcome.coefficients)
        described["cosine_to_base"] = outcome.cosine
        described["norm_ratio_to_base"] = outcome.norm_ratio
    if outcome.donor_cosines:
        described["cosine_base_to_donors"] = list(outcome.donor_cosines)
    if tensor.dropped:
        described["dropped"] = list(tensor.dropped)
    if outcome.nonfinite:
        described["nonfinite"] = outcome.nonfinite
    return described

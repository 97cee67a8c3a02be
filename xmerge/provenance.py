"""provenance.json: which models at which commits, what was done to each tensor, and what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmerge.checkpoints.checkpoint import read_json_object
from xmerge.checkpoints.untrusted import LARGE, is_plain_shard_name
from xmerge.errors import CheckpointError
from xmerge.files import write_text
from xmerge.licences import LicenceRecord
from xmerge.planning.plan import ENGINE_VERSION, MergePlan, Source, TensorPlan

if TYPE_CHECKING:
    from xmerge.config import MergeConfig
    from xmerge.engine.results import LayerResult, TensorResult

PROVENANCE_NAME = "provenance.json"
CONFIG_COPY_NAME = "xmerge_config.yml"
"""The configuration as it was given, in the output."""


def build_provenance(
    plan: MergePlan, config: MergeConfig, results: Sequence[LayerResult], files: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that made this output, and nothing of when and where: the same merge gives the same text.

    Args:
        plan: The plan.
        config: The configuration as it was given.
        results: One for each layer of the plan, in its order.
        files: SHA-256 of what lies beside the shards.
    """
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
                "card": model.card.model_dump(mode="json"),
            }
            for model in plan.models
        ],
        "layer_map": [list(meeting) for meeting in plan.layer_map],
        "config_edits": list(plan.config_edits),
        "warnings": [tell_from_output(warning, config) for warning in plan.warnings],
        "shards": [
            {"file": plan.shard_name(index), "layer": result.label, "bytes": result.bytes, "sha256": result.sha256}
            for index, result in enumerate(results)
        ],
        "files": dict(files),
        **_tell_stages(plan),
        "licences": LicenceRecord(
            verdict=plan.licensing, acknowledged=config.publish.acknowledge if config.publish else ()
        ).model_dump(mode="json"),
        "tensors": {
            tensor.name: _describe_tensor(plan, tensor, outcome)
            for layer, result in zip(plan.layers, results, strict=True)
            for tensor, outcome in zip(layer.tensors, result.tensors, strict=True)
        },
    }


def _tell_stages(plan: MergePlan) -> dict[str, Any]:
    """The provenance of each model that an earlier stage of the recipe has made; nothing where there is none."""
    made = {model.label: model.folder for model in plan.models if model.made_of is not None and model.folder}
    return {"stages": {label: read_provenance(folder) for label, folder in made.items()}} if made else {}


def tell_from_output(text: str, config: MergeConfig) -> str:
    """A warning that names a place in the configuration, by the name that it has in the output."""
    name = config.source.name
    return f"{CONFIG_COPY_NAME}{text.removeprefix(name)}" if text.startswith((f"{name}:", f"{name},")) else text


def write_provenance(folder: Path, provenance: dict[str, Any]) -> None:
    """Write it beside the weights."""
    write_text(folder / PROVENANCE_NAME, json.dumps(provenance, indent=1, sort_keys=True) + "\n")


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """What a folder says of its making; None if it says nothing that can be read."""
    try:
        provenance = read_json_object(folder / PROVENANCE_NAME, PROVENANCE_NAME, LARGE)
    except CheckpointError:
        return None
    shards = provenance.get("shards")
    if not isinstance(provenance.get("plan_fingerprint"), str) or not isinstance(shards, list):
        return None
    return provenance if all(_is_shard(shard) for shard in shards) else None


def list_digests(provenance: Mapping[str, Any]) -> dict[str, str]:
    """File -> SHA-256 of every shard, which is what verifying has compared."""
    return {shard["file"]: shard["sha256"] for shard in provenance.get("shards", ())}


def _is_shard(stated: Any) -> bool:
    return (
        isinstance(stated, dict)
        and is_plain_shard_name(stated.get("file"))
        and type(stated.get("bytes")) is int
        and isinstance(stated.get("sha256"), str)
    )


def _describe_tensor(plan: MergePlan, tensor: TensorPlan, outcome: TensorResult) -> dict[str, Any]:
    replaced = outcome.replaced is not None and tensor.fallback is not None
    if replaced:
        assert tensor.fallback is not None
        tensor = tensor.fallback
    described: dict[str, Any] = {
        "decision": tensor.decision,
        "reason": f"{tensor.reason}: {outcome.replaced}" if replaced else tensor.reason,
        "sources": [_describe_source(plan, source) for source in tensor.sources],
    }
    if any(source.model != plan.target for source in tensor.sources):
        described["class"] = tensor.fit
    if not tensor.is_copied:
        described["method"] = tensor.method
        described["parameters"] = dict(tensor.parameters)
        if outcome.changed is None:
            described["coefficients"] = list(outcome.coefficients)
        else:
            described["share_changed"] = outcome.changed
        described["cosine_to_base"] = outcome.cosine
        described["norm_ratio_to_base"] = outcome.norm_ratio
    if outcome.donor_cosines:
        described["cosine_base_to_donors"] = list(outcome.donor_cosines)
    if tensor.dropped:
        described["dropped"] = list(tensor.dropped)
    if tensor.lost_biases:
        described["lost_biases"] = [
            {"model": plan.models[lost.model].label, "roles": list(lost.roles), "norm_over_weight": ratio}
            for lost, ratio in zip(tensor.lost_biases, outcome.bias_ratios, strict=True)
        ]
    if outcome.nonfinite:
        described["nonfinite"] = outcome.nonfinite
    return described


def _describe_source(plan: MergePlan, source: Source) -> dict[str, Any]:
    """Where a source was read from, what was done to it, and in what it differs from the base's."""
    described: dict[str, Any] = {
        "model": plan.models[source.model].label,
        "tensors": list(dict.fromkeys(segment.tensor for segment in source.segments)),
    }
    if source.steps:
        described["steps"] = list(source.steps)
    if source.notes:
        described["notes"] = list(source.notes)
    return described

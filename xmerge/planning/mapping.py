"""Map slices: from a configuration and what is known of its models to the plan of the whole merge."""

from __future__ import annotations

from collections.abc import Sequence

from xmerge import garbage
from xmerge.architecture import ResolvedArchitecture, ResolvedModel
from xmerge.config import MergeConfig
from xmerge.methods import find_method
from xmerge.planning.decisions import Decider
from xmerge.planning.draws import assign_draws
from xmerge.planning.output_config import choose_side_files, digest_side_files, edit_config
from xmerge.planning.parameters import ParameterReader
from xmerge.planning.plan import LayerPlan, MergePlan, PlannedModel, list_segments
from xmerge.planning.publication import refuse_conflicts, warn_of_name
from xmerge.planning.refusals import (
    refuse_doubled_gains,
    refuse_gaps,
    refuse_misfits,
    refuse_tokenizer_merge,
    refuse_unsupported,
)
from xmerge.planning.slices import OutputLayer, lay_out
from xmerge.planning.slots import list_slots
from xmerge.planning.warnings import list_foreign, list_warnings
from xmerge.source_cards import read_source_card


def map_slices(config: MergeConfig, architecture: ResolvedArchitecture) -> MergePlan:
    """The plan of a merge.

    Raises:
        ConfigError: A filter matches no tensor.
        PlanError: The configuration asks for what cannot be done; nothing has been written.
        CheckpointError: A tensor that is to be merged is packed or of a dtype that cannot be combined.
    """
    with garbage.left_alone():
        return _map_slices(config, architecture)


def _map_slices(config: MergeConfig, architecture: ResolvedArchitecture) -> MergePlan:
    refuse_unsupported(config, architecture)
    method = find_method(config.merge_method)
    layout = lay_out(config, architecture, method)
    layers = assign_draws(config, architecture, _decide(config, architecture, layout))
    refuse_tokenizer_merge(config, architecture, layers)
    config_text, edits = edit_config(architecture, layout, layers)
    side_files = choose_side_files(architecture.target)
    models = _describe_models(architecture, layers, layout)
    refuse_conflicts(config, models)
    return MergePlan(
        method=config.merge_method,
        models=models,
        target=architecture.target_index,
        layers=tuple(layer for layer in layers if layer.tensors),
        layer_map=tuple(_meeting(layer, len(architecture.models)) for layer in layout if layer.index is not None),
        config_text=config_text,
        config_edits=edits,
        side_files=side_files,
        side_files_digest=digest_side_files(architecture.target, side_files),
        chat_template=config.chat_template,
        warnings=(*list_warnings(config, architecture, layout, layers, method), *warn_of_name(config, models)),
        config_fingerprint=config.fingerprint,
    )


def _decide(
    config: MergeConfig, architecture: ResolvedArchitecture, layout: Sequence[OutputLayer]
) -> tuple[LayerPlan, ...]:
    """Every layer of the output with all of its tensors; what cannot be done is refused when all of it is known."""
    method = find_method(config.merge_method)
    reader = ParameterReader(method)
    decider = Decider(config, architecture, method, reader)
    layers = tuple(
        LayerPlan(
            label=layer.label,
            index=layer.index,
            tensors=tuple(
                decider.decide(slot) for slot in list_slots(architecture.target, layer, config.written_dtype)
            ),
        )
        for layer in layout
    )
    reader.refuse_unmatched(config, [tensor for layer in layers for tensor in layer.tensors])
    refuse_misfits(config, architecture, decider.misfits, decider.list_fitting())
    reader.refuse_silent_models(config, architecture, layout)
    refuse_gaps(config, architecture, decider.gaps)
    refuse_doubled_gains(config, layers)
    return layers


def _meeting(layer: OutputLayer, models: int) -> tuple[int | None, ...]:
    """Each model's layer that meets in a layer of the output; the first, where a model meets itself."""
    met: list[int | None] = [None] * models
    for each in reversed(layer.inputs):
        met[each.model] = each.layer
    return tuple(met)


def _describe_models(
    architecture: ResolvedArchitecture, layers: Sequence[LayerPlan], layout: Sequence[OutputLayer]
) -> tuple[PlannedModel, ...]:
    files: list[set[str]] = [set() for _ in architecture.models]
    used = [0] * len(architecture.models)
    for layer in layers:
        for tensor in layer.tensors:
            for model, segment in list_segments(tensor):
                files[model].add(segment.file)
                used[model] += segment.nbytes
    return tuple(
        _describe_model(model, sorted(files[index]), used[index], list_foreign(architecture, index, layout))
        for index, model in enumerate(architecture.models)
    )


def _describe_model(model: ResolvedModel, files: list[str], used: int, foreign: tuple[str, ...]) -> PlannedModel:
    location = model.location
    return PlannedModel(
        reference=location.reference,
        label=model.label,
        folder=location.folder,
        repo=location.repo,
        commit=location.commit,
        pin=model.checkpoint.pin,
        kind=model.kind,
        layers=model.layers,
        files=tuple(files),
        bytes_used=used,
        shards=tuple(
            (shard.file, shard.size, shard.header_sha256, shard.modified_ns) for shard in model.checkpoint.shards
        ),
        dropped=foreign,
        card=model.foreseen.card if model.foreseen else read_source_card(location),
        made_of=model.foreseen.origins if model.foreseen else None,
    )

"""The models that a configuration names, and where it names them."""

from __future__ import annotations

from collections.abc import Iterator

from xmerge.config.schema import MergeConfig, ModelReference, ModuleDefinition
from xmerge.config.source import Path


def list_mentions(config: MergeConfig) -> Iterator[tuple[Path, ModelReference]]:
    """Every mention of a model that takes part, with its place, in a fixed order: the base, then as written."""
    if config.base_model is not None:
        yield ("base_model",), config.base_model
    parts: list[tuple[Path, MergeConfig | ModuleDefinition]] = [((), config)]
    parts += [(("modules", name), module) for name, module in config.modules.items()]
    for path, part in parts:
        for index, each in enumerate(part.models):
            yield (*path, "models", index, "model"), each.model
        for index, piece in enumerate(part.slices):
            for number, source in enumerate(piece.sources):
                yield (*path, "slices", index, "sources", number, "model"), source.model
            if piece.base_model is not None:
                yield (*path, "slices", index, "base_model"), piece.base_model


def locate_mention(config: MergeConfig, reference: ModelReference) -> str:
    """`recipe.yml, line 5: models[1].model`: where a configuration first names a model."""
    return config.source.locate(*next((path for path, each in list_mentions(config) if each == reference), ()))

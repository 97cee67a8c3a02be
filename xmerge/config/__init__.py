"""The configuration: what a person writes, read strictly."""

from xmerge.config.loading import load_config, parse_config, parse_reference
from xmerge.config.mentions import list_mentions, locate_mention
from xmerge.config.schema import (
    InputModel,
    LayerRange,
    MergeConfig,
    ModelPath,
    ModelReference,
    ModuleDefinition,
    OutputSlice,
    PublishTarget,
    SliceSource,
    TokenizerConfig,
)
from xmerge.config.settings import FilteredValue, Parameters, Setting

__all__ = [
    "FilteredValue",
    "InputModel",
    "LayerRange",
    "MergeConfig",
    "ModelPath",
    "ModelReference",
    "ModuleDefinition",
    "OutputSlice",
    "Parameters",
    "PublishTarget",
    "Setting",
    "SliceSource",
    "TokenizerConfig",
    "list_mentions",
    "load_config",
    "locate_mention",
    "parse_config",
    "parse_reference",
]

"""The configuration: what a person writes, read strictly."""

from xmerge.config.form import DEFAULT_METHOD, MergeForm, take_recipe
from xmerge.config.loading import load_config, load_stages, parse_config, parse_reference, parse_stages
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
from xmerge.config.stages import list_needed

__all__ = [
    "DEFAULT_METHOD",
    "FilteredValue",
    "InputModel",
    "LayerRange",
    "MergeConfig",
    "MergeForm",
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
    "list_needed",
    "load_config",
    "load_stages",
    "locate_mention",
    "parse_config",
    "parse_reference",
    "parse_stages",
    "take_recipe",
]

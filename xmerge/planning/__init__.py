"""Planning: from a configuration and headers to everything that will be done, before any weight is read."""

from xmerge.planning.mapping import map_slices
from xmerge.planning.packing import pack_layers
from xmerge.planning.plan import ENGINE_VERSION, LayerPlan, MergePlan, PlannedModel, Segment, Source, TensorPlan
from xmerge.planning.table import PLAN_COLUMNS, draw_plan, summarize_plan, tell_layer_map

__all__ = [
    "ENGINE_VERSION",
    "PLAN_COLUMNS",
    "LayerPlan",
    "MergePlan",
    "PlannedModel",
    "Segment",
    "Source",
    "TensorPlan",
    "draw_plan",
    "map_slices",
    "pack_layers",
    "summarize_plan",
    "tell_layer_map",
]

"""The engine: streams weights through a plan, one layer at a time, in blocks."""

from xmerge.engine.gains import check_gains
from xmerge.engine.layer import merge_layer
from xmerge.engine.results import LayerResult, SourceStamp, TensorResult
from xmerge.planning.plan import ENGINE_VERSION

__all__ = ["ENGINE_VERSION", "LayerResult", "SourceStamp", "TensorResult", "check_gains", "merge_layer"]

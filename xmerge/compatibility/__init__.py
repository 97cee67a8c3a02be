"""What of one model can cross into another: compared from config.json and headers, before anybody writes a recipe."""

from xmerge.compatibility.comparison import Compatibility, ComponentFit, compare_models
from xmerge.compatibility.naming import describe_model_named, list_model_folders
from xmerge.compatibility.recipe import write_recipe

__all__ = [
    "Compatibility",
    "ComponentFit",
    "compare_models",
    "describe_model_named",
    "list_model_folders",
    "write_recipe",
]

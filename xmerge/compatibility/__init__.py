"""What of one model can cross into another: compared from config.json and headers, before anybody writes a recipe."""

from xmerge.compatibility.comparison import Compatibility, ComponentFit, compare_models
from xmerge.compatibility.matrix import Matrix, compare_folder
from xmerge.compatibility.naming import describe_models_named, list_popular_models
from xmerge.compatibility.recipe import make_printable, write_recipe
from xmerge.compatibility.report import Report, report_on
from xmerge.compatibility.summary import summarize

__all__ = [
    "Compatibility",
    "ComponentFit",
    "Matrix",
    "Report",
    "compare_folder",
    "compare_models",
    "describe_models_named",
    "list_popular_models",
    "make_printable",
    "report_on",
    "summarize",
    "write_recipe",
]

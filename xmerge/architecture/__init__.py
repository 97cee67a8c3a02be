"""Architectures: which family a model belongs to, and what each of its tensors does."""

from xmerge.architecture.family import Family, Part, TensorTemplate, find_family, list_families
from xmerge.architecture.models import ResolvedArchitecture, ResolvedModel, TensorSpec, describe_model, resolve

__all__ = [
    "Family",
    "Part",
    "ResolvedArchitecture",
    "ResolvedModel",
    "TensorSpec",
    "TensorTemplate",
    "describe_model",
    "find_family",
    "list_families",
    "resolve",
]

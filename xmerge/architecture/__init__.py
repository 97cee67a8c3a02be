"""Architectures: which family a model belongs to, what each of its tensors does, and in what two models differ."""

from xmerge.architecture.differences import Class, Difference, find_differences, worst_class
from xmerge.architecture.family import Family, TensorTemplate, Unfit, find_family, find_unfit, list_families
from xmerge.architecture.models import (
    ForeseenModel,
    ResolvedArchitecture,
    ResolvedModel,
    RolePart,
    TensorSpec,
    describe_model,
    resolve,
)

__all__ = [
    "Class",
    "Difference",
    "Family",
    "ForeseenModel",
    "ResolvedArchitecture",
    "ResolvedModel",
    "RolePart",
    "TensorSpec",
    "TensorTemplate",
    "Unfit",
    "describe_model",
    "find_differences",
    "find_family",
    "find_unfit",
    "list_families",
    "resolve",
    "worst_class",
]

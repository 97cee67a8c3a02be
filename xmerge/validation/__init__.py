"""Validation: a checkpoint is what it claims to be, tensor by tensor, and loads."""

from xmerge.validation.checkpoints import verify
from xmerge.validation.findings import Finding, ValidationReport
from xmerge.validation.outputs import validate

__all__ = ["Finding", "ValidationReport", "validate", "verify"]

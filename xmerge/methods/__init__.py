"""Merge methods, one file each, found by folder; `contract.py` says what a method is."""

from xmerge.methods.contract import MergeMethod, find_method, list_methods

__all__ = ["MergeMethod", "find_method", "list_methods"]

"""Merge methods, one file each, found by folder; `contract.py` says what a method is."""

from xmerge.methods.contract import Block, MergeMethod, Parameter, find_method, list_methods

__all__ = ["Block", "MergeMethod", "Parameter", "find_method", "list_methods"]

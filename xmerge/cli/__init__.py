"""The command line: what a person types, and what they read."""

from xmerge.cli.main import main

__all__ = ["main"]

"""xmerge: merge the weights of language models, across families, into exactly a model of the base's architecture."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmerge.architecture import ResolvedArchitecture, resolve
    from xmerge.config import MergeConfig, load_config, parse_config
    from xmerge.errors import XmergeError
    from xmerge.planning import MergePlan, map_slices
    from xmerge.run import MergeOutcome, merge
    from xmerge.validation import Finding, ValidationReport, verify

_HOMES = {
    "Finding": "xmerge.validation",
    "MergeConfig": "xmerge.config",
    "MergeOutcome": "xmerge.run",
    "MergePlan": "xmerge.planning",
    "ResolvedArchitecture": "xmerge.architecture",
    "ValidationReport": "xmerge.validation",
    "XmergeError": "xmerge.errors",
    "load_config": "xmerge.config",
    "map_slices": "xmerge.planning",
    "merge": "xmerge.run",
    "parse_config": "xmerge.config",
    "resolve": "xmerge.architecture",
    "verify": "xmerge.validation",
}

__all__ = [
    "Finding",
    "MergeConfig",
    "MergeOutcome",
    "MergePlan",
    "ResolvedArchitecture",
    "ValidationReport",
    "XmergeError",
    "load_config",
    "map_slices",
    "merge",
    "parse_config",
    "resolve",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import xmerge` loads neither torch nor the Hub's client."""
    if name == "__version__":
        from importlib.metadata import version

        return version("xmerge")
    if name not in _HOMES:
        raise AttributeError(f"module 'xmerge' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

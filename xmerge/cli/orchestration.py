"""The one way from the library to the flow: by name, through the folder that carries `flows` and `tasks`.

In a checkout that folder is the checkout. In an installed wheel it is data of the package, put on the import path as
Prefect does with a deployment's working directory, because names like `tasks` must not lie in site-packages.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from xmerge.errors import XmergeError

PACKAGE = Path(__file__).resolve().parents[1]


def find_flows() -> Path:
    """The folder that carries `flows` and `tasks`.

    Raises:
        XmergeError: The installation is broken.
    """
    for folder in (PACKAGE / "_orchestration", PACKAGE.parent):
        if (folder / "flows" / "merge.py").is_file():
            return folder
    raise XmergeError("this installation of xmerge has no flows.", remedy="install it again, or use --direct.")


def load_flow_command() -> ModuleType:
    """The module that runs a merge as a flow; Prefect is imported by it, not by the library."""
    folder = str(find_flows())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return import_module("flows.command")

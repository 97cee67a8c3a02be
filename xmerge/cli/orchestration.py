"""The one way from the library to the flow: by name, through the folder that carries `flows` and `tasks`.

In a checkout that folder is the checkout. In an installed wheel it is data of the package, put on the import path as
Prefect does with a deployment's working directory, because names like `tasks` must not lie in site-packages.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from xmerge.errors import XmergeError

PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = "XMERGE_FOLDER"
"""The environment variable that says where the relative paths of a deployed run begin."""


def find_flows() -> Path:
    """The folder that carries `flows` and `tasks`.

    Raises:
        XmergeError: The installation is broken.
    """
    for folder in (PACKAGE / "_orchestration", PACKAGE.parent):
        if (folder / "flows" / "merge.py").is_file():
            return folder
    raise XmergeError("this installation of xmerge has no flows.", remedy="install it again, or use --direct.")


def load_flow_module(name: str) -> ModuleType:
    """A module of `flows`; Prefect is imported by it, not by the library."""
    put_flows_on_path()
    return import_module(f"flows.{name}")


def put_flows_on_path() -> Path:
    """Make `flows` and `tasks` importable; the folder that carries them."""
    folder = find_flows()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder


def enter_flows() -> dict[str, str]:
    """What a deployment does before its run: `flows` is importable, and paths begin where the worker was started.

    A worker gives each run a temporary folder to work in, and an output named by a relative path would go with it.
    """
    put_flows_on_path()
    # Without a shell nothing sets PWD; then the root, as for any service, where nothing is deleted afterwards.
    return {"directory": os.environ.get(FOLDER) or os.environ.get("PWD") or os.sep}

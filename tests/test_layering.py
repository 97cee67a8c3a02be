"""Who may import whom: deployments -> flows -> tasks -> xmerge, and the heavy libraries only where named here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A layer may import what stands after it, never what stands before it.
LAYERS = ("tests", "deployments", "flows", "tasks", "xmerge")

# The one door from the library to the flow, which loads it by name when a person runs `xmerge merge`.
DOOR = "xmerge.cli.orchestration"

# Library -> the modules and packages of xmerge that may import it, inside functions too.
ONLY_IN = {
    "prefect": (),
    "torch": ("xmerge.engine", "xmerge.validation.load"),
    "huggingface_hub": ("xmerge.hub",),
    "transformers": ("xmerge.validation.load",),
    "tokenizers": ("xmerge.validation.load",),
}


def test_imports_point_inwards():
    """No module imports a layer outside its own, nor a heavy library that it is not named for."""
    assert violations(ROOT) == []


def test_a_planted_import_is_found(tmp_path):
    """The test above can fail: each way to write a forbidden import is reported, and no permitted one."""
    plant(
        tmp_path,
        {
            "xmerge/__init__.py": "",
            "xmerge/engine/__init__.py": "import torch",
            "xmerge/engine/blocks.py": "from torch import Tensor",
            "xmerge/hub.py": "from huggingface_hub import HfApi",
            "xmerge/cli/orchestration.py": "import importlib\nimportlib.import_module('flows.merge')",
            "xmerge/methods/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
            "xmerge/methods/eager.py": "import torch.nn.functional as F",
            "xmerge/engineering.py": "import torch",
            "xmerge/planning/late.py": "def f():\n    from prefect import flow",
            "xmerge/planning/relative.py": "from ...tasks import merge_layer",
            "xmerge/planning/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tasks import x",
            "xmerge/planning/named.py": "import importlib\nimportlib.import_module('flows.merge')",
            "xmerge/planning/dunder.py": "__import__('transformers')",
            "tasks/merging.py": "import flows.merge\nimport xmerge\nimport prefect",
            "tasks/tensors.py": "import torch",
            "flows/merge.py": "from deployments import demo\nfrom tasks import merging",
            "deployments/demo.py": "import flows.merge, tests.conftest\nimport transformers",
        },
    )
    assert violations(tmp_path) == [
        "deployments/demo.py:1 imports tests",
        "flows/merge.py:1 imports deployments",
        "tasks/merging.py:1 imports flows",
        "tasks/tensors.py:1 imports torch",
        "xmerge/engineering.py:1 imports torch",
        "xmerge/methods/eager.py:1 imports torch",
        "xmerge/planning/dunder.py:1 imports transformers",
        "xmerge/planning/late.py:2 imports prefect",
        "xmerge/planning/named.py:2 imports flows",
        "xmerge/planning/relative.py:1 imports tasks",
        "xmerge/planning/typed.py:3 imports tasks",
    ]


def test_every_module_is_looked_at():
    """The walk sees all five layers, so that an empty list of violations means something."""
    assert {path.relative_to(ROOT).parts[0] for path in modules(ROOT)} == set(LAYERS)


def test_the_allow_list_is_no_wider_than_needed():
    """Every module that may import a heavy library exists and does, so that no stale permission is left."""
    found = {
        (library, home)
        for library, homes in ONLY_IN.items()
        for home in homes
        for path in modules(ROOT)
        if inside(module_name(path, ROOT), (home,)) and any(top(name) == library for name, _ in imports(path, ROOT))
    }
    assert found == {(library, home) for library, homes in ONLY_IN.items() for home in homes}


@pytest.mark.slow
def test_the_library_never_loads_prefect():
    """A fresh interpreter that has imported every module of xmerge has neither Prefect nor an outer layer loaded."""
    assert loaded_by(ROOT, "prefect", "flows", "tasks", "deployments") == []


@pytest.mark.slow
def test_a_library_that_loads_prefect_is_found(tmp_path):
    """The test above can fail: a module that loads Prefect by a computed name, which no reading of imports sees."""
    plant(tmp_path, {"xmerge/__init__.py": "", "xmerge/sly.py": "__import__('pre' + 'fect')", "prefect.py": ""})
    assert loaded_by(tmp_path, "prefect", "flows") == ["prefect"]


# --- reading the tree ---------------------------------------------------------------------------------


def violations(root: Path) -> list[str]:
    """Every import under `root` that a rule forbids, as 'file:line imports name', sorted."""
    return sorted(
        f"{path.relative_to(root).as_posix()}:{line} imports {name.split('.')[0]}"
        for path in modules(root)
        for name, line in imports(path, root)
        if forbidden(module_name(path, root), name)
    )


def forbidden(module: str, imported: str) -> bool:
    """Whether the rules at the top of this file forbid `module` to import `imported`."""
    layer, library = top(module), top(imported)
    if library in LAYERS:
        return LAYERS.index(library) < LAYERS.index(layer) and not (module == DOOR and library == "flows")
    if library == "prefect":
        return layer == "xmerge"
    # A demo or a test may make models and load outputs; the steps in between never touch a tensor.
    return library in ONLY_IN and layer not in {"tests", "deployments"} and not inside(module, ONLY_IN[library])


def top(name: str) -> str:
    """'xmerge.engine.blocks' -> 'xmerge'."""
    return name.partition(".")[0]


def inside(module: str, homes: tuple[str, ...]) -> bool:
    """Whether `module` is one of `homes` or lies in one."""
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def modules(root: Path) -> list[Path]:
    """The Python files of all layers, sorted."""
    return sorted(path for layer in LAYERS for path in (root / layer).rglob("*.py"))


def module_name(path: Path, root: Path) -> str:
    """`xmerge/engine/__init__.py` -> 'xmerge.engine'."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Each absolute name that a file imports, with its line: statements at any depth, and calls with a literal name."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    unexecuted = set(type_checking_lines(tree))
    for node in ast.walk(tree):
        for name in imported_names(node, path.relative_to(root)):
            # Annotations cost nothing at run time, but they do not excuse a layer that looks outwards.
            if node.lineno not in unexecuted or top(name) in LAYERS:  # type: ignore[attr-defined]
                yield name, node.lineno  # type: ignore[attr-defined]


def imported_names(node: ast.AST, path: Path) -> list[str]:
    """The absolute names that one node imports; `path` is relative to the root."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=name, level=0) if name:
            return [name]
        case ast.ImportFrom(module=name, level=level, names=names):
            package = path.parts[:-level]
            return [".".join([*package, *([name] if name else [alias.name])]) for alias in names]
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def type_checking_lines(tree: ast.AST) -> Iterator[int]:
    """The lines under `if TYPE_CHECKING:`, which no interpreter runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for statement in node.body:
                yield from range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)


def plant(root: Path, files: dict[str, str]) -> None:
    """Write a tree of files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def loaded_by(root: Path, *suspects: str) -> list[str]:
    """Those of `suspects` that are loaded once a fresh interpreter has imported every module of xmerge under `root`."""
    names = [module_name(path, root) for path in modules(root) if path.is_relative_to(root / "xmerge")]
    # A __main__ runs the command line when it is imported.
    importing = "\n".join(f"import {name}" for name in names if not name.endswith("__main__"))
    code = f"import sys\n{importing}\nprint(*sorted({set(suspects)!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()

"""What stands in two files says the same in both."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
REQUIREMENTS = sorted(
    {
        *PYPROJECT["build-system"]["requires"],
        *PYPROJECT["project"]["dependencies"],
        *itertools.chain.from_iterable(PYPROJECT["project"]["optional-dependencies"].values()),
    }
)

PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[0-9][0-9A-Za-z.]*)")


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_what_the_project_needs_is_pinned_within_its_bounds(requirement):
    """Every requirement of pyproject.toml has one pin in constraints.txt, and the pin satisfies it."""
    needed = Requirement(requirement)
    versions = [version for name, version in pins() if name == canonicalize_name(needed.name)]
    assert len(versions) == 1
    assert versions[0] in needed.specifier


def test_constraints_hold_pins_and_nothing_else():
    """constraints.txt works on any machine: exact public versions, each name once, no address and no path."""
    lines = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    names = [name for name, _ in pins()]
    assert names == sorted(set(names))


def test_every_ignored_rule_says_why():
    """No rule of the linter is switched off without a reason on its line."""
    listed = re.findall(r'^ +"[A-Z]+[0-9]*",.*$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) > 10
    assert [line for line in listed if not re.search(r"# \S.*\.$", line)] == []


def test_embedded_settings_are_those_of_the_checkout():
    """What flows/ sets for a run started anywhere is what [tool.prefect] sets for one started in the checkout."""
    from flows.server.settings import EMBEDDED_SETTINGS

    assert {name: comparable(text) for name, text in EMBEDDED_SETTINGS.items()} == {
        name: comparable(value) for name, value in prefect_table()
    }


@pytest.mark.slow
def test_prefect_reads_every_setting_of_the_checkout():
    """Each name under [tool.prefect] is one that Prefect knows, and takes effect in the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    code = (
        "import json; from prefect.settings import get_current_settings as current;"
        "print(json.dumps(current().to_environment_variables(include_secrets=True)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    current = json.loads(ran.stdout)
    wanted = {name: comparable(value) for name, value in prefect_table()}
    assert {name: comparable(current.get(name)) for name in wanted} == wanted


def pins() -> list[tuple[str, Version]]:
    """The canonical names and versions of constraints.txt, in its order."""
    return [(canonicalize_name(pin["name"]), Version(pin["version"])) for pin in PIN.finditer(CONSTRAINTS)]


def prefect_table() -> Iterator[tuple[str, Any]]:
    """[tool.prefect] as environment variables: `flows.heartbeat_frequency` is PREFECT_FLOWS_HEARTBEAT_FREQUENCY."""

    def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict):
            yield prefix.upper(), value
            return
        for key, inner in value.items():
            yield from flat(f"{prefix}_{key}", inner)

    return flat("prefect", PYPROJECT["tool"]["prefect"])


def comparable(value: Any) -> str | float:
    """A setting as text or number, whichever way it was written: true and 'True', 1.0 and '1'."""
    text = str(value).lower().strip("[]'\"")
    try:
        return float(text)
    except ValueError:
        return text


def test_links_in_the_documents_lead_somewhere():
    """Every relative link and picture in a document of the repository is a file of it."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert ROOT / "README.md" in documents
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).is_file(), f"{document.name} links to {target}"

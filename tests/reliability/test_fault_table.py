"""The table of faults in docs/reliability.md and the tests that it speaks of are the same."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TABLE = re.findall(
    r"^\| (\d+) \| .* \| (.*) \|$", (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8"), re.MULTILINE
)
DEFINED = {
    name
    for path in TESTS.rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
}


def test_the_table_has_every_row():
    """Rows 1 to 32, in their order."""
    assert sorted({int(row) for row, _ in TABLE}) == list(range(1, 33))
    assert [int(row) for row, _ in TABLE] == sorted(int(row) for row, _ in TABLE)


def test_every_test_of_the_table_is_there():
    """No row speaks of a test that does not exist."""
    assert [name for _, tests in TABLE for name in re.findall(r"`(test_\w+)`", tests) if name not in DEFINED] == []


def test_every_numbered_test_stands_in_its_row():
    """What is called after a row is found in it."""
    told = {(int(row), name) for row, tests in TABLE for name in re.findall(r"`(test_\w+)`", tests)}
    numbered = {(int(found[1]), name) for name in DEFINED if (found := re.match(r"test_fault_(\d+)_", name))}
    assert numbered - told == set()

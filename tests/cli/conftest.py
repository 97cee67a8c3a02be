"""The command line, called in this process, and a folder of models to call it in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fake_checkpoints import write_fake
from xmerge.cli import main


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    exit_code: int
    out: str
    err: str


Xmerge = Callable[..., Said]


@pytest.fixture
def xmerge(capsys) -> Xmerge:
    """Call the command with these words."""

    def call(*words: object) -> Said:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a base and a donor that fits it."""
    write_fake(tmp_path / "base")
    write_fake(tmp_path / "donor")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refuse(place, xmerge):
    """Merge this recipe: it must be refused with this exit code, name all these, and write nothing."""

    def call(recipe: str, exit_code: int, *named: str) -> str:
        (place / "recipe.yml").write_text(recipe, encoding="utf-8")
        before = sorted(os.listdir(place))
        said = xmerge("merge", "recipe.yml", "out", "--direct")
        assert (said.exit_code, said.err) == (exit_code, said.err)
        for name in named:
            assert name in said.err
        assert "Traceback" not in said.err
        assert sorted(os.listdir(place)) == before, "something was written"
        return str(said.err)

    return call

"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

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

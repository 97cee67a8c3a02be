"""`xmerge merge --task-runner`: what is refused before a server is started or anything is written."""

from __future__ import annotations

import os
import socket

import pytest

RECIPE = """\
merge_method: slerp
base_model: base
models: [{model: base}, {model: donor}]
parameters: {t: 0.5}
"""


@pytest.fixture
def refuse(place, xmerge):
    """Merge with these words: it must be refused with exit code 2, say all these, and write nothing."""

    def call(words: tuple[str, ...], *said: str) -> None:
        (place / "recipe.yml").write_text(RECIPE, encoding="utf-8")
        before = sorted(os.listdir(place))
        refused = xmerge("merge", "recipe.yml", "out", *words)
        assert refused.exit_code == 2, refused.err
        assert "Traceback" not in refused.err
        assert [text for text in said if text not in refused.err] == []
        assert sorted(os.listdir(place)) == before

    return call


def test_a_task_runner_that_there_is_not_is_refused(refuse):
    """The nearest one is named."""
    refuse(("--task-runner", "desk"), "there is no task runner 'desk'", "did you mean 'dask'?")


@pytest.mark.parametrize("runner", ["dask", "ray:auto"])
def test_the_plain_loop_has_no_workers(refuse, runner):
    """`--direct` with a cluster is refused, since it would be ignored."""
    refuse(("--direct", "--task-runner", runner), "--direct is a plain loop in this process", "leave out --direct")


def test_a_cluster_that_is_not_there_is_refused(refuse):
    """An address where nobody answers is named at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    refuse(("--task-runner", f"ray:{address}"), f"nobody answers at {address}", "say 'ray' for one on this machine")


def test_a_device_of_other_machines_is_not_looked_for_here(refuse):
    """With a cluster elsewhere it is the address that is refused, not the GPU that this machine lacks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    refuse(("--task-runner", f"dask:{address}", "--device", "cuda:7"), "nobody answers at")

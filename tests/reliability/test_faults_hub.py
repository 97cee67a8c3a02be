"""Rows 27 to 30 of the table of faults in docs/reliability.md: merges from a Hub that goes wrong, and back to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import HubServer, connected, running
from tests.small_merges import RECIPE, digest_files, list_tree, load_weights, run, write_models
from xmerge.errors import HubError
from xmerge.run import MergeOutcome

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
HUB_RECIPE = RECIPE.replace("llama\n", "org/llama\n").replace("qwen3\n", "org/qwen3\n")
PUBLISHED = f"{HUB_RECIPE}publish: {{repo: me/merged}}\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The two models of the recipe, in folders, and what a merge of them holds."""
    folder = write_models(tmp_path_factory.mktemp("models"))
    run(folder)
    return folder


@pytest.fixture
def hub(models, tmp_path_factory) -> Iterator[HubServer]:
    """A Hub with both models, to which this process is connected with an empty cache."""
    with running() as server, connected(server, tmp_path_factory.mktemp("home")):
        for name in ("llama", "qwen3"):
            server.add(f"org/{name}", {path.name: path.read_bytes() for path in (models / name).iterdir()})
        yield server


def merge(place: Path, recipe: str = HUB_RECIPE, **options: Any) -> MergeOutcome:
    """Merge what is on the Hub."""
    return run(place, recipe=recipe, **options)


def check_weights(out: Path, models: Path) -> None:
    """The weights are those of a merge of the local folders."""
    made, expected = load_weights(out), load_weights(models / "out")
    assert made.keys() == expected.keys()
    assert all(made[name].equal(expected[name]) for name in made)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_fault_27_a_refusal_of_the_hub_is_told_and_not_asked_for_again(hub, tmp_path, status):
    """What no waiting mends is exit 3 after one answer, and nothing has appeared."""
    hub.fail("/org/qwen3", status=status, times=99)
    with pytest.raises(HubError, match="org/qwen3") as caught:
        merge(tmp_path)
    assert caught.value.exit_code == 3
    assert hub.count("/org/qwen3") <= 3 and not hub.slept
    assert list_tree(tmp_path) == []


@pytest.mark.parametrize("how", [{"status": 429}, {"status": 500}, {"status": 503}, {"reset": True}])
def test_fault_27_a_disturbance_that_ends_is_waited_out(hub, models, tmp_path, how):
    """Too many requests, a fault of the server, a connection that breaks in the middle: asked again, merged whole."""
    hub.fail("GET /stored/", **how)
    merge(tmp_path)
    check_weights(tmp_path / "out", models)


def garble_weights(hub: HubServer, models: Path, times: int) -> None:
    """Change a byte of the base's weights on their way, so many times; its header comes before them, as it is."""
    stored = f"GET /stored/{digest_files(models / 'llama')['model.safetensors']}"
    hub.fail(stored)
    hub.fail(stored, garbled=True, times=times)


def test_fault_28_bytes_that_are_not_the_expected_ones_are_fetched_once_more(hub, models, tmp_path):
    """A shard is compared with the digest that the repository states, and a wrong one is not kept."""
    garble_weights(hub, models, 1)
    merge(tmp_path)
    check_weights(tmp_path / "out", models)


def test_fault_28_bytes_that_stay_wrong_are_never_merged(hub, models, tmp_path):
    """What does not become right is exit 3, and the next run asks for it again."""
    garble_weights(hub, models, 99)
    with pytest.raises(HubError, match=r"model\.safetensors") as caught:
        merge(tmp_path)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    hub.faults.clear()
    merge(tmp_path)
    check_weights(tmp_path / "out", models)


def test_fault_29_a_publication_that_breaks_off_shows_nothing_and_is_finished_by_the_next_run(hub, models, tmp_path):
    """The output is in its place, the branch has all of it or nothing, and the same command uploads what is missing."""
    hub.fail("/commit/", status=500, times=99)
    with pytest.raises(HubError) as caught:
        merge(tmp_path, PUBLISHED)
    assert caught.value.exit_code == 3
    check_weights(tmp_path / "out", models)
    made = hub.repositories["me/merged"]
    assert not any(name.endswith(".safetensors") for name in made.commits.get(made.branches.get("main", ""), {}))
    hub.faults.clear()
    assert merge(tmp_path, PUBLISHED).report is None
    uploaded = made.commits[made.branches["main"]]
    assert digest_files(tmp_path / "out").keys() <= uploaded.keys()


def test_fault_30_a_hub_without_xet_storage_is_told_with_the_way_around_it(hub, models, tmp_path, monkeypatch):
    """The error names the variable that makes the client upload by LFS, and the output is in its place."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(HubError, match="no Xet storage") as caught:
        merge(tmp_path, PUBLISHED)
    assert "HF_HUB_DISABLE_XET=1" in str(caught.value)
    check_weights(tmp_path / "out", models)
    monkeypatch.undo()

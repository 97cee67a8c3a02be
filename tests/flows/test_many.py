"""Many recipes in one flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort

from tests.flows.tiny import LAYERS, Bench, digest
from xmerge.errors import CheckpointError, ConfigError, Interrupted, InUseError
from xmerge.lock import hold_folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("api_url")]

UNITS = LAYERS + 2
THIRD = LAYERS // 3
ROOT = Path(__file__).resolve().parents[2]

STUCK_IN_THE_SECOND = """
import os, signal, sys, time
from flows.command import run_flow
from xmerge import engine
from xmerge.errors import XmergeError

real, stages = engine.merge_layer, []

def stuck(*args):
    if "recipe-1.yml" in stages:
        stages.clear()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(4)
    return real(*args)

class Reporter:
    stage = staticmethod(stages.append)
    def plan_ready(self, plan): pass
    def note(self, text): pass
    def layer_done(self, result, done, total): pass

engine.merge_layer = stuck
try:
    run_flow("flows.many", "merge_many", {"recipes": sys.argv[1:2], "out": sys.argv[2], "trial": False}, Reporter())
except XmergeError as error:
    sys.exit(error.exit_code)
"""


def write_recipes(bench: Bench, count: int) -> Path:
    """A folder of recipes that differ in t on a third of the layers."""
    folder = bench.place / "recipes"
    folder.mkdir()
    for number in range(count):
        t = [{"filter": f"layers.{layer}.", "value": 0.1 + number / 100} for layer in range(THIRD)]
        config = json.loads(bench.recipe()) | {"parameters": {"t": [*t, {"value": 0.5}]}}
        (folder / f"recipe-{number}.yml").write_text(json.dumps(config), encoding="utf-8")
    return folder


def merge_all(recipes: Path, out: Path) -> tuple[str, dict[str, Any]]:
    """Call the flow; the state it ends in, and what it says of the batch."""
    from flows.many import merge_many
    from flows.reporting import RunWatch, watch_run

    watch = RunWatch()
    watch_run(watch)
    state = merge_many([str(recipes)], str(out), trial=False, return_state=True)
    assert watch.outcome is not None
    assert watch.flow_run_name == f"merge many into {out}"
    return str(state.type.value), watch.outcome


def test_ten_recipes_make_the_layers_they_share_once(bench: Bench):
    """Of ten recipes that differ on a third of the layers, the first makes all and each other one that third.

    Shards that outputs share take their place on the disk once, and the store goes when all is done.
    """
    state, batch = merge_all(write_recipes(bench, 10), bench.out)
    assert state == "COMPLETED"
    made = [each["layers"] - each["reused"] for each in batch["recipes"]]
    assert made == [UNITS] + [THIRD] * 9
    assert sorted(path.name for path in bench.out.iterdir()) == [f"recipe-{number}" for number in range(10)]
    shards = [path.stat() for path in bench.out.rglob("*.safetensors")]
    assert len({status.st_ino for status in shards}) == UNITS + 9 * THIRD
    every = {path.stat().st_ino: path.stat().st_blocks * 512 for path in bench.out.rglob("*") if path.is_file()}
    assert batch["output_bytes_on_disk"] == sum(every.values())
    bench.merge(bench.place / "alone", t=0.5)
    assert digest(bench.out / "recipe-3") != digest(bench.place / "alone")


def test_the_others_are_merged_when_one_fails(bench: Bench):
    """A recipe that means nothing and one without its model are told with remedies; the rest is made and kept."""
    recipes = write_recipes(bench, 2)
    (recipes / "bad.yml").write_text("merge_method: slrp\nmodels: [{model: a}]\n", encoding="utf-8")
    lost = json.loads(bench.recipe())
    lost["models"][1]["model"] = "./nowhere"
    (recipes / "lost.yml").write_text(json.dumps(lost), encoding="utf-8")
    state, batch = merge_all(recipes, bench.out)
    assert state == "FAILED"
    outcomes = {each["recipe"]: each for each in batch["recipes"]}
    assert [each["outcome"] for each in outcomes.values()] == ["failed", "failed", "merged", "merged"]
    assert outcomes["bad.yml"]["exit_code"] == ConfigError.exit_code
    assert "did you mean 'slerp'?" in outcomes["bad.yml"]["error"]
    assert outcomes["lost.yml"]["exit_code"] == CheckpointError.exit_code
    assert "there is no model './nowhere'" in outcomes["lost.yml"]["error"]
    assert batch["exit_code"] == ConfigError.exit_code
    assert (bench.out / ".xmerge" / "store").is_dir()

    (recipes / "bad.yml").unlink()
    (recipes / "lost.yml").unlink()
    state, batch = merge_all(recipes, bench.out)
    assert [each["outcome"] for each in batch["recipes"]] == ["was there", "was there"]
    assert not (bench.out / ".xmerge").exists()


def test_the_summary_is_a_page(bench: Bench):
    """The run's page has a row for each recipe, and the disk that all of it takes."""
    merge_all(write_recipes(bench, 2), bench.out)
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        key = ArtifactFilterKey(any_=["xmerge-summary-out"])
        shown = client.read_artifacts(artifact_filter=ArtifactFilter(key=key))
    newest = max(shown, key=lambda artifact: str(artifact.created))
    rows = json.loads(str(newest.data))
    assert [(row["recipe"], row["layers made"], row["reused"]) for row in rows] == [
        ("recipe-0.yml", str(UNITS), "0"),
        ("recipe-1.yml", str(THIRD), str(UNITS - THIRD)),
    ]
    assert "outputs on disk" in str(newest.description)


def test_one_batch_at_a_time_in_a_folder(bench: Bench):
    """A second batch for the same outputs is refused, and says who has them."""
    from flows.many import merge_many

    recipes = write_recipes(bench, 1)
    with hold_folder(bench.out / ".xmerge", "the outputs"), pytest.raises(InUseError, match="is being merged by"):
        merge_many([str(recipes)], str(bench.out), trial=False)


def test_the_command_tells_each_outcome_and_ends_with_the_code_of_a_failure(bench: Bench, api_url):
    """`python -m flows.merge_many` prints a line for each recipe, the error in full, and the disk."""
    recipes = write_recipes(bench, 1)
    (recipes / "bad.yml").write_text("merge_method: slrp\nmodels: [{model: a}]\n", encoding="utf-8")
    words = ["-m", "flows.merge_many", str(recipes), str(bench.out), "--skip-trial-load", "--quiet"]
    environment = os.environ | {"PREFECT_API_URL": api_url}
    ran = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == ConfigError.exit_code
    assert "Traceback" not in ran.stderr
    assert "bad.yml: failed\n  ConfigError: there is no merge method 'slrp'; did you mean 'slerp'?" in ran.stdout
    assert f"recipe-0.yml: merged, {UNITS} layers made, 0 reused" in ran.stdout
    assert "outputs on disk, shared shards once: " in ran.stdout


def test_a_signal_leaves_what_is_merged_as_it_is(bench: Bench, api_url):
    """Of two recipes the first is done and the second stuck when Ctrl-C comes: only the first run has completed."""
    words = ["-c", STUCK_IN_THE_SECOND, str(write_recipes(bench, 2)), str(bench.out)]
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | {"PREFECT_API_URL": api_url}, check=False)
    assert ran.returncode == Interrupted.exit_code
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=3)
    assert [run.state_name for run in runs] == ["Interrupted", "Completed", "Interrupted"]

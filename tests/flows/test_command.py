"""The command as its own process: killed, interrupted, and without a server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort

from tests.flows.tiny import LAYERS, Bench, digest
from xmerge.config import parse_config
from xmerge.errors import Interrupted, PlanError
from xmerge.run import merge

pytestmark = pytest.mark.slow

UNITS = LAYERS + 2
CRASHED = "an earlier run has crashed: "
SECONDS_TO_STOP = 2.0 * (3 if "CI" in os.environ or "PYTEST_XDIST_WORKER" in os.environ else 1)
ROOT = Path(__file__).resolve().parents[2]

CALL = """
import json, os, signal, sys, time
from pathlib import Path
from flows.command import run_merge
from xmerge import engine
from xmerge.errors import XmergeError
from xmerge.interrupt import check_stop

config, out, act, at, deaf = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
real = engine.merge_layer

def unhurried(*args):
    time.sleep(deaf)
    for _ in range(10):
        check_stop()
        time.sleep(0.01)
    return real(*args)

class Reporter:
    def stage(self, name): pass
    def plan_ready(self, plan): pass
    def note(self, text): print(text, file=sys.stderr)
    def layer_done(self, result, done, total):
        if done == at:
            print(time.time(), flush=True)
            os.kill(os.getpid(), getattr(signal, act))

engine.merge_layer = unhurried
try:
    print(json.dumps(run_merge(config, out, workers=2, trial=False, reporter=Reporter())))
except XmergeError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def call(
    bench: Bench, environment: dict[str, str], act: str = "SIGCONT", at: int = 0, deaf: float = 0
) -> subprocess.CompletedProcess[str]:
    """Run a merge in a process of its own that gets the signal `act` when `at` layers are done.

    Each layer looks for no signal for `deaf` seconds.
    """
    return subprocess.run(
        [sys.executable, "-c", CALL, str(bench.recipe_file()), str(bench.out), act, str(at), str(deaf)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_killed_merge_is_resumed(bench: Bench, api_url, prefect_home):
    """After SIGKILL half-way the same call makes the same bytes, and no finished layer a second time.

    Without an API the second call finds the server that runs on this machine, and has a complete history; it says
    nothing but which runs have crashed.
    """
    assert call(bench, {"PREFECT_API_URL": api_url}, "SIGKILL", 4).returncode == -signal.SIGKILL
    assert not bench.out.exists()
    resumed = call(bench, {"PREFECT_HOME": str(prefect_home)})
    assert [line for line in resumed.stderr.splitlines() if not line.startswith(CRASHED)] == []
    outcome = json.loads(resumed.stdout)
    assert 4 <= outcome["reused"] < UNITS
    assert outcome["flow_run"]["recorded"]
    merge(parse_config(bench.recipe(), "recipe.yml"), bench.place / "direct", trial=False)
    assert digest(bench.out) == digest(bench.place / "direct")


@pytest.mark.parametrize("act", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_command_soon_and_resumably(bench: Bench, api_url, act):
    """Within two seconds, with exit code 130, no traceback, and finished layers kept."""
    stopped = call(bench, {"PREFECT_API_URL": api_url}, act, 3)
    seconds = time.time() - float(stopped.stdout)
    assert stopped.returncode == Interrupted.exit_code
    assert seconds < SECONDS_TO_STOP
    assert stopped.stderr.startswith("Interrupted: the merge was interrupted.")
    assert "Traceback" not in stopped.stderr
    assert not bench.out.exists()
    kept = list(bench.place.glob(".out.xmerge/store/*/*.safetensors"))
    assert 3 <= len(kept) < UNITS


def test_a_run_whose_layers_do_not_hear_a_signal_is_no_crash(bench: Bench, api_url):
    """The command does not wait for a layer that is stuck, and its run says that it was interrupted."""
    assert call(bench, {"PREFECT_API_URL": api_url}, "SIGINT", 1, deaf=4).returncode == Interrupted.exit_code
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
    assert (run.state_type, run.state_name) == (StateType.CANCELLED, "Interrupted")


def test_an_embedded_server_dies_with_its_command(tmp_path):
    """SIGKILL of whoever started it ends the server."""
    mark = {"MARK": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    code = "import os; from flows.server.shared import EmbeddedServer; EmbeddedServer(); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | mark, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert wait_until_gone(f"MARK={tmp_path}")


def test_an_api_that_is_not_there_is_named(bench: Bench):
    """A configured API that cannot be reached refuses the merge before anything is read, with its address."""
    refused = call(bench, {"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert refused.returncode == PlanError.exit_code
    assert refused.stderr.startswith("PlanError: the Prefect API at http://127.0.0.1:9/api cannot be reached.")
    assert "unset PREFECT_API_URL" in refused.stderr
    assert "Traceback" not in refused.stderr


def wait_until_gone(variable: str) -> bool:
    """Whether soon no process has this variable in its environment."""
    deadline = time.monotonic() + 5
    while any(variable.encode() in variables for variables in environments()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def environments() -> Iterator[list[bytes]]:
    """The variables of every process that may be asked."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().split(b"\0")

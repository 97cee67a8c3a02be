"""Tokens: from the environment or a Secret block, and nowhere to be found afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flows.secrets import SECRET, TOKEN, token_from_block
from tests.flows.tiny import Bench
from tests.hub.server import SIGNATURE, running
from tests.hub.server import TOKEN as HUB_TOKEN
from xmerge.errors import ConfigError

BLOCK = "hub-token"
RECIPE = """\
merge_method: slerp
base_model: org/base@main
models: [{model: org/base@main}, {model: org/donor}]
parameters: {t: 0.3}
publish: {repo: me/merged}
"""


@pytest.fixture
def block(api_url, monkeypatch) -> str:
    """A Secret block that holds a token, named by the environment."""
    from prefect.blocks.system import Secret

    made: Any = Secret
    made(value="hf_FromTheBlock").save(BLOCK, overwrite=True, _sync=True)
    monkeypatch.setenv(SECRET, BLOCK)
    monkeypatch.delenv(TOKEN, raising=False)
    return BLOCK


@pytest.mark.slow
def test_a_token_comes_from_the_block_that_is_named(bench: Bench, block, monkeypatch, prefect_home):
    """A flow has the token while it runs and not afterwards, and the database does not hold it in the clear."""
    download = import_module("tasks.download")
    seen: list[str | None] = []
    real = download.fetch_model

    def fetch(*given: Any, **more: Any) -> Path:
        seen.append(os.environ.get(TOKEN))
        folder: Path = real(*given, **more)
        return folder

    monkeypatch.setattr(download, "fetch_model", fetch)
    bench.merge()
    assert set(seen) == {"hf_FromTheBlock"}
    assert TOKEN not in os.environ
    assert list_holders(prefect_home, "hf_FromTheBlock") == []


@pytest.mark.slow
def test_the_environment_s_own_token_comes_first(block, monkeypatch):
    """A token that is there already is left alone."""
    monkeypatch.setenv(TOKEN, "hf_Mine")
    with token_from_block():
        assert os.environ[TOKEN] == "hf_Mine"
    assert os.environ[TOKEN] == "hf_Mine"


@pytest.mark.slow
def test_a_block_that_is_not_there_is_named(block, monkeypatch):
    """Exit 2, with the block's name, and no word of a token."""
    monkeypatch.setenv(SECRET, "no-such-block")
    with pytest.raises(ConfigError) as caught, token_from_block():
        pass
    assert caught.value.what == "Prefect has no Secret block named 'no-such-block'."


def list_holders(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text."""
    wanted = text.encode()
    return [str(path) for path in folder.rglob("*") if path.is_file() and wanted in path.read_bytes()]


@pytest.mark.slow
def test_no_run_says_a_token_or_a_signed_address(models, tmp_path):
    """From the Hub to the Hub, as a flow with every log at DEBUG: output, logs, records and database hold no secret."""
    (tmp_path / "recipe.yml").write_text(RECIPE, encoding="utf-8")
    with running() as server:
        for name in ("base", "donor"):
            files = {path.name: path.read_bytes() for path in (models / name).iterdir()}
            server.add(f"org/{name}", files, private=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "HF_"))},
            **server.environment(tmp_path / "hub"),
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
            "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "DEBUG",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "xmerge,httpx,httpx2,httpcore,httpcore2,urllib3,huggingface_hub",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
            "HF_DEBUG": "1",
        }
        command = [sys.executable, "-m", "xmerge", "merge", "recipe.yml", "out", "--skip-trial-load"]
        command += ["--store", str(tmp_path / "store")]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert server.repositories["me/merged"].commits
        assert any(served.authorized for served in server.served)
    assert "DEBUG" in done.stderr + done.stdout
    assert list((tmp_path / "prefect").glob("prefect.db*"))
    assert "curl -X" not in done.stdout + done.stderr, "the Hub's client told its requests"
    for secret in (HUB_TOKEN, SIGNATURE):
        assert secret not in done.stdout + done.stderr
        assert list_holders(tmp_path, secret) == []

"""`xmerge publish`, and `publish:` in a recipe: from a folder or the Hub to the Hub, in both protocols."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import HubServer, running
from tests.small_merges import RECIPE, digest_files, run, write_models

CARD = "---\nlicense: {}\n---\n# A model\n"


@pytest.fixture
def server() -> Iterator[HubServer]:
    """An empty Hub."""
    with running() as hub:
        yield hub


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output, with the models it was made from beside it."""
    folder = tmp_path_factory.mktemp("made")
    run(write_models(folder))
    return folder


def call(server: HubServer, place: Path, *words: str, xet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python with some words in a process of its own that talks to the server."""
    environment = os.environ | server.environment(place / "home", xet=xet) | {"PREFECT_HOME": str(place / "prefect")}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def xmerge(server: HubServer, place: Path, *words: str, xet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run xmerge against the server, without the trial load, which takes seconds."""
    return call(server, place, "-m", "xmerge", *words, "--skip-trial-load", xet=xet)


def fetch_back(server: HubServer, place: Path, repo: str, *, xet: bool) -> Path:
    """Fetch a whole repository as any user of the Hub does."""
    code = f"from huggingface_hub import snapshot_download as fetch; fetch({repo!r}, local_dir='back')"
    done = call(server, place, "-c", code, xet=xet)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(place / "back" / ".cache")
    (place / "back" / ".gitattributes").unlink()
    return place / "back"


@pytest.mark.slow
@pytest.mark.parametrize("xet", [False, True], ids=["LFS", "Xet"])
def test_what_is_published_comes_back_byte_for_byte(server, made, tmp_path, xet):
    """publish, fetch back, verify: the same files; a second time there is nothing to upload."""
    out = made / "out"
    if xet:
        server.use_xet(tmp_path / "store", sorted(out.glob("*.safetensors")))
    published = xmerge(server, tmp_path, "publish", str(out), "me/merged", xet=xet)
    assert published.returncode == 0, published.stderr
    assert published.stdout.startswith("published: ")
    assert server.repositories["me/merged"].private
    assert bool(server.count("PUT /stored/")) != xet
    back = fetch_back(server, tmp_path, "me/merged", xet=xet)
    assert digest_files(back) == digest_files(out)
    verified = xmerge(server, tmp_path, "verify", "back", "--base", str(made / "llama"))
    assert verified.returncode == 0, verified.stdout

    commits = len(server.repositories["me/merged"].commits)
    again = xmerge(server, tmp_path, "publish", str(out), "me/merged", xet=xet)
    assert again.stdout.startswith("nothing to upload, all of it is there already: ")
    assert len(server.repositories["me/merged"].commits) == commits


@pytest.mark.slow
def test_a_server_without_xet_is_recognised(server, made, tmp_path):
    """Before anything is sent, the error names the variable that makes the client use LFS; with it, it works."""
    refused = xmerge(server, tmp_path, "publish", str(made / "out"), "me/merged", xet=True)
    assert refused.returncode == 3
    assert "no Xet storage" in refused.stderr and "HF_HUB_DISABLE_XET=1" in refused.stderr
    assert server.count("/preupload/") == 0
    assert xmerge(server, tmp_path, "publish", str(made / "out"), "me/merged").returncode == 0


@pytest.mark.slow
def test_a_token_that_expires_while_xet_uploads_is_told(server, made, tmp_path):
    """The store's client says little, so the error is found by asking again; the next run finishes."""
    out = made / "out"
    server.use_xet(tmp_path / "store", sorted(out.glob("*.safetensors")))
    server.fail("xet-write-token")
    server.fail("xet-write-token", status=401, times=99)
    refused = xmerge(server, tmp_path, "publish", str(out), "me/merged", xet=True)
    assert refused.returncode == 3
    assert "did not accept the token" in refused.stderr and "hf auth login" in refused.stderr
    there = server.repositories["me/merged"]
    assert set(there.commits[there.branches["main"]]) == {".gitattributes"}
    server.faults.clear()
    assert xmerge(server, tmp_path, "publish", str(out), "me/merged", xet=True).returncode == 0
    assert set(there.branches) == {"main"}


@pytest.mark.slow
def test_what_does_not_verify_is_not_published(server, made, tmp_path):
    """One flipped bit in a shard: exit 4, and no request is made."""
    shutil.copytree(made / "out", tmp_path / "out")
    shard = tmp_path / "out" / "model-00002-of-00006.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused = xmerge(server, tmp_path, "publish", "out", "me/merged")
    assert refused.returncode == 4
    assert "wrong_digest" in refused.stderr + refused.stdout
    assert server.served == []


@pytest.mark.slow
def test_a_forbidden_merge_is_published_only_if_that_is_acknowledged(server, tmp_path):
    """`publish` refuses with exit 2 before any request, names the clause, and obeys --acknowledge."""
    write_models(tmp_path)
    (tmp_path / "llama" / "README.md").write_text(CARD.format("llama3"))
    (tmp_path / "qwen3" / "README.md").write_text(CARD.format("apache-2.0"))
    run(tmp_path)
    refused = xmerge(server, tmp_path, "publish", "out", "me/merged")
    assert refused.returncode == 2
    for text in ("section 1.b.v", "https://www.llama.com/llama3/license/", "--acknowledge llama3", "not legal advice"):
        assert text in refused.stderr
    assert server.served == []
    assert xmerge(server, tmp_path, "publish", "out", "me/merged", "--acknowledge", "llama3").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("--direct",), ()], ids=["direct", "as a flow"])
def test_one_recipe_goes_from_the_hub_to_the_hub(server, tmp_path, ways):
    """Models, their cards and licences come from the Hub by commit, and the output goes there whole."""
    write_models(tmp_path / "models")
    commits = {}
    for name, licence in (("llama", "llama3.2"), ("qwen3", "apache-2.0")):
        files = {path.name: path.read_bytes() for path in (tmp_path / "models" / name).iterdir()}
        files |= {"README.md": CARD.format(licence).encode(), "LICENSE": licence.encode()}
        commits[name] = server.add(f"org/{name}", files)
    recipe = RECIPE.replace(": llama", ": org/llama").replace(": qwen3", ": org/qwen3")
    (tmp_path / "recipe.yml").write_text(recipe + "publish: {repo: me/Llama-merged}\n")
    words = ("merge", "recipe.yml", "out", "--json", *ways)
    done = xmerge(server, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["publication"]
    assert said["uploaded"]
    sent = server.repositories["me/Llama-merged"].commits[said["commit"]]
    assert {name: data for name, data in sent.items() if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()
    }
    assert sent["LICENSE.0-org-llama"] == b"llama3.2" and sent["LICENSE.1-org-qwen3"] == b"apache-2.0"
    card = sent["README.md"].decode()
    for text in (f"org/llama@{commits['llama']}", "**Built with Llama**", 'license: "other"', '- "org/qwen3"'):
        assert text in card
    again = json.loads(xmerge(server, tmp_path, *words).stdout)["publication"]
    assert again["commit"] == said["commit"] and not again["uploaded"]

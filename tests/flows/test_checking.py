"""The flows `verify_model` and `publish_model`."""

from __future__ import annotations

import pytest

from tests.flows.history import last_run
from tests.flows.tiny import Bench
from tests.hub.server import connected, running
from xmerge.errors import InvalidMergeError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("api_url")]


def test_a_whole_checkpoint_is_verified_and_shown(bench: Bench):
    """The flow returns the report, and its page shows it."""
    from flows.verify import verify_model

    bench.merge()
    report = verify_model(str(bench.out), str(bench.models / "base"), trial=False)
    assert report["findings"] == []
    last = last_run(1)
    assert last.run.name == f"verify {bench.out}"
    assert {artifact.key for artifact in last.artifacts} == {"xmerge-validation-out"}


def test_a_damaged_checkpoint_fails_the_run_and_is_not_uploaded(bench: Bench, monkeypatch):
    """A flipped bit is found, the run fails with the library's error, and nothing goes to the Hub."""
    from flows.publish import publish_model
    from flows.verify import verify_model
    from tasks import upload

    bench.merge()
    shard = min(bench.out.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    called: list[object] = []
    monkeypatch.setattr(upload, "publish_verified", called.append)
    with pytest.raises(InvalidMergeError):
        verify_model(str(bench.out), trial=False)
    with pytest.raises(InvalidMergeError):
        publish_model(str(bench.out), "me/merged", trial=False)
    assert called == []


def test_a_folder_that_is_no_checkpoint_is_named(bench: Bench):
    """What cannot be verified at all fails the run too, and is told by name."""
    from flows.verify import verify_model

    with pytest.raises(InvalidMergeError, match=r"config\.json does not exist"):
        verify_model(str(bench.models), trial=False)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_a_whole_checkpoint_is_published_once(bench: Bench):
    """Verified and uploaded as two tasks; a second run finds all of it there and makes no second commit."""
    from flows.publish import publish_model

    bench.merge()
    with running() as server, connected(server, bench.place / "hub"):
        made = [publish_model(str(bench.out), "me/merged", trial=False) for _ in range(2)]
        commits = server.repositories["me/merged"].commits
        assert made[0]["commit"] == made[1]["commit"] == list(commits)[-1]
    assert [each["uploaded"] for each in made] == [True, False]
    assert last_run(2).names == ["verify_checkpoint", "upload_checkpoint"]

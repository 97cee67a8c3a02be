"""Publishing: the real client against a server on 127.0.0.1."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.hub.samples import INDEX, ONE, TWO, contents, go_offline, output, shard, upload
from tests.hub.server import HubServer
from xmerge import hub
from xmerge.errors import HubError, HubUnavailableError

# The client's own use of its HTTP library, in LFS uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_uploaded_comes_back_byte_for_byte(
    server: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An upload makes, silently, a private repository with the folder's files; no token goes to the storage."""
    folder = output(tmp_path)
    sent = upload(folder)
    assert capfd.readouterr() == ("", "")
    assert sent == hub.UploadedTo(
        repo="org/merged",
        branch="main",
        commit=hub.pin_revision("org/merged", None),
        private=True,
        url=f"{server.endpoint}/org/merged/tree/{sent.commit}",
        changed=True,
    )
    assert server.repositories["org/merged"].private
    hub.fetch_metadata(sent.repo, sent.commit)
    back = hub.fetch_shards(sent.repo, sent.commit, [ONE, TWO])
    assert contents(back) == contents(folder)
    assert not [served for served in server.served if served.path.startswith("/stored/") and served.authorized]


def test_uploading_the_same_again_changes_nothing(server: HubServer, tmp_path: Path) -> None:
    """A second upload of the same folder gives the same commit and sends no weights."""
    folder = output(tmp_path)
    first = upload(folder)
    puts = server.count("PUT ")
    assert upload(folder) == first.model_copy(update={"changed": False})
    assert server.count("PUT ") == puts


def test_shards_of_an_earlier_upload_do_not_stay(server: HubServer, tmp_path: Path) -> None:
    """After an upload the branch has the folder's weights and no others; other files stay."""
    there = {"model-00003-of-00003.safetensors": shard(1), INDEX: b"{}", "picture.png": b"png"}
    server.add("org/merged", there, private=True)
    sent = upload(output(tmp_path))
    assert set(hub.list_files("org/merged", sent.commit)) == {"config.json", "README.md", ONE, TWO, "picture.png"}


def test_a_branch_is_made_and_the_main_branch_left_alone(server: HubServer, tmp_path: Path) -> None:
    """An upload to a branch makes it where it is missing, twice the same, and does not touch main."""
    main = server.add("org/merged", {"README.md": b"# Mine\n"}, private=True)
    folder = output(tmp_path)
    sent = upload(folder, branch="candidate")
    assert upload(folder, branch="candidate").commit == sent.commit
    assert server.repositories["org/merged"].branches == {"main": main, "candidate": sent.commit}


def test_a_push_in_between_fails_and_does_not_mix(server: HubServer, tmp_path: Path) -> None:
    """If the branch moves during the upload, the upload fails and the other's commit stands as it was."""
    server.add("org/merged", {"README.md": b"# Mine\n"}, private=True)
    other = server.repositories["org/merged"]
    server.fail("PUT /stored/", act=lambda: other.commit({"other.txt": b"theirs"}))
    with pytest.raises(HubError, match="the branch was changed by someone else") as refused:
        upload(output(tmp_path))
    assert refused.value.why == "A commit has happened since. Please refresh and try again."
    assert set(other.commits[other.branches["main"]]) == {"README.md", "other.txt"}


def test_a_private_upload_does_not_go_to_a_public_repository(server: HubServer, tmp_path: Path) -> None:
    """An upload that is to be private is refused where an existing repository is public."""
    main = server.add("org/merged", {"README.md": b"# Mine\n"})
    with pytest.raises(HubError, match="exists and is public"):
        upload(output(tmp_path))
    assert server.repositories["org/merged"].branches == {"main": main}
    assert not upload(tmp_path / "merged", private=False).private


def test_a_bare_name_belongs_to_the_tokens_account(server: HubServer, tmp_path: Path) -> None:
    """A name without an owner is answered with its owner."""
    assert upload(output(tmp_path), "merged").repo == "tester/merged"


def test_a_file_that_did_not_arrive_is_told(server: HubServer, tmp_path: Path) -> None:
    """An upload is done when the Hub lists every file in its size, and not before."""
    server.ignored.append(TWO)
    with pytest.raises(HubError, match="does not have the size") as refused:
        upload(output(tmp_path))
    assert str(refused.value.where).startswith(f"{TWO} in org/merged@")


def test_a_link_out_of_the_folder_is_not_published(server: HubServer, tmp_path: Path) -> None:
    """A folder that links to a file elsewhere is refused before any request."""
    (tmp_path / "secret").write_text("secret")
    folder = output(tmp_path)
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(HubError, match="a link to a place outside"):
        upload(folder)
    assert server.served == []


def test_an_empty_folder_is_not_published(server: HubServer, tmp_path: Path) -> None:
    """Nothing to upload is an error, not an empty commit."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(HubError, match="has no files"):
        upload(tmp_path / "empty")


def test_an_interrupted_upload_goes_on_where_it_stopped(server: HubServer, tmp_path: Path) -> None:
    """What waits on the branch of its own is not sent again, and that branch does not stay."""
    folder = output(tmp_path)
    server.fail("/commit/main", status=503, times=99)
    with pytest.raises(HubUnavailableError):
        upload(folder)
    assert set(server.repositories["org/merged"].branches) == {"main", "xmerge-upload-main"}
    server.faults.clear()
    server.served.clear()
    sent = upload(folder)
    assert server.count("/preupload/") == server.count("objects/batch") == server.count("PUT ") == 0
    assert server.repositories["org/merged"].branches == {"main": sent.commit}


def test_what_is_there_already_is_told_and_left_alone(server: HubServer, tmp_path: Path) -> None:
    """Nothing is committed a second time, and a branch that an interrupted run has left is removed."""
    folder = output(tmp_path)
    upload(folder)
    there = server.repositories["org/merged"]
    there.branches["xmerge-upload-main"] = there.branches["main"]
    commits = len(there.commits)
    assert not upload(folder).changed
    assert len(there.commits) == commits
    assert set(there.branches) == {"main"}


@pytest.mark.parametrize("match", ["/preupload/", "objects/batch", "/commit/xmerge-upload-main", "/commit/main"])
def test_a_token_that_expires_during_the_upload_is_told(server: HubServer, tmp_path: Path, match: str) -> None:
    """The error says what to do, the branch has nothing, and the next run finishes."""
    folder = output(tmp_path)
    expired = {"X-Error-Message": "Invalid credentials in Authorization header"}
    server.fail(match, status=401, headers=expired, times=99)
    with pytest.raises(HubError, match="did not accept the token") as refused:
        upload(folder)
    assert "run `hf auth login`, or set HF_TOKEN" in str(refused.value)
    there = server.repositories["org/merged"]
    assert set(there.commits[there.branches["main"]]) == {".gitattributes"}
    server.faults.clear()
    assert upload(folder).commit == there.branches["main"]


def test_other_bytes_than_were_sent_never_reach_the_branch(server: HubServer, tmp_path: Path) -> None:
    """A file that arrives in its size and with another content is told, and goes no further."""
    damaged = bytearray(shard(2))
    damaged[-1] ^= 1

    def damage() -> None:
        for files in server.repositories["org/merged"].commits.values():
            files.update({TWO: bytes(damaged)} if TWO in files else {})

    server.fail("GET /api/models/org/merged/revision/xmerge-upload-main", act=damage)
    with pytest.raises(HubError, match="other bytes than the ones that were uploaded") as refused:
        upload(output(tmp_path))
    assert str(refused.value.where).startswith(f"{TWO} in org/merged@")
    there = server.repositories["org/merged"]
    assert set(there.commits[there.branches["main"]]) == {".gitattributes"}


def test_small_files_are_compared_by_what_they_hold(server: HubServer, tmp_path: Path) -> None:
    """A text that has changed without changing its size is uploaded, and nothing else is."""
    folder = output(tmp_path)
    upload(folder)
    (folder / "README.md").write_bytes(b"# MERGED\n")
    puts = server.count("PUT ")
    sent = upload(folder)
    assert sent.changed and server.count("PUT ") == puts
    assert server.repositories["org/merged"].commits[sent.commit]["README.md"] == b"# MERGED\n"


@pytest.mark.slow
@pytest.mark.parametrize("xet", [False, True], ids=["LFS", "Xet"])
def test_a_kill_at_any_request_leaves_all_or_nothing(server: HubServer, tmp_path: Path, xet: bool) -> None:
    """Whenever the process dies, the branch has nothing or everything; a rerun ends with one branch and one commit."""
    folder = output(tmp_path)
    whole = contents(folder)
    begin_anew(server, folder, xet)
    run_until(None, server, folder, xet)
    requests = len(server.served)
    assert requests > 12
    for number in range(requests):
        begin_anew(server, folder, xet)
        run_until(number, server, folder, xet)
        there = server.repositories.get("org/merged")
        if there is not None:
            left = {name: data for name, data in there.commits[there.branches["main"]].items() if name in whole}
            assert left in ({}, whole), f"killed at request {number}"
        run_until(None, server, folder, xet)
        there = server.repositories["org/merged"]
        assert set(there.branches) == {"main"}, f"killed at request {number}"
        assert whole.items() <= there.commits[there.branches["main"]].items()


def begin_anew(server: HubServer, folder: Path, xet: bool) -> None:
    """An empty Hub."""
    server.repositories.clear()
    server.storage.clear()
    server.served.clear()
    if xet:
        shutil.rmtree(folder.parent / "store", ignore_errors=True)
        server.use_xet(folder.parent / "store", sorted(folder.glob("*.safetensors")))


def run_until(number: int | None, server: HubServer, folder: Path, xet: bool) -> None:
    """Upload in a process of its own, which is killed when its n-th request arrives, or not at all."""
    code = f"from tests.hub.samples import upload; from pathlib import Path; upload(Path({str(folder)!r}))"
    arrived, started = itertools.count(), threading.Event()

    def strike() -> None:
        started.wait()
        if next(arrived) == number:
            process.kill()
            process.wait()

    server.fail("", act=strike, times=999)
    environment = os.environ | server.environment(folder.parent / "home", xet=xet)
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stderr=subprocess.PIPE)
    started.set()
    _, said = process.communicate()
    server.faults.clear()
    assert process.returncode == (0 if number is None else -signal.SIGKILL), said.decode()


def test_an_upload_without_a_token_says_how_to_get_one(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token nothing is made, and the error names the command."""
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError) as refused:
        upload(output(tmp_path))
    assert str(refused.value) == (
        "the Hub did not accept the token, or none was sent.\n"
        "  at: org/merged\n"
        "  do: run `hf auth login`, or set HF_TOKEN, with a token that may write to this repository."
    )


def test_an_account_that_may_not_write_is_told(server: HubServer, tmp_path: Path) -> None:
    """A repository of someone else's is refused with the Hub's words."""
    server.fail("POST /api/repos/create", status=403, headers={"X-Error-Message": "You don't have the rights."})
    with pytest.raises(HubError, match="this account may not write") as refused:
        upload(output(tmp_path))
    assert refused.value.why == "You don't have the rights."


@pytest.mark.parametrize("match", ["POST /api/repos/create", "/preupload/", "PUT /stored/", "/commit/main"])
def test_a_disturbed_upload_is_worth_a_retry_and_shows_nothing(server: HubServer, tmp_path: Path, match: str) -> None:
    """Whatever step of an upload is disturbed, main has nothing of it, and a second try completes it."""
    folder = output(tmp_path)
    server.fail(match, status=503, times=99)
    with pytest.raises(HubUnavailableError, match="could not answer for now"):
        upload(folder)
    there = server.repositories.get("org/merged")
    assert there is None or set(there.commits[there.branches["main"]]) == {".gitattributes"}
    server.faults.clear()
    sent = upload(folder)
    assert server.repositories["org/merged"].branches["main"] == sent.commit


def test_offline_nothing_is_uploaded(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, an upload is refused before any request."""
    go_offline(monkeypatch)
    with pytest.raises(HubError, match="an upload needs the Hub, and it may not be asked"):
        upload(output(tmp_path))

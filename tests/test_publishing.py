"""Publishing a checkpoint that lies here: what its provenance says of licences is believed only as far as it can be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.small_merges import RECIPE, run, write_models
from xmerge import hub
from xmerge.errors import CheckpointError, PlanError
from xmerge.publishing import publish_verified
from xmerge.validation import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An output, one of whose sources is under a licence that does not go with the other's."""
    folder = write_models(tmp_path_factory.mktemp("models"))
    for name, licence in (("llama", "llama2"), ("qwen3", "mit")):
        (folder / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        (folder / name / "LICENSE").write_text(licence)
    run(folder)
    return folder / "out"


@pytest.fixture
def out(made, tmp_path) -> Path:
    """A copy of the output, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def sent(monkeypatch) -> list[dict[str, Any]]:
    """What would have been uploaded; the Hub is not asked."""
    calls: list[dict[str, Any]] = []

    def upload(folder: Path, repo: str, **options: Any) -> hub.UploadedTo:
        calls.append(options)
        return hub.UploadedTo(repo=repo, branch="main", commit="0" * 40, private=True, url="", changed=True)

    monkeypatch.setattr(hub, "upload_folder", upload)
    return calls


def publish(folder: Path, *acknowledged: str) -> hub.UploadedTo:
    """Publish with the defaults of these tests."""
    return publish_verified(folder, "me/x", private=True, branch=None, acknowledged=acknowledged)


def edit_provenance(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change what an output says of its making."""
    path = folder / "provenance.json"
    said = json.loads(path.read_text())
    edit(said)
    path.write_text(json.dumps(said))


def test_a_conflict_that_an_output_knows_of_stops_its_publication(out, sent):
    """Nothing is sent, and the error has the clause and the option; acknowledged, the verified digests go along."""
    with pytest.raises(PlanError, match="do not allow") as refused:
        publish(out, "llama3")
    assert "section 1.b.v" in str(refused.value) and "--acknowledge llama2" in str(refused.value)
    assert sent == []
    publish(out, "llama2")
    shards = {path.name for path in out.glob("*.safetensors")}
    assert set(sent[0]["digests"]) == shards
    assert sent[0]["message"].startswith("xmerge: out (")


def test_what_the_recipe_has_acknowledged_needs_no_option(made, tmp_path, sent):
    """The recipe's word goes along with the output."""
    run(made.parent, tmp_path / "out", RECIPE + "publish: {repo: me/x, acknowledge: [llama2]}\n")
    assert publish(tmp_path / "out").changed and len(sent) == 2


@pytest.mark.parametrize("said", [None, [], {"verdict": {"conflicts": "none"}}, {"verdict": {}, "more": 1}])
def test_licences_that_cannot_be_read_are_no_permission(out, sent, said):
    """A damaged record is an error of its own, and never taken for one without conflicts."""
    edit_provenance(out, lambda provenance: provenance.update(licences=said))
    with pytest.raises(CheckpointError, match="licences cannot be read"):
        publish(out)
    assert sent == []


def test_a_checkpoint_of_another_tool_is_published_as_it_is(out, sent):
    """Without a provenance nothing is known of licences, and every digest is taken anew."""
    (out / "provenance.json").unlink()
    publish(out)
    assert sent[0]["digests"] == {} and sent[0]["message"] == "xmerge: out"


def test_files_beside_the_shards_are_compared_with_their_digests(out):
    """What has changed or is gone is a warning each, since people edit cards; nothing else is."""
    assert [each.code for each in verify(out, trial=False).findings] == []
    (out / "README.md").write_text("# Mine\n")
    (out / "distance_from_base.png").unlink()
    report = verify(out, trial=False)
    assert report.ok
    assert [(each.code, each.text.split(" ")[0]) for each in report.findings] == [
        ("changed_file", "README.md"),
        ("changed_file", "distance_from_base.png"),
    ]


def test_licence_texts_go_along_as_they_are(out):
    """Each model's under a name of its own, where their licences differ."""
    assert (out / "LICENSE.0-llama").read_text() == "llama2"
    assert (out / "LICENSE.1-qwen3").read_text() == "mit"
    assert not (out / "LICENSE").exists()

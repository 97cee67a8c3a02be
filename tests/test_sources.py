"""Finding models: folders here, folders beside the configuration, repositories."""

from pathlib import Path

import pytest

from tests.fake_checkpoints import write_fake
from xmerge import hub
from xmerge.config import ModelReference, parse_reference
from xmerge.errors import CheckpointError, HubError, PlanError, XmergeError
from xmerge.sources import Location, locate_model, metadata_folder, read_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """What the Hub is asked to pin, in an empty current folder; it answers everything with one commit."""
    questions: list[tuple[str, str | None]] = []

    def pin(repo: str, revision: str | None = None) -> str:
        questions.append((repo, revision))
        return COMMIT

    monkeypatch.setattr(hub, "pin_revision", pin)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return questions


def refuse(reference: ModelReference, kind: type[XmergeError], folder: Path | None = None) -> str:
    """What is said of a model that must not be found."""
    with pytest.raises(kind) as caught:
        locate_model(reference, folder)
    return str(caught.value)


def test_a_folder_here_comes_before_one_beside_the_configuration(asked, tmp_path: Path):
    """A path is read from the current folder, else from the configuration's, and only else as a repository's name."""
    (tmp_path / "here" / "org" / "a").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "there" / "org" / name).mkdir(parents=True)
    found = [locate_model(parse_reference(f"org/{name}"), tmp_path / "there") for name in "abc"]
    assert [each.folder for each in found] == [tmp_path / "here" / "org" / "a", tmp_path / "there" / "org" / "b", None]
    assert [each.label for each in found] == ["a", "b", "org/c"]
    assert asked == [("org/c", None)]
    assert (found[2].repo, found[2].commit) == ("org/c", COMMIT)


def test_a_revision_is_pinned(asked):
    """A branch or tag is asked for by its name and becomes a commit."""
    location = locate_model(parse_reference("org/name@v1.0"))
    assert asked == [("org/name", "v1.0")]
    assert location == Location(reference="org/name@v1.0", label="org/name", repo="org/name", commit=COMMIT)


def test_people_read_no_absolute_path(asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A local model is called by its folder's name, wherever the configuration says that it lies."""
    (tmp_path / "here" / "a").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    labels = [
        locate_model(parse_reference(path)).label for path in ("a", "./a", str(tmp_path / "here" / "a"), "~/here/a")
    ]
    assert labels == ["a", "a", "a", "a"]


@pytest.mark.parametrize(
    "path",
    ["./org/name", "/org/name", "~/org/name", "~nobody-of-this-name/model", "a/b/c", "a\0b", "x" * 5000, "..", "a b/c"],
    ids=lambda path: path[:20],
)
def test_what_is_neither_folder_nor_repository_is_refused(asked, path: str):
    """A path that does not exist and cannot name a repository is refused, and nobody is asked for it."""
    if path == "..":
        path = "../nothing"
    told = refuse(ModelReference.model_validate({"model": {"path": path}}), CheckpointError)
    assert told == (
        f"there is no model {path!r}.\n"
        "  why: no such folder exists, and it is no name of a repository (org/name).\n"
        "  do: paths are read from the current folder (here/) and from the configuration's."
    )
    assert asked == []


def test_a_file_is_no_model(asked, tmp_path: Path):
    """A model is a folder; the name of one of its files is refused."""
    (tmp_path / "here" / "model.safetensors").touch()
    told = "'./model.safetensors' is a file, and a model is a folder."
    assert told in refuse(parse_reference("./model.safetensors"), CheckpointError)


def test_a_folder_has_no_revision(asked, tmp_path: Path):
    """A revision of a local folder means nothing, and is refused rather than ignored."""
    (tmp_path / "here" / "a").mkdir()
    assert refuse(parse_reference("a@main"), PlanError) == (
        "the model a@main is a folder, and a folder has no revision 'main'.\n"
        "  do: leave the revision out; write a path that contains '@' or '+' as a mapping: {path: ...}."
    )
    (tmp_path / "here" / "a@main").mkdir()
    assert locate_model(ModelReference.model_validate({"model": {"path": "a@main"}})).label == "a@main"


def test_an_adapter_is_refused(asked):
    """A LoRA adapter is recognised and not merged in silence or ignored."""
    assert refuse(parse_reference("org/a+org/b"), PlanError) == (
        "the model org/a+org/b has a LoRA adapter, which xmerge does not merge.\n"
        "  do: merge the adapter first (peft: model.merge_and_unload()), save it, and name the folder."
    )


def test_a_local_model_is_its_own_folder(asked, tmp_path: Path):
    """A local model is read where it is, and its side files are beside it."""
    write_fake(tmp_path / "here" / "a")
    location = locate_model(parse_reference("a"))
    assert read_model(location).label == "a"
    assert metadata_folder(location) == tmp_path / "here" / "a"


def test_a_name_that_is_neither_a_folder_nor_a_repository_says_both(asked, monkeypatch: pytest.MonkeyPatch):
    """Whoever mistypes a folder's name is told that there is none, not only that the Hub has none."""

    def refuse_repository(repo: str, revision: str | None) -> str:
        raise HubError("there is no repository.", where=repo, why="the Hub says so.", remedy="check the name.")

    monkeypatch.setattr("xmerge.sources.hub.pin_revision", refuse_repository)
    assert refuse(parse_reference("my-lama"), HubError) == (
        "there is no repository.\n  at: my-lama\n"
        "  why: the Hub says so. There is no folder 'my-lama' here either.\n  do: check the name."
    )

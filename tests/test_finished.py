"""What stands where an output is to appear: nothing, this merge already, or something of somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults import fail_with
from tests.small_merges import digest_files, make_plan, run, write_models
from xmerge import disk
from xmerge.errors import Interrupted, OutputExistsError, StorageError
from xmerge.finished import check_contents, is_finished
from xmerge.interrupt import request_stop, stoppable
from xmerge.planning import MergePlan
from xmerge.work import open_work_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The two models of the recipe, the base with a tokenizer of sorts."""
    folder = write_models(tmp_path_factory.mktemp("models"))
    (folder / "llama" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    return folder


@pytest.fixture(scope="module")
def plan(models):
    """The plan of the recipe."""
    return make_plan(models)[1]


def test_nothing_and_an_empty_folder_are_free(tmp_path, plan):
    """There the output may appear; also where a link points to nothing."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert not any(is_finished(tmp_path / name, plan) for name in ("nothing", "empty", "link", "empty/deeper"))


def test_what_is_not_ours_is_refused(tmp_path, plan):
    """A file, a folder with something in it, a folder whose provenance says nothing: all are somebody's."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "provenance.json").write_text('{"plan_fingerprint": "x", "shards": [{"file": "../x"}]}')
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    texts = []
    for name in ("file", "folder", "odd", "loop"):
        with pytest.raises(OutputExistsError) as caught:
            is_finished(tmp_path / name, plan)
        assert caught.value.exit_code == 2
        texts.append(str(caught.value).removeprefix(str(tmp_path)).splitlines()[0])
    assert texts == [
        "/file exists and is no folder.",
        "/folder exists and was not made by xmerge (it holds notes.txt).",
        "/odd exists and was not made by xmerge (it holds provenance.json).",
        "/loop exists and is no folder.",
    ]


def test_the_root_of_a_mount_is_refused(tmp_path, plan, monkeypatch):
    """An output appears by a rename, which cannot replace a mounted file system."""
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    with pytest.raises(OutputExistsError, match="mounted file system") as caught:
        is_finished(tmp_path, plan)
    assert caught.value.remedy == f"name a folder in it, such as {tmp_path / 'merged'}."


def test_an_earlier_output_is_finished_until_something_of_it_is_lost(tmp_path, models, plan):
    """Nothing is to do for a whole output; a lost, cut or replaced file is named."""
    out = tmp_path / "out"
    run(models, out)
    assert is_finished(out, plan)
    for name, change in (
        ("model-00002-of-00006.safetensors", Path.unlink),
        ("model-00003-of-00006.safetensors", lambda path: path.write_bytes(b"cut")),
        ("model.safetensors.index.json", Path.unlink),
        ("config.json", Path.unlink),
    ):
        kept = (out / name).read_bytes()
        change(out / name)
        with pytest.raises(OutputExistsError, match=f"has lost or changed {name}"):
            is_finished(out, plan)
        (out / name).write_bytes(kept)
    assert is_finished(out, plan)


def test_a_tokenizer_that_changed_since_is_not_passed_over(tmp_path):
    """An output whose tokenizer is lost, or is not the target's of today, is not what the merge would make."""
    write_models(tmp_path)
    (tmp_path / "llama" / "tokenizer.json").write_text("{}")
    run(tmp_path, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").rename(tmp_path / "kept")
    with pytest.raises(OutputExistsError, match=r"has lost or changed tokenizer\.json"):
        is_finished(tmp_path / "out", make_plan(tmp_path)[1])
    (tmp_path / "kept").rename(tmp_path / "out" / "tokenizer.json")
    (tmp_path / "llama" / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(OutputExistsError, match="or of other versions of these models"):
        is_finished(tmp_path / "out", make_plan(tmp_path)[1])


def test_another_merge_and_another_configuration_are_told_apart(tmp_path, models, plan):
    """The text says whether the weights would differ, or only what the output says of its making."""
    out = tmp_path / "out"
    run(models, out)
    with pytest.raises(OutputExistsError, match="is the output of another merge, or of other versions"):
        is_finished(out, MergePlan.model_validate({**plan.model_dump(), "config_text": "{}"}))
    with pytest.raises(OutputExistsError, match="is the output of another configuration"):
        is_finished(out, plan.model_copy(update={"config_fingerprint": "0"}))


def test_a_finished_output_takes_away_what_a_killed_run_left(tmp_path, models, plan):
    """A run that died between the rename and the end left its work folder; the next one removes it."""
    run(models, tmp_path / "out")
    (tmp_path / ".out.xmerge" / "store").mkdir(parents=True)
    with open_work_folder(tmp_path / "out", plan) as folder:
        assert folder.finished
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_finished_output_needs_no_write(tmp_path, models, plan, monkeypatch):
    """For an output that is there, beside a folder that cannot be written, nothing is to do."""
    run(models, tmp_path / "out")
    monkeypatch.setattr(disk, "mkdir", fail_with(30))
    with open_work_folder(tmp_path / "out", plan) as folder:
        assert folder.finished


@pytest.mark.parametrize("name", ["model-00002-of-00006.safetensors", "config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("place", [0, 60, -1])
def test_a_flipped_bit_in_a_finished_output_is_told_and_not_passed_over(tmp_path, models, plan, name, place):
    """An output that is there is read before it is believed; what is wrong with it is named, and nothing is touched."""
    run(models, tmp_path / "out")
    damaged = bytearray((tmp_path / "out" / name).read_bytes())
    damaged[place] ^= 1
    (tmp_path / "out" / name).write_bytes(damaged)
    before = digest_files(tmp_path / "out")
    with pytest.raises(OutputExistsError) as caught, open_work_folder(tmp_path / "out", plan):
        pass
    assert str(caught.value) == (
        f"{tmp_path / 'out'} is this merge's output and has lost or changed {name}.\n"
        "  do: remove the folder and run again."
    )
    assert digest_files(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_flipped_bit_is_told_also_where_a_killed_run_left_its_work_folder(tmp_path, models, plan):
    """What another run may have finished while its lock was waited for is read like any other output."""
    run(models, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / ".out.xmerge").mkdir()
    with (
        pytest.raises(OutputExistsError, match=r"has lost or changed config\.json"),
        open_work_folder(tmp_path / "out", plan),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("{}")])
def test_a_changed_tokenizer_in_a_finished_output_is_told_and_a_changed_card_is_not(tmp_path, models, change):
    """All that was written is compared, except for what people are meant to write on."""
    run(models, tmp_path / "out")
    change(tmp_path / "out" / "README.md")
    check_contents(tmp_path / "out")
    change(tmp_path / "out" / "tokenizer.json")
    with pytest.raises(OutputExistsError, match=r"has lost or changed tokenizer\.json"):
        check_contents(tmp_path / "out")


def test_more_damage_than_is_listed_is_counted(tmp_path, models):
    """Three names are told, and how many more there are."""
    run(models, tmp_path / "out")
    for path in (tmp_path / "out").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(OutputExistsError, match=r"-00001-.*, .*-00002-.*, .*-00003-of-00006\.safetensors and 3 more\."):
        check_contents(tmp_path / "out")


def test_a_finished_output_that_cannot_be_read_is_a_fault_of_the_disk(tmp_path, models, plan, monkeypatch):
    """A disk that does not give the bytes back is exit 6: that says nothing of what was written."""
    run(models, tmp_path / "out")
    real = disk.open
    monkeypatch.setattr(disk, "open", lambda path, *how: (fail_with(5) if "-of-" in path.name else real)(path, *how))
    with pytest.raises(StorageError, match=r"/out cannot be read: Input/output error"):
        check_contents(tmp_path / "out")


@pytest.mark.parametrize("is_json", [True, False])
def test_an_output_whose_provenance_is_lost_meanwhile_is_damaged(tmp_path, models, is_json):
    """Nothing is believed of an output that does not say what its bytes should be."""
    run(models, tmp_path / "out")
    path = tmp_path / "out" / "provenance.json"
    path.write_text(path.read_text().replace('"files": {', '"other": {') if is_json else "{")
    with pytest.raises(OutputExistsError, match=r"has lost or changed provenance\.json"):
        check_contents(tmp_path / "out")


def test_reading_a_finished_output_answers_a_stop(tmp_path, models, plan):
    """A large output is not read to its end when a stop is requested."""
    run(models, tmp_path / "out")
    with stoppable():
        request_stop()
        with pytest.raises(Interrupted):
            check_contents(tmp_path / "out")

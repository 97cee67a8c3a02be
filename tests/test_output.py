"""The output: whole or not there, the same bytes wherever and whenever it is made."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from tests.faults import fail_with
from tests.small_merges import RECIPE, digest_files, list_tree, load_weights, run, write_models
from xmerge import disk, output
from xmerge.errors import OutputExistsError, SourceChangedError, StorageError
from xmerge.progress import Silence


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The two models of the recipe, the base with a tokenizer of sorts."""
    folder = write_models(tmp_path_factory.mktemp("models"))
    (folder / "llama" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "llama" / "notes.txt").write_text("not part of a model")
    return folder


def test_the_output_holds_what_a_model_needs_and_what_was_done(tmp_path, models):
    """Weights, index, config, tokenizer, card, configuration and provenance; nothing else of the base's folder."""
    run(models, tmp_path / "out")
    assert list_tree(tmp_path / "out") == sorted([
        "README.md", "config.json", "distance_from_base.png", "model.safetensors.index.json", "provenance.json",
        "tokenizer.json", "xmerge_config.yml", *[f"model-0000{n}-of-00006.safetensors" for n in range(1, 7)],
    ])  # fmt: skip
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    weights = load_weights(tmp_path / "out")
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in weights.values())}
    assert list(index["weight_map"]) == sorted(weights)
    assert list_tree(tmp_path)[0] == "out"


def test_the_same_merge_gives_the_same_bytes_of_every_file(tmp_path, models):
    """Neither the place of the models, of the configuration, of the output and the store, nor the time is in a byte."""
    run(models, tmp_path / "one")
    elsewhere = tmp_path / "another place" / "models"
    shutil.copytree(models, elsewhere)
    run(elsewhere, elsewhere / "two", store=tmp_path / "store", workers=4)
    run(elsewhere, elsewhere / "three", store=tmp_path / "store", workers=1)
    assert digest_files(tmp_path / "one") == digest_files(elsewhere / "two") == digest_files(elsewhere / "three")
    for path in (tmp_path / "one").iterdir():
        assert str(models).encode() not in path.read_bytes()


def test_the_name_of_the_configuration_file_is_in_no_byte(tmp_path, models):
    """A warning names its place in the copy that lies beside it, whatever the file was called."""
    from xmerge import parse_config
    from xmerge.run import merge

    recipe = f"{RECIPE}  - {{value: 0.1}}\n  - {{filter: mlp, value: 0.2}}\non_mismatch: base\n"
    for name in ("a.yml", "recipe for a model.yaml"):
        merge(parse_config(recipe, name, models), tmp_path / name, trial=False)
    assert digest_files(tmp_path / "a.yml") == digest_files(tmp_path / "recipe for a model.yaml")
    warnings = json.loads((tmp_path / "a.yml" / "provenance.json").read_text())["warnings"]
    assert [text for text in warnings if text.startswith("xmerge_config.yml, line ")]


@pytest.mark.parametrize("form", ["plain", "slash", "relative", "empty", "link", "dangling", "deep"])
def test_the_output_appears_where_it_was_asked_for(tmp_path, models, monkeypatch, form):
    """Any way to write a place that is free is good: relative, through a link, below folders that are not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "target")
    named = {"slash": f"{tmp_path}/out/", "relative": "empty/../out", "deep": "a/b/c"}.get(form, form)
    outcome = run(models, Path(named))
    assert (tmp_path / named / "config.json").is_file()
    assert outcome.publication.folder == (tmp_path / named).resolve()
    assert [name for name in list_tree(tmp_path) if ".xmerge" in name] == []


def test_what_appeared_meanwhile_is_not_replaced(tmp_path, models, monkeypatch):
    """An output that somebody else put there during the merge stays, and every layer of ours too."""
    out = tmp_path / "out"
    appear = output.write_index

    def write_and_appear(folder, plan):
        appear(folder, plan)
        out.mkdir()
        (out / "theirs").write_text("")

    monkeypatch.setattr(output, "write_index", write_and_appear)
    with pytest.raises(OutputExistsError, match="appeared while the merge ran"):
        run(models, out)
    monkeypatch.undo()
    shutil.rmtree(out)
    assert run(models, out).reused == 6


def test_an_output_that_cannot_be_put_in_its_place_is_a_storage_error(tmp_path, models, monkeypatch):
    """A rename that the system refuses is exit 6, even where an empty folder was waiting, and can be resumed."""
    (tmp_path / "out").mkdir()
    real = disk.rename
    monkeypatch.setattr(disk, "rename", lambda *paths: (fail_with(16) if paths[0].name == "output" else real)(*paths))
    with pytest.raises(StorageError, match="cannot be written: Device or resource busy"):
        run(models, tmp_path / "out")
    monkeypatch.undo()
    assert list_tree(tmp_path / "out") == []
    assert run(models, tmp_path / "out").reused == 6


@pytest.mark.parametrize("step", ["write_text", "sync_file", "sync_folder", "write_bytes", "write_index", "write_card"])
def test_a_disk_that_fails_while_the_output_is_put_together_leaves_no_half_output(tmp_path, models, monkeypatch, step):
    """Whichever write fails: exit 6 with the bytes needed, nothing under the final name, every layer kept."""
    monkeypatch.setattr(output, step, fail_with(28))
    with pytest.raises(
        StorageError, match=r"no space left(.|\n)*[\d,]+ bytes are needed at once and [\d,]+ bytes are free"
    ):
        run(models, tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.xmerge" / "output").exists()
    assert run(models, tmp_path / "out").reused == 6


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Path.unlink, "llama/tokenizer.json is gone since the plan was made"),
        (lambda path: path.write_text("[]"), "of llama, tokenizer.json are not what they were since the plan was made"),
    ],
)
def test_a_tokenizer_that_changes_during_the_merge_stops_it(tmp_path, change, told):
    """A file that was to go along and is gone or another is an input that changed, not a fault of the disk."""
    write_models(tmp_path)
    (tmp_path / "llama" / "tokenizer.json").write_text("{}")

    class Change(Silence):
        def plan_ready(self, plan):
            change(tmp_path / "llama" / "tokenizer.json")

    with pytest.raises(SourceChangedError, match=re.escape(told)):
        run(tmp_path, reporter=Change())
    assert not (tmp_path / "out").exists()


def test_where_the_store_cannot_be_linked_from_its_shards_are_copied_and_that_is_said(tmp_path, models, monkeypatch):
    """The output has the same bytes, and the report says that it took a copy."""
    linked = run(models, tmp_path / "linked", store=tmp_path / "store")
    monkeypatch.setattr(disk, "link", fail_with(18))
    copied = run(models, tmp_path / "copied", store=tmp_path / "store")
    assert digest_files(tmp_path / "linked") == digest_files(tmp_path / "copied")
    assert linked.report is not None and copied.report is not None
    assert dict(linked.report.facts)["layers in the store"] == "linked"
    told = "6 of 6 copied, because they could not be linked"
    assert dict(copied.report.facts)["layers in the store"] == told


def test_files_have_the_modes_that_the_umask_gives(tmp_path, models):
    """Whoever may read a new file of this user may read all of the output."""
    before = os.umask(0o027)
    try:
        run(models, tmp_path / "out")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_a_template_in_the_configuration_takes_the_place_of_the_bases(tmp_path):
    """The configuration's chat template is the output's, and a second run finds the output finished."""
    write_models(tmp_path)
    (tmp_path / "llama" / "chat_template.jinja").write_text("the base's")
    recipe = f"{RECIPE}chat_template: '{{{{ ours }}}}'\n"
    run(tmp_path, recipe=recipe)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ ours }}"
    assert run(tmp_path, recipe=recipe).report is None

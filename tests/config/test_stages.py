"""Several documents in one file: names, order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmerge.config import list_needed, load_stages, parse_stages
from xmerge.config.stages import MOST_STAGES
from xmerge.errors import ConfigError

EXIT = ConfigError.exit_code


def write(name: str | None, *models: str, more: str = "") -> str:
    """A document that merges models linearly."""
    head = f"name: {name}\n" if name else ""
    listed = "".join(f"- {{model: {model}, parameters: {{weight: 1}}}}\n" for model in models)
    return f"{head}merge_method: linear\nmodels:\n{listed}{more}"


def join(*documents: str) -> str:
    """A file of these documents."""
    return "---\n".join(documents)


def refuse(text: str) -> str:
    """The error of a text that is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_stages(text, "recipe.yml")
    assert caught.value.exit_code == EXIT
    return str(caught.value)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[str], dict[str, list[str]]]:
    """Documents of a recipe without cycles in any order, and what each stage needs of those before it."""
    count = draw(st.integers(2, 6))
    needed = {
        f"s{n}": draw(st.lists(st.sampled_from([f"s{m}" for m in range(n)]), unique=True)) if n else []
        for n in range(count)
    }
    used = {name for names in needed.values() for name in names}
    needed["last"] = [name for name in needed if name not in used]
    documents = [write(name, *(names or ["org/model"])) for name, names in needed.items()]
    return draw(st.permutations(documents)), needed


@given(chains())
def test_every_stage_comes_after_what_it_needs(drawn):
    """In whatever order the documents stand, each stage comes once, after those that it needs, and the output last."""
    documents, needed = drawn
    stages = parse_stages(join(*documents), "recipe.yml")
    order = [str(stage.name) for stage in stages]
    assert sorted(order) == sorted(needed)
    assert order[-1] == "last"
    for stage in stages:
        assert sorted(list_needed(stage, needed)) == sorted(needed[str(stage.name)])
        assert all(order.index(name) < order.index(str(stage.name)) for name in needed[str(stage.name)])


def test_one_document_is_one_stage_with_or_without_a_name(tmp_path: Path):
    """A file of one document is read as it always was; empty documents around it say nothing."""
    path = tmp_path / "recipe.yml"
    path.write_text(f"---\n{write('alone', 'org/a')}---\n", encoding="utf-8")
    (stage,) = load_stages(path)
    assert stage.name == "alone"
    assert stage.source.text == path.read_text(encoding="utf-8")


def test_a_stage_knows_its_lines_and_the_output_the_whole_text():
    """Errors of any document name the line of the file; the last stage's text is all of it, a stage's its own."""
    text = join(write("first", "org/a"), write(None, "first"))
    first, last = parse_stages(text, "recipe.yml")
    assert last.source.locate("models", 0, "model") == "recipe.yml, line 8: models[0].model"
    assert last.source.text == text
    assert first.source.text == write("first", "org/a")


def test_a_fault_in_a_later_document_is_told_with_its_line():
    """Every document is read as strictly as one alone."""
    told = refuse(join(write("first", "org/a"), write(None, "first", more="dtpye: float32\n")))
    assert told.startswith("unknown key 'dtpye'; did you mean 'dtype'?\n  at: recipe.yml, line 9")


def test_a_cycle_is_named():
    """Stages that need each other are refused, in the order of their need."""
    told = refuse(join(write("a", "b"), write("b", "c"), write("c", "a"), write(None, "a")))
    assert told.startswith("the stages a -> b -> c -> a need each other.\n  at: recipe.yml, line 1: name")


def test_a_stage_that_needs_itself_is_a_cycle():
    """The shortest cycle is one stage."""
    assert refuse(join(write("a", "a"), write(None, "a"))).startswith("the stages a -> a need each other.")


def test_an_unknown_name_is_refused_with_the_nearest():
    """A name that is no stage and no folder is an error before anything is looked for on the Hub."""
    told = refuse(join(write("first", "org/a"), write(None, "frist", "first")))
    assert told == (
        "there is no stage and no folder 'frist'.\n  at: recipe.yml, line 8: models[0].model\n"
        "  do: did you mean 'first'? (a repository without an owner: hf://frist)"
    )


def test_folders_and_repositories_are_no_stages(tmp_path: Path, monkeypatch):
    """A folder of the name of no stage, a path, and a repository are models as ever."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    stages = parse_stages(join(write("first", "org/a"), write(None, "first", "folder", "./x", "org/b", "hf://gpt2")))
    assert list_needed(stages[-1], {"first": 1, "folder": 2}) == ("first", "folder")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (join(write("a", "org/a"), write("A", "a"), write(None, "A")), "two stages are called 'A'."),
        (join(write("a", "org/a"), write("b", "org/b"), write(None, "a")), "has 2 stages that no other uses: b (line "),
        (join(write("a", "org/a"), write(None, "a@main")), "'a' is a stage of this file, and a@main asks for more"),
        (join(write("a", "org/a", more="publish: {repo: me/x}\n"), write(None, "a")), "'publish' is for the output"),
        (join(write("a", "org/a", more="chat_template: x\n"), write(None, "a")), "'chat_template' is for the output"),
        (join(write("a/b", "org/a"), write(None, "a/b")), "'a/b' cannot be the name of a stage"),
        (join(write("..", "org/a"), write(None, "..")), "'..' cannot be the name of a stage"),
        (join(write("base", "org/a"), write(None, "base")), "'base' cannot be the name of a stage"),
        (join(*(write(f"s{n}", "org/a") for n in range(MOST_STAGES + 1))), f"{MOST_STAGES} are the most"),
    ],
)
def test_documents_that_do_not_fit_together_are_refused(text: str, told: str):
    """What could be meant in two ways, or would be made for nothing, is an error of the configuration."""
    assert told in refuse(text)

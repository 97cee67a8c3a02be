"""What a run shows: names, tags, keys, and text that does nothing but be read."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prefect.types.names import validate_valid_asset_key

from flows.naming import LONGEST_PART, MOST_TAGS, draw_name, list_tags
from tasks.lineage import list_outputs, list_sources
from tasks.markdown import MAX_CELL, draw_code, show_cell
from tasks.pages.distance import draw_distance
from tasks.pages.failure import draw_failure
from tasks.pages.output import draw_output
from tasks.pages.plan import MOST_LINES, describe_plan, draw_rows
from tasks.pages.progress import show_seconds, tell_progress
from tasks.pages.rerun import list_words
from tasks.pages.showing import LONGEST_SERIES, name_key, try_to_show
from tasks.pages.validation import MOST_FINDINGS, draw_report
from tests.small_merges import RECIPE, make_plan, write_models
from tests.test_card import fake_results
from xmerge.cli.merge import merge
from xmerge.distances import Cell
from xmerge.errors import CheckpointError
from xmerge.output import Publication
from xmerge.runners import RunnerName
from xmerge.validation import ValidationReport
from xmerge.validation.findings import Finding

HOSTILE = "a|b`</td><img src=x onerror=alert(1)>[x](javascript:y) \u202ewww.evil.com\u200b\n# title"
MARKDOWN = MarkdownIt("commonmark")


THREADS = RunnerName(kind="thread")
NAMES = st.text(st.sampled_from("aB1._ -/\u00e9\u6a21\ud800"), max_size=200)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The plan of a small merge."""
    return make_plan(write_models(tmp_path_factory.mktemp("models")), RECIPE)[1]


@pytest.fixture(scope="module")
def results(plan):
    """What merging its layers might have given."""
    return fake_results(plan)


def rename(plan: Any, label: str, kind: str = "llama") -> Any:
    """The same plan with models of another name and family, each with a folder of that name."""
    models = (model.model_copy(update={"label": f"{n}{label}", "kind": kind}) for n, model in enumerate(plan.models))
    return plan.model_copy(update={"models": tuple(models)})


@given(NAMES, NAMES)
def test_a_key_is_one_that_prefect_takes_and_tells_series_apart(one, other):
    """A key is of bounded length; names that differ in more than case and separators have different keys."""
    assert re.fullmatch(r"xmerge-plan-[a-z0-9-]+", name_key("plan", one))
    assert len(name_key("plan", one)) <= len("xmerge-plan-") + LONGEST_SERIES + 9
    plain = [re.sub(r"[._ -]+", "-", text.lower()).strip("-") for text in (one, other)]
    assert (name_key("plan", one) == name_key("plan", other)) <= (plain[0] == plain[1])


def test_a_key_is_readable():
    """The key of a plainly named output is its name."""
    assert name_key("plan", "My_Merge v2.1") == "xmerge-plan-my-merge-v2-1"


def test_a_run_is_named_after_what_it_merges(plan):
    """The name has method, base, donors, output and a digest of the plan."""
    assert draw_name(rename(plan, ""), "out") == f"slerp 0 + 1 → out · {plan.fingerprint[:8]}"


def test_names_and_tags_are_bounded_and_on_one_line(plan):
    """However many models there are and whatever they are called, a run's name and tags can be shown."""
    crowd = plan.model_copy(
        update={
            "models": tuple(
                plan.models[0].model_copy(update={"label": HOSTILE * 9, "kind": f"{n}{HOSTILE * 9}"}) for n in range(40)
            )
        }
    )
    name, tags = draw_name(crowd, HOSTILE * 9), list_tags(crowd, "cpu", THREADS)
    assert len(name) < 6 * (LONGEST_PART + 5)
    assert "36 more" in name
    assert name.isprintable()
    assert len(tags) == MOST_TAGS
    assert all(tag.isprintable() and 0 < len(tag) <= LONGEST_PART for tag in tags)


def test_tags_are_method_families_and_device(plan):
    """The base's family comes before the donors', each tag is there once, and a cluster is named as one."""
    assert list_tags(plan, "cuda:1", THREADS) == ["slerp", "llama", "qwen3", "cuda:1"]
    assert list_tags(plan, "auto", RunnerName(kind="dask")) == ["slerp", "llama", "qwen3", "dask"]
    assert list_tags(plan, "cuda", RunnerName(kind="ray")) == ["slerp", "llama", "qwen3", "ray", "cuda"]


@given(st.text())
def test_a_cell_holds_no_tag_and_no_link(text):
    """What Prefect's older user interface would take for HTML or Markdown in a table is not in it."""
    cell = show_cell(text)
    assert not set(cell) & set("<>[]`")
    assert cell.isprintable()
    assert len(cell) <= MAX_CELL


@given(st.text(alphabet=st.sampled_from("#-+*_~=.)12 a>`|")))
def test_a_cell_is_a_paragraph_and_nothing_else(text):
    """Read as Markdown it is no title, no list, no rule and no block of code, whatever it begins with."""
    assert {token.type for token in MARKDOWN.parse(show_cell(text))} <= {"paragraph_open", "inline", "paragraph_close"}


@pytest.mark.parametrize("text", ["1.5 GB", "-0.5", "layers.0-3", "a - b", "2 of 3"])
def test_a_cell_that_does_nothing_stays_as_it_is(text):
    """Numbers and names are what they were, so that they can be copied from a table."""
    assert show_cell(text) == text


@given(st.lists(st.text(alphabet=st.sampled_from("`~ a\n\u202e"))))
def test_no_line_of_a_code_block_ends_it(lines):
    """A block has the lines that it was given, between two fences that are longer than any run in them."""
    opened, *shown, closed = draw_code(lines).splitlines()
    assert len(shown) == len(lines)
    assert opened == f"{closed}text"
    assert not any(closed in line for line in shown)


def test_hostile_names_do_nothing_on_any_page(plan, results):
    """Names from checkpoints, folders and errors reach each page as text."""
    hostile = rename(plan, HOSTILE)
    finding = Finding(code="foreign_tensor", text=HOSTILE, remedy=HOSTILE)
    pages = [
        describe_plan(hostile),
        draw_report(ValidationReport(findings=(finding,), facts=((HOSTILE, HOSTILE),))),
        draw_failure(CheckpointError(HOSTILE, where=HOSTILE, why=HOSTILE, remedy=HOSTILE)),
        draw_failure(ValueError(HOSTILE)),
        draw_distance(plan, {HOSTILE: {0: Cell(0.5, changed=True)}}),
    ]
    for page in pages:
        assert "onerror" in page
        assert "<img" not in page
        assert "www.evil" not in page
        assert not re.search(r"(?<!\\)\]\(javascript", page)
        assert not any(line.startswith("# title") for line in page.splitlines())
    assert not any(set("<>[]`") & set(cell) for row in draw_rows(hostile) for cell in row.values())


def test_a_hostile_address_stays_in_its_link():
    """Whatever the Hub says the address is, the link to it ends where it should."""
    page = draw_output(Publication(folder=Path("/out"), repo=HOSTILE, url="https://hub/x> <img src=y>\n", commit="c0"))
    assert "<img" not in page
    assert "(<https://hub/x%3E%20%3Cimg%20src=y%3E%0A>)" in page


def test_an_address_means_what_the_hub_said():
    """A sign that cannot be seen is written as its bytes in UTF-8, by which an address names it."""
    page = draw_output(Publication(folder=Path("/out"), repo="org/name", url="https://hub/a\u202eb\u00ad", commit="c0"))
    assert "(<https://hub/a%E2%80%AEb%C2%AD>)" in page


def test_tables_and_lists_are_bounded(plan, monkeypatch):
    """A plan of any size and a report of any length fit on a page, which says how much is left out."""
    rows = draw_rows(plan)
    monkeypatch.setattr("tasks.pages.plan.MOST_ROWS", 3)
    assert draw_rows(plan)[:3] == rows[:3]
    assert [row["component"] for row in draw_rows(plan)[3:]] == [f"and {len(rows) - 3} more rows"]
    warned = plan.model_copy(update={"warnings": tuple(f"warning {n}" for n in range(MOST_LINES + 7))})
    assert describe_plan(warned).count("Warning") == MOST_LINES
    assert "- and 7 more" in describe_plan(warned)
    findings = tuple(Finding(code="x", text=str(n), remedy="y") for n in range(MOST_FINDINGS + 5))
    assert "and 5 more findings" in draw_report(ValidationReport(findings=findings, facts=()))


def test_the_plan_tells_what_is_dropped_and_of_which_class(plan):
    """Foreign tensors are named with their model before any weight is read, and classes are counted."""
    told = describe_plan(plan).replace("\\", "")
    assert "dropped of " in told
    assert "attn_k_norm" in told
    assert re.search(r"classes: \d+ tensors A", told)


@dataclass
class Layer:
    """As much of a layer's plan or result as progress is made of."""

    bytes_written: int = 1_000_000
    reused: bool = False


@dataclass
class Layers:
    """A plan of equal layers."""

    layers: list[Layer]

    @property
    def bytes_written(self) -> int:
        """All of them."""
        return sum(layer.bytes_written for layer in self.layers)


def test_progress_counts_the_speed_of_what_this_run_has_made():
    """Layers that were there already are done, and say nothing of how long the others take."""
    plan: Any = Layers([Layer() for _ in range(10)])
    results: Any = {n: Layer(reused=n < 4) for n in range(6)}
    assert tell_progress(plan, results, 0.5) == "6 of 10 layers, 4 of them reused; 6 MB of 10 MB, 4 MB/s, 1 s left"
    assert tell_progress(plan, {}, 0.5) == "0 of 10 layers, 0 of them reused; 0 B of 10 MB"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_times_are_told_as_people_tell_them(seconds, told):
    """Seconds, then minutes, then hours."""
    assert show_seconds(seconds) == told


def test_the_command_of_a_run_is_one_that_the_command_line_takes():
    """What a page says to call is parsed into what the flow was called with."""
    parameters = {
        "recipe": "/recipes/a b.yml",
        "out": "/out",
        "device": "cuda:1",
        "workers": 3,
        "store": "/store",
        "seed": 7,
        "trial": False,
        "fetch": "tensors",
        "task_runner": "thread",
    }
    words = list_words(parameters, {"device": "auto", "workers": 2, "fetch": "auto", "task_runner": "thread"})
    assert words is not None
    parsed = merge.make_context("merge", words[2:]).params
    assert {name: str(parsed[name]) for name in ("config", "out", "device", "workers", "store", "seed", "fetch")} == {
        "config": "/recipes/a b.yml",
        "out": "/out",
        "device": "cuda:1",
        "workers": "3",
        "store": "/store",
        "seed": "7",
        "fetch": "tensors",
    }
    assert parsed["skip_trial_load"]
    assert list_words(parameters | {"recipe": "merge_method: slerp\nmodels: []\n"}, {}) is None


def test_assets_are_the_same_thing_as_output_and_as_source(plan, tmp_path):
    """What one merge makes and another reads has one key, which names no folder above it."""
    home = tmp_path / "home" / "somebody" / HOSTILE.replace("/", "")
    folder = {"folder": home, "repo": None}
    used = plan.model_copy(update={"models": tuple(model.model_copy(update=folder) for model in plan.models)})
    made, source = list_outputs(plan, home, None)[0], list_sources(used)[0]
    assert made.key == source.key == validate_valid_asset_key(made.key)
    assert "somebody" not in made.key
    assert made.key != list_outputs(plan, home.with_name("other"), None)[0].key
    on_hub = list_outputs(plan, home, "org/na me")[1]
    assert on_hub.key == "hf://org/na-me"


def test_the_picture_is_told_in_numbers_too(plan):
    """Whoever cannot see the colours reads the same from a table, and a page without cosines has one picture."""
    page = draw_distance(plan, {"attn_q": {0: Cell(0.25, True, 0.5), 1: Cell(0.75, True, -0.5)}})
    assert page.count("data:image/png;base64,") == 2
    assert "0.25 to 0.75, mean 0.5" in page.replace("\\", "")
    assert "-0.5 to 0.5, mean 0" in page.replace("\\", "")
    assert draw_distance(plan, {"attn_q": {0: Cell(0.25, changed=True)}}).count("data:image/png;base64,") == 1


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What is told while pages are made, by a server that has answered so far."""
    said: list[str] = []
    logger = logging.getLogger("tests.pages")
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr("tasks.pages.showing.get_run_logger", lambda: logger)
    monkeypatch.setattr("tasks.pages.showing._Api.away_until", 0.0)
    monkeypatch.setattr("tasks.pages.showing._Api.left_out", 0)
    return said


def test_a_server_that_is_away_is_left_alone(monkeypatch, log):
    """One page pays for asking it; those of the next minute are not made, and their number is told once."""
    asked: list[str] = []

    def ask() -> str:
        asked.append("once")
        raise httpx.ConnectError("no route to host")

    for page in ("plan", "progress", "layers"):
        assert try_to_show(page, ask) is None
    assert asked == ["once"]
    monkeypatch.setattr("tasks.pages.showing._Api.away_until", 0.0)
    for page in ("distance", "validation"):
        assert try_to_show(page, lambda: "shown") == "shown"
    assert log == [
        "the plan could not be shown in Prefect, and nothing more is for 60 s: no route to host",
        "while the server did not answer, 2 pages or updates were left out",
    ]


@pytest.mark.parametrize("status", [409, 413, 422, 503])
def test_a_page_that_is_refused_is_missed_alone(log, status):
    """A server that has answered is asked for the next page at once."""

    def refuse() -> httpx.Response:
        return httpx.Response(status, request=httpx.Request("POST", "http://server/api/artifacts/")).raise_for_status()

    assert try_to_show("plan", refuse) is None
    assert try_to_show("layers", lambda: "shown") == "shown"
    assert [said.partition(":")[0] for said in log] == ["the plan could not be shown in Prefect"]


def test_what_a_hook_cannot_show_is_missed_as_well(monkeypatch):
    """Outside a run, where Prefect has no log of it, a server that is away is no error either."""
    monkeypatch.setattr("tasks.pages.showing._Api.away_until", 0.0)
    monkeypatch.setattr("tasks.pages.showing._Api.left_out", 1)

    def ask() -> str:
        raise httpx.ConnectError("no route to host")

    assert try_to_show("run's process", ask) is None

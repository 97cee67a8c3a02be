"""`xmerge compat`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.sketches import write_config, write_shallow
from tests.fake_checkpoints import write_fake, write_headers
from tests.hub.samples import FIRST_READ, read_files, split_attention
from tests.hub.server import HubServer, connected, running
from xmerge.compatibility import Matrix, Report, list_popular_models

LLAMA = dict(list_popular_models()["llama-3-8b"].config)
COLOR = re.compile(r"\x1b\[[\d;]*m")
ROOT = Path(__file__).resolve().parents[2]
# Shared CI machines, and workers of pytest-xdist beside this one, slow an interpreter down several times.
SLACK = 4 if "CI" in os.environ or "PYTEST_XDIST_WORKER" in os.environ else 1


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 60 columns that shows colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def table_of(text: str) -> dict[str, list[str]]:
    """The rows of a table by their first column."""
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 4}


# --- two models


def test_popular_models_are_compared_by_name(xmerge):
    """Both sides, a summary, a table whose rows are joined, each reason once below it, what is dropped, a recipe."""
    said = xmerge("compat", "llama-3-8b", "qwen3-8b")
    assert (said.exit_code, said.err) == (0, "")
    lines = [line.rstrip() for line in said.out.splitlines()]
    assert lines[0] == "qwen3-8b (qwen3, 36 layers) into llama-3-8b (llama, 32 layers)"
    assert lines[1].startswith("llama-3-8b, qwen3-8b: from the bundled table of popular models;")
    assert "attn_v, attn_output of qwen3-8b cross exactly or by conversion." in lines
    assert table_of(said.out) == {
        "component": ["layers", "class", "size", "read", "notes"],
        "token_embd, output": ["-", "D", "2.1 GB", "-", "1"],
        "attn_norm, ffn_norm": ["0-31", "A", "524 kB", "524 kB", "2"],
        "attn_q, attn_k": ["0-31", "C", "1.34 GB", "1.34 GB", "3, 4"],
        "attn_v, attn_output": ["0-31", "A", "1.34 GB", "1.34 GB", "-"],
        "ffn_gate, ffn_up": ["0-31", "D", "7.52 GB", "-", "5"],
        "ffn_down": ["0-31", "D", "3.76 GB", "-", "6"],
        "output_norm": ["-", "A", "8.19 kB", "8.19 kB", "2"],
    }
    above, recipe = said.out.split("A recipe to start from:")
    assert above.count("lose their scale") == 1
    assert "Dropped, because the base has no place for it: attn_k_norm (36 tensors), attn_q_norm (36 tensors)." in lines
    assert "A exact, B convertible, C approximate, D needs a bridge, E refused" in above
    assert "filter: self_attn.v_proj" in recipe


def test_conversions_are_noted_and_names_are_not(xmerge):
    """What is done to a donor's tensor has a note, one for all that fill a tensor; another name has none."""
    out = " ".join(xmerge("compat", "phi-4-mini", "llama-3.2-3b").out.split())
    assert (
        "converted: joined with model.layers.{layer}.mlp.gate_proj.weight, model.layers.{layer}.mlp.up_proj.weight"
        in out
    )
    rows = table_of(xmerge("compat", "llama-3-8b", "exaone-3.5-7.8b").out)
    assert rows["attn_norm, attn_v, attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down"][-1] == "-"


def test_a_gemma_says_why_nothing_crosses(xmerge):
    """A person who tries a Gemma learns the reason in words, and that there is no recipe."""
    out = " ".join(xmerge("compat", "llama-3-8b", "gemma-2-9b").out.split())
    assert "Nothing of gemma-2-9b's attention and feed-forward fits into llama-3-8b." in out
    assert "models of different widths share none" in out
    assert "No recipe: nothing of attention or feed-forward crosses exactly or by conversion." in out
    assert "What has class C" not in out
    approximate = " ".join(xmerge("compat", "llama-3-8b", "command-r7b").out.split())
    assert "What has class C merges where a recipe names it, and is then approximate." in approximate


def test_folders_with_weights_are_compared_by_their_headers(xmerge, tmp_path):
    """No word of where shapes come from is needed where headers tell."""
    write_fake(tmp_path / "a")
    write_fake(tmp_path / "b", "qwen2")
    said = xmerge("compat", tmp_path / "a", tmp_path / "b")
    assert said.out.splitlines()[0] == "b (qwen2, 4 layers) into a (llama, 4 layers)"
    assert "config.json implies" not in said.out
    assert "qwen2 adds a bias" not in said.out
    assert "b adds a bias and a does not; b's is dropped" in said.out


def test_a_config_alone_is_enough_and_said(xmerge, tmp_path):
    """A folder with only config.json is compared, and the output says what that rests on."""
    write_config(tmp_path / "alone", LLAMA)
    write_shallow(tmp_path / "whole", "llama-3-8b", 32)
    said = xmerge("compat", tmp_path / "whole", tmp_path / "alone")
    assert "alone: no weights are here; the shapes are what config.json implies." in said.out
    assert {row[1] for row in list(table_of(said.out).values())[1:]} == {"A"}


def test_packed_weights_are_told_first(xmerge, tmp_path):
    """A quantised model says so above the table, where headers tell and where config.json alone does."""
    packed: dict[str, Any] = {"quantization_config": {"quant_method": "fp8"}}
    write_config(tmp_path / "alone", LLAMA | packed)
    layers = {f"model.layers.{layer}.mlp.up_proj.weight": ("F8_E4M3", [12, 8]) for layer in range(4)}
    write_fake(tmp_path / "whole", extra=layers, **packed)
    for words in (("llama-3-8b", tmp_path / "alone"), (tmp_path / "whole", "llama-3-8b"), ("--all", tmp_path)):
        said = xmerge("compat", *words)
        assert "its weights are packed (fp8); what is packed cannot be merged." in said.out.lower(), said
    rows = [line.split() for line in said.out.splitlines()]
    assert [row[2:] for row in rows[1:3]] == [["AAAAA", "EEEEE"], ["EEEEE", "AAAAA"]]
    alone = xmerge("compat", "llama-3-8b", tmp_path / "alone").out
    assert "Only headers tell what is; here every matrix of its layers counts as packed." in alone
    assert table_of(alone)["attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down"][1] == "E"
    assert "Dropped" not in alone
    assert "packed" not in xmerge("compat", "llama-3-8b", "qwen3-8b").out


def test_json_is_one_document(xmerge):
    """A machine reads the comparison, the summary and the recipe as the values that the library has."""
    said = xmerge("compat", "phi-4-mini", "llama-3.2-3b", "--json")
    report = Report.model_validate_json(said.out)
    assert report.compatibility.base.label == "phi-4-mini"
    assert report.recipe is not None and "mlp.gate_up_proj" in report.recipe
    assert report.summary
    assert len(said.out.splitlines()) == 1


# --- a folder of models


def test_a_matrix_has_every_pair_and_the_reasons_of_the_others(xmerge, tmp_path):
    """Numbered columns, five classes a cell, a legend, and a reason for each model that cannot be read."""
    for name in ("llama-3-8b", "qwen3-8b"):
        write_shallow(tmp_path / name, name, 2)
    write_config(tmp_path / "alone", LLAMA)
    (write_config(tmp_path / "torn", {}) / "config.json").write_text("{")
    write_headers(tmp_path / "stranger", {"model_type": "unheard-of"}, {"h.0.w": ("F32", [2, 2])})
    said = xmerge("compat", "--all", tmp_path)
    assert (said.exit_code, said.err) == (0, "")
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0] == ["base", "\\", "donor", "1", "2", "3", "4"]
    assert rows[1] == ["1", "alone", "AAAAA", "AAAAA", "CCAAD", "?"]
    assert rows[3] == ["3", "qwen3-8b", "CCAAD", "CCAAD", "AAAAA", "?"]
    assert rows[4] == ["4", "stranger", "?", "?", "?", "A"]
    told = "stranger: there is no family file for unheard-of; it is compared by name, with models of its own type."
    assert told in said.out
    assert "- torn: torn/config.json is not JSON." in said.out
    assert "alone: no weights are here" in said.out
    for told in ("q, k, v, o, feed-forward", "A exact, B convertible", "?: of one of the two nobody knows"):
        assert told in said.out
    matrix = Matrix.model_validate_json(xmerge("compat", "--all", tmp_path, "--json").out)
    assert len(matrix.pairs) == 16


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_matrix_of_many_models_is_divided_by_its_columns(xmerge, narrow, monkeypatch, tmp_path, width):
    """However wide the terminal, every pair stands in one cell in one piece, below its donor's number."""
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"model-{number:02}" for number in range(13)]
    for number, name in enumerate(names):
        write_fake(tmp_path / name, num_hidden_layers=1, intermediate_size=12 + number)
    lines = COLOR.sub("", xmerge("compat", "--all", tmp_path).out).splitlines()
    assert max(map(len, lines)) <= width
    cells: dict[tuple[str, str], str] = {}
    donors: list[str] = []
    for line in lines:
        if line.lstrip().startswith("base \\ donor"):
            donors = line.split()[3:]
        row = line.split()
        if len(row) > 2 and row[1] in names:
            assert len(row) == 2 + len(donors)
            cells |= {(row[1], donor): cell for donor, cell in zip(donors, row[2:], strict=True)}
    assert cells == {
        (base, str(donor + 1)): "AAAAA" if names.index(base) == donor else "AAAAD"
        for base in names
        for donor in range(13)
    }


# --- terminals


def test_colour_is_for_terminals(xmerge, narrow, monkeypatch):
    """On a terminal the rows of a class have its colour; in a pipe there is no escape sequence at all."""
    lines = xmerge("compat", "llama-3-8b", "qwen3-8b").out.splitlines()
    (row,) = [line for line in lines if "attn_q, attn_k" in line and "GB" in line]
    assert "\x1b[33m" in row
    monkeypatch.delenv("FORCE_COLOR")
    assert "\x1b" not in xmerge("compat", "llama-3-8b", "qwen3-8b").out


@pytest.mark.parametrize("donor", ["qwen3-8b", "command-r7b", "gemma-2-9b", "mixtral-8x7b", "phi-3-mini"])
def test_a_narrow_terminal_is_wide_enough(xmerge, narrow, donor):
    """Nothing above the recipe is wider than the terminal, and no note is cut."""
    out = COLOR.sub("", xmerge("compat", "llama-3-8b", donor).out)
    above = out.split("A recipe to start from:")[0]
    assert max(map(len, above.splitlines())) <= 60
    told = " ".join(above.split())
    wide = json.loads(xmerge("compat", "llama-3-8b", donor, "--json").out)
    for each in wide["compatibility"]["components"]:
        for reason in each["reasons"]:
            assert reason in told
    assert "…" not in told


def test_a_very_narrow_terminal_folds_words(xmerge, narrow, monkeypatch, tmp_path):
    """Nothing is cut off where not even a word fits."""
    monkeypatch.setenv("COLUMNS", "30")
    write_shallow(tmp_path / "a-model-of-a-long-name", "phi-4-mini", 2)
    for words in (("compat", "phi-4-mini", "llama-3.2-3b"), ("compat", "--all", tmp_path)):
        above = COLOR.sub("", xmerge(*words).out).split("A recipe to start from:")[0]
        assert max(map(len, above.splitlines())) <= 30
        assert "…" not in above


@pytest.mark.parametrize("name", ["[bold]x[red]", "\x1b[31mred\x1b[0m", "new\nline", ":bomb:", "\x07bell"])
def test_hostile_names_are_shown_as_they_are(xmerge, narrow, tmp_path, name):
    """No name of a folder is taken for markup, nor acted upon by a terminal."""
    for part in ("a", "b"):
        write_fake(tmp_path / part / name)
    shown = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
    for words in (("compat", tmp_path / "a" / name, tmp_path / "b" / name), ("compat", "--all", tmp_path / "a")):
        out = COLOR.sub("", xmerge(*words).out)
        assert shown in out.splitlines()[0] + out.splitlines()[1]
        assert not set(out) & {"\x1b", "\x07", "\r"}


def test_hostile_config_values_are_shown_as_they_are(xmerge, narrow, tmp_path):
    """What config.json says reaches no terminal as anything but text: in tables, in reasons, in errors."""
    write_fake(tmp_path / "a")
    write_fake(tmp_path / "b", hidden_act="\x1b[31m[red]")
    write_headers(tmp_path / "c", {"model_type": "\x1b[31m[red]"}, {"h.0.w": ("F32", [2, 2])})
    told = COLOR.sub("", xmerge("compat", tmp_path / "a", tmp_path / "b").out)
    assert "[31m[red] in b" in told
    assert "\x1b" not in told
    alike = COLOR.sub("", xmerge("compat", tmp_path / "c", tmp_path / "c").out)
    assert "c ( [31m[red], 1 layers)" in alike
    assert "\x1b" not in alike
    refused = COLOR.sub("", xmerge("compat", tmp_path / "a", tmp_path / "c").err)
    assert r"there is no family file for \x1b[31m[red]." in refused
    assert "\x1b" not in refused


# --- errors


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "name a BASE and a DONOR, or --all DIR."),
        (("llama-3-8b",), 2, "name a BASE and a DONOR, or --all DIR."),
        (
            ("llama-3-8b", "qwen3-8b", "--all", "."),
            2,
            "--all compares every pair in a folder; leave BASE and DONOR out.",
        ),
        (("llama-3-8b", "qwen-8b"), 3, "there is no folder 'qwen-8b', and no popular model of that name."),
        (("--all", "missing"), 3, "there is no folder 'missing'."),
        (("--all", "."), 3, "no folder in . holds a config.json."),
        (("llama-3-8b", "./missing"), 3, "there is no model './missing'."),
        (("llama-3-8b", "org/model+org/adapter"), 2, "has a LoRA adapter, which xmerge does not merge."),
    ],
)
def test_mistakes_are_named(xmerge, tmp_path, monkeypatch, words, code, told):
    """Each has its exit code and says what is wrong, and nothing is printed as a result."""
    monkeypatch.chdir(tmp_path)
    said = xmerge("compat", *words)
    assert (said.exit_code, said.out) == (code, "")
    assert told in said.err


def test_strangers_are_refused(xmerge, tmp_path):
    """An unknown type and another: exit 2, with the way to add a family; as data too."""
    write_headers(tmp_path / "b", {"model_type": "unheard-of"}, {"h.0.w": ("F32", [2, 2])})
    said = xmerge("compat", "llama-3-8b", tmp_path / "b", "--json")
    assert said.exit_code == 2
    assert "add a file to xmerge/families" in said.err
    assert json.loads(said.out)["error"]["what"].endswith("there is no family file for unheard-of.")


def test_a_config_that_no_family_file_fits_names_its_key(xmerge, tmp_path):
    """A known type that its file does not describe: exit 2 or 3, and the key of config.json with both values."""
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 1, "rope_interleave": False}
    write_headers(tmp_path / "whole", config, {"model.layers.0.w": ("F32", [2])})
    write_config(tmp_path / "alone", config)
    for name, code in (("whole", 2), ("alone", 3)):
        said = xmerge("compat", "llama-3-8b", tmp_path / name)
        assert (said.exit_code, said.out) == (code, "")
        assert "rope_interleave = true, and config.json says rope_interleave = false" in " ".join(said.err.split())


def test_models_of_one_unknown_type_are_compared_by_name(xmerge, tmp_path):
    """Then components are names, and the recipe merges all that match."""
    for name in ("a", "b"):
        write_headers(tmp_path / name, {"model_type": "unheard-of"}, {"h.0.w": ("F32", [2, 2])})
    out = xmerge("compat", tmp_path / "a", tmp_path / "b").out
    assert "Tensors were compared by name and shape, because there is no family file for unheard-of" in out
    assert table_of(out)["h.{layer}.w"] == ["0", "A", "16 B", "16 B", "-"]
    assert "t: 0.1   # 0 is the base, 1 the donor; no family file says which tensors are what" in out
    assert "Norms and embeddings" not in out


# --- what it costs


@pytest.mark.slow
def test_popular_models_need_no_network_no_heavy_library_and_no_second():
    """A fresh interpreter compares two of them without a socket, torch, transformers or the Hub's client."""
    code = """
import socket, sys, time
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.create_connection = refuse
from xmerge.cli import main
try:
    main(["compat", "llama-3-8b", "qwen3-8b", "--json"])
except SystemExit as ended:
    assert not ended.code
heavy = {"torch", "huggingface_hub", "transformers", "tokenizers", "prefect", "numpy"} & set(sys.modules)
print(*sorted(heavy), time.process_time(), file=sys.stderr)
"""
    ran = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        for _ in "123"
    ]
    *heavy, _ = ran[0].stderr.split()
    assert heavy == []
    assert min(float(each.stderr.split()[-1]) for each in ran) < SLACK


@pytest.fixture
def server(tmp_path) -> Iterator[HubServer]:
    """A Hub that this process talks to."""
    with running() as hub, connected(hub, tmp_path / "home"):
        yield hub


def test_of_a_repository_only_config_index_and_headers_are_read(server, xmerge, tmp_path):
    """Neither weights nor tokenizer nor card: of each shard no more than its header's 8 KiB."""
    extra = {"tokenizer.json": b"{}" * 4000, "README.md": b"# A model", "generation_config.json": b"{}"}
    llama = write_fake(tmp_path / "llama", intermediate_size=4000, num_hidden_layers=2)
    qwen3 = write_fake(tmp_path / "qwen3", "qwen3", intermediate_size=4000, num_hidden_layers=3)
    server.add("org/llama", read_files(llama) | extra)
    server.add("org/qwen3", split_attention(qwen3) | extra)
    said = xmerge("compat", "org/llama", "org/qwen3@main")
    assert said.exit_code == 0, said.err
    assert said.out.startswith("org/qwen3 (qwen3, 3 layers) into org/llama (llama, 2 layers)")
    assert "- model: org/qwen3@main\n" in said.out
    for name in extra:
        assert server.bytes_of(name) == 0, name
    for name in ("model.safetensors", "attention.safetensors", "rest.safetensors"):
        assert 0 < server.bytes_of(name) <= FIRST_READ, name
    assert (llama / "model.safetensors").stat().st_size > 10 * FIRST_READ


def test_a_repository_that_is_not_there_is_refused(server, xmerge):
    """The Hub's answer is told, with exit 3."""
    said = xmerge("compat", "llama-3-8b", "org/missing")
    assert said.exit_code == 3
    assert "org/missing" in said.err

"""What goes along with the weights fits them, or is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fake_checkpoints import write_fake
from xmerge.architecture import describe_model
from xmerge.sources import Location
from xmerge.validation.companions import check_companions
from xmerge.validation.findings import Finding

TOKENS = {"<s>": 0, "</s>": 1, "a": 2, "<|user|>": 31}
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{{ eos_token }}{% endfor %}"
GOOD: dict[str, Any] = {
    "tokenizer.json": {"model": {"vocab": {"a": 2}}, "added_tokens": [
        {"content": token, "id": number} for token, number in TOKENS.items() if number != 2
    ]},
    "tokenizer_config.json": {"eos_token": "</s>", "bos_token": {"content": "<s>"}, "chat_template": TEMPLATE},
    "generation_config.json": {"eos_token_id": [1, 31], "bos_token_id": 0},
    "chat_template.jinja": TEMPLATE,
}  # fmt: skip


def check(folder: Path, files: dict[str, Any], **config: Any) -> list[Finding]:
    """What is found in a model with 32 rows and these files."""
    write_fake(folder, vocab_size=32, eos_token_id=1, bos_token_id=0, **config)
    for name, said in files.items():
        (folder / name).write_text(said if isinstance(said, str) else json.dumps(said), encoding="utf-8")
    return list(check_companions(folder, describe_model(Location(reference="m", label="m", folder=folder))))


def test_files_of_one_model_fit(tmp_path):
    """A tokenizer, a generation_config.json and a chat template that belong together give no finding; nor do none."""
    assert check(tmp_path / "all", GOOD) == []
    assert check(tmp_path / "none", {}) == []


@pytest.mark.parametrize(
    ("name", "said", "code", "text"),
    [
        (
            "tokenizer.json", {"model": {"vocab": TOKENS | {"b": 40}}}, "vocabulary",
            "the tokenizer knows token 40, and the embedding has 32 rows.",
        ),
        ("tokenizer.json", "{", "damaged", "tokenizer.json is not JSON."),
        ("generation_config.json", "[]", "damaged", "generation_config.json is not a JSON object."),
        (
            "generation_config.json", {"eos_token_id": [1, 32]}, "token_number",
            "generation_config.json says eos_token_id 32, and the embedding has 32 rows.",
        ),
        (
            "generation_config.json", {"eos_token_id": 7}, "generation_config",
            "config.json says eos_token_id 1, and generation_config.json says 7.",
        ),
        (
            "tokenizer_config.json", {"eos_token": "<eos>"}, "special_token",
            "tokenizer_config.json names '<eos>' as eos_token, and tokenizer.json does not know it.",
        ),
        (
            "tokenizer_config.json", {"chat_template": "{{ x }}"}, "chat_template",
            "chat_template.jinja and tokenizer_config.json hold different chat templates.",
        ),
        (
            "tokenizer_config.json", {"chat_template": [{"name": "default", "template": "{{ 1 / 0 }}"}]}, None, None,
        ),
    ],
    ids=range(8),
)  # fmt: skip
def test_one_file_of_another_model_is_found(tmp_path, name, said, code, text):
    """Whichever file is exchanged, one finding names it, what it says, and what to do."""
    found = check(tmp_path, GOOD | {name: said})
    assert [(each.code, each.text) for each in found] == ([(code, text)] if code else [])
    assert all(each.remedy for each in found)


def test_a_mark_that_the_tokenizer_does_not_know_is_found(tmp_path):
    """A template that sets marks of another model's would be read as plain letters."""
    template = TEMPLATE.replace("user", "im_start")
    files = GOOD | {"chat_template.jinja": template, "tokenizer_config.json": {}}
    assert [(each.code, each.text) for each in check(tmp_path, files)] == [
        (
            "chat_template",
            "the chat template in chat_template.jinja sets '<|im_start|>', which is no token of the tokenizer.",
        )
    ]


def test_a_template_is_read_and_never_run(tmp_path):
    """A template that would fail, hang or write when it is rendered is text like any other."""
    trap = "{% for i in range(10**12) %}{{ cycler.__init__.__globals__.os.mkdir('sprung') }}{% endfor %}{% broken"
    assert check(tmp_path, {"chat_template.jinja": trap}) == []


def test_numbers_that_a_tiny_model_took_over_are_no_fault(tmp_path):
    """Where no tokenizer says that texts are meant, the numbers of a large model's tokens disturb nobody."""
    assert check(tmp_path, {"generation_config.json": {"eos_token_id": 50256}}, pad_token_id=50256) != []
    config = {"generation_config.json": {"eos_token_id": 1, "pad_token_id": 50256}}
    assert check(tmp_path / "same", config, pad_token_id=50256) == []


def test_a_unigram_model_numbers_by_place(tmp_path):
    """A vocabulary that is a list has as many tokens as it is long."""
    pieces = [[f"p{number}", 0.0] for number in range(33)]
    assert [each.code for each in check(tmp_path, {"tokenizer.json": {"model": {"vocab": pieces}}})] == ["vocabulary"]
    fitting = {"tokenizer.json": {"model": {"vocab": pieces[:32]}}}
    assert check(tmp_path / "fitting", fitting) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_link_out_of_the_checkpoint_is_a_finding(tmp_path, name):
    """A companion that is a link to a file of somebody else is not read."""
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).symlink_to(tmp_path / "secret")
    (found,) = check(tmp_path / "model", {})
    assert found.code == "damaged"
    assert found.text.startswith(f"{name} is a link that leads out of its folder; {tmp_path / 'secret'}; ")

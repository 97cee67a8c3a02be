"""The trial load: a process of its own, which fails, dies or hangs without harm."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.small_merges import write_model
from tests.tiny_models import write_tiny_llama
from xmerge.errors import Interrupted
from xmerge.interrupt import request_stop, stoppable
from xmerge.validation import trial
from xmerge.validation.trial import FACT, try_loading


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that puts another program in the place of the one that loads."""

    def replace(text: str) -> None:
        path = tmp_path / "program.py"
        path.write_text(text)
        monkeypatch.setattr(trial, "PROGRAM", path)

    return replace


def told(report) -> str:
    """What a report says of the trial."""
    return str(dict(report.facts)[FACT])


@pytest.mark.slow
def test_a_checkpoint_is_loaded_strictly_and_run(tmp_path):
    """What transformers wrote loads; with a tensor too few or too many it does not."""
    whole = write_tiny_llama(tmp_path / "whole")
    assert told(try_loading(whole)) == "LlamaForCausalLM, strictly; the logits of a short input are finite"
    shutil.copytree(whole, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.layers.0.self_attn.k_norm.weight"] = weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    report = try_loading(tmp_path / "broken")
    assert told(report) == "failed"
    assert [finding.text for finding in report.findings] == [
        "transformers finds missing keys: model.norm.weight",
        "transformers does not read 'model.layers.0.self_attn.k_norm.weight'.",
    ]


@pytest.mark.slow
def test_a_tensor_that_the_base_has_too_is_no_fault(tmp_path):
    """What nobody reads and the base brought along is a warning, and the checkpoint loads all the same."""
    folder = write_tiny_llama(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["extra.weight"] = weights["model.norm.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    report = try_loading(folder, {"extra.weight"})
    assert report.ok
    assert told(report) == "LlamaForCausalLM, strictly; the logits of a short input are finite"
    assert [(finding.code, finding.severity) for finding in report.findings] == [("unread_tensor", "warning")]


@pytest.mark.slow
def test_code_in_a_checkpoint_or_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    """Neither a module that config.json names nor one that lies where the command was started is imported."""
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    folder = write_model(tmp_path / "model", auto_map={"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "trap"}))
    for name in ("trap", "torch", "transformers", "json"):
        (folder / f"{name}.py").write_text(trap)
    monkeypatch.chdir(folder)
    assert told(try_loading(Path())).startswith("no: this transformers does not know the model type")
    assert not (tmp_path / "sprung").exists()


def test_a_program_that_dies_is_a_finding(tmp_path, program):
    """The last word of a process that ended early is what is told."""
    program("import sys\nprint('noise')\nprint('first', file=sys.stderr)\nsys.exit('the last word')")
    report = try_loading(tmp_path)
    assert not report.ok and told(report) == "failed"
    assert report.findings[0].text == "the loading process ended with status 1: the last word"


def test_a_program_that_is_killed_for_its_memory_is_no_fault_of_the_checkpoint(tmp_path, program):
    """Where the system takes the process away, nothing was learned."""
    program("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    report = try_loading(tmp_path)
    assert report.ok and told(report) == "no: the loading process was killed, most likely for want of memory"


def test_noise_before_the_answer_is_passed_over(tmp_path, program):
    """Only the last line is the answer, and only if it is one."""
    program("print('noise')\nprint('{\"skipped\": \"no need\"}')")
    assert told(try_loading(tmp_path)) == "no: no need"
    program("print('null')")
    assert not try_loading(tmp_path).ok


def test_a_stop_ends_the_trial(tmp_path, program):
    """A process that hangs is ended when a stop is requested, and not waited for."""
    program("import time\ntime.sleep(60)")
    started = time.monotonic()
    with stoppable():
        request_stop()
        with pytest.raises(Interrupted):
            try_loading(tmp_path)
    assert time.monotonic() - started < 10


def test_where_it_cannot_be_tried_the_reason_is_told(tmp_path, monkeypatch):
    """Without transformers, and where memory is short, the trial is left out and says why."""
    write_model(tmp_path / "model")
    monkeypatch.setattr(trial, "available_bytes", lambda: 1000)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert (
        told(try_loading(tmp_path / "model")) == f"no: {size:,} bytes are more than the 500 that a trial may take here"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert told(try_loading(tmp_path)) == "no: transformers is not installed (pip install 'xmerge[check]')"

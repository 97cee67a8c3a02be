"""Nothing that comes with a checkpoint is run: no pickle is opened, no module imported, no template rendered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import write_tiny_llama

ROOT = Path(__file__).parents[2]
RUNNABLE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py", ".pyc", ".so")
RECIPE = "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: donor}]\nparameters: {t: 0.4}\n"

WATCHED = """
import os, sys
note = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
place = sys.argv[2]

def look(event, given):
    told = None
    if event == "open" and isinstance(given[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(given[0]))
        told = f"open {os.path.relpath(path, place)}" if path.startswith(place) else None
    elif event == "import":
        told = f"import {given[0]}"
    elif event == "compile" and isinstance(given[1], (str, bytes)):
        told = f"compile {os.fsdecode(given[1])}"
    elif event in ("pickle.find_class", "os.system", "socket.connect"):
        told = event
    if told:
        os.write(note, (told + "\\n").encode())

sys.addaudithook(look)
"""
COMMAND = WATCHED + "from xmerge.cli import main\nmain(sys.argv[3:])\n"
TRIAL = WATCHED + "import runpy\nsys.argv = sys.argv[3:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"


def set_traps(folder: Path, sprung: Path) -> None:
    """Put everything beside a model's weights that would leave a trace if it were run."""
    trap = f"open({str(sprung)!r}, 'w').close()\n"
    for name in ("evil.py", "modeling_llama.py", "tokenization_llama.py", "configuration_llama.py", "__init__.py"):
        (folder / name).write_text(trap)
    pickled = b"cos\nsystem\n(S'touch %s'\ntR." % str(sprung).encode()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pth", "model.ckpt", "data.pkl"):
        (folder / name).write_bytes(pickled)
    touch = f"cycler.__init__.__globals__.os.system('touch {sprung}')"
    template = f"{{{{ {touch} }}}}{{% for x in range(10**9) %}}{{% endfor %}}"
    (folder / "chat_template.jinja").write_text(template)
    edit(folder / "tokenizer_config.json", chat_template=template, auto_map={"AutoTokenizer": ["evil.Evil", None]})
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    edit(folder / "config.json", auto_map=auto_map, custom_pipelines={"x": {"impl": "evil.Evil"}}, model_file="evil.py")


def edit(path: Path, **changes: object) -> None:
    """Change a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def run_watched(program: str, place: Path, *words: object) -> list[str]:
    """Run a program in a process of its own; what it opened below a place, imported, compiled and unpickled."""
    notes = place.parent / "notes"
    notes.unlink(missing_ok=True)
    command = [sys.executable, "-c", program, str(notes), str(place), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return notes.read_text(encoding="utf-8").splitlines()


def judge(notes: list[str]) -> list[str]:
    """What of the notes says that something of a checkpoint was run, or may have been."""
    suspicious = ("import evil", "import modeling_", "import tokenization_", "compile <template>", "os.system")
    return [
        note for note in notes if note.startswith(suspicious) or (note.startswith("open ") and note.endswith(RUNNABLE))
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two models full of traps, and the recipe that merges them."""
    place = Path(tmp_path_factory.mktemp("traps")).resolve() / "work"
    for seed, name in enumerate(("base", "donor")):
        set_traps(write_tiny_llama(place / name, seed=seed, tokenizer=True), place.parent / "sprung")
    (place / "recipe.yml").write_text(RECIPE)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("plan", "recipe.yml", "--json"),
        ("compat", "base", "donor", "--json"),
        ("merge", "recipe.yml", "out", "--direct", "--skip-trial-load"),
        ("verify", "base", "--base", "donor", "--skip-trial-load"),
    ],
    ids=lambda words: words[0],
)
def test_no_command_runs_what_comes_with_a_model(place, words):
    """Whatever lies beside the weights, no file that could run is opened, and nothing is unpickled or rendered."""
    notes = run_watched(COMMAND, place, *words)
    assert any(note.endswith("model.safetensors") for note in notes)
    assert judge(notes) == []
    assert not (place.parent / "sprung").exists()
    if words[0] == "merge":
        templates = [(place / name / "chat_template.jinja").read_bytes() for name in ("base", "out")]
        assert templates[0] == templates[1]
        assert not list((place / "out").glob("*.py")) and not list((place / "out").glob("*.bin"))


@pytest.mark.slow
def test_the_trial_load_runs_nothing_either(place):
    """Loading a model with transformers opens its config, its tokenizer and its weights, and no file that could run."""
    notes = run_watched(TRIAL, place, ROOT / "xmerge" / "validation" / "load.py", place / "base")
    # The weights are opened by a library that Python does not watch.
    assert "open base/config.json" in notes
    assert judge(notes) == []
    assert not (place.parent / "sprung").exists()


def test_what_runs_is_seen():
    """Each way to run something of a checkpoint leaves a note that is judged so."""
    notes = ["import evil", "compile <template>", "open base/pytorch_model.bin", "open base/evil.py", "os.system"]
    assert judge([*notes, "open base/config.json", "import json", "compile x.py"]) == notes

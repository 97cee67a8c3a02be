"""The whole loop: two families in, exactly a model of the base's architecture out."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.small_merges import (
    ATTENTION,
    RECIPE,
    digest_files,
    list_tree,
    load_weights,
    make_plan,
    run,
    write_model,
    write_models,
)
from tests.tiny_models import write_tiny_llama, write_tiny_qwen2, write_tiny_qwen3
from xmerge.errors import CheckpointError, Interrupted, InUseError, PlanError, SourceChangedError, StorageError
from xmerge.interrupt import check_stop, request_stop
from xmerge.progress import Silence
from xmerge.work import open_work_folder

LAYER_MAP = (0, 2, 3, 5)
"""Which of 6 donor layers meets each of 4 base layers, `proportional`."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The two models of the recipe."""
    return write_models(tmp_path_factory.mktemp("models"))


class StopAfter(Silence):
    """A reporter that asks for a stop when so many layers are done."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.done = 0

    def layer_done(self, result, done, total):
        """Ask for the stop."""
        self.done = done
        if done == self.layers:
            request_stop()


def slerp64(base: torch.Tensor, donor: torch.Tensor, t: float) -> torch.Tensor:
    """Spherical interpolation in float64, written down from the formula."""
    x, y = base.double().flatten(), donor.double().flatten()
    angle = math.acos(float(x @ y / (x.norm() * y.norm())))
    mixed = (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)
    return mixed.reshape(base.shape)


def ulps_apart(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many bfloat16 numbers lie between two, at most."""

    def rank(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((rank(one) - rank(other)).abs().max())


def check_crossing(out: Path, base: dict[str, torch.Tensor], donor: dict[str, torch.Tensor]) -> None:
    """Exactly the base's tensors; attention between the two models, everything else the base's bytes."""
    merged = load_weights(out)
    assert set(merged) == set(base)
    assert not [name for name in merged if "q_norm" in name or "k_norm" in name]
    for name, tensor in merged.items():
        assert (tensor.shape, tensor.dtype) == (base[name].shape, base[name].dtype)
        if not any(part in name for part in ATTENTION):
            assert torch.equal(tensor.view(torch.int16), base[name].view(torch.int16))
            continue
        layer = int(name.split(".")[2])
        there = name.replace(f".{layer}.", f".{LAYER_MAP[layer]}.", 1)
        expected = slerp64(base[name], donor[there], 0.3).to(tensor.dtype)
        assert ulps_apart(tensor, expected) <= 1
        assert not torch.equal(tensor, base[name])


def test_attention_crosses_families_and_nothing_else_moves(tmp_path, models):
    """Llama's tensors and no others; the merged ones are the interpolation to one rounding, the rest untouched."""
    outcome = run(models, tmp_path / "out")
    check_crossing(tmp_path / "out", load_weights(models / "llama"), load_weights(models / "qwen3"))
    assert outcome.report is not None and outcome.report.ok and not outcome.report.findings
    assert dict(outcome.report.facts)["loaded with transformers"] == "no: skipped as asked"
    assert (outcome.layers, outcome.reused) == (6, 0)


@pytest.mark.slow
def test_a_cross_family_merge_of_real_checkpoints_loads_strictly(tmp_path):
    """What transformers wrote as a Llama and a Qwen3 comes out as a Llama that transformers loads strictly."""
    write_tiny_llama(tmp_path / "llama", seed=1, num_hidden_layers=4, max_shard_size=60_000)
    write_tiny_qwen3(tmp_path / "qwen3", seed=2, num_hidden_layers=6, intermediate_size=96)
    outcome = run(tmp_path, trial=True)
    check_crossing(tmp_path / "out", load_weights(tmp_path / "llama"), load_weights(tmp_path / "qwen3"))
    assert outcome.report is not None
    told = "LlamaForCausalLM, strictly; the logits of a short input are finite"
    assert dict(outcome.report.facts)["loaded with transformers"] == told


@pytest.mark.slow
@pytest.mark.parametrize(("write", "model_class"), [(write_tiny_qwen2, "Qwen2"), (write_tiny_qwen3, "Qwen3")])
def test_stacked_slices_load_with_as_many_layers_as_were_stacked(tmp_path, write, model_class):
    """Slices of one model, one upon the other, are a deeper model whose lists per layer are as long."""
    write(tmp_path / "model", num_hidden_layers=4)
    recipe = """\
merge_method: passthrough
slices:
- sources: [{model: model, layer_range: [0, 3]}]
- sources: [{model: model, layer_range: [1, 4]}]
"""
    outcome = run(tmp_path, recipe=recipe, trial=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 6
    assert outcome.report is not None
    assert dict(outcome.report.facts)["loaded with transformers"].startswith(f"{model_class}ForCausalLM, strictly")
    base, stacked = load_weights(tmp_path / "model"), load_weights(tmp_path / "out")
    for layer, origin in enumerate((0, 1, 2, 1, 2, 3)):
        name = "model.layers.{}.self_attn.q_proj.weight"
        assert torch.equal(stacked[name.format(layer)], base[name.format(origin)])


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, models):
    """1, 2 and 4 workers give every file the same bytes."""
    for workers in (1, 2, 4):
        run(models, tmp_path / str(workers), workers=workers)
    assert digest_files(tmp_path / "1") == digest_files(tmp_path / "2") == digest_files(tmp_path / "4")


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
def test_merging_a_model_with_its_copy_changes_nothing(tmp_path, method):
    """Every method is idempotent: equal inputs come back unchanged, bit for bit."""
    for name in ("one", "other"):
        write_model(tmp_path / name, seed=5)
    recipe = f"merge_method: {method}\nbase_model: one\nmodels:\n" + "".join(
        f"- {{model: {name}, parameters: {{weight: {weight}}}}}\n" if method != "slerp" else f"- model: {name}\n"
        for name, weight in (("one", 0.37), ("other", 0.63))
        if method != "task_arithmetic" or name == "other"
    )
    run(tmp_path, recipe=recipe + ("parameters: {t: 0.37}\n" if method == "slerp" else ""))
    base, merged = load_weights(tmp_path / "one"), load_weights(tmp_path / "out")
    assert all(torch.equal(base[name].view(torch.int16), merged[name].view(torch.int16)) for name in base)


def test_an_output_that_is_there_is_left_alone(tmp_path, models):
    """The second run of one merge does nothing, and says so."""
    run(models, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    outcome = run(models, tmp_path / "out")
    assert outcome.report is None and outcome.reused == outcome.layers == 6
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert list_tree(tmp_path)[0] == "out"


def test_a_stop_leaves_finished_layers_and_the_next_run_makes_only_the_others(tmp_path, models):
    """An interrupted run raises Interrupted, shows no output, and what it finished is not made again."""
    undisturbed = run(models, tmp_path / "undisturbed")
    reporter = StopAfter(2)
    with pytest.raises(Interrupted) as caught:
        run(models, tmp_path / "out", workers=1, reporter=reporter)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "out").exists()
    kept = len(list((tmp_path / ".out.xmerge" / "store").glob("*/*.json")))
    assert 2 <= kept < 6
    assert not list((tmp_path / ".out.xmerge").rglob("*.tmp"))
    outcome = run(models, tmp_path / "out")
    assert outcome.reused == kept
    assert outcome.plan_fingerprint == undisturbed.plan_fingerprint
    assert digest_files(tmp_path / "out") == digest_files(tmp_path / "undisturbed")


def test_a_stop_is_answered_within_a_block(tmp_path, models, monkeypatch):
    """A layer under way does not go on to its end when a stop is requested."""
    from xmerge.engine import combine

    blocks: list[None] = []

    def check():
        blocks.append(None)
        if len(blocks) == 3:
            request_stop()
        check_stop()

    monkeypatch.setattr(combine, "check_stop", check)
    with pytest.raises(Interrupted):
        run(models, tmp_path / "out", workers=1)
    assert len(blocks) == 3
    assert list_tree(tmp_path) == [] or not list((tmp_path / ".out.xmerge").rglob("*.tmp"))


def test_an_error_in_one_layer_stops_no_later_run(tmp_path):
    """After a failed merge the process is as ready for the next one as before, and nothing half made is left."""
    write_models(tmp_path)
    path = tmp_path / "qwen3" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.3.self_attn.q_proj.weight"][1, 2] = math.nan
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path)
    assert "qwen3 holds NaN or infinity in model.layers.3.self_attn.q_proj.weight, at element 10." in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    weights["model.layers.3.self_attn.q_proj.weight"][1, 2] = 0.0
    save_file(weights, path, {"format": "pt"})
    assert run(tmp_path).report is not None


def test_a_source_replaced_between_plan_and_merge_is_refused(tmp_path):
    """Other weights under the same name and header are seen, and nothing is made of them."""
    write_models(tmp_path)

    class Replace(Silence):
        def plan_ready(self, plan):
            write_model(tmp_path / "llama", seed=9)

    with pytest.raises(SourceChangedError, match=r"llama/model\.safetensors changed since the plan was made") as caught:
        run(tmp_path, reporter=Replace())
    assert caught.value.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "qwen3"]


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """A file written to during the reading of a layer gives no layer."""
    from xmerge.engine.shard import ShardWriter

    write_models(tmp_path)
    seal = ShardWriter.seal

    def change_and_seal(self):
        os.utime(tmp_path / "qwen3" / "model.safetensors", ns=(1, 1))
        return seal(self)

    monkeypatch.setattr(ShardWriter, "seal", change_and_seal)
    with pytest.raises(SourceChangedError, match=r"qwen3/model\.safetensors changed while it was read"):
        run(tmp_path, workers=1)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_device_that_is_not_here_is_refused_before_anything_is_fetched(tmp_path, models):
    """An unknown device is exit 2, before a model is fetched, and leaves nothing."""
    stages: list[str] = []

    class Listen(Silence):
        def stage(self, name):
            stages.append(name)

    with pytest.raises(PlanError, match="there is no device 'tpu'"):
        run(models, tmp_path / "out", device="tpu", reporter=Listen())
    assert stages == ["resolve_architecture", "map_slices"]
    assert list_tree(tmp_path) == []


def test_an_error_in_one_layer_ends_the_others_at_their_next_block(tmp_path, models, monkeypatch):
    """The error is told at once, not when the layers beside it are done."""

    def fail_or_wait(plan, index, folders, store, device):
        if index == 3:
            raise StorageError("full")
        for _ in range(1000):
            check_stop()
            time.sleep(0.01)

    monkeypatch.setattr(import_module("xmerge.run"), "merge_layer", fail_or_wait)
    started = time.monotonic()
    with pytest.raises(StorageError, match="full"):
        run(models, tmp_path / "out", workers=6)
    assert time.monotonic() - started < 5


def test_an_error_of_one_merge_ends_no_other(tmp_path, models, monkeypatch):
    """Of two merges in one process, the one that is under way when the other fails goes on to its end."""
    module = import_module("xmerge.run")
    real, begun, failed = module.merge_layer, threading.Event(), threading.Event()

    def wait_or_fail(plan, index, folders, store, device):
        if store.path.is_relative_to(tmp_path / "failing"):
            begun.wait(60)
            # Another of its layers is slow to end.
            time.sleep(0.5 * (index % 2))
            raise StorageError("full")
        begun.set()
        while not failed.wait(0.01):
            check_stop()
        return real(plan, index, folders, store, device)

    def fail():
        with pytest.raises(StorageError, match="full"):
            run(models, tmp_path / "out", store=tmp_path / "failing")
        failed.set()

    monkeypatch.setattr(module, "merge_layer", wait_or_fail)
    other = threading.Thread(target=fail)
    other.start()
    run(models, tmp_path / "other")
    other.join()
    assert failed.is_set()


def test_two_recipes_share_a_store_at_the_same_time(tmp_path, models):
    """Merges of other recipes, side by side on one store, give what each gives alone."""
    recipes = {str(t): RECIPE.replace("0.3", str(t)) for t in (0.25, 0.5, 0.75)}
    threads = [
        threading.Thread(target=run, args=(models, tmp_path / name, recipe), kwargs={"store": tmp_path / "store"})
        for name, recipe in recipes.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, recipe in recipes.items():
        run(models, tmp_path / f"{name} alone", recipe)
        assert digest_files(tmp_path / name) == digest_files(tmp_path / f"{name} alone")
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_second_run_on_one_output_is_refused(tmp_path, models):
    """While one run works on an output another one is turned away and disturbs nothing."""
    refused = []

    class RunAgain(Silence):
        def layer_done(self, result, done, total):
            if done == 1:
                with pytest.raises(InUseError) as caught, open_work_folder(tmp_path / "out", make_plan(models)[1]):
                    pass
                refused.append(str(caught.value))

    run(models, tmp_path / "out", reporter=RunAgain())
    assert f"process {os.getpid()} on " in refused[0]
    assert (tmp_path / "out" / "config.json").is_file()


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.small_merges import run
from xmerge.errors import XmergeError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    run(Path(sys.argv[1]))
except XmergeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 3000])
def test_a_disk_that_is_really_full_is_exit_6_with_the_numbers(tmp_path, limit):
    """At whatever file the space ends: no traceback, needed and free bytes, no output; with space it is resumed."""
    write_models(tmp_path)
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "bytes are needed at once and " in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.tmp"))
    run(tmp_path)

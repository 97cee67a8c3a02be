"""Time a merge method as a whole process, and mergekit beside it.

Usage: python benchmarks/methods.py METHOD FOLDER [--millions 500] [--donors 2] [--runs 3] [--mergekit MERGEKIT_YAML]

It writes random Llamas in bfloat16 once, merges them, and prints the median time, nanoseconds for each number of the
output, and peak memory above that of a process that only imports torch. With mergekit both run in turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from xmerge.methods import MergeMethod, find_method

HIDDEN, FFN, VOCAB = 2048, 8192, 32000
LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 4 + 3 * HIDDEN * FFN + 2 * HIDDEN
USUAL = {"weight": 0.5, "density": 0.5, "t": 0.3}
NORM_SPREAD, DELTA_SPREAD = 0.02, 0.002


def main() -> None:
    """Write the models, then time."""
    asked = read_arguments()
    method = find_method(asked.method)
    donors = min(asked.donors, (method.inputs[1] or asked.donors + 1) - 1)
    layers = max(1, round((asked.millions * 1e6 - 2 * VOCAB * HIDDEN) / LAYER))
    names = ["base", *(f"donor{number}" for number in range(donors))]
    for seed, name in enumerate(names):
        write_model(asked.folder / name, layers, seed)
    recipe = asked.folder / f"{method.name}.yml"
    recipe.write_text(write_recipe(method, asked.folder, names), encoding="utf-8")
    xmerge = [sys.executable, "-m", "xmerge", "merge", str(recipe), "OUT", "--direct", "--quiet", "--skip-trial-load"]
    commands = {"xmerge": xmerge}
    if asked.mergekit:
        commands["mergekit"] = [asked.mergekit, str(recipe), "OUT", "--random-seed", "0"]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(asked.runs + 1):
        for name, command in commands.items():
            times[name].append(run(command, asked.folder / "out"))
    numbers = layers * LAYER + 2 * VOCAB * HIDDEN + HIDDEN
    baseline = run([sys.executable, "-c", "import torch"], asked.folder / "out")[1]
    for name, measured in times.items():
        # The first run of each warms the page cache.
        seconds = statistics.median(each for each, _ in measured[1:])
        peak = max(each for _, each in measured[1:])
        sys.stdout.write(
            f"{name} {method.name}, {donors + 1} models of {numbers / 1e6:.0f} M: {seconds:.2f} s, "
            f"{seconds / numbers * 1e9:.2f} ns a number, peak {peak:.0f} MB ({peak - baseline:.0f} above torch)\n"
        )
    if asked.mergekit:
        ratios = [theirs / ours for (ours, _), (theirs, _) in zip(*times.values(), strict=True)][1:]
        told = f"{statistics.median(ratios):.1f} times as long ({min(ratios):.1f} to {max(ratios):.1f})"
        sys.stdout.write(f"mergekit takes {told}\n")


def read_arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--millions", type=float, default=500)
    parser.add_argument("--donors", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mergekit")
    return parser.parse_args()


def write_model(folder: Path, layers: int, seed: int) -> None:
    """A Llama with random weights, the donors a little off the base; one file for each layer."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"embed_tokens.weight": (VOCAB, HIDDEN), "norm.weight": (HIDDEN,)}
    for layer in range(layers):
        attention = {"q": HIDDEN, "k": HIDDEN // 4, "v": HIDDEN // 4, "o": HIDDEN}
        shapes |= {f"layers.{layer}.self_attn.{name}_proj.weight": (rows, HIDDEN) for name, rows in attention.items()}
        shapes |= {f"layers.{layer}.mlp.{name}_proj.weight": (FFN, HIDDEN) for name in ("gate", "up")}
        shapes[f"layers.{layer}.mlp.down_proj.weight"] = (HIDDEN, FFN)
        shapes |= {f"layers.{layer}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    weights = {f"model.{name}": draw(name, shape, seed) for name, shape in shapes.items()}
    weights["lm_head.weight"] = draw("lm_head", (VOCAB, HIDDEN), seed)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = (
        f'{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {HIDDEN},'
        f' "torch_dtype": "bfloat16", "intermediate_size": {FFN}, "num_attention_heads": 32,'
        f' "num_key_value_heads": 8, "vocab_size": {VOCAB},'
        f' "num_hidden_layers": {layers}, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "hidden_act": "silu"}}'
    )
    (folder / "config.json").write_text(config, encoding="utf-8")


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The base's numbers, and for a donor a small change to them."""
    random = torch.Generator().manual_seed(sum(name.encode()))
    drawn = torch.empty(shape, dtype=torch.bfloat16).normal_(std=NORM_SPREAD, generator=random)
    if seed:
        random.manual_seed(seed * 1000 + len(name))
        drawn += torch.empty(shape, dtype=torch.bfloat16).normal_(std=DELTA_SPREAD, generator=random)
    return drawn


def write_recipe(method: MergeMethod, folder: Path, names: list[str]) -> str:
    """A recipe with the usual value of what must be given."""
    given = {each.name: USUAL.get(each.name, each.default) for each in method.parameters}
    lines = [f"  {name}: {value}" for name, value in given.items() if name in USUAL]
    models = [f"  - model: {(folder / name).resolve()}" for name in names]
    base = [f"base_model: {(folder / names[0]).resolve()}"] if method.base == "required" else []
    text = [f"merge_method: {method.name}", *base, "models:", *models, "dtype: bfloat16"]
    return "\n".join([*text, *(["parameters:", *lines] if lines else [])]) + "\n"


def run(command: list[str], out: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of one process."""
    shutil.rmtree(out, ignore_errors=True)
    words = [str(out) if word == "OUT" else word for word in command]
    started = time.perf_counter()
    child = os.spawnvp(os.P_NOWAIT, words[0], words)  # noqa: S606 - what the caller names
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{words[0]} failed")
    return seconds, usage.ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()

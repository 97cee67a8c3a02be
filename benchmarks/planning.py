"""Time the planning of very large merges, from headers alone.

Usage: python benchmarks/planning.py FOLDER. It writes config.json and headers of a Llama as large as 3.1-405B and of a
mixture of experts with 90,000 tensors (their weights are holes), and plans each with itself in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from xmerge.checkpoints.headers import build_header
from xmerge.compatibility.naming import sketch_model
from xmerge.sources import Location

CONFIGS = {
    "llama-405b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16384, "intermediate_size": 53248,
        "num_attention_heads": 128, "num_key_value_heads": 8, "num_hidden_layers": 126, "vocab_size": 128256,
    },
    "experts": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 4096, "head_dim": 128,
        "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_attention_heads": 64, "num_key_value_heads": 4,
        "num_experts": 320, "num_hidden_layers": 94, "vocab_size": 151936,
    },
}  # fmt: skip
RECIPE = """\
merge_method: slerp
base_model: {name}
models: [{{model: {name}}}, {{model: {name}-2}}]
parameters: {{t: 0.3}}
"""
PLAN = """
import resource, sys, time
started = time.perf_counter()
from pathlib import Path
from xmerge.architecture import resolve
from xmerge.config import load_config
from xmerge.planning import map_slices
config = load_config(Path(sys.argv[1]))
imported = time.perf_counter()
architecture = resolve(config)
resolved = time.perf_counter()
plan = map_slices(config, architecture)
mapped = time.perf_counter()
plan.fingerprint
ended = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(f"{plan.title}: {len(plan.tensors):,} tensors: resolve {resolved - imported:.2f} s, "
      f"map {mapped - resolved:.2f} s, fingerprint {ended - mapped:.2f} s, all {ended - started:.2f} s, "
      f"peak {peak:.0f} MB")
"""


def main(folder: Path) -> None:
    """Write the models and plan each pair."""
    for name, config in CONFIGS.items():
        for copy in (name, f"{name}-2"):
            write_headers(folder / copy, config)
        recipe = folder / f"{name}.yml"
        recipe.write_text(RECIPE.format(name=name), encoding="utf-8")
        subprocess.run([sys.executable, "-c", PLAN, recipe], check=True)


def write_headers(folder: Path, config: dict[str, object]) -> None:
    """A checkpoint of one file that is all header, with a hole for the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = sketch_model(Location(reference=folder.name, label=folder.name), config)
    header, entries = build_header((spec.name, spec.dtype, spec.shape) for spec in model.tensors)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + entries[-1].end)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""`make demo`: two models of different families merged, checked, loaded, and a killed merge resumed.

Everything is real but the weights, which are random: the demo shows that the machinery works, not that merging helps.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path("demo-output")
XMERGE = [sys.executable, "-m", "xmerge"]
RECIPE = """\
# Attention of a Qwen3 model into a Llama, {t:.0%} of the way; everything else stays the base's, byte for byte.
merge_method: slerp
base_model: {folder}/small-llama
models:
  - model: {folder}/small-llama
  - model: {folder}/small-qwen3
layer_map: proportional # 12 layers meet 16
parameters:
  t:
    - {{filter: self_attn.q_proj, value: {t}}}
    - {{filter: self_attn.k_proj, value: {t}}}
    - {{filter: self_attn.v_proj, value: {t}}}
    - {{filter: self_attn.o_proj, value: {t}}}
"""
ATTENTION = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
SECONDS_TO_WAIT = 90.0


def main() -> None:
    """The whole demo, told step by step."""
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    say("1. Two small models: a Llama of 12 layers and a Qwen3 of 16, equal in attention, different in the MLP")
    write_models()
    recipe = write_recipe("recipe.yml", t=0.3)
    print(recipe.read_text(encoding="utf-8"))
    say("2. The plan: every decision, and no weight read yet")
    run("plan", recipe)
    say("3. The merge, as a Prefect flow")
    run("merge", recipe, FOLDER / "merged")
    say("4. The result is a Llama: loaded with transformers, it generates")
    generate(FOLDER / "merged")
    say("5. A second merge, killed half-way (kill -9)")
    other = write_recipe("recipe-half.yml", t=0.5)
    finished = kill_half_way(other, FOLDER / "merged-half")
    print(f"Killed with {finished} finished layers in its store; {FOLDER / 'merged-half'} does not exist.")
    say("6. The same command again: it resumes")
    run("merge", other, FOLDER / "merged-half")
    say(f"Done in {time.monotonic() - started:.0f} s")
    print(CLOSING.format(folder=FOLDER))


CLOSING = """\
The merged models are in {folder}/merged and {folder}/merged-half: open README.md and provenance.json there.
The weights were random, so the generated text means nothing, and a real merge of different families is an experiment.
What this run has shown: the output has exactly Llama's tensors, loads, is reproducible, and survives a kill.

To see these runs in a browser:   .venv/bin/xmerge ui
To start merges from there:       .venv/bin/xmerge serve
"""


def say(text: str) -> None:
    """A heading."""
    print(f"\n=== {text}\n", flush=True)


def run(*words: object) -> None:
    """Run xmerge, and end the demo if it fails."""
    print("$ xmerge " + " ".join(map(str, words)), flush=True)
    subprocess.run([*XMERGE, *map(str, words)], check=True)


def write_recipe(name: str, *, t: float) -> Path:
    """A configuration for the two models."""
    path = FOLDER / name
    path.write_text(RECIPE.format(t=t, folder=FOLDER), encoding="utf-8")
    return path


def write_models() -> None:
    """Two checkpoints as transformers writes them, in bfloat16, with a tokenizer trained on the licence."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = train_tokenizer()
    size = len(tokenizer)
    llama = LlamaConfig(**ATTENTION, intermediate_size=1536, num_hidden_layers=12, vocab_size=size)
    qwen3 = Qwen3Config(**ATTENTION, intermediate_size=1280, num_hidden_layers=16, vocab_size=size)
    for name, kind, config in (("small-llama", LlamaForCausalLM, llama), ("small-qwen3", Qwen3ForCausalLM, qwen3)):
        torch.manual_seed(len(name) + config.num_hidden_layers)
        model = kind(config).to(torch.bfloat16)
        model.save_pretrained(FOLDER / name, max_shard_size="40MB")
        tokenizer.save_pretrained(FOLDER / name)
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {config.num_hidden_layers} layers")


def train_tokenizer() -> Any:
    """A byte-level BPE of a thousand tokens, from the text of the licence."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    text = Path(__file__).parents[1].joinpath("LICENSE").read_text(encoding="utf-8")
    trained.train_from_iterator(text.splitlines(), vocab_size=1000, special_tokens=["<s>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>")  # noqa: S106, SLF001


def generate(folder: Path) -> None:
    """Load a checkpoint strictly and let it write a few tokens."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model, told = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    print(f"missing keys: {sorted(told['missing_keys'])}, unexpected keys: {sorted(told['unexpected_keys'])}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("Subject to the terms of this License", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    print(f"{len(written[0])} tokens: {tokenizer.decode(written[0])!r}")


def kill_half_way(recipe: Path, out: Path) -> int:
    """Start a merge and kill it with SIGKILL when some layers are finished; how many were."""
    print(f"$ xmerge merge {recipe} {out}", flush=True)
    process = subprocess.Popen([*XMERGE, "merge", str(recipe), str(out)], start_new_session=True)
    store = out.with_name(f".{out.name}.xmerge") / "store"
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while process.poll() is None and time.monotonic() < deadline:
        if len(finished := list(store.glob("*/*.json"))) >= 5:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return len(finished)
        time.sleep(0.002)
    sys.exit("The merge ended before it could be killed." if process.poll() is not None else "The merge did not start.")


if __name__ == "__main__":
    main()

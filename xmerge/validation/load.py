"""Run as a program: load a checkpoint strictly with transformers, run it once on a short text, tell what went wrong.

The answer is one line of JSON. No code from the checkpoint is run, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

TOKENS = 8
TEXT = "A merge takes two models and makes one of them."


def load(folder: str) -> dict[str, Any]:
    """The class it loaded as, every fault in words, and the tensors it did not read; or why it was not tried."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        supported = type(config) in AutoModelForCausalLM._model_mapping  # noqa: SLF001 - nothing public says it
    except ValueError as error:
        if "does not recognize" in str(error) or "trust_remote_code" in str(error):
            return {"skipped": f"this transformers does not know the model type ({str(error).splitlines()[0][:120]})"}
        return {"faults": [f"config.json does not load: {error}"]}
    if not supported:
        return {"skipped": f"transformers has no causal language model for {config.model_type}"}
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype="auto", output_loading_info=True
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        return {"faults": [f"it does not load: {error}"]}
    faults = [
        f"transformers finds {kind.removesuffix('_keys')} keys: {', '.join(sorted(map(str, told[kind]))[:5])}"
        for kind in ("missing_keys", "mismatched_keys")
        if told.get(kind)
    ]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    try:
        tokens = encode_text(Path(folder) / "tokenizer.json", vocabulary)
    except ValueError as error:
        faults.append(str(error))
        tokens = None
    with torch.inference_mode():
        logits = model(torch.tensor([tokens or [place % vocabulary for place in range(TOKENS)]])).logits
    told_input = "a short text" if tokens else "a short input"
    if not torch.isfinite(logits).all():
        faults.append(f"the logits of {told_input} are not finite")
    return {
        "class": type(model).__name__,
        "input": told_input,
        "faults": faults,
        "unread": sorted(map(str, told["unexpected_keys"])),
    }


def encode_text(path: Path, vocabulary: int) -> list[int] | None:
    """The numbers of a short text's tokens; None where no tokenizer is there, or it knows no token of the text.

    Raises:
        ValueError: The tokenizer does not load, or gives a number that has no row in the embedding.
    """
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokens: list[int] = Tokenizer.from_file(str(path)).encode(TEXT).ids[:TOKENS]
    except Exception as error:  # noqa: BLE001 - the library raises nothing more special
        raise ValueError(f"{path.name} does not load: {error}") from None
    if max(tokens, default=0) >= vocabulary:
        raise ValueError(f"the tokenizer gives token {max(tokens)}, and the embedding has {vocabulary} rows")
    return tokens or None


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.stdout.write(json.dumps(load(sys.argv[1])) + "\n")

"""Run as a program: load a checkpoint strictly with transformers, run it once, and print what went wrong as JSON.

No code from the checkpoint is run, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

TOKENS = 8


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
    with torch.inference_mode():
        vocabulary = model.get_input_embeddings().weight.shape[0]
        logits = model(torch.arange(TOKENS).remainder(vocabulary).unsqueeze(0)).logits
    if not torch.isfinite(logits).all():
        faults.append("the logits of a short input are not finite")
    return {"class": type(model).__name__, "faults": faults, "unread": sorted(map(str, told["unexpected_keys"]))}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.stdout.write(json.dumps(load(sys.argv[1])) + "\n")

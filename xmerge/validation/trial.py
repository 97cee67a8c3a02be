"""Loading a checkpoint for trial with transformers, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from xmerge.validation.findings import Finding, ValidationReport

LARGEST_BYTES = 4 * 2**30
FACT = "loaded with transformers"


def try_loading(folder: Path) -> ValidationReport:
    """Load a checkpoint strictly and run one forward pass, where transformers is installed and memory allows.

    A process of its own keeps the memory apart, and survives what a model does to it.
    """
    reason = _why_not(folder)
    if reason:
        return ValidationReport(findings=(), facts=((FACT, f"no: {reason}"),))
    command = [sys.executable, "-m", "xmerge.validation.load", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        answer = {"faults": [f"the loading process ended with status {done.returncode}: {last}"]}
    if answer.get("skipped"):
        return ValidationReport(findings=(), facts=((FACT, f"no: {answer['skipped']}"),))
    findings = tuple(
        Finding(code="load", text=text, remedy="compare config.json with the weights; `xmerge verify` lists both.")
        for text in answer["faults"]
    )
    told = "failed" if findings else f"{answer['class']}, strictly; the logits of a short input are finite"
    return ValidationReport(findings=findings, facts=((FACT, told),))


def _why_not(folder: Path) -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed (pip install 'xmerge[check]')"
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    room = min(LARGEST_BYTES, _available_memory() // 2)
    if size > room:
        return f"{size:,} bytes are more than the {room:,} that a trial may take here"
    return None


def _available_memory() -> int:
    """Bytes that can be taken without swapping; unlimited where the system does not say."""
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return int(match[1]) * 1024 if match else LARGEST_BYTES * 2

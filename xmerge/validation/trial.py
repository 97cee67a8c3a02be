"""Loading a checkpoint for trial with transformers, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from xmerge.interrupt import check_stop
from xmerge.memory import available_bytes
from xmerge.validation.findings import Finding, ValidationReport

LARGEST_BYTES = 4 * 2**30
SECONDS_BETWEEN_LOOKS = 0.1
AS_ASKED = "skipped as asked"
PACKED = "its weights are packed ({}), and only the program that packed them reads them"
FACT = "loaded with transformers"
PROGRAM = Path(__file__).with_name("load.py")


def try_loading(folder: Path, carried: AbstractSet[str] = frozenset()) -> ValidationReport:
    """Load a checkpoint strictly and run one forward pass, where transformers is installed and memory allows.

    A process of its own keeps the memory apart, and survives what a model does to it.

    Args:
        folder: The checkpoint.
        carried: Tensors that nobody claims to know and that the base has too: unread, they are no fault of the merge.

    Raises:
        Interrupted: A stop was requested.
    """
    reason = _why_not(folder)
    if reason:
        return skip_loading(reason)
    status, told, complaints = _run_program(folder)
    if status == -signal.SIGKILL:
        return skip_loading("the loading process was killed, most likely for want of memory")
    answer = _read_answer(told)
    if answer is None:
        last = (complaints.strip().splitlines() or ["no output"])[-1]
        answer = {"faults": [f"the loading process ended with status {status}: {last}"]}
    if answer.get("skipped"):
        return skip_loading(answer["skipped"])
    findings = (
        *(Finding(code="load", text=text, remedy="compare config.json with the weights.") for text in answer["faults"]),
        *(_tell_unread(name, carried) for name in answer.get("unread", ())),
    )
    report = ValidationReport(findings=findings, facts=())
    outcome = f"{answer['class']}, strictly; the logits of {answer['input']} are finite" if report.ok else "failed"
    return ValidationReport(findings=findings, facts=((FACT, outcome),))


def _tell_unread(name: str, carried: AbstractSet[str]) -> Finding:
    return Finding(
        code="unread_tensor",
        text=f"transformers does not read '{name}'{', which the base has too' if name in carried else ''}.",
        remedy="remove it from the base if nothing reads it." if name in carried else "make the checkpoint again.",
        tensor=name,
        severity="warning" if name in carried else "error",
    )


def skip_loading(reason: str) -> ValidationReport:
    """The report of a trial that was not made, and why."""
    return ValidationReport(findings=(), facts=((FACT, f"no: {reason}"),))


def _run_program(folder: Path) -> tuple[int, str, str]:
    """Status, output and complaints of the loading process; it is ended when a stop is requested."""
    # By its path, because -m imports from the current folder, which may be a checkpoint's; -P: nor from the program's.
    command = [sys.executable, "-P", str(PROGRAM), str(folder.absolute())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace") as process:
        try:
            while True:
                check_stop()
                try:
                    told, complaints = process.communicate(timeout=SECONDS_BETWEEN_LOOKS)
                except subprocess.TimeoutExpired:
                    continue
                return process.returncode, told, complaints
        except BaseException:
            process.kill()
            raise


def _read_answer(told: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(told.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _why_not(folder: Path) -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed (pip install 'xmerge[check]')"
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    room = min(LARGEST_BYTES, (available_bytes() or 2 * LARGEST_BYTES) // 2)
    if size > room:
        return f"{size:,} bytes are more than the {room:,} that a trial may take here"
    return None

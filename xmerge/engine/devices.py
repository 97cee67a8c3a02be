"""Choosing where the arithmetic runs."""

from __future__ import annotations

import torch

from xmerge.errors import PlanError


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        PlanError: The name means no device of this machine.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    number = name.removeprefix("cuda").removeprefix(":")
    if not name.startswith("cuda") or not (number.isdigit() or number == ""):
        raise PlanError(f"there is no device '{name}'.", remedy="use auto, cpu, cuda or cuda:N.")
    if not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count():
        raise PlanError(
            f"this machine has no device '{name}'.",
            why=f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs.",
            remedy="use --device cpu, or auto.",
        )
    return torch.device(f"cuda:{number or 0}")

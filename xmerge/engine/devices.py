"""Choosing where the arithmetic runs."""

from __future__ import annotations

import re

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
    match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if match is None:
        raise PlanError(f"there is no device '{name}'.", remedy="use auto, cpu, cuda or cuda:N.")
    number, count = int(match[1] or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        raise PlanError(
            f"this machine has no device '{name}'.",
            why=f"torch {torch.__version__} sees {count} GPU{'' if count == 1 else 's'}.",
            remedy="use --device cpu, or auto.",
        )
    return torch.device(f"cuda:{number}")

"""How much memory there is: free on this machine, in this container, to this process, and as a person allows."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from xmerge.errors import ConfigError

LIMIT = "XMERGE_MEMORY"
"""The environment variable that says how many bytes the buffers of all workers may take together."""

_SIZE = re.compile(r"(\d{1,15})\s*(?:([kKMGT])(i?)B?|B)?")
_POWERS = {"k": 1, "M": 2, "G": 3, "T": 4}
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Bytes that can be taken without swapping; None where nothing says."""
    told = [each for each in (_read_machine(), _read_container(), _read_process()) if each is not None]
    return max(min(told), 0) if told else None


def allowed_bytes() -> int | None:
    """Bytes that the environment allows; None where it says nothing.

    Raises:
        ConfigError: It says something that is no size.
    """
    said = os.environ.get(LIMIT, "").strip()
    if not said:
        return None
    match = _SIZE.fullmatch(said)
    if match is None:
        raise ConfigError(f"{LIMIT}={said[:80]} is no size.", remedy="write bytes, or a size such as 500MB or 4GiB.")
    number, prefix, binary = match.groups()
    power = _POWERS.get((prefix or "").replace("K", "k"), 0)
    bytes_of_unit: int = (1024 if binary else 1000) ** power
    return int(number) * bytes_of_unit


def _read_machine() -> int | None:
    match = re.search(r"MemAvailable:\s+(\d+) kB", _read(_PROC / "meminfo"))
    return int(match[1]) * 1024 if match else None


def _read_container() -> int | None:
    """What a control group leaves, its reclaimable page cache included."""
    most, taken = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if not most.isdigit() or not taken.isdigit():
        return None
    cached = re.search(r"^inactive_file (\d+)$", _read(_CGROUP / "memory.stat"), re.MULTILINE)
    return int(most) - int(taken) + (int(cached[1]) if cached else 0)


def _read_process() -> int | None:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(_PROC / "self" / "statm").split()
    if most == resource.RLIM_INFINITY or not pages:
        return None
    return most - int(pages[0]) * resource.getpagesize()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""

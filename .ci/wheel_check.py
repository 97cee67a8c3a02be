"""Build the wheel, install it in a clean environment, and merge with it, far from the checkout.

What the tests cannot see, because they run where flows/ and tasks/ lie beside the package: what the wheel carries,
that it takes no name in site-packages but its own, and that `xmerge merge` is a flow there too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSIDE = "xmerge/_orchestration"

RECIPE = """\
base_model: {models}/base
models:
  - model: {models}/base
  - model: {models}/donor
merge_method: slerp
parameters:
  t: 0.3
dtype: bfloat16
"""


def main() -> None:
    """Run every check; the first that fails ends the script."""
    with tempfile.TemporaryDirectory(prefix="xmerge-wheel-") as name:
        away = Path(name)
        with step("build the sdist, and the wheel from it"):
            sdist, wheel = build(away / "dist")
        with step("look at what they carry"):
            check_sdist(sdist)
            check_wheel(wheel)
        with step("install the wheel in a clean environment"):
            python = install(wheel, away / "venv")
        with step("look at site-packages"):
            check_site_packages(python)
        xmerge = python.with_name("xmerge")
        with step("xmerge --help"):
            require("merge" in run(xmerge, "--help", cwd=away), "xmerge --help does not mention merge")
        with step("make two small checkpoints"):
            run(sys.executable, ROOT / ".ci" / "small_checkpoints.py", away / "models", cwd=away)
            (away / "recipe.yml").write_text(RECIPE.format(models=away / "models"), encoding="utf-8")
        with step("merge them as a flow"):
            run(xmerge, "merge", "recipe.yml", "as-flow", cwd=away)
            require(any(away.glob(".prefect/*.db")), "the merge ran, but Prefect recorded nothing")
        with step("merge them with --direct"):
            run(xmerge, "merge", "recipe.yml", "direct", "--direct", cwd=away)
        with step("compare and verify"):
            require(
                digests(away / "as-flow") == digests(away / "direct"), "the flow and --direct made different weights"
            )
            require(digests(away / "as-flow") != digests(away / "models" / "base"), "the output is the base itself")
            run(xmerge, "verify", "as-flow", "--base", away / "models" / "base", cwd=away)
    print("wheel check: all good")


def build(dist: Path) -> tuple[Path, Path]:
    """The sdist of the checkout, and the wheel that is built from that sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT, cwd=ROOT)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path) -> None:
    """The sdist has what a packager needs and nothing that was left lying about."""
    with tarfile.open(sdist) as archive:
        names = {Path(name).relative_to(Path(name).parts[0]).as_posix() for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "PKG-INFO", "pyproject.toml", "constraints.txt", "Makefile", *sources("tests")}
    require(wanted <= names, f"the sdist lacks {sorted(wanted - names)}")
    litter = {name for name in names if {"__pycache__", ".venv", ".git", ".prefect"} & set(Path(name).parts)}
    require(not litter, f"the sdist carries {sorted(litter)[:5]}")


def check_wheel(wheel: Path) -> None:
    """The wheel has one package, with the flows, the tasks, the families and the popular models inside it."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    require(tops == {"xmerge"}, f"the wheel puts {sorted(tops)} into site-packages")
    wanted = {f"{INSIDE}/{name}" for folder in ("flows", "tasks") for name in sources(folder)}
    wanted |= sources("xmerge") | sources("xmerge", "*.yaml") | {"xmerge/py.typed"}
    require(wanted <= names, f"the wheel lacks {sorted(wanted - names)}")
    compiled = {name for name in names if name.endswith(".pyc")}
    require(not compiled, f"the wheel carries {sorted(compiled)[:5]}")


def install(wheel: Path, venv: Path) -> Path:
    """The interpreter of a new environment that holds the wheel and what it asks for, no extras."""
    run(sys.executable, "-m", "venv", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=venv.parent)
    return python


def check_site_packages(python: Path) -> None:
    """Nothing of ours but `xmerge` lies at the top of site-packages, and nothing of the checkout is in reach."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, cwd=python.parent).strip())
    require((site / "xmerge").is_dir(), f"{site} has no xmerge")
    for name in ("flows", "tasks", "deployments", "tests"):
        require(not (site / name).exists() and not (site / f"{name}.py").exists(), f"{site} has a top-level {name}")
    home = run(python, "-c", "import xmerge; print(xmerge.__file__)", cwd=python.parent).strip()
    require(Path(home).is_relative_to(site), f"xmerge was imported from {home}")


def sources(folder: str, pattern: str = "*.py") -> set[str]:
    """The files of one folder of the checkout, relative to the checkout."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}


def digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of each shard."""
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(checkpoint.glob("*.safetensors"))
    }
    require(bool(found), f"{checkpoint} has no weights")
    return found


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; its whole output and an end of the script where it fails."""
    ran = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(cwd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    require(ran.returncode == 0, f"{' '.join(map(str, command))}\nended with {ran.returncode}:\n{ran.stdout}")
    return ran.stdout


def environment(home: Path) -> dict[str, str]:
    """The environment without what would let the checkout, a Prefect server or a profile of this machine in."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PREFECT_", "VIRTUAL_"))
    }
    return kept | {"PREFECT_HOME": str(home / ".prefect"), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    print(f"{what} ...", end=" ", flush=True)
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:.1f} s", flush=True)


def require(holds: bool, otherwise: str) -> None:
    """End the script with a message unless something holds."""
    if not holds:
        sys.exit(f"\nwheel check failed: {otherwise}")


if __name__ == "__main__":
    main()

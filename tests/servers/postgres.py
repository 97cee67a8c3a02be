"""A PostgreSQL of a test's own, from Debian's packages: a fresh cluster in a folder that goes with it."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.servers.processes import find_port, spawn, stop, wait_until

OWNER = "xmerge"
MISSING = "PostgreSQL is not installed: apt-get install postgresql"


def find_programs() -> Path | None:
    """The folder of initdb and postgres; Debian keeps them off the PATH, by version."""
    on_path = shutil.which("initdb")
    by_version = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = [Path(on_path).resolve()] if on_path else by_version[-1:]
    return found[0].parent if found else None


@contextlib.contextmanager
def running_postgres(programs: Path) -> Iterator[str]:
    """The address, for Prefect, of an empty database on loopback."""
    with tempfile.TemporaryDirectory(prefix="xmerge-postgres-") as name:
        folder, user, password = Path(name), _choose_user(), secrets.token_hex(16)
        data, port = folder / "data", find_port()
        _make_cluster(programs, folder, data, password, user)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            # What a test writes need not survive the machine.
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
        }
        command: list[str | Path] = [programs / "postgres", "-D", data]
        command += [part for option, value in options.items() for part in ("-c", f"{option}={value}")]
        # SIGQUIT, unlike SIGKILL, takes the server's own children along.
        process = spawn(command, folder / "log", user=user, end="QUIT")
        try:
            wait_until(lambda: _answers(programs, port, process), f"PostgreSQL answers: {folder / 'log'}")
            yield f"postgresql+asyncpg://{OWNER}:{password}@127.0.0.1:{port}/postgres"
        finally:
            stop(process, signal.SIGINT)


def _choose_user() -> str | None:
    """Whom it runs as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _make_cluster(programs: Path, folder: Path, data: Path, password: str, user: str | None) -> None:
    secret = folder / "password"
    secret.write_text(password, encoding="ascii")
    if user is not None:
        for path in (folder, secret):
            shutil.chown(path, user)
    command = [programs / "initdb", "-D", data, "-U", OWNER, f"--pwfile={secret}", "--auth=scram-sha-256"]
    command += ["--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    made = subprocess.run(
        list(map(str, command)),
        cwd="/",
        user=user,
        extra_groups=None if user is None else [],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout


def _answers(programs: Path, port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "PostgreSQL has ended"
    asked = subprocess.run(
        [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)], check=False, stdin=subprocess.DEVNULL
    )
    return asked.returncode == 0

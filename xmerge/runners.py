"""Where layers are merged: in threads of this process, or by the workers of a Dask or a Ray cluster."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from urllib.parse import urlsplit

from xmerge.errors import ConfigError, PlanError, nearest
from xmerge.values import Value

KINDS = ("dask", "ray", "thread")
PACKAGES = {"dask": "prefect_dask", "ray": "prefect_ray"}
EXAMPLES = {"dask": "dask:tcp://10.0.0.1:8786", "ray": "ray:10.0.0.1:6379"}
THIS_MACHINES = "auto"
"""The address of whatever Ray cluster runs on this machine; Dask has nothing of the kind."""
SECONDS_TO_ANSWER = 5.0


class RunnerName(Value):
    """A task runner as a person names it."""

    kind: str
    address: str | None = None
    """Of a cluster that runs already; None: one on this machine, for as long as the merge goes on."""

    @property
    def is_cluster(self) -> bool:
        """Whether layers are merged in other processes than this one."""
        return self.kind != "thread"

    @property
    def endpoint(self) -> tuple[str, int] | None:
        """Host and port of the address; None where it has none."""
        address = self.address or ""
        parts = urlsplit(address if "://" in address else f"//{address}")
        try:
            return (parts.hostname, parts.port) if parts.hostname and parts.port else None
        except ValueError:
            return None


def parse_runner(text: str) -> RunnerName:
    """The task runner that a name means: `thread`, `dask` or `ray`, the latter two with `:address` after them.

    Raises:
        ConfigError: It means none.
    """
    kind, colon, address = text.strip().partition(":")
    if kind not in KINDS:
        raise ConfigError(f"there is no task runner '{kind}'.", where="task_runner", remedy=nearest(kind, KINDS))
    name = RunnerName(kind=kind, address=address or None)
    if kind == "thread" and colon:
        raise ConfigError("threads have no address.", where=f"task_runner: {text}", remedy="say 'thread'.")
    if colon and name.endpoint is None and (kind, address) != ("ray", THIS_MACHINES):
        remedy = f"say '{kind}' for a cluster of this machine's, or an address such as '{EXAMPLES[kind]}'."
        raise ConfigError(f"'{address}' is no address of a {kind} cluster.", where="task_runner", remedy=remedy)
    return name


def check_runner(name: RunnerName) -> None:
    """Refuse in seconds what cannot be had: a library that is not here, an address where nobody answers.

    Raises:
        PlanError: It cannot be had.
    """
    if name.is_cluster and find_spec(PACKAGES[name.kind]) is None:
        raise PlanError(
            f"the task runner '{name.kind}' needs {PACKAGES[name.kind].replace('_', '-')}, which is not installed.",
            remedy=f"pip install 'xmerge[{name.kind}]'",
        )
    if name.endpoint is None:
        return
    try:
        socket.create_connection(name.endpoint, SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise PlanError(
            f"nobody answers at {name.address}, where a {name.kind} cluster should be.",
            why=f"{error.strerror or error}.",
            remedy=f"start the cluster, or say '{name.kind}' for one on this machine.",
        ) from error

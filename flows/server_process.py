"""The embedded server's process: Prefect's API on a socket it inherits, until whoever started it is gone.

Started by path, with the socket's descriptor as its argument. Prefect's own temporary server survives a killed
parent as an orphan and dies of a Ctrl-C meant for the parent, which then cannot report its last state.
"""

from __future__ import annotations

import os
import sys
import threading


def leave_with_the_parent() -> None:
    """End this process when the pipe on standard input closes, as it does when the parent ends in any way."""
    sys.stdin.buffer.read()
    os._exit(0)


def serve(descriptor: int) -> None:
    """Serve Prefect's API on an open socket."""
    threading.Thread(target=leave_with_the_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(ephemeral=True, final=True), fd=descriptor, log_level="error", lifespan="on")


if __name__ == "__main__":
    serve(int(sys.argv[1]))

"""The embedded server's process: Prefect's API and pages on a socket it inherits, as long as a command uses them.

Started by path, with the socket's descriptor and the file that users lock as its arguments. Prefect's own temporary
server survives a killed parent as an orphan, and dies of a Ctrl-C meant for the parent, which then cannot report.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 3.0


def leave_the_parent() -> None:
    """Go on as a process that belongs to nobody; its number is printed for whoever started it."""
    if number := os.fork():
        print(number, flush=True)  # noqa: T201 - the answer to whoever started it
        os._exit(0)
    os.dup2(2, 1)


def leave_with_the_last(users: str) -> None:
    """End this process when no command uses it any more, as when the last one was killed."""
    descriptor = os.open(users, os.O_RDWR | os.O_CLOEXEC)
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            # Kept until the end, so that a new command waits and then starts a server of its own.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os._exit(0)


def serve(descriptor: int, users: str) -> None:
    """Serve Prefect's API and pages on an open socket."""
    threading.Thread(target=leave_with_the_last, args=(users,), daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    # A browser that looks at the pages keeps its connections open.
    uvicorn.run(create_app(final=True), fd=descriptor, log_level="error", lifespan="on", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    leave_the_parent()
    serve(int(sys.argv[1]), sys.argv[2])

"""Prefect's settings for a merge, as environment variables, so that they hold wherever the command is started.

The same values stand in `[tool.prefect]` of pyproject.toml, for Prefect's own commands started in a checkout.
This module imports nothing of Prefect, since Prefect reads the environment while it is imported.
"""

from __future__ import annotations

import os

EMBEDDED_SETTINGS: dict[str, str] = {
    # In batches, because row by row the server has recorded 13 of 512 task runs when a resumed run ends.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    # A command waits for its last batch. Prefect rounds down to whole seconds, and at 0 an idle server never rests.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "50",
    # A first start migrates the database: some ten seconds, over a minute on a slow machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
    # Readable records; and nothing is unpickled from a folder that others may write to.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "xmerge",
}
"""What every Prefect process of a merge runs with, unless the environment says otherwise."""

QUIET: dict[str, str] = {
    # The API still gets the logs; on the terminal the command shows its own progress.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
}
"""Keeps Prefect in the background of a command."""

PRIVATE: dict[str, str] = {
    # Whoever merges models has not asked Prefect to count them, nor to print that it does.
    "DO_NOT_TRACK": "1",
}


def apply_settings(*, quiet: bool = True) -> None:
    """Put the settings into the environment, before Prefect is imported; what the user has set stays."""
    for name, value in {**EMBEDDED_SETTINGS, **PRIVATE, **(QUIET if quiet else {})}.items():
        os.environ.setdefault(name, value)

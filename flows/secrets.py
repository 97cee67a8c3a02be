"""The Hub's token, where a Prefect Secret block holds it: named in the environment, never a parameter or a result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xmerge.errors import ConfigError

SECRET = "XMERGE_TOKEN_SECRET"  # noqa: S105 - the name of a variable that holds the name of a block
"""The environment variable that names the block."""
TOKEN = "HF_TOKEN"  # noqa: S105 - the name of a variable
"""Where the Hub's client looks for the token."""


@contextmanager
def token_from_block() -> Iterator[None]:
    """Put the token into the environment as long as a flow runs, if it names a block and has no token of its own.

    Raises:
        ConfigError: There is no such block, or it holds no text.
    """
    name = os.environ.get(SECRET, "")
    if not name or os.environ.get(TOKEN):
        yield
        return
    os.environ[TOKEN] = _load(name)
    try:
        yield
    finally:
        os.environ.pop(TOKEN, None)


def _load(name: str) -> str:
    from prefect.blocks.system import Secret

    # Prefect adds `_sync` to the methods of a block, where no type checker sees it.
    block: Any = Secret
    try:
        token = block.load(name, _sync=True).get()
    except ValueError:
        raise ConfigError(
            f"Prefect has no Secret block named {name[:80]!r}.",
            where=f"the environment variable {SECRET}",
            remedy=f"make the block, or put the token into {TOKEN}.",
        ) from None
    if not isinstance(token, str) or not token:
        raise ConfigError(
            f"the Secret block {name[:80]!r} holds no text.",
            where=f"the environment variable {SECRET}",
            remedy="write the token into it.",
        )
    return token

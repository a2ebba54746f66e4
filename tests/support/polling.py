"""Waiting for what has no event of its own; the test around it has the time-out."""

import asyncio
from collections.abc import Callable


async def eventually(is_so: Callable[[], bool]) -> None:
    """Return as soon as something is so."""
    while not is_so():  # noqa: ASYNC110 - it may be anything, also another process's doing
        await asyncio.sleep(0.001)

"""Writing to a disk that may take nothing for a while: it is waited for, and nothing is lost meanwhile."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from common import limits
from common.crew import in_background
from common.errors import StorageError

T = TypeVar("T")


class Durably:
    """`await durably(write, ...)` writes in a thread until it succeeds, with doubling waits.

    `told` hears of the first refusal of each call, and None when the disk takes what it refused.
    Raises: whatever else the function raises; DamagedError is no matter of waiting.
    """

    def __init__(self, told: Callable[[StorageError | None], None]) -> None:
        self._told = told

    async def __call__(self, function: Callable[..., T], *args: object) -> T:
        """Write, however long it takes."""
        wait_s, refused = limits.STORAGE_RETRY_S, False
        while True:
            try:
                written = await in_background(function, *args)
            except StorageError as error:
                if not refused:
                    self._told(error)
                refused = True
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, limits.STORAGE_RETRY_S_MAX)
            else:
                if refused:
                    self._told(None)
                return written

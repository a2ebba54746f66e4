"""Writing to a disk that may take nothing for a while: it is waited for, and nothing is lost meanwhile."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from common import limits
from common.crew import in_background
from common.errors import StorageError

T = TypeVar("T")


async def durably(
    function: Callable[..., T], *args: object, told: Callable[[StorageError | None], None]
) -> T:
    """Write in a thread until it succeeds, with doubling waits.

    `told` hears of the first refusal, and None when the disk takes what is written again.
    Raises: whatever else the function raises; DamagedError is no matter of waiting.
    """
    wait_s, refused = limits.STORAGE_RETRY_S, False
    while True:
        try:
            written = await in_background(function, *args)
        except StorageError as error:
            if not refused:
                told(error)
            refused = True
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, limits.STORAGE_RETRY_S_MAX)
        else:
            if refused:
                told(None)
            return written

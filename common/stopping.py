"""How a process is asked to end: SIGINT once gently, twice at once; SIGTERM at once; and the leash.

A leash is a pipe whose other end the parent holds: when the parent is gone, however it went, reading ends.
"""

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable

LEASH_GRACE_S = 8.0


def on_signals(gently: Callable[[], None], at_once: Callable[[], None]) -> None:
    """Let this loop's process end in order. Call it once, from the main thread."""
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def interrupted() -> None:
        asked.append(signal.SIGINT)
        (gently if len(asked) == 1 else at_once)()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGTERM, at_once)


def leash(*handles: int) -> None:
    """End this process when the other end of one of these pipes is closed: in order, then by force."""

    def watch() -> None:
        while all(os.read(handle, 1024) for handle in select.select(handles, [], [])[0]):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LEASH_GRACE_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="leash", daemon=True).start()

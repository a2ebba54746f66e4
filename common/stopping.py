"""How a process is asked to end: SIGINT once gently, twice at once; SIGTERM at once; and the leash.

A leash is a pipe whose other end the parent holds: when the parent is gone, however it went, reading ends.
"""

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence

LEASH_GRACE_S = 8.0


def on_signals(gently: Callable[[], None], at_once: Callable[[], None]) -> Sequence[int]:
    """Let this loop's process end in order; the list is of the signals that came. Once, from the main thread."""
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def hear(number: int) -> None:
        asked.append(number)
        (gently if asked == [signal.SIGINT] else at_once)()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, hear, number)
    return asked


def leash(*handles: int) -> None:
    """End this process when the other end of one of these pipes is closed: in order, then by force."""

    def watch() -> None:
        while all(os.read(handle, 1024) for handle in select.select(handles, [], [])[0]):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LEASH_GRACE_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="leash", daemon=True).start()

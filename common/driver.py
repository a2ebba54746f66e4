"""Runs a machine in real time: the only loop that waits.

Its twin is the heap in the tests, where time is a number.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from common.machine import Machine, Seconds, Tick

Event = TypeVar("Event")
Effect = TypeVar("Effect")


async def drive(
    machine: Machine[Event | Tick, Effect],
    inbox: asyncio.Queue[Event],
    perform: Callable[[Effect], Awaitable[None] | None],
    clock: Callable[[], Seconds] = time.monotonic,
) -> None:
    """Feed events and ticks to a machine and perform what it decides, until cancelled."""
    while True:
        wake = machine.wake_at()
        remaining = None if wake is None else wake - clock()
        event: Event | Tick
        if remaining is not None and remaining <= 0:  # first of all: a busy inbox must not starve the clock
            event = Tick()
        else:
            try:
                async with asyncio.timeout(remaining):
                    event = await inbox.get()
            except TimeoutError:
                continue
        for effect in machine.handle(event, clock()):
            performing = perform(effect)
            if performing is not None:
                await performing

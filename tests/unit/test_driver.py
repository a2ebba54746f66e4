"""The driver feeds a machine and performs what it decides; a busy inbox does not starve the clock."""

import asyncio
from contextlib import suppress

from common.driver import drive
from common.machine import Tick
from support.polling import eventually


class Alarm:
    """Wants one tick at a time that is set beforehand, and remembers everything."""

    def __init__(self, at=None):
        self.at = at
        self.seen = []

    def handle(self, event, now):
        self.seen.append((event, now))
        if event == Tick():
            self.at = None
        return (event, "and", now) if event == "echo" else ()

    def wake_at(self):
        return self.at


def run_until(machine, done, inbox, perform, clock):
    async def main():
        task = asyncio.create_task(drive(machine, inbox, perform, clock))
        async with asyncio.timeout(5):
            await eventually(done)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_effects_are_performed_in_order_and_awaited_where_they_wait():
    inbox, performed, machine = asyncio.Queue(), [], Alarm()
    inbox.put_nowait("echo")

    async def slowly(effect):
        await asyncio.sleep(0)
        performed.append(effect)

    def perform(effect):
        return slowly(effect) if effect == "echo" else performed.append(effect)

    run_until(machine, lambda: len(performed) == 3, inbox, perform, lambda: 7.0)

    assert performed == ["echo", "and", 7.0]


def test_a_busy_inbox_does_not_starve_the_clock():
    inbox, machine, now = asyncio.Queue(), Alarm(at=10.0), iter(range(1, 10_000))
    for _ in range(1000):
        inbox.put_nowait("noise")

    run_until(machine, lambda: machine.at is None, inbox, lambda _effect: None, lambda: float(next(now)))

    ticks = [at for event, at in machine.seen if event == Tick()]
    assert len(ticks) == 1
    assert ticks[0] <= 13.0  # the first look at the clock after its time


def test_a_tick_comes_without_any_event():
    machine = Alarm(at=0.02)
    start = None

    def clock():
        nonlocal start
        time = asyncio.get_running_loop().time()
        start = time if start is None else start
        return time - start

    run_until(machine, lambda: machine.at is None, asyncio.Queue(), lambda _effect: None, clock)

    assert [event for event, _at in machine.seen] == [Tick()]
    assert machine.seen[0][1] >= 0.02

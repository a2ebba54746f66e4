"""Tasks that end together, and threads that nobody waits for."""

import asyncio
import threading

import pytest

from common.crew import Crew, in_background
from support.patience import within


def test_a_failure_of_one_ends_all():
    ended = []

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waiting")

    async def fail():
        raise ValueError("broken")

    async def main():
        async with Crew() as crew:
            crew.spawn(wait())
            crew.spawn(fail())

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.group_contains(ValueError, match="broken")
    assert ended == ["waiting"]


def test_dismissed_tasks_end_and_so_does_the_crew():
    async def main():
        async with asyncio.timeout(within(5)):
            async with Crew() as crew:
                crew.spawn(asyncio.Event().wait())
                await asyncio.sleep(0)
                crew.dismiss()

    asyncio.run(main())


def test_what_blocks_returns_and_raises_as_if_it_were_called():
    async def main():
        assert await in_background(sum, [1, 2]) == 3
        with pytest.raises(ZeroDivisionError):
            await in_background(divmod, 1, 0)

    asyncio.run(main())


def test_nobody_waits_for_a_thread_whose_result_is_not_awaited_any_more():
    release = threading.Event()

    async def main():
        async with Crew() as crew:
            crew.spawn(in_background(release.wait))
            await asyncio.sleep(0.01)
            crew.dismiss()

    asyncio.run(main())  # a pool's thread would be joined here
    release.set()

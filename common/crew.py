"""The tasks of one service: a failure of any ends them all; `dismiss` ends them in order.

What blocks (training, merging, disk) runs in a daemon thread: a process that is told to end does not wait for it.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

T = TypeVar("T")
BACKGROUND = "background"


class Crew:
    """`async with Crew() as crew`: leaving waits for the tasks, as a TaskGroup does."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._group.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
        """Begin a task; a caller may cancel it, and the others go on."""
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def dismiss(self) -> None:
        """Cancel every task."""
        for task in self._tasks:
            task.cancel()


async def in_background(function: Callable[..., T], /, *args: object) -> T:
    """Run what blocks in a daemon thread of its own and wait for what it returns or raises."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return  # nobody waits any more
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # a T wherever there is no error
        else:
            future.set_exception(error)

    def run() -> None:
        result, problem = None, None
        try:
            result = function(*args)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is awaited
            problem = error
        try:
            loop.call_soon_threadsafe(settle, result, problem)
        except RuntimeError:  # the loop has ended meanwhile
            return

    threading.Thread(target=run, name=BACKGROUND, daemon=True).start()
    return await future


def leave(code: int) -> NoReturn:
    """End the process. Where work still runs in the background, without tearing the interpreter down under it."""
    if any(thread.name == BACKGROUND for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

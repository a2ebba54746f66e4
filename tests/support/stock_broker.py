"""amqtt's own broker with our rules, in a process of its own: what `broker.hardened` is compared with."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from amqtt.broker import Broker

from support.raw_mqtt import Raw
from support.running import environment


@contextlib.asynccontextmanager
async def stock_process() -> AsyncIterator[tuple[int, int]]:
    """Run it; give its TCP and its WebSocket port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(),
    )
    patience_s, Raw.wait_s = Raw.wait_s, 0.7  # what does not come from it never comes
    try:
        assert process.stdout is not None
        port, ws_port = (await process.stdout.readline()).split()
        yield int(port), int(ws_port)
    finally:
        Raw.wait_s = patience_s
        await Raw.close_all()
        process.kill()
        await process.communicate()


async def stock_broker() -> Broker:
    """Start it in this process."""
    broker = Broker(
        {
            "listeners": {
                "default": {"type": "tcp", "bind": "127.0.0.1:0"},
                "ws": {"type": "ws", "bind": "127.0.0.1:0"},
            },
            "session_expiry_interval": 3600,
            "plugins": {
                "support.stock_plugins.RulesAuth": {"observers": True},
                "support.stock_plugins.RulesTopics": {},
            },
        }
    )
    await broker.start()
    return broker


async def main() -> None:
    """Serve until killed."""
    broker = await stock_broker()
    ports = [next(iter(server.instance.sockets)).getsockname()[1] for server in broker._servers.values()]
    print(*ports, flush=True)  # noqa: T201 - for the parent
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())

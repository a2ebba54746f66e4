"""The hardened broker on free ports, for as long as a test needs it."""

import contextlib
from collections.abc import AsyncIterator

from broker.bounds import DEFAULT, Bounds
from broker.gate import Gate
from broker.hardened import HardenedBroker
from support.raw_mqtt import Raw


@contextlib.asynccontextmanager
async def hardened(bounds: Bounds = DEFAULT, *, observers: bool = True) -> AsyncIterator[tuple[int, int]]:
    """Run it; give its TCP and its WebSocket port."""
    broker = HardenedBroker("127.0.0.1", 0, ws_port=0, gate=Gate(observers=observers), bounds=bounds)
    await broker.start()
    try:
        yield broker.port_of(), broker.port_of("ws")
    finally:
        await Raw.close_all()
        await broker.shutdown()

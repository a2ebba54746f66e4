"""Bad weather between a link and its broker: a TCP proxy that delays, throttles, swallows and resets.

Seeded; its `weather` may be changed at any time and holds for all bytes that come from then on.
"""

import asyncio
import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from support.polling import eventually


@dataclass
class Weather:
    """What befalls connections, in both directions."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0  # 0: unlimited
    slice_bytes: int = 65536  # handed on in pieces of at most so many
    reset_after: int = 0  # bytes of a connection, both ways together; 0: never
    blackhole: bool = False  # accept and forget
    refuse: bool = False  # close new connections at once


class Proxy:
    """`async with Proxy(host, port) as proxy`: connect to `proxy.port` instead."""

    def __init__(self, host, port, weather=None, *, seed=0):
        self.weather = weather or Weather()
        self.port = 0
        self.connections = 0  # so far
        self.bytes_up = 0  # taken from clients
        self.bytes_down = 0  # taken from the broker
        self._target = host, port
        self._chance = random.Random(seed)
        self._open = []  # lists of the writers of one connection

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error):
        self._server.close()
        await asyncio.sleep(0.01)  # what has just been accepted shall reach `_serve`, to be closed too
        self.reset()
        await eventually(lambda: not self._open)
        await self._server.wait_closed()

    def reset(self):
        """Reset every connection that is open."""
        for writers in self._open:
            for writer in writers:
                _reset(writer)

    async def _serve(self, reader, writer):
        self.connections += 1
        if self.weather.refuse:
            _reset(writer)
            return
        writers, budget = [writer], [self.weather.reset_after]
        self._open.append(writers)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer, writers, budget, "bytes_up"))
                group.create_task(self._pump(far_reader, writer, writers, budget, "bytes_down"))
        finally:
            self._open.remove(writers)
            for one in writers:
                one.close()

    async def _pump(self, reader, writer, writers, budget, counter):
        with suppress(OSError):
            while data := await reader.read(self.weather.slice_bytes):
                weather = self.weather
                if budget[0]:
                    data = data[: budget[0]]
                    budget[0] = budget[0] - len(data) or -1
                setattr(self, counter, getattr(self, counter) + len(data))
                await asyncio.sleep(weather.latency_s + self._chance.uniform(0, weather.jitter_s))
                if weather.bytes_per_s:
                    await asyncio.sleep(len(data) / weather.bytes_per_s)
                if not weather.blackhole:
                    writer.write(data)
                    await writer.drain()
                if budget[0] < 0:
                    break
        for one in writers:
            if budget[0] < 0:
                _reset(one)
            else:
                one.close()


def _reset(writer):
    """Close with RST instead of FIN."""
    with suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

"""Bad weather between a link and its broker: a TCP proxy that delays, throttles, swallows, parts and resets.

    client --up--> splitter -> lane's faults -> weather --> broker, and the same way down

Seeded; its `weather` may be changed at any time and holds for all bytes that come from then on. What befalls single
MQTT packets is planned on the lanes `up` and `down`.
"""

import asyncio
import random
import socket
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from support.lane import Cut, Lane, Stream
from support.polling import eventually

READ_BYTES = 65536


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


@dataclass
class _Connection:
    """One connection of a client, and ours to the broker for it."""

    budget: int  # bytes until it is reset; 0: never
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    is_cut: bool = False
    is_half_open: bool = False

    def end(self):
        for writer in self.writers:
            _reset(writer) if self.is_cut else writer.close()


class Proxy:
    """`async with Proxy(host, port) as proxy`: connect to `proxy.port` instead."""

    def __init__(self, host, port, weather=None, *, seed=0, listen=0):
        self.weather = weather or Weather()
        self.port = listen  # 0: any free one
        self.connections = 0  # so far
        self.bytes_up = 0  # taken from clients
        self.bytes_down = 0  # taken from the broker
        self._target = host, port
        self._chance = random.Random(seed)
        self.up, self.down = Lane(self._chance), Lane(self._chance)
        self._open: list[_Connection] = []
        self._whole = asyncio.Event()  # cleared by a partition
        self._whole.set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error):
        self._server.close()
        self.heal()
        await asyncio.sleep(0.01)  # what has just been accepted shall reach `_serve`, to be closed too
        await eventually(self._is_empty)
        await self._server.wait_closed()

    # --- what befalls connections -----------------------------------------------------------------

    def reset(self):
        """Reset every connection that is open."""
        for connection in self._open:
            for writer in connection.writers:
                _reset(writer)

    def finish(self):
        """End every connection that is open in order, with FIN."""
        for connection in self._open:
            connection.end()

    def half_open(self):
        """From now on nothing gets through the connections that are open, not even their end; neither side is told."""
        for connection in self._open:
            connection.is_half_open = True

    def partition(self):
        """Hold everything up, new connections too, until `heal`: nothing is lost, as TCP sends again."""
        self._whole.clear()

    def heal(self):
        """End the partition."""
        self._whole.set()

    def clear_up(self):
        """Make the weather fine: nothing more is planned, held up or held back."""
        self.weather = Weather()
        self.up.forgive()
        self.down.forgive()
        self.heal()

    # --- how it is done ---------------------------------------------------------------------------

    def _is_empty(self):
        self.reset()  # again: one may just have come through to the broker
        return not self._open

    async def _serve(self, reader, writer):
        self.connections += 1
        if self.weather.refuse:
            _reset(writer)
            return
        connection = _Connection(self.weather.reset_after, [writer])
        self._open.append(connection)
        try:
            await self._whole.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            connection.writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer, connection, self.up, "bytes_up"))
                group.create_task(self._pump(far_reader, writer, connection, self.down, "bytes_down"))
        except OSError:  # the broker is not there
            _reset(writer)
        finally:
            self._open.remove(connection)
            connection.end()

    async def _pump(self, reader, writer, connection, lane, counter):
        with suppress(OSError), _stream(lane, writer) as stream:
            while data := await reader.read(READ_BYTES):
                setattr(self, counter, getattr(self, counter) + len(data))
                await self._whole.wait()
                try:
                    await self._write(lane.pass_on(stream, data), writer, connection)
                except Cut as cut:
                    await self._write(cut.args[0], writer, connection)
                    connection.is_cut = True
                if connection.is_cut:
                    break
            else:
                await self._write(stream.splitter.rest(), writer, connection)
        if not connection.is_half_open:
            connection.end()

    async def _write(self, data, writer, connection):
        """Hand bytes on as the weather is, slice by slice."""
        while data and not connection.is_cut and not connection.is_half_open:
            weather = self.weather
            piece = data[: min(weather.slice_bytes, connection.budget or len(data))]
            data = data[len(piece) :]
            await asyncio.sleep(weather.latency_s + self._chance.uniform(0, weather.jitter_s))
            if weather.bytes_per_s:
                await asyncio.sleep(len(piece) / weather.bytes_per_s)
            if not weather.blackhole and not connection.is_half_open:
                writer.write(piece)
                await writer.drain()
            if connection.budget:
                connection.budget -= len(piece)
                connection.is_cut = connection.budget <= 0


@contextmanager
def _stream(lane, writer):
    stream = Stream(writer.write)
    lane.streams.append(stream)
    try:
        yield stream
    finally:
        lane.streams.remove(stream)


def _reset(writer):
    """Close with RST instead of FIN."""
    with suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

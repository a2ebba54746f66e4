"""MQTT in WebSocket messages, behind the same methods as a TCP transport."""

import asyncio
from collections import deque

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from broker.connection import WRITE_AHEAD_BYTES, Connection
from broker.packets import Buffer


class WebSocketWire:
    """Writes what it is given as binary messages, one after the other."""

    def __init__(self, socket: ServerConnection, connection: Connection) -> None:
        self._socket = socket
        self._connection = connection
        self._out: deque[Buffer] = deque()
        self._out_bytes = 0
        self._some = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._closing = False
        self._paused = False

    async def run(self) -> None:
        """Carry bytes both ways until either side ends it."""
        writing = asyncio.create_task(self._write_all(), name="websocket writer")
        try:
            async for message in self._socket:
                if isinstance(message, str):  # [MQTT-6.0.0-1]
                    break
                self._connection.feed(message)
                await self._may_read.wait()
        except ConnectionClosed:
            pass  # what has come of a packet goes with the connection
        finally:
            writing.cancel()
            self._connection.connection_lost(None)
            await asyncio.wait((writing,))

    def write(self, data: Buffer) -> None:
        self._out.append(data)
        self._out_bytes += len(data)
        self._some.set()
        if self._out_bytes > WRITE_AHEAD_BYTES and not self._paused:
            self._paused = True
            self._connection.pause_writing()

    def close(self) -> None:
        self._closing = True
        self._some.set()

    def abort(self) -> None:
        self._may_read.set()
        self._socket.transport.abort()

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def get_write_buffer_size(self) -> int:
        return self._out_bytes

    def get_extra_info(self, name: str) -> object:
        return self._socket.transport.get_extra_info(name)

    async def _write_all(self) -> None:
        try:
            while True:
                await self._some.wait()
                self._some.clear()
                await self._write_some()
                if self._closing and not self._out:
                    await self._socket.close()
                    return
        except ConnectionClosed:
            return  # the reader sees it too

    async def _write_some(self) -> None:
        while self._out:
            data = self._out[0]
            await self._socket.send(bytes(data))
            self._out.popleft()
            self._out_bytes -= len(data)
            if self._paused and self._out_bytes <= WRITE_AHEAD_BYTES // 4:
                self._paused = False
                self._connection.resume_writing()

"""One peer's connection: cuts its bytes into packets, and sees to it that they keep flowing both ways.

    bytes ─▶ Framer ─▶ inbox ─▶ `await next()`        one task per connection, one packet at a time
    `send()` ─▶ outbox ─▶ wire                        by reference: a message for many is held once

Laws: 1. A full inbox pauses reading, so that a flood stops in the peer's socket. 2. One timer for each
connection, not for each read: whoever is silent, or takes nothing, for longer than `idle_s` is cut off.
3. Until the peer has been accepted the time is absolute, so that dripping bytes gains nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Protocol, cast

from broker.bounds import Bounds
from broker.gate import Entrance, User
from broker.packets import Buffer, Framer, Packet
from common.errors import DecodeError

JOIN_BYTES_MAX = 32 * 1024  # shorter pieces are joined before they are written
WRITE_AHEAD_BYTES = 256 * 1024  # handed to the wire beyond what its socket takes


class Wire(Protocol):
    """What carries the bytes: an asyncio transport, or a WebSocket behind the same methods."""

    def write(self, data: Buffer) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_extra_info(self, name: str) -> object: ...


class Connection(asyncio.BufferedProtocol):
    """Packets from and to one peer. `serve` is started as its task as soon as the wire stands."""

    def __init__(
        self,
        bounds: Bounds,
        serve: Callable[["Connection"], Coroutine[None, None, None]],
        entrance: Entrance = Entrance.PLAIN,
    ) -> None:
        self.entrance = entrance
        self.user: User | None = None  # once it was let in
        self.wire: Wire
        self.task: asyncio.Task[None]
        self.why = ""  # it was cut off, if it was
        self.backlog_bytes = 0  # to be sent, and not yet handed to the wire
        self._bounds = bounds
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._framer = Framer(bounds.packet_bytes_max_unknown)
        self._inbox: deque[Packet] = deque()
        self._inbox_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._outbox: deque[Buffer] = deque()
        self._flush_is_due = False
        self._may_write = True
        self._reads = True
        self._ended = False
        self._closing = False
        self._accepted = False
        self._idle_s = bounds.connect_s
        self._heard_at = self._loop.time()
        self._written_bytes = 0
        self._taken_bytes = 0
        self._taken_at = self._heard_at
        self._timer: asyncio.TimerHandle

    # --- for the broker ---------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Tell whether anything that is sent can still arrive."""
        return not (self._ended or self._closing)

    async def next(self) -> Packet | None:
        """Wait for the next packet; None when there will be no more."""
        while not self._inbox:
            if self._ended:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        packet = self._inbox.popleft()
        self._inbox_bytes -= len(packet.body)
        if not self._reads and not self._is_full():
            self._reads = True
            self._heard_at = self._loop.time()  # it was us who did not listen
            self.wire.resume_reading()
        return packet

    def accept(self, idle_s: float, packet_bytes_max: int) -> None:
        """Let the peer in: packets of this size, and a deadline that moves with each byte."""
        self._accepted = True
        self._framer.packet_bytes_max = packet_bytes_max
        self._idle_s = idle_s
        self._heard_at = self._taken_at = self._loop.time()
        self._timer.cancel()
        self._timer = self._loop.call_at(self._heard_at + idle_s, self._watch)

    def send(self, *parts: Buffer) -> None:
        """Send bytes, soon and in order. They must not change any more."""
        if not self.is_open:
            return
        for part in parts:
            self._outbox.append(part)
            self.backlog_bytes += len(part)
        if not self._flush_is_due and self._may_write:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what is due, then close."""
        if self.is_open:
            self._flush()
            self._closing = True
            self.wire.close()

    def abort(self, why: str = "") -> None:
        """Cut the peer off: nothing more is read, nothing more is sent."""
        self.why = self.why or why
        self._inbox.clear()
        self._end()
        self.wire.abort()

    # --- for the event loop -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tcp = cast("asyncio.Transport", transport)
        tcp.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        self.start(tcp)

    def start(self, wire: Wire) -> None:
        """Begin, on a wire that stands."""
        self.wire = wire
        self._timer = self._loop.call_at(self._heard_at + self._idle_s, self._watch)
        self.task = self._loop.create_task(self._serve(self), name="mqtt connection")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._framer.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._take(lambda: self._framer.filled(nbytes))

    def feed(self, data: bytes) -> None:
        """Take bytes from a wire that has its own buffer."""
        self._take(lambda: self._framer.feed(data))

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._outbox.clear()
        self.backlog_bytes = 0
        self._end()

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._flush()

    # --- inside -----------------------------------------------------------------------------------

    def _take(self, cut: Callable[[], list[Packet]]) -> None:
        if self._ended:
            return
        if self._accepted:
            self._heard_at = self._loop.time()
        try:
            packets = cut()
        except DecodeError as error:
            self.abort(str(error))
            return
        for packet in packets:
            self._inbox.append(packet)
            self._inbox_bytes += len(packet.body)
        if packets:
            self._wake()
        if self._reads and self._is_full():
            self._reads = False
            self.wire.pause_reading()

    def _is_full(self) -> bool:
        return (
            len(self._inbox) >= self._bounds.inbox_packets_max
            or self._inbox_bytes >= self._bounds.inbox_bytes_max
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        self._ended = True
        self._wake()

    def _flush(self) -> None:
        self._flush_is_due = False
        while self._outbox and self._may_write and not self._ended:
            piece: Buffer = self._outbox.popleft()
            if len(piece) < JOIN_BYTES_MAX:
                pieces, size = [piece], len(piece)
                while self._outbox and size + len(self._outbox[0]) < JOIN_BYTES_MAX:
                    pieces.append(self._outbox.popleft())
                    size += len(pieces[-1])
                piece = b"".join(pieces) if len(pieces) > 1 else piece
            self.backlog_bytes -= len(piece)
            self._written_bytes += len(piece)
            self.wire.write(piece)

    def _watch(self) -> None:
        """Cut off a peer that is silent or that takes nothing; else look again when that could be due."""
        now = self._loop.time()
        if not self._reads:
            self._heard_at = now
        unsent = self.wire.get_write_buffer_size()
        taken = self._written_bytes - unsent
        if taken != self._taken_bytes or not unsent:
            self._taken_bytes, self._taken_at = taken, now
        due = min(self._heard_at, self._taken_at) + self._idle_s
        if due <= now:
            self.abort(f"{'silent' if self._heard_at < self._taken_at else 'stalled'} for {self._idle_s:g} s")
            return
        self._timer = self._loop.call_at(due, self._watch)

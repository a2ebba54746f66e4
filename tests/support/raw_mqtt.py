"""A raw MQTT client: every byte is the test's own, nothing answers by itself, every wait ends."""

import asyncio
import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import ClassVar

from support.patience import within

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 0x20, 0x30, 0x40, 0x90, 0xD0


def text(value: str) -> bytes:
    """Write a string with its length."""
    return struct.pack("!H", len(value.encode())) + value.encode()


def packet(first: int, body: bytes = b"") -> bytes:
    """Write a packet: first byte, length, body."""
    length, rest = bytearray(), len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length.append(digit | (128 if rest else 0))
        if not rest:
            return bytes((first,)) + bytes(length) + body


@dataclass(frozen=True)
class Will:
    """What a test wants said when its client vanishes."""

    topic: str
    payload: bytes = b"lost"
    qos: int = 1
    retain: bool = False


def connect(
    client_id: str,
    *,
    clean: bool = True,
    keepalive_s: int = 60,
    user: str | None = None,
    will: Will | None = None,
    level: int = 4,
    properties: bytes = b"",
) -> bytes:
    """Write a CONNECT."""
    flags = clean << 1 | (0x80 if user is not None else 0)
    payload = text(client_id)
    if will is not None:
        flags |= 4 | will.qos << 3 | will.retain << 5
        payload += text(will.topic) + struct.pack("!H", len(will.payload)) + will.payload
    if user is not None:
        payload += text(user)
    return packet(0x10, text("MQTT") + struct.pack("!BBH", level, flags, keepalive_s) + properties + payload)


def publish(topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, ident: int = 1) -> bytes:
    """Write a PUBLISH."""
    head = text(topic) + (struct.pack("!H", ident) if qos else b"")
    return packet(PUBLISH | qos << 1 | retain, head + payload)


def subscribe(name: str, *, qos: int = 1, ident: int = 1) -> bytes:
    """Write a SUBSCRIBE to one filter."""
    return packet(0x82, struct.pack("!H", ident) + text(name) + bytes((qos,)))


@dataclass(frozen=True)
class Message:
    """A PUBLISH that came."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    ident: int


class Raw:
    """One connection. Whoever runs the broker closes those that tests left open: `close_all`."""

    wait_s: ClassVar[float] = 2.0
    _opened: ClassVar[list["Raw"]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._opened.append(self)

    @classmethod
    async def close_all(cls) -> None:
        """Close what is open."""
        while cls._opened:
            await cls._opened.pop().vanish()

    @classmethod
    async def open(
        cls, port: int, *, receive_bytes: int | None = None, tls: ssl.SSLContext | None = None
    ) -> "Raw":
        """Connect a socket; with a small buffer for receiving, if the test is about not receiving."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        limit = 2**16 if receive_bytes is None else receive_bytes
        hello = {} if tls is None else {"ssl": tls, "server_hostname": ""}
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            return cls(*await asyncio.open_connection(sock=sock, limit=limit, **hello))
        except OSError:
            sock.close()
            raise

    @classmethod
    async def connected(
        cls,
        port: int,
        client_id: str,
        *,
        receive_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
        **how,
    ) -> "Raw":
        """Connect as an MQTT client and expect to be let in."""
        raw = await cls.open(port, receive_bytes=receive_bytes, tls=tls)
        code = await raw.introduce(connect(client_id, **how))
        assert code == 0, code
        return raw

    async def introduce(self, hello: bytes) -> int:
        """Send a CONNECT; give the return code."""
        return (await self.exchange(hello, CONNACK))[1]

    async def exchange(self, data: bytes, first: int) -> bytes:
        """Send, and expect one kind of packet; give its body."""
        await self.send(data)
        kind, body = await self.packet()
        assert kind == first, f"{kind:#x} came instead of {first:#x}"
        return body

    async def send(self, data: bytes) -> None:
        """Send bytes; a peer that is gone is not this call's business."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def packet(self, within_s: float | None = None) -> tuple[int, bytes]:
        """Receive one packet: first byte and body."""
        within_s = self.wait_s if within_s is None else within_s
        try:
            async with asyncio.timeout(within(within_s)):
                return await self._packet()
        except TimeoutError:
            raise AssertionError(f"nothing came within {within_s} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise AssertionError("the broker closed the connection") from None

    async def _packet(self) -> tuple[int, bytes]:
        first = (await self.reader.readexactly(1))[0]
        length = shift = 0
        while True:
            byte = (await self.reader.readexactly(1))[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return first, await self.reader.readexactly(length)

    async def message(self, within_s: float | None = None) -> Message:
        """Receive one PUBLISH; it is not acknowledged."""
        first, body = await self.packet(within_s)
        assert first & 0xF0 == PUBLISH, f"{first:#x} came instead of a PUBLISH"
        end = 2 + struct.unpack_from("!H", body)[0]
        qos = first >> 1 & 3
        ident = struct.unpack_from("!H", body, end)[0] if qos else 0
        return Message(body[2:end].decode(), body[end + (2 if qos else 0) :], qos, bool(first & 1), ident)

    async def acknowledge(self, message: Message) -> None:
        """Send the PUBACK of a message."""
        await self.send(packet(PUBACK, struct.pack("!H", message.ident)))

    async def subscribe(self, name: str, *, qos: int = 1) -> int:
        """Subscribe; give the return code."""
        return (await self.exchange(subscribe(name, qos=qos), SUBACK))[2]

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, ident: int = 1) -> None:
        """Publish with QoS 1, and wait for the PUBACK."""
        await self.exchange(publish(topic, payload, qos=1, retain=retain, ident=ident), PUBACK)

    async def ping(self) -> None:
        """Ask whether the broker is there."""
        await self.exchange(packet(0xC0), PINGRESP)

    async def silent(self, for_s: float = 0.2) -> bool:
        """Tell whether nothing comes for so long."""
        try:
            async with asyncio.timeout(for_s):
                await self._packet()
        except TimeoutError:
            return True
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        return False

    async def ends(self, within_s: float | None = None) -> bool:
        """Tell whether the broker closes the connection within so long, whatever comes before."""
        try:
            async with asyncio.timeout(within(self.wait_s if within_s is None else within_s)):
                while await self.reader.read(2**16):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    async def leave(self) -> None:
        """Say goodbye."""
        await self.send(packet(0xE0))
        await self.ends()
        await self.close()

    async def vanish(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()
        await self.close()

    async def close(self) -> None:
        """Close the socket."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

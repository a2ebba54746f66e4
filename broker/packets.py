"""MQTT 3.1.1 on the wire: bytes to packets, packet bodies to values, and back.

Source: OASIS MQTT 3.1.1; numbers in brackets are its normative statements.
Laws:   1. Whatever bytes come in, the answer is a value or a DecodeError. 2. Reading a body does not copy it.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from common import limits
from common.errors import DecodeError

LEVEL = 4
REFUSED = 0x80  # return code of a SUBACK
SCRATCH_BYTES = 64 * 1024
HEADER_BYTES_MAX = 5

_U16 = struct.Struct("!H")
Buffer = bytes | bytearray | memoryview


class Type(IntEnum):
    """The kinds of packets."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Connack(IntEnum):
    """Why a CONNECT is taken or not."""

    ACCEPTED = 0
    UNACCEPTABLE_VERSION = 1
    IDENTIFIER_REJECTED = 2
    UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORIZED = 5


class Packet(NamedTuple):
    """One packet, cut out of the stream."""

    kind: int
    flags: int
    body: Buffer


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for a client that vanishes."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Connect:
    """A client introduces itself."""

    client_id: str
    clean: bool
    keepalive_s: int
    will: Will | None
    username: str | None
    password: bytes | None


class Publish(NamedTuple):
    """A message, as a client hands it in."""

    topic: str
    payload: memoryview
    qos: int
    retain: bool
    packet_id: int


# What a client may send once it is connected, with its flags [MQTT-2.2.2-2]; PUBLISH has its own. PUBREC and
# PUBCOMP are not here: nothing is sent with QoS 2.
FLAGS: dict[int, int] = {
    Type.PUBACK: 0,
    Type.PUBREL: 2,
    Type.SUBSCRIBE: 2,
    Type.UNSUBSCRIBE: 2,
    Type.PINGREQ: 0,
    Type.DISCONNECT: 0,
}


class Framer:
    """Cuts a stream into packets. Large bodies are received in place; small ones are read ahead.

    Fill `buffer()` with any number of bytes, then say how many to `filled`.
    """

    def __init__(self, packet_bytes_max: int) -> None:
        self.packet_bytes_max = packet_bytes_max  # may be raised at any time
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._end = 0  # of what has been read into it
        self._body: bytearray | None = None  # of a packet that is longer than what has come of it
        self._have = 0
        self._first = 0

    def buffer(self) -> memoryview:
        """Say where the next bytes belong. Never empty."""
        if self._body is not None:
            return memoryview(self._body)[self._have :]
        return self._scratch[self._end :]

    def filled(self, count: int) -> list[Packet]:
        """Take note of `count` bytes in the buffer; give what is complete. Raises: DecodeError."""
        if self._body is None:
            self._end += count
            return self._cut()
        self._have += count
        if self._have < len(self._body):
            return []
        packet = Packet(self._first >> 4, self._first & 15, self._body)
        self._body = None
        return [packet]

    def feed(self, data: bytes) -> list[Packet]:
        """Take bytes that lie somewhere else. Raises: DecodeError."""
        packets: list[Packet] = []
        rest = memoryview(data)
        while rest:
            room = self.buffer()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            packets += self.filled(count)
            rest = rest[count:]
        return packets

    def _cut(self) -> list[Packet]:
        packets: list[Packet] = []
        at = 0
        while (header := self._header(at)) is not None:
            start, length = header
            first = self._scratch[at]
            if start + length > self._end:
                self._body = bytearray(length)
                self._have = self._end - start
                self._body[: self._have] = self._scratch[start : self._end]
                self._first = first
                self._end = 0
                return packets
            packets.append(Packet(first >> 4, first & 15, bytes(self._scratch[start : start + length])))
            at = start + length
        rest = bytes(self._scratch[at : self._end])  # less than a header
        self._scratch[: len(rest)] = rest
        self._end = len(rest)
        return packets

    def _header(self, at: int) -> tuple[int, int] | None:
        """Read where a body starts and how long it is; None where the header has not all come."""
        length = 0
        for i in range(1, HEADER_BYTES_MAX):
            if at + i >= self._end:
                return None
            byte = self._scratch[at + i]
            length |= (byte & 127) << 7 * (i - 1)
            if length > self.packet_bytes_max:
                raise DecodeError(f"a packet of at least {length} bytes exceeds {self.packet_bytes_max}")
            if byte < 128:
                return at + i + 1, length
        raise DecodeError("the length of a packet has more than four bytes")


class _Cursor:
    """Reads the fields of a body, one after the other."""

    def __init__(self, body: Buffer) -> None:
        self._rest = memoryview(body)

    def __bool__(self) -> bool:
        return bool(self._rest)

    def take(self, count: int) -> memoryview:
        if count > len(self._rest):
            raise DecodeError("a field reaches beyond its packet")
        field, self._rest = self._rest[:count], self._rest[count:]
        return field

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int(_U16.unpack(self.take(2))[0])

    def blob(self) -> memoryview:
        return self.take(self.number())

    def text(self) -> str:
        return _text(self.blob())


def _text(data: memoryview) -> str:
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError("a text is not UTF-8") from error
    if "\0" in text:  # [MQTT-1.5.3-2]
        raise DecodeError("a text holds a null character")
    return text


def parse_connect(body: Buffer) -> Connect | None:
    """Read a CONNECT; None where it speaks another version than 3.1.1. Raises: DecodeError."""
    cursor = _Cursor(body)
    name = cursor.text()
    if name not in {"MQTT", "MQIsdp"}:
        raise DecodeError("the first packet names another protocol")
    if name == "MQIsdp" or cursor.byte() != LEVEL:  # what follows has another shape then
        return None
    flags = cursor.byte()
    keepalive_s = cursor.number()
    has_will, will_qos, will_retain = bool(flags & 4), flags >> 3 & 3, bool(flags & 32)
    if flags & 1 or will_qos == 3 or (not has_will and (will_qos or will_retain)):
        raise DecodeError("CONNECT has flags that do not exist")
    client_id = cursor.text()
    will = Will(cursor.text(), bytes(cursor.blob()), will_qos, will_retain) if has_will else None
    username = cursor.text() if flags & 128 else None
    password = bytes(cursor.blob()) if flags & 64 else None
    return Connect(client_id, bool(flags & 2), keepalive_s, will, username, password)


def parse_publish(packet: Packet) -> Publish:
    """Read a PUBLISH; its payload stays where it is. Raises: DecodeError."""
    qos = packet.flags >> 1 & 3
    if qos == 3:
        raise DecodeError("there is no QoS 3")
    body = memoryview(packet.body)
    if len(body) < 2:
        raise DecodeError("a PUBLISH without a topic")
    end = 2 + (body[0] << 8 | body[1])
    head = end + 2 if qos else end
    if head > len(body):
        raise DecodeError("a PUBLISH that is shorter than its header")
    topic = _text(body[2:end])
    if not is_topic(topic):
        raise DecodeError("a PUBLISH to something that is no topic")
    packet_id = body[end] << 8 | body[end + 1] if qos else 0
    if qos and not packet_id:  # [MQTT-2.3.1-1]
        raise DecodeError("a packet id of 0")
    return Publish(topic, body[head:], qos, bool(packet.flags & 1), packet_id)


def parse_subscribe(body: Buffer) -> tuple[int, list[tuple[str, int]]]:
    """Read a SUBSCRIBE: its packet id, and filters with the QoS wanted. Raises: DecodeError."""
    cursor = _Cursor(body)
    packet_id = cursor.number()
    wanted = []
    while cursor:
        name, qos = cursor.text(), cursor.byte()
        if qos > 2:
            raise DecodeError("a SUBSCRIBE for more than QoS 2")
        wanted.append((name, qos))
    if not wanted:  # [MQTT-3.8.3-3]
        raise DecodeError("a SUBSCRIBE to nothing")
    return packet_id, wanted


def parse_unsubscribe(body: Buffer) -> tuple[int, list[str]]:
    """Read an UNSUBSCRIBE. Raises: DecodeError."""
    cursor = _Cursor(body)
    packet_id = cursor.number()
    names = []
    while cursor:
        names.append(cursor.text())
    return packet_id, names


def parse_packet_id(body: Buffer) -> int:
    """Read the packet id of a PUBACK, PUBREC, PUBREL or PUBCOMP. Raises: DecodeError."""
    return _Cursor(body).number()


def is_topic(text: str) -> bool:
    """Tell whether clients may publish to it: no wildcard, no `$`, not too long, not too deep."""
    return is_filter(text) and not text.startswith("$") and "+" not in text and "#" not in text


def is_filter(text: str) -> bool:
    """Tell whether it has the size of a filter; where its wildcards stand is not looked at."""
    return 0 < len(text.encode()) <= limits.TOPIC_BYTES_MAX and text.count("/") < limits.TOPIC_LEVELS_MAX


def build_connack(code: Connack, *, session_present: bool = False) -> bytes:
    """Write a CONNACK."""
    return bytes((Type.CONNACK << 4, 2, session_present, code))


def build_ack(kind: Type, packet_id: int) -> bytes:
    """Write a packet that is only a packet id."""
    return bytes((kind << 4 | FLAGS.get(kind, 0), 2)) + _U16.pack(packet_id)


def build_suback(packet_id: int, codes: list[int]) -> bytes:
    """Write a SUBACK."""
    return bytes((Type.SUBACK << 4,)) + _length(2 + len(codes)) + _U16.pack(packet_id) + bytes(codes)


def build_pingresp() -> bytes:
    """Write a PINGRESP."""
    return bytes((Type.PINGRESP << 4, 0))


def build_publish(
    topic: bytes, size: int, *, qos: int, packet_id: int, retain: bool = False, dup: bool = False
) -> bytes:
    """Write a PUBLISH up to its payload, which has `size` bytes."""
    ident = _U16.pack(packet_id) if qos else b""
    first = Type.PUBLISH << 4 | dup << 3 | qos << 1 | retain
    length = _length(2 + len(topic) + len(ident) + size)
    return b"".join((bytes((first,)), length, _U16.pack(len(topic)), topic, ident))


def _length(count: int) -> bytes:
    digits = bytearray()
    while count > 127:
        digits.append(count & 127 | 128)
        count >>= 7
    digits.append(count)
    return bytes(digits)

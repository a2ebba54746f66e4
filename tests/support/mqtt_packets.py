"""MQTT 3.1.1 packets cut out of a stream, byte for byte: what a proxy has to know of them, and no more."""

from enum import IntEnum

DUP, QOS = 0x08, 0x06  # flags of a PUBLISH
LENGTH_BYTES_MAX = 4


class Kind(IntEnum):
    """The kinds of packets: the upper half of the first byte."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Splitter:
    """Cuts a stream into whole packets, headers and all; what is not MQTT comes out as it went in."""

    def __init__(self):
        self._rest = bytearray()
        self._is_mqtt = True

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes in; give the packets that are complete."""
        self._rest += data
        packets = []
        while self._is_mqtt and (size := self._size()) is not None and size <= len(self._rest):
            packets.append(bytes(self._rest[:size]))
            del self._rest[:size]
        return packets if self._is_mqtt else [*packets, self.rest()]

    def rest(self) -> bytes:
        """Give what has come of a packet that is not complete."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest

    def _size(self) -> int | None:
        """Read how long the next packet is, as soon as that can be told."""
        length = 0
        for at, byte in enumerate(self._rest[1 : 1 + LENGTH_BYTES_MAX]):
            length |= (byte & 127) << 7 * at
            if byte < 128:
                return 2 + at + length
        self._is_mqtt = len(self._rest) <= LENGTH_BYTES_MAX
        return None


def kind_of(packet: bytes) -> int:
    """Tell what kind of packet it is."""
    return packet[0] >> 4


def marked_dup(publish: bytes) -> bytes:
    """Give a PUBLISH with its DUP flag set; one of QoS 0 may not have it [MQTT-3.3.1-2]."""
    return bytes((publish[0] | DUP,)) + publish[1:] if publish[0] & QOS else publish

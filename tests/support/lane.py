"""One direction of a proxy: which packets are dropped, doubled, swapped, said again, held or cut, and when.

    lane.drop(Kind.PUBACK, 3)    the third PUBACK from now on does not arrive

Each fault is made once, to the n-th packet of its kind that comes after it was planned; `made` counts those that
were. Pure: `pass_on` says what is to be written, the proxy writes.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from support.mqtt_packets import Kind, Splitter, kind_of, marked_dup

OLD_KEPT = 64  # PUBLISHes that may be said again


class Cut(Exception):  # noqa: N818 - what is to be done, not what went wrong
    """The connection is to be cut; `args[0]` is what still goes through."""


@dataclass
class Stream:
    """What a lane keeps of one connection."""

    write: Callable[[bytes], None]
    splitter: Splitter = field(default_factory=Splitter)
    behind: list[bytes] = field(default_factory=list)  # swapped: goes after the next PUBLISH
    held: list[bytes] = field(default_factory=list)


@dataclass
class Fault:
    """Something that will be done to one packet."""

    name: str
    kind: Kind | None  # None: any
    nth: int  # from now on


class Lane:
    """The faults of one direction, over all its connections."""

    def __init__(self, chance: random.Random):
        self.seen: Counter[int] = Counter()  # packets, by kind
        self.made: Counter[str] = Counter()  # faults, by name
        self.streams: list[Stream] = []  # of the open connections
        self._chance = chance
        self._planned: list[Fault] = []
        self._holding: set[int] = set()
        self._old: deque[bytes] = deque(maxlen=OLD_KEPT)

    # --- what is to happen ------------------------------------------------------------------------

    def drop(self, kind, nth=1):
        """Lose a packet."""
        self._planned.append(Fault("drop", kind, nth))

    def double(self, nth=1, *, dup=True):
        """Let a PUBLISH arrive twice, the second time with or without DUP."""
        self._planned.append(Fault("double-dup" if dup else "double", Kind.PUBLISH, nth))

    def swap(self, nth=1):
        """Let a PUBLISH arrive after the one that follows it."""
        self._planned.append(Fault("swap", Kind.PUBLISH, nth))

    def replay(self, nth=1):
        """Let a PUBLISH be followed by one that was seen before, on whatever connection."""
        self._planned.append(Fault("replay", Kind.PUBLISH, nth))

    def cut(self, nth=1):
        """Cut the connection in the middle of a packet of any kind."""
        self._planned.append(Fault("cut", None, nth))

    def hold(self, kind):
        """Let packets of a kind wait until they are released."""
        self._holding.add(kind)

    def release(self):
        """Let go of what was held, and hold nothing more."""
        self._holding.clear()
        for stream in self.streams:
            if stream.held:
                stream.write(b"".join(stream.held))
                stream.held.clear()

    def forgive(self):
        """Plan nothing more, and let go of what was held."""
        self._planned.clear()
        self.release()

    # --- what happens -----------------------------------------------------------------------------

    def pass_on(self, stream: Stream, data: bytes) -> bytes:
        """Say what is to be written for these bytes. Raises: Cut."""
        out = []
        for packet in stream.splitter.feed(data):
            fault = self._due(packet)
            if fault == "cut":
                raise Cut(b"".join(out) + packet[: len(packet) // 2])
            out += self._made_of(packet, fault, stream)
        return b"".join(out)

    def _due(self, packet: bytes) -> str | None:
        """Count a packet, and tell which fault its turn it is."""
        kind = kind_of(packet)
        self.seen[kind] += 1
        due = None
        for fault in [fault for fault in self._planned if fault.kind in {None, kind}]:
            fault.nth -= 1
            if fault.nth <= 0 and due is None:
                due = fault.name
                self._planned.remove(fault)
                self.made[due] += 1
        return due

    def _made_of(self, packet: bytes, fault: str | None, stream: Stream) -> list[bytes]:
        kind = kind_of(packet)
        if kind in self._holding:
            self.made["hold"] += 1
            stream.held.append(packet)
            return []
        if kind != Kind.PUBLISH:
            return [] if fault == "drop" else [packet]
        arriving = self._published(packet, fault)
        self._old.append(packet)
        if fault == "swap":
            stream.behind.append(packet)
            return []
        arriving += stream.behind
        stream.behind.clear()
        return arriving

    def _published(self, packet: bytes, fault: str | None) -> list[bytes]:
        match fault:
            case "drop":
                return []
            case "double":
                return [packet, packet]
            case "double-dup":
                return [packet, marked_dup(packet)]
            case "replay":
                return [packet, self._chance.choice(self._old or [packet])]
            case _:
                return [packet]

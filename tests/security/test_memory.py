"""A hundred thousand malformed messages leave nothing behind, and no peer's words are kept beyond their limits."""

import gc
import resource
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path

import pytest

from broker.packets import Framer
from common import lines
from common.errors import DecodeError
from common.identity import Role
from common.ids import Boot, ClientId
from common.ingress import Ingress, Refused
from common.limits import PACKET_BYTES_MAX_UNKNOWN
from common.messages import Heartbeat
from common.topics import Kind, Topics
from fuzz.targets import ENVELOPES, LINES, PAYLOADS, STREAM
from support import federation, hostile
from support.federation import member

COUNT = 100_000
WARM_UP = 10_000
GROWTH_MAX = 4 * 2**20  # 44 bytes a message
TOPICS = Topics(federation.NAME)


def resident() -> int:
    """Read how much memory this process has: what C code keeps counts too."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def growth(messages, hear) -> int:
    """Say by how many bytes hearing so many of these, in turn, makes this process grow after a warm-up."""
    coming = cycle(messages)
    for message in islice(coming, WARM_UP):
        hear(message)
    gc.collect()
    before = resident()
    for message in islice(coming, COUNT - WARM_UP):
        hear(message)
    gc.collect()
    return resident() - before


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


def test_a_hundred_thousand_malformed_messages_leave_nothing_behind(keys_dir):
    alice, bob = (member(keys_dir, Role.CLIENT, name) for name in "ab")
    door = federation.ingress(keys_dir, alice)
    reply, heartbeat = (TOPICS.client(ClientId("a"), kind) for kind in (Kind.REPLY, Kind.HEARTBEAT))
    small = [bomb for bomb in hostile.BOMBS.values() if 0 < len(bomb) < 1000]
    envelopes = [*small, *ENVELOPES, hostile.sealed(bob, reply)]
    envelopes += [hostile.sealed(alice, reply, bomb, sequence=n) for n, bomb in enumerate(small)]
    envelopes += [hostile.sealed(alice, reply, head=bomb) for bomb in small]
    said = [*LINES, hostile.signed_line(alice, heartbeat, b'{"kind":"heartbeat","boot":1')]
    said.append(lines.seal(bob, heartbeat, Heartbeat(boot=hostile.BOOT, sequence=1)))
    messages = [(reply, data) for data in envelopes] + [(heartbeat, data) for data in said]
    messages += [(TOPICS.control, data) for data in PAYLOADS] + [(f"fedmq/lab/{n}", b"x") for n in range(20)]
    for message in messages:
        door.admit(*message)  # those that were new are replayed from now on

    def hear(message):
        assert isinstance(door.admit(*message), Refused)

    assert growth(messages, hear) < GROWTH_MAX
    assert sum(door.refusals.values()) >= COUNT


def test_a_hundred_thousand_starts_of_a_client_are_forgotten_again(keys_dir):
    """Every one of them is signed and new: what is kept of a sender has a limit."""
    alice = member(keys_dir, Role.CLIENT, "a")
    door: Ingress = federation.ingress(keys_dir, alice)

    def start(number):
        assert door._replays.is_new(alice.kid, Boot(f"{number:016x}"), number)

    assert growth(range(COUNT), start) < GROWTH_MAX


def test_a_hundred_thousand_malformed_packets_leave_nothing_behind():
    bad = [
        b"\x10\xff\xff\xff\x7f",
        b"\x30\xff\xff\xff\xff\x7f",
        *hostile.BOMBS.values(),
        STREAM[:-1] + b"\xff\xff\xff",
    ]
    packets = [data for data in bad if len(data) < 1000]

    def hear(data):
        with suppress(DecodeError):
            Framer(PACKET_BYTES_MAX_UNKNOWN).feed(data)

    assert growth(packets, hear) < GROWTH_MAX


def test_one_connection_that_says_nonsense_for_ever_holds_what_one_packet_may_have():
    framer = Framer(PACKET_BYTES_MAX_UNKNOWN)
    assert growth([b"\0\0" * 8, b"\x30\x02\0\0", STREAM, b"\xf0\x05hallo"], framer.feed) < GROWTH_MAX


def test_a_packet_that_never_ends_costs_no_more_than_its_limit():
    with hostile.measured() as peak:
        framer = Framer(PACKET_BYTES_MAX_UNKNOWN)
        framer.feed(b"\x30\x80\x80\x04")  # it says that 64 KiB follow
        for _ in range(1000):
            framer.feed(b"x" * 60)
    assert peak[0] < 4 * PACKET_BYTES_MAX_UNKNOWN

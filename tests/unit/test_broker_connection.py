"""One connection and one session on a wire that is a list: pausing, patience, order."""

import asyncio

from broker.bounds import Bounds
from broker.connection import Connection
from broker.gate import User
from broker.hardened import HardenedBroker
from broker.packets import Connect, Framer, Packet, parse_publish
from broker.rules import Role
from broker.sessions import ClientSession, Outgoing
from support.list_wire import ListWire
from support.patience import within
from support.raw_mqtt import packet

IDLE_S = 0.2


def on_a_wire(story, bounds=None):
    """Run a story with a connection whose task does nothing by itself."""

    async def main():
        async def serve(connection: Connection) -> None:
            await asyncio.Event().wait()

        wire = ListWire()
        connection = Connection(bounds or Bounds(), serve)
        connection.start(wire)
        try:
            await story(connection, wire)
        finally:
            connection.connection_lost(None)
            connection.task.cancel()

    asyncio.run(main())


def test_a_full_inbox_pauses_reading_until_it_has_been_emptied():
    async def story(connection, wire):
        connection.feed(packet(0x30, b"1") + packet(0x30, b"2"))
        assert not wire.reads
        assert await connection.next() == Packet(3, 0, b"1")
        assert wire.reads
        assert await connection.next() == Packet(3, 0, b"2")

    on_a_wire(story, Bounds(inbox_packets_max=2))


def test_a_peer_that_was_not_listened_to_was_not_silent():
    async def story(connection, wire):
        connection.accept(IDLE_S, 100)
        connection.feed(packet(0x30, b"1"))
        await asyncio.sleep(2.7 * IDLE_S)
        assert not wire.aborted
        await connection.next()
        await asyncio.sleep(0.7 * IDLE_S)
        assert not wire.aborted
        await asyncio.sleep(IDLE_S)
        assert wire.aborted
        assert connection.why == "silent for 0.2 s"

    on_a_wire(story, Bounds(inbox_packets_max=1))


def test_a_peer_that_takes_nothing_is_cut_off_though_it_talks():
    async def story(connection, wire):
        connection.accept(IDLE_S, 100)
        connection.send(b"x" * 100)
        wire.unsent = 100
        for _ in range(12):
            connection.feed(packet(0xC0))
            await asyncio.sleep(IDLE_S / 4)
        assert wire.aborted
        assert connection.why == "stalled for 0.2 s"

    on_a_wire(story)


def test_a_peer_that_takes_a_little_is_borne():
    async def story(connection, wire):
        connection.accept(IDLE_S, 100)
        connection.send(b"x" * 100)
        for unsent in range(100, 88, -1):
            wire.unsent = unsent
            connection.feed(packet(0xC0))
            await asyncio.sleep(IDLE_S / 4)
        assert not wire.aborted

    on_a_wire(story)


def test_after_an_abort_nothing_is_read_and_nothing_is_sent():
    async def story(connection, wire):
        connection.feed(packet(0x30, b"1"))
        connection.abort("enough")
        connection.send(b"late")
        connection.feed(packet(0x30, b"2"))
        assert await connection.next() is None
        assert wire.aborted
        assert not wire.written
        assert connection.why == "enough"

    on_a_wire(story)


def test_what_came_before_the_end_is_still_read():
    async def story(connection, wire):
        connection.feed(packet(0x30, b"1"))
        connection.connection_lost(None)
        assert await connection.next() == Packet(3, 0, b"1")
        assert await connection.next() is None

    on_a_wire(story)


def test_small_pieces_are_written_together_and_large_ones_as_they_are():
    async def story(connection, wire):
        large = b"L" * 40_000
        for piece in (b"a", b"b", large, b"c"):
            connection.send(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert wire.written == [b"ab", large, b"c"]

    on_a_wire(story)


def test_while_the_wire_is_full_everything_waits_and_is_counted():
    async def story(connection, wire):
        connection.pause_writing()
        connection.send(b"a", b"bc")
        await asyncio.sleep(0)
        assert not wire.written
        assert connection.backlog_bytes == 3
        connection.resume_writing()
        assert wire.written == [b"abc"]
        assert connection.backlog_bytes == 0

    on_a_wire(story)


def test_closing_sends_what_is_due_first():
    async def story(connection, wire):
        connection.send(b"goodbye")
        connection.close()
        assert wire.written == [b"goodbye"]
        assert wire.closed

    on_a_wire(story)


def test_a_broker_that_stops_takes_nobody_in():
    async def main():
        broker = HardenedBroker("127.0.0.1", 0)
        await broker.start()
        connection, wire = broker._new_connection(), ListWire()
        await broker.shutdown()
        connection.start(wire)
        async with asyncio.timeout(within(1)):
            await connection.task
        connection.connection_lost(None)
        assert wire.aborted

    asyncio.run(main())


def new_session(bounds=None, *, clean=False) -> ClientSession:
    return ClientSession("c1", Connect("c1", clean, 60, None, None, None), bounds or Bounds())


def payloads(wire) -> list[bytes]:
    """Give the payloads of what was written."""
    packets = Framer(2**20).feed(b"".join(wire.written))
    return [bytes(parse_publish(packet).payload) for packet in packets]


def test_unacknowledged_messages_come_again_before_those_that_came_later():
    async def story(connection, wire):
        session = new_session()
        session.attach(connection)
        for payload in (b"1", b"2", b"3"):
            session.deliver(Outgoing(b"t", payload), 1)
        session.acknowledge(2)
        connection.abort()
        session.deliver(Outgoing(b"t", b"4"), 1)
        session.deliver(Outgoing(b"t", b"5"), 0)  # QoS 0 does not wait
        session.detach()

        next_wire = ListWire()
        next_connection = Connection(Bounds(), connection._serve)
        next_connection.start(next_wire)
        session.attach(next_connection)
        session.resume()
        next_connection.close()
        assert payloads(next_wire) == [b"1", b"3", b"4"]
        next_connection.connection_lost(None)
        next_connection.task.cancel()

    on_a_wire(story)


def test_the_message_that_was_too_much_waits_for_the_next_connection():
    async def story(connection, wire):
        session = new_session(Bounds(outstanding_bytes_max=2))
        session.attach(connection)
        for payload in (b"1", b"2", b"3"):
            session.deliver(Outgoing(b"t", payload), 1)
        assert wire.aborted
        session.detach()
        assert [bytes(message.payload) for message in session._waiting] == [b"1", b"2", b"3"]

    on_a_wire(story)


def test_a_clean_session_keeps_nothing():
    async def story(connection, wire):
        session = new_session(clean=True)
        session.attach(connection)
        session.deliver(Outgoing(b"t", b"1"), 1)
        session.detach()
        session.deliver(Outgoing(b"t", b"2"), 1)
        assert not session._waiting
        assert not session.unacked

    on_a_wire(story)


def test_packet_ids_go_round_and_pass_over_those_in_use():
    async def story(connection, wire):
        session = new_session()
        session.attach(connection)
        session._next_id = 65533
        for payload in (b"1", b"2", b"3"):
            session.deliver(Outgoing(b"t", payload), 1)
        session._next_id = 65535
        session.deliver(Outgoing(b"t", b"4"), 1)
        assert list(session.unacked) == [65534, 65535, 1, 2]

    on_a_wire(story)


def test_a_renewed_session_has_the_certificate_of_its_new_connection():
    async def story(connection, wire):
        old, new = new_session(), new_session(clean=True)
        new.user = User("c1", Role.CLIENT, serial=7)
        new.ssl_object, new.username, new.remote_port, new.will_retain = "new", "c1", 7, True
        old.renew(new)
        assert (old.ssl_object, old.username, old.remote_port, old.will_retain) == ("new", "c1", 7, True)
        assert old.clean_session
        assert old.user == new.user

    on_a_wire(story)


def test_a_pace_counts_messages_and_bytes_of_each_second():
    async def story(connection, wire):
        session = new_session(Bounds(publishes_per_s_max=2, published_bytes_per_s_max=10))
        assert [session.pace(1, 100.0), session.pace(1, 100.25), session.pace(1, 100.5)] == [0, 0, 0.5]
        assert [session.pace(10, 101.0), session.pace(1, 101.75)] == [0, 0.25]

    on_a_wire(story)

"""Connections at the hardened broker's doors: strangers crowd out strangers, and nobody is taken over by another."""

import asyncio

from broker.bounds import Bounds
from broker.gate import Entrance, User
from broker.hardened import HardenedBroker
from broker.rules import Role
from support.list_wire import ListWire
from support.patience import within
from support.polling import eventually
from support.raw_mqtt import Will, connect, packet

BOUNDS = Bounds(strangers_max=2, connections_max=3, takeover_s=0.5)


class Door:
    """A broker whose connections come in by hand."""

    def __init__(self, broker):
        self.broker, self.wires = broker, []

    async def knock(self, hello=b"", entrance=Entrance.PLAIN):
        """Open a connection, and say something; returns its wire."""
        connection, wire = self.broker._new_connection(entrance), ListWire()
        connection.start(wire)
        wire.connection = connection
        self.wires.append(wire)
        await asyncio.sleep(0)
        if hello:
            connection.feed(hello)
            await eventually(lambda: wire.written or wire.aborted)
        return wire


def at_the_door(story, bounds=BOUNDS):
    async def main():
        broker = HardenedBroker("127.0.0.1", 0, bounds=bounds)
        await broker.start()
        door = Door(broker)
        try:
            async with asyncio.timeout(within(10)):
                await story(door)
        finally:
            for wire in door.wires:
                wire.connection.connection_lost(None)
            await broker.shutdown()
            await asyncio.gather(*(wire.connection.task for wire in door.wires), return_exceptions=True)

    asyncio.run(main())


def code(wire) -> int:
    """Read a CONNACK."""
    said = b"".join(wire.written)
    assert said[:2] == b"\x20\x02"
    return said[3]


def test_one_stranger_too_many_costs_the_oldest_its_place():
    async def story(door):
        first, second, third = [await door.knock() for _ in range(3)]
        assert [wire.aborted for wire in (first, second, third)] == [True, False, False]
        assert first.connection.why == "too many connections that say nothing"

    at_the_door(story)


def test_strangers_crowd_out_nobody_who_has_been_let_in():
    async def story(door):
        known = [await door.knock(connect(name, user=name)) for name in ("c1", "c2")]
        assert [code(wire) for wire in known] == [0, 0]
        strangers = [await door.knock() for _ in range(9)]
        assert not any(wire.aborted for wire in known)
        assert sum(not wire.aborted for wire in strangers) == 2
        late = await door.knock(connect("c3", user="c3"))  # who means it comes in all the same
        assert code(late) == 0

    at_the_door(story)


def test_a_stranger_that_left_takes_up_no_place():
    async def story(door):
        first, second = await door.knock(), await door.knock()
        second.connection.connection_lost(None)
        await eventually(second.connection.task.done)
        await door.knock()
        assert not first.aborted

    at_the_door(story)


def test_strangers_do_not_count_among_those_who_were_let_in():
    async def story(door):
        for name in ("c1", "c2", "c3"):
            assert code(await door.knock(connect(name, user=name))) == 0
        assert code(await door.knock(connect("c4", user="c4"))) == 3  # unavailable

    at_the_door(story)


def test_the_client_id_of_somebody_else_is_not_taken_over():
    async def story(door):
        mine = await door.knock(connect("c1-9f", user="c1", will=Will("fedmq/lab/client/c1/status")))
        theirs = await door.knock(connect("c1-9f", user="c2"))
        assert code(theirs) == 5
        assert not mine.aborted
        again = await door.knock(connect("c1-9f", user="c1"))  # but one's own is
        assert code(again) == 0
        assert mine.aborted

    at_the_door(story)


def test_a_session_that_waits_for_its_owner_is_not_handed_to_another():
    async def story(door):
        mine = await door.knock(connect("c1-9f", user="c1", clean=False))
        mine.connection.feed(packet(0xE0))
        await eventually(mine.connection.task.done)
        assert code(await door.knock(connect("c1-9f", user="c2", clean=False))) == 5
        assert code(await door.knock(connect("c1-9f", user="c2"))) == 5
        back = await door.knock(connect("c1-9f", user="c1", clean=False))
        assert b"".join(back.written)[:4] == b"\x20\x02\x01\x00"  # its session is here

    at_the_door(story)


def test_at_the_door_for_newcomers_nobody_else_comes_in():
    async def story(door):
        assert code(await door.knock(connect("c1", user="c1"), Entrance.PAIRING)) == 5
        newcomer = await door.knock(connect("phone", user="0a" * 8), Entrance.PAIRING)
        assert code(newcomer) == 0
        assert newcomer.connection.user == User("0a" * 8, Role.NEWCOMER)

    at_the_door(story)

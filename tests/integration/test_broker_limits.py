"""What the hardened broker grants, refuses and bears, to the byte."""

import asyncio
import struct

import pytest
import websockets

from broker.bounds import Bounds
from support.hardened_broker import hardened
from support.raw_mqtt import CONNACK, PUBACK, Raw, Will, connect, packet, publish, subscribe, text

MINE = "fedmq/lab/client/c1/status"
TASK = "fedmq/lab/client/c1/task"
REPLY = "fedmq/lab/client/c1/reply"
STATUS = "fedmq/lab/coordinator/status"


def on_a_broker(story, *, bounds=None, **how):
    """Run a story with its broker's port."""

    async def main():
        async with hardened(bounds or Bounds(), **how) as (port, _):
            await story(port)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        pytest.param(connect("c1"), 0, id="no user name"),
        pytest.param(connect("c1", user="c1"), 0, id="its own"),
        pytest.param(connect("c1", user="c2"), 0, id="another's: it is that one then"),
        pytest.param(connect("operator-1f", user="operator"), 0, id="operators share theirs"),
        pytest.param(connect(""), 0, id="an observer without a name"),
        pytest.param(connect("", clean=False), 2, id="no name for a session to keep"),
        pytest.param(connect("c1", level=0x84), 1, id="a bridge"),
        pytest.param(
            packet(0x10, text("MQTT") + b"\x04\x42\0\0" + text("c1") + text("x")), 4, id="password only"
        ),
    ],
)
def test_who_is_let_in(hello, code):
    async def story(port):
        assert await (await Raw.open(port)).introduce(hello) == code

    on_a_broker(story)


def test_observers_are_for_the_loopback_interface():
    async def story(port):
        assert await (await Raw.open(port)).introduce(connect("")) == 5
        assert await (await Raw.open(port)).introduce(connect("c1")) == 0

    on_a_broker(story, observers=False)


def test_two_clients_without_a_name_are_two():
    async def story(port):
        first, second = await Raw.connected(port, ""), await Raw.connected(port, "")
        await first.ping()
        await second.ping()

    on_a_broker(story)


def test_before_connect_packets_are_short():
    async def story(port):
        raw = await Raw.open(port)
        await raw.send(b"\x10\x80\x80\x40")
        assert await raw.ends()

    on_a_broker(story)


def test_a_second_connect_ends_the_connection():
    async def story(port):
        raw = await Raw.connected(port, "c1")
        await raw.send(connect("c1"))
        assert await raw.ends()

    on_a_broker(story)


def test_more_connections_than_allowed_are_told_so():
    async def story(port):
        await Raw.connected(port, "c1")
        assert await (await Raw.open(port)).introduce(connect("c2")) == 3

    on_a_broker(story, bounds=Bounds(connections_max=1))


def test_sessions_that_are_away_are_counted():
    async def story(port):
        for client_id in ("c1", "c2"):
            await (await Raw.connected(port, client_id, clean=False)).leave()
        assert await (await Raw.open(port)).introduce(connect("c3", clean=False)) == 3
        assert await (await Raw.open(port)).introduce(connect("c2", clean=False)) == 0

    on_a_broker(story, bounds=Bounds(sessions_max=2))


def test_a_foreign_publish_is_acknowledged_and_dropped():
    async def story(port):
        observer = await Raw.connected(port, "observer-1")
        await observer.subscribe("fedmq/#")
        client = await Raw.connected(port, "c1")
        await client.publish(STATUS, b"forged", retain=True)
        await observer.publish(MINE, b"forged", retain=True)
        await client.publish(MINE, b"mine")
        assert (await observer.message()).payload == b"mine"
        late = await Raw.connected(port, "observer-2")
        await late.subscribe("fedmq/#")
        assert await late.silent()

    on_a_broker(story)


@pytest.mark.parametrize(
    ("client_id", "name"),
    [
        ("c1", "fedmq/#"),
        ("c1", "fedmq/lab/client/c2/task"),
        ("observer-1", "$share/g/fedmq/#"),
        ("observer-1", "fedmq/+x/status"),
        ("observer-1", "fedmq/#/status"),
        ("observer-1", "a/" * 8),
        ("observer-1", "x" * 256),
    ],
)
def test_a_subscription_that_is_refused(client_id, name):
    async def story(port):
        raw = await Raw.connected(port, client_id)
        assert await raw.subscribe(name) == 0x80
        await raw.ping()

    on_a_broker(story)


def test_subscriptions_are_counted():
    async def story(port):
        raw = await Raw.connected(port, "observer-1")
        assert [await raw.subscribe(name) for name in ("a", "b", "a", "c")] == [1, 1, 1, 0x80]
        await raw.exchange(packet(0xA2, b"\0\x01" + text("a")), 0xB0)
        assert await raw.subscribe("c") == 1

    on_a_broker(story, bounds=Bounds(subscriptions_max=2))


def test_after_unsubscribe_nothing_comes():
    async def story(port):
        observer = await Raw.connected(port, "observer-1")
        await observer.subscribe(MINE)
        await observer.exchange(packet(0xA2, b"\0\x01" + text(MINE)), 0xB0)
        await (await Raw.connected(port, "c1")).publish(MINE, b"x")
        assert await observer.silent()

    on_a_broker(story)


def test_overlapping_filters_bring_a_message_once_with_the_higher_qos():
    async def story(port):
        observer = await Raw.connected(port, "observer-1")
        await observer.subscribe("fedmq/#", qos=0)
        await observer.subscribe(MINE, qos=1)
        await (await Raw.connected(port, "c1")).publish(MINE, b"x")
        assert (await observer.message()).qos == 1
        assert await observer.silent()

    on_a_broker(story)


def test_qos_2_is_taken_once_and_given_as_qos_1():
    async def story(port):
        observer = await Raw.connected(port, "observer-1")
        assert await observer.subscribe(MINE, qos=2) == 1
        client = await Raw.connected(port, "c1")
        for _ in range(2):
            assert await client.exchange(publish(MINE, b"x", qos=2, ident=7), 0x50) == b"\0\x07"
        assert await client.exchange(packet(0x62, b"\0\x07"), 0x70) == b"\0\x07"
        assert (await observer.message()).qos == 1
        assert await observer.silent()
        assert await client.exchange(publish(MINE, b"y", qos=2, ident=7), 0x50) == b"\0\x07"
        assert (await observer.message()).payload == b"y"

    on_a_broker(story)


def test_an_empty_retained_message_clears_the_topic():
    async def story(port):
        client = await Raw.connected(port, "c1")
        await client.publish(MINE, b"online", retain=True)
        await client.publish(MINE, b"", retain=True)
        observer = await Raw.connected(port, "observer-1")
        await observer.subscribe("fedmq/#")
        assert await observer.silent()

    on_a_broker(story)


@pytest.mark.parametrize("bounds", [Bounds(retained_messages_max=2), Bounds(retained_bytes_max=12)])
def test_retained_messages_have_a_limit_and_room_comes_back(bounds):
    async def story(port):
        client = await Raw.connected(port, "c1")
        for federation in ("a", "b", "c"):
            await client.publish(f"fedmq/{federation}/client/c1/status", b"online", retain=True)
        await client.publish("fedmq/a/client/c1/status", b"", retain=True)
        await client.publish("fedmq/b/client/c1/status", b"again!", retain=True)
        await client.publish("fedmq/d/client/c1/status", b"online", retain=True)
        observer = await Raw.connected(port, "observer-1")
        await observer.subscribe("fedmq/#")
        heard = {
            message.topic[6]: message.payload for message in [await observer.message() for _ in range(2)]
        }
        assert heard == {"b": b"again!", "d": b"online"}
        assert await observer.silent()

    on_a_broker(story, bounds=bounds)


@pytest.mark.parametrize("bounds", [Bounds(offline_messages_max=2), Bounds(offline_bytes_max=2)])
def test_what_waits_for_a_client_that_is_away_has_a_limit(bounds):
    async def story(port):
        client = await Raw.connected(port, "c1", clean=False)
        await client.subscribe(TASK)
        await client.leave()
        coordinator = await Raw.connected(port, "coordinator")
        for payload in (b"1", b"2", b"3"):
            await coordinator.publish(TASK, payload)
        client = await Raw.open(port)
        present, _ = await client.exchange(connect("c1", clean=False), CONNACK)
        assert present == 1
        for payload in (b"1", b"2"):
            message = await client.message()
            await client.acknowledge(message)
            assert message.payload == payload
        assert await client.silent()
        await client.leave()
        client = await Raw.connected(port, "c1", clean=False)
        assert await client.silent()  # acknowledged is over

    on_a_broker(story, bounds=bounds)


def test_who_comes_without_a_session_gets_a_new_one():
    async def story(port):
        client = await Raw.connected(port, "c1", clean=False)
        await client.subscribe(TASK)
        await client.leave()
        await (await Raw.connected(port, "c1", clean=True)).leave()
        client = await Raw.open(port)
        assert await client.exchange(connect("c1", clean=False), CONNACK) == b"\0\0"
        await (await Raw.connected(port, "coordinator")).publish(TASK, b"work")
        assert await client.silent()

    on_a_broker(story)


def test_one_source_of_one_slow_subscriber_is_slowed_down():
    async def story(port):
        coordinator = await Raw.connected(port, "coordinator")
        await coordinator.subscribe(REPLY)
        client = await Raw.connected(port, "c1")
        await client.publish(REPLY, bytes(100))
        await client.send(publish(REPLY, bytes(100), qos=1, ident=2))
        assert await client.silent()
        await coordinator.acknowledge(await coordinator.message())
        assert (await client.packet())[0] == PUBACK
        await client.send(publish(REPLY, bytes(100), qos=1, ident=3))
        assert (await client.packet(2.0))[0] == PUBACK  # after crowded_s it goes on all the same

    on_a_broker(story, bounds=Bounds(crowded_bytes=150, crowded_s=0.5))


def test_who_hears_itself_does_not_wait_for_itself():
    async def story(port):
        client = await Raw.connected(port, "c1")
        await client.subscribe(MINE)
        kinds = []
        for ident in (1, 2, 3):
            await client.send(publish(MINE, bytes(100), qos=1, ident=ident))
            kinds += [(await client.packet())[0] & 0xF0 for _ in range(2)]
        assert sorted(kinds) == [0x30, 0x30, 0x30, PUBACK, PUBACK, PUBACK]

    on_a_broker(story, bounds=Bounds(crowded_bytes=150, crowded_s=60))


def test_one_slow_subscriber_of_two_slows_nobody():
    async def story(port):
        model = "fedmq/lab/model/" + "0" * 32
        slow, quick = await Raw.connected(port, "c1"), await Raw.connected(port, "c2")
        await slow.subscribe(model)
        await quick.subscribe(model)
        coordinator = await Raw.connected(port, "coordinator")
        for ident in range(1, 5):
            await coordinator.send(publish(model, bytes(100), qos=1, ident=ident))
            await quick.acknowledge(await quick.message())
            assert (await coordinator.packet(0.5))[0] == PUBACK

    on_a_broker(story, bounds=Bounds(crowded_bytes=150, crowded_s=60))


def test_polite_clients_leave_no_will():
    async def story(port):
        observer = await Raw.connected(port, "observer-1")
        await observer.subscribe(MINE)
        await (await Raw.connected(port, "c1", will=Will(MINE))).leave()
        assert await observer.silent()

    on_a_broker(story)


def test_messages_come_in_order_and_whole():
    async def story(port):
        coordinator = await Raw.connected(port, "coordinator")
        await coordinator.subscribe("fedmq/lab/client/+/up/+")
        client = await Raw.connected(port, "c1")
        topic = "fedmq/lab/client/c1/up/" + "0" * 32
        payloads = [bytes((i,)) * size for i, size in enumerate((1, 245_760, 0, 70_000, 1_000_000, 3))]
        stream = b"".join(publish(topic, payload, qos=1, ident=i + 1) for i, payload in enumerate(payloads))
        sending = asyncio.create_task(client.send(stream))
        for payload in payloads:
            message = await coordinator.message()
            assert message.payload == payload
        await sending
        idents = [struct.unpack("!H", (await client.packet())[1])[0] for _ in payloads]
        assert idents == [1, 2, 3, 4, 5, 6]

    on_a_broker(story)


def test_mqtt_over_websocket():
    async def main():
        async with hardened() as (port, ws_port):
            uri = f"ws://127.0.0.1:{ws_port}"
            async with websockets.connect(uri, subprotocols=[websockets.Subprotocol("mqtt")]) as socket:
                await socket.send(connect("coordinator") + subscribe(REPLY))
                received = b""
                while len(received) < 4 + 5:
                    received += await socket.recv()
                assert received == b"\x20\x02\x00\x00" + b"\x90\x03\x00\x01\x01"
                client = await Raw.connected(port, "c1")
                payload = bytes(range(256)) * 2048
                for ident in range(1, 5):
                    await client.publish(REPLY, payload, ident=ident)
                expected = b"".join(publish(REPLY, payload, qos=1, ident=ident) for ident in range(1, 5))
                received = b""
                while len(received) < len(expected):
                    received += await socket.recv()
                assert received == expected
                await socket.send("text")
                with pytest.raises(websockets.ConnectionClosed):
                    await asyncio.wait_for(socket.recv(), 2.0)

    asyncio.run(main())


@pytest.mark.parametrize("idle", ["never said hello", "connected", "websocket", "in the middle of a packet"])
def test_it_stops_at_once_with_idle_sockets_open(idle):
    async def main():
        async with asyncio.timeout(4.0), hardened() as (port, ws_port):
            raw = await Raw.open(ws_port if idle == "websocket" else port)
            if idle != "never said hello":
                await raw.send(connect("c1"))
            if idle == "in the middle of a packet":
                await raw.send(publish(REPLY, bytes(100))[:50])
            await asyncio.sleep(0.05)
            Raw._opened.remove(raw)  # it stays open until the broker has stopped
        assert await raw.ends()
        await raw.close()

    asyncio.run(main())

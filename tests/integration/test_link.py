"""The link against brokers that are not there, not willing, not listening, or not the only one."""

import asyncio
import contextlib
import socket
import struct
import time
from contextlib import suppress

import pytest

from broker.engine import BrokerPolicy, running
from common import limits, tls
from common.bus import Arrived, LinkDown, LinkUp
from common.errors import ConfigError, TransportError
from common.ids import ClientId, FederationId
from common.mqtt import Address, MqttLink, Will
from common.topics import Kind, Topics
from support.patience import within
from support.polling import eventually
from support.proxy import Proxy, Weather

A = ClientId("a")
LAB = Topics(FederationId("lab"))
REPLY, HEARTBEAT = LAB.client(A, Kind.REPLY), LAB.client(A, Kind.HEARTBEAT)


def soon(_low, _high):
    return 0.01


def run(test):
    async def main():
        async with asyncio.timeout(within(20)), running(BrokerPolicy(port=0)) as broker:
            await test(broker)

    asyncio.run(main())


async def until(link, kind):
    while not isinstance(event := await link.next(), kind):
        pass
    return event


def nobody():
    """Find a port where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("broker:1883", Address("broker", 1883, tls=True)),
        ("10.0.0.1:8883", Address("10.0.0.1", 8883, tls=True)),
        ("[::1]:1883", Address("::1", 1883)),
        ("localhost:1883", Address("localhost", 1883)),
        ("mqtts://127.0.0.1:1883", Address("127.0.0.1", 1883, tls=True)),
        ("mqtt://10.0.0.1:1883", Address("10.0.0.1", 1883)),
    ],
)
def test_an_address_is_host_and_port_with_tls_unless_it_is_this_machine(text, address):
    assert Address.parse(text) == address
    assert str(address) == text.rpartition("/")[2]


@pytest.mark.parametrize(
    "text", ["", "broker", "broker:", ":1883", "broker:0", "broker:65536", "broker:x", "http://broker:1"]
)
def test_anything_else_is_no_address(text):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Address.parse(text)


def test_it_says_why_it_cannot_connect_and_tries_the_next_address():
    async def test(broker):
        addresses = [
            Address("127.0.0.1", nobody()),
            Address("no-such-host.invalid", 1883),
            Address(broker.host, broker.port),
        ]
        async with MqttLink(addresses, "a", jitter=soon) as link:
            assert "refused" in (await link.next()).why
            assert "not known to DNS" in (await link.next()).why
            assert await link.next() == LinkUp(1)

    run(test)


@contextlib.asynccontextmanager
async def one_who_hangs_up(*, rudely):
    """Listen, and hang up on whatever was said first."""

    async def serve(reader, writer):
        await reader.read(1)
        if rudely:  # a reset, no end
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")  # paho drops it where TLS fails
@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize(
    ("spoken", "hint"),
    [
        (None, "if it wants TLS, say mqtts://127.0.0.1:{}"),
        (tls.pinned(bytes(32)), "if it speaks none, and nothing need be secret, say mqtt://127.0.0.1:{}"),
    ],
)
def test_where_a_broker_hangs_up_it_is_said_how_to_speak_with_or_without_tls(spoken, hint, rudely):
    async def test(_broker):
        async with one_who_hangs_up(rudely=rudely) as port:
            async with MqttLink([Address("127.0.0.1", port, tls=bool(spoken))], "a", tls=spoken) as link:
                down = await until(link, LinkDown)
            assert down.why.endswith(hint.format(port))

    run(test)


def test_where_nobody_listens_tls_is_not_spoken_of():
    async def test(_broker):
        address = Address("127.0.0.1", nobody(), tls=True)
        async with MqttLink([address], "a", tls=tls.pinned(bytes(32))) as link:
            assert (await until(link, LinkDown)).why == f"{address}: Connection refused"

    run(test)


def test_it_waits_long_before_it_asks_again_where_it_was_refused():
    async def test(broker):
        forged = Will(LAB.coordinator(Kind.COORDINATOR_STATUS), b"lost")
        async with MqttLink([Address(broker.host, broker.port)], "a", will=forged, jitter=max) as link:
            down = await link.next()
            assert "refused the connection" in down.why
            assert down.next_try_s == limits.RECONNECT_MAX_S

    run(test)


def test_it_backs_off_with_full_jitter_up_to_a_maximum():
    drawn = []

    def jitter(low, high):
        drawn.append((low, high))
        return 0.001

    async def test(_broker):
        async with MqttLink([Address("127.0.0.1", nobody())], "a", jitter=jitter) as link:
            for _ in range(9):
                await link.next()

    run(test)
    assert drawn[:7] == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 30), (0, 30)]


def test_a_refused_subscription_is_said_and_not_tried_again():
    async def test(broker):
        async with (
            Proxy(broker.host, broker.port) as proxy,
            MqttLink([Address("127.0.0.1", proxy.port)], "a", jitter=soon) as link,
        ):
            await until(link, LinkUp)
            with pytest.raises(TransportError, match="refused the subscription"):
                await link.subscribe(LAB.control)
            proxy.reset()
            assert await until(link, LinkUp) == LinkUp(2)

    run(test)


def test_a_subscription_that_is_refused_at_connect_takes_the_link_down():
    async def test(broker):
        link = MqttLink([Address(broker.host, broker.port)], "a", jitter=max)
        await link.subscribe(LAB.control)
        async with link:
            down = await link.next()
            assert "refused the subscription" in down.why
            assert down.next_try_s == limits.RECONNECT_MAX_S

    run(test)


def test_what_is_not_acknowledged_fails_when_the_link_breaks_and_is_never_sent_again():
    async def test(broker):
        async with (
            Proxy(broker.host, broker.port) as proxy,
            MqttLink([Address(broker.host, broker.port)], "coordinator") as other,
            MqttLink([Address("127.0.0.1", proxy.port)], "a", jitter=soon) as link,
        ):
            await other.subscribe(REPLY)
            await until(other, LinkUp)
            await until(link, LinkUp)
            proxy.weather = Weather(blackhole=True)
            waiting = [asyncio.create_task(link.publish(REPLY, b"lost")) for _ in range(40)]
            await eventually(lambda: proxy.bytes_up >= 16 * len(b"lost"))
            proxy.weather = Weather()
            proxy.reset()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(outcome, TransportError) for outcome in outcomes)

            assert await until(link, LinkUp) == LinkUp(2)
            await link.publish(REPLY, b"kept")
            assert (await until(other, Arrived)).payload == b"kept"

    run(test)


def test_a_full_inbox_loses_heartbeats_and_never_control():
    async def test(broker):
        address = Address(broker.host, broker.port)
        async with MqttLink([address], "coordinator") as link, MqttLink([address], "a") as client:
            await link.subscribe(REPLY, HEARTBEAT)
            await until(link, LinkUp)
            await until(client, LinkUp)
            for number in range(limits.INBOX_EVENTS_MAX + 500):
                await client.publish(HEARTBEAT, b"%d" % number, qos=0)
            for number in range(50):
                await client.publish(REPLY, b"%d" % number)
            await eventually(lambda: link.dropped >= 500)

            replies = []
            while len(replies) < 50:
                arrived = await until(link, Arrived)
                if arrived.topic == REPLY:
                    replies.append(int(arrived.payload))
            assert replies == list(range(50))

    run(test)


def test_control_that_fills_the_inbox_waits_in_the_broker():
    async def test(broker):
        address, count = Address(broker.host, broker.port), limits.INBOX_EVENTS_MAX + 500
        async with MqttLink([address], "coordinator") as link, MqttLink([address], "a") as client:
            await link.subscribe(REPLY)
            await until(link, LinkUp)
            await until(client, LinkUp)
            await asyncio.gather(*(client.publish(REPLY, b"%d" % number) for number in range(count)))
            assert link._inbox.qsize() <= limits.INBOX_EVENTS_MAX + 1

            heard = [int((await until(link, Arrived)).payload) for _ in range(count)]
            assert heard == list(range(count))
            assert link.dropped == 0

    run(test)


def test_a_bug_in_the_link_ends_the_service():
    def broken(_low, _high):
        raise ZeroDivisionError

    async def test(_broker):
        async with MqttLink([Address("127.0.0.1", nobody())], "a", jitter=broken) as link:
            await link.next()

    with pytest.raises(ZeroDivisionError):
        run(test)


def test_a_link_that_is_closed_while_it_connects_ends_soon():
    async def test(_broker):
        with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and never answers
            start = time.monotonic()
            async with MqttLink([Address(*silent.getsockname())], "a") as link:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await link.next()
            assert time.monotonic() - start < 1

    run(test)


def test_a_packet_that_cannot_be_read_ends_the_connection_and_not_the_link():
    async def test(_broker):
        async def broken(reader, writer):
            await reader.read(100)
            writer.write(b"\x20\x02\x00\x00" + b"\x30\x01\x00")  # CONNACK, then a PUBLISH without a topic
            await reader.read()
            writer.close()

        server = await asyncio.start_server(broken, "127.0.0.1", 0)
        async with server, MqttLink([Address(*server.sockets[0].getsockname())], "a", jitter=max) as link:
            assert await link.next() == LinkUp(1)
            down = await until(link, LinkDown)
            assert "not MQTT" in down.why

    run(test)

"""The proxy makes each fault that it says it makes; our link and our transfers come through all of them."""

import asyncio
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.engine import BrokerPolicy, running
from common import chunks, limits, topics
from common.ids import COORDINATOR
from support import raw_mqtt
from support.mqtt_packets import Kind, Splitter, kind_of, marked_dup
from support.patience import within
from support.polling import eventually
from support.post import LAB, post
from support.proxy import Proxy, Weather
from support.raw_mqtt import Raw

TOPIC = LAB.client("a", topics.Kind.REPLY)
MODEL = random.Random(11).randbytes(2_500_000)  # eleven chunks
MANIFEST = chunks.describe(MODEL, codec="f32", schema="0" * 64)


@pytest.fixture
def impatient(monkeypatch):
    """Give up after a second what takes a minute otherwise."""
    for name, seconds in (
        ("KEEPALIVE_S", 1),
        ("ACKNOWLEDGE_S", 1.0),
        ("CONNECT_S", 0.5),
        ("REPAIR_FIRST_S", 0.5),
    ):
        monkeypatch.setattr(limits, name, seconds)


def run(test, weather=None):
    """Run a test that is given a proxy before a broker of its own."""

    async def main():
        async with (
            asyncio.timeout(within(40)),
            running(BrokerPolicy(port=0)) as broker,
            Proxy(broker.host, broker.port, weather, seed=1) as proxy,
        ):
            try:
                await test(proxy)
            finally:
                await Raw.close_all()

    asyncio.run(main())


async def pair(proxy):
    """Connect one who publishes and one who listens."""
    speaker = await Raw.connected(proxy.port, "a", user="a")
    listener = await Raw.connected(proxy.port, COORDINATOR, user=COORDINATOR)
    assert await listener.subscribe(TOPIC) != 0x80
    return speaker, listener


# --- packets --------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=5), st.data())
def test_a_stream_is_cut_into_the_same_packets_however_it_comes(payloads, data):
    packets = [raw_mqtt.publish("t", payload, qos=1) for payload in payloads]
    stream = b"".join(packets)
    splitter, found = Splitter(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found == packets
    assert splitter.rest() == b""


def test_what_is_not_mqtt_comes_out_as_it_went_in():
    splitter = Splitter()
    noise = b"\x10\xff\xff\xff\xff\xff and so on"
    assert (
        b"".join(splitter.feed(noise[:3]) + splitter.feed(noise[3:]) + splitter.feed(b"more"))
        == noise + b"more"
    )


def test_dup_is_for_what_is_acknowledged():
    once, never = raw_mqtt.publish("t", b"", qos=1), raw_mqtt.publish("t", b"")
    assert marked_dup(once) == bytes((once[0] | 8,)) + once[1:]
    assert marked_dup(never) == never
    assert kind_of(once) == Kind.PUBLISH


# --- each fault is made ---------------------------------------------------------------------------


def test_the_nth_puback_is_lost_and_no_other():
    async def test(proxy):
        speaker, listener = await pair(proxy)
        proxy.down.drop(Kind.PUBACK, 2)
        await speaker.publish(TOPIC, b"1", ident=1)
        await speaker.send(raw_mqtt.publish(TOPIC, b"2", qos=1, ident=2))
        assert [(await listener.message()).payload for _ in range(2)] == [b"1", b"2"]
        assert (
            await speaker.exchange(raw_mqtt.publish(TOPIC, b"3", qos=1, ident=3), raw_mqtt.PUBACK) == b"\0\3"
        )
        assert proxy.down.made == {"drop": 1}

    run(test)


def test_a_suback_is_lost():
    async def test(proxy):
        raw = await Raw.connected(proxy.port, "observer-1")
        proxy.down.drop(Kind.SUBACK)
        await raw.send(raw_mqtt.subscribe(TOPIC, ident=1))
        assert (await raw.exchange(raw_mqtt.subscribe(TOPIC, ident=2), raw_mqtt.SUBACK))[:2] == b"\0\2"

    run(test)


def test_a_connack_is_lost():
    async def test(proxy):
        proxy.down.drop(Kind.CONNACK)
        raw = await Raw.open(proxy.port)
        await raw.send(raw_mqtt.connect("observer-1"))
        await raw.ping()  # the broker took it all the same

    run(test)


def test_a_pingresp_waits_until_it_is_released():
    async def test(proxy):
        raw = await Raw.connected(proxy.port, "observer-1")
        proxy.down.hold(Kind.PINGRESP)
        await raw.send(raw_mqtt.packet(0xC0))
        await eventually(lambda: proxy.down.made["hold"] == 1)
        assert await raw.subscribe(TOPIC) != 0x80  # the rest goes through
        proxy.down.release()
        assert await raw.packet() == (raw_mqtt.PINGRESP, b"")
        await raw.ping()

    run(test)


@pytest.mark.parametrize("dup", [False, True])
def test_a_publish_arrives_twice(dup):
    async def test(proxy):
        speaker, listener = await pair(proxy)
        proxy.down.double(2, dup=dup)
        for payload in (b"1", b"2", b"3"):
            await speaker.publish(TOPIC, payload)
        heard = [await listener.packet() for _ in range(4)]
        assert [body[-1:] for _, body in heard] == [b"1", b"2", b"2", b"3"]
        assert [bool(first & 8) for first, _ in heard] == [False, False, dup, False]
        assert heard[1][1] == heard[2][1]  # the packet id, too

    run(test)


def test_two_publishes_change_places():
    async def test(proxy):
        speaker, listener = await pair(proxy)
        proxy.down.swap(2)
        for payload in (b"1", b"2", b"3", b"4"):
            await speaker.publish(TOPIC, payload)
        assert [(await listener.message()).payload for _ in range(4)] == [b"1", b"3", b"2", b"4"]

    run(test)


def test_an_old_publish_comes_again():
    async def test(proxy):
        speaker, listener = await pair(proxy)
        await speaker.publish(TOPIC, b"old")
        await listener.message()
        await listener.close()  # it may come on another connection, too
        listener = await Raw.connected(proxy.port, COORDINATOR, user=COORDINATOR)
        await listener.subscribe(TOPIC)
        proxy.down.replay()
        await speaker.publish(TOPIC, b"new")
        assert [(await listener.message()).payload for _ in range(2)] == [b"new", b"old"]

    run(test)


def test_a_connection_is_cut_in_the_middle_of_a_packet():
    async def test(proxy):
        speaker, listener = await pair(proxy)
        await speaker.close()
        speaker = await Raw.connected(proxy._target[1], "a", user="a")
        proxy.down.cut(2)
        for number in (1, 2):
            await speaker.publish(TOPIC, bytes(1000), ident=number)
        whole = len(raw_mqtt.publish(TOPIC, bytes(1000), qos=1))
        assert await bytes_until_the_end(listener) == whole + whole // 2

    run(test)


async def bytes_until_the_end(raw):
    count = 0
    async with asyncio.timeout(within(5)):
        with suppress(ConnectionError):
            while data := await raw.reader.read(2**16):
                count += len(data)
    return count


def test_a_half_open_connection_passes_nothing_and_a_new_one_does():
    async def test(proxy):
        speaker, listener = await pair(proxy)
        proxy.half_open()
        await speaker.send(raw_mqtt.publish(TOPIC, b"lost", qos=1))
        await speaker.close()  # the broker does not hear of it
        assert await listener.silent()
        newcomer = await Raw.connected(proxy.port, "observer-3")
        await newcomer.ping()
        assert await listener.silent()

    run(test)


def test_a_partition_holds_everything_up_and_loses_nothing():
    async def test(proxy):
        speaker, listener = await pair(proxy)
        proxy.partition()
        await speaker.send(raw_mqtt.publish(TOPIC, b"late", qos=1))
        newcomer = await Raw.open(proxy.port)
        await newcomer.send(raw_mqtt.connect("observer-3"))
        assert await listener.silent()
        assert await newcomer.silent()
        proxy.heal()
        assert (await listener.message()).payload == b"late"
        assert await newcomer.packet() == (raw_mqtt.CONNACK, b"\0\0")

    run(test)


def test_a_connection_ends_in_order():
    async def test(proxy):
        raw = await Raw.connected(proxy.port, "observer-1")
        proxy.finish()
        async with asyncio.timeout(within(2)):
            assert await raw.reader.read() == b""  # a reset would raise

    run(test)


def test_a_connection_is_reset():
    async def test(proxy):
        raw = await Raw.connected(proxy.port, "observer-1")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(within(2)):
                await raw.reader.read()

    run(test)


def test_single_bytes_make_whole_packets():
    async def test(proxy):
        speaker, listener = await pair(proxy)
        payload = bytes(range(200))
        await speaker.publish(TOPIC, payload)
        assert (await listener.message()).payload == payload

    run(test, Weather(slice_bytes=1))


def test_where_there_is_no_broker_a_connection_is_reset():
    async def main():
        async with Proxy("127.0.0.1", 1) as proxy:
            raw = await Raw.open(proxy.port)
            assert await raw.ends()
            await Raw.close_all()

    asyncio.run(main())


def test_fine_weather_ends_everything():
    async def test(proxy):
        speaker, listener = await pair(proxy)
        proxy.weather = Weather(blackhole=True)
        proxy.up.drop(Kind.PUBLISH)
        proxy.down.hold(Kind.PUBACK)
        proxy.partition()
        proxy.clear_up()
        await speaker.publish(TOPIC, b"fine")
        assert (await listener.message()).payload == b"fine"

    run(test)


# --- and survived ---------------------------------------------------------------------------------


def survives(tmp_path, plan, *, seen, download=True):
    """Move a blob either way while `plan` befalls the client's link; the fault must have been made."""

    async def test(proxy):
        async with (
            post(COORDINATOR, proxy._target[1], tmp_path) as (coordinator, theirs),
            post("a", proxy.port, tmp_path) as (client, ours),
        ):
            plan(proxy)
            if download:
                theirs.put(MODEL)
                coordinator.courier.offer(MANIFEST, expected=["a"])
                await client.fetch(COORDINATOR, MANIFEST, LAB.model(MANIFEST.digest))
            else:
                ours.put(MODEL)
                client.start(client.offer(MANIFEST))
                await eventually(lambda: theirs.has(MANIFEST.digest))
            assert ours.read(MANIFEST.digest) == theirs.read(MANIFEST.digest) == MODEL
            await eventually(lambda: seen(proxy))
            proxy.clear_up()

    run(test)


FAULTS = {
    "a lost PUBACK": lambda proxy: proxy.down.drop(Kind.PUBACK),
    "a lost PUBLISH": lambda proxy: (proxy.down.drop(Kind.PUBLISH, 2), proxy.up.drop(Kind.PUBLISH, 2)),
    "a PUBLISH twice": lambda proxy: (proxy.down.double(2, dup=False), proxy.up.double(2, dup=False)),
    "a PUBLISH twice, marked": lambda proxy: (proxy.down.double(2), proxy.up.double(2)),
    "changed places": lambda proxy: (proxy.down.swap(2), proxy.up.swap(2)),
    "an old PUBLISH": lambda proxy: (proxy.down.replay(2), proxy.up.replay(2)),
    "a cut": lambda proxy: (proxy.down.cut(5), proxy.up.cut(5)),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("download", [True, False], ids=["download", "upload"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_transfer_survives(fault, download, tmp_path):
    survives(
        tmp_path,
        FAULTS[fault],
        seen=lambda proxy: proxy.up.made.total() + proxy.down.made.total() > 0,
        download=download,
    )


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", [Kind.CONNACK, Kind.SUBACK])
def test_a_transfer_survives_a_handshake_that_stays_without_its_end(kind, tmp_path):
    def plan(proxy):
        proxy.down.drop(kind)
        proxy.down.cut(4)

    survives(tmp_path, plan, seen=lambda proxy: proxy.down.made["drop"] == 1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "befall", [Proxy.finish, Proxy.half_open, Proxy.reset], ids=["FIN", "half-open", "RST"]
)
@pytest.mark.parametrize("download", [True, False], ids=["download", "upload"])
def test_a_transfer_survives_a_connection_that_ends(befall, download, tmp_path):
    survives(tmp_path, befall, seen=lambda proxy: proxy.connections >= 2, download=download)


@pytest.mark.usefixtures("impatient")
def test_a_transfer_survives_a_partition(tmp_path):
    def plan(proxy):
        proxy.partition()
        asyncio.get_running_loop().call_later(1.5, proxy.heal)

    survives(tmp_path, plan, seen=lambda proxy: proxy.connections >= 1)


@pytest.mark.usefixtures("impatient")
def test_a_link_whose_pings_stay_unanswered_is_made_again(tmp_path):
    async def test(proxy):
        async with post("a", proxy.port, tmp_path) as (client, _store):
            proxy.down.hold(Kind.PINGRESP)
            await eventually(lambda: client.link.epoch >= 2)
            proxy.clear_up()

    run(test)


def test_a_transfer_survives_slow_slices(tmp_path):
    def plan(proxy):
        proxy.weather = Weather(latency_s=0.001, jitter_s=0.001, slice_bytes=7000)

    survives(tmp_path, plan, seen=lambda proxy: proxy.connections == 1)

"""Blobs over real brokers: one broadcast serves all, and broken links cost little."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from broker.engine import BrokerPolicy, running
from common import chunks, limits
from common.blobs import BlobStore
from common.ids import COORDINATOR
from support import post_process
from support.patience import within
from support.polling import eventually
from support.post import LAB, post
from support.proxy import Proxy, Weather
from support.require import need

MODEL = random.Random(7).randbytes(6_650_000)
MANIFEST = chunks.describe(MODEL, codec="f32", schema="0" * 64)
IN_FLIGHT = limits.WINDOW_CHUNKS_MAX * limits.CHUNK_BYTES


@pytest.fixture(params=["amqtt", "mosquitto"])
def engine(request):
    if request.param == "mosquitto":
        need("mosquitto")
    return request.param


def run(engine, test):
    async def main():
        async with asyncio.timeout(within(60)), running(BrokerPolicy(engine=engine, port=0)) as broker:
            await test(broker)

    asyncio.run(main())


def test_fifty_receivers_share_one_broadcast(engine, tmp_path):
    async def test(broker):
        names = [f"client-{number}" for number in range(50)]
        async with AsyncExitStack() as stack:
            coordinator, store = await stack.enter_async_context(post(COORDINATOR, broker.port, tmp_path))
            clients = [await stack.enter_async_context(post(name, broker.port, tmp_path)) for name in names]
            coordinator.courier.offer(MANIFEST, expected=names)
            store.put(MODEL)
            frames = LAB.model(MANIFEST.digest)
            await asyncio.gather(*(client.fetch(COORDINATOR, MANIFEST, frames) for client, _store in clients))

            assert all(store.read(MANIFEST.digest) == MODEL for _client, store in clients)
            assert coordinator.courier.bytes_out <= 1.1 * len(MODEL)

    run(engine, test)


def test_a_download_survives_a_link_that_breaks_every_two_megabytes(engine, tmp_path):
    async def test(broker):
        async with (
            Proxy(broker.host, broker.port, Weather(reset_after=2_000_000)) as proxy,
            post(COORDINATOR, broker.port, tmp_path) as (coordinator, store),
            post("a", proxy.port, tmp_path) as (client, got),
        ):
            store.put(MODEL)
            coordinator.courier.offer(MANIFEST, expected=["a"])
            await client.fetch(COORDINATOR, MANIFEST, LAB.model(MANIFEST.digest))

            assert got.read(MANIFEST.digest) == MODEL
            assert proxy.connections >= 4
            assert proxy.bytes_down <= 1.3 * len(MODEL)

    run(engine, test)


def test_an_upload_survives_a_link_that_breaks_every_two_megabytes(engine, tmp_path):
    async def test(broker):
        async with (
            Proxy(broker.host, broker.port, Weather(reset_after=2_000_000)) as proxy,
            post(COORDINATOR, broker.port, tmp_path) as (_coordinator, got),
            post("a", proxy.port, tmp_path) as (client, store),
        ):
            store.put(MODEL)
            await client.offer(MANIFEST)
            await eventually(lambda: got.has(MANIFEST.digest))

            assert got.read(MANIFEST.digest) == MODEL
            assert proxy.connections >= 4
            assert proxy.bytes_up <= 1.3 * len(MODEL)

    run(engine, test)


def test_a_receiver_that_is_killed_is_sent_only_what_it_had_not(engine, tmp_path):
    async def test(broker):
        async with (
            Proxy(broker.host, broker.port, Weather(bytes_per_s=10_000_000)) as proxy,
            post(COORDINATOR, broker.port, tmp_path) as (coordinator, store),
        ):
            store.put(MODEL)
            coordinator.courier.offer(MANIFEST, expected=["a"])
            with post_process.running("fetch", "a", proxy.port, tmp_path, MANIFEST) as process:
                await eventually(lambda: proxy.bytes_down >= 0.6 * len(MODEL))
                process.kill()
                process.wait()
            async with post("a", broker.port, tmp_path) as (client, got):
                await client.fetch(COORDINATOR, MANIFEST)

                assert got.read(MANIFEST.digest) == MODEL
                assert client.courier.bytes_in <= 0.4 * len(MODEL) + IN_FLIGHT

    run(engine, test)


def test_a_sender_that_is_killed_sends_only_what_was_not_received(engine, tmp_path):
    async def test(broker):
        async with (
            Proxy(broker.host, broker.port, Weather(bytes_per_s=10_000_000)) as proxy,
            post(COORDINATOR, broker.port, tmp_path) as (coordinator, got),
        ):
            BlobStore(tmp_path / "a", 1 << 30).put(MODEL)
            with post_process.running("offer", "a", proxy.port, tmp_path, MANIFEST) as process:
                await eventually(lambda: coordinator.courier.bytes_in >= 0.6 * len(MODEL))
                process.kill()
                process.wait()
            async with post("a", broker.port, tmp_path) as (client, _store):
                await client.offer(MANIFEST)
                await eventually(lambda: got.has(MANIFEST.digest))

                assert got.read(MANIFEST.digest) == MODEL
                assert client.courier.bytes_out <= 0.4 * len(MODEL) + IN_FLIGHT

    run(engine, test)

"""Blobs over real brokers: one broadcast serves all, and broken links cost little."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from broker.engine import BrokerPolicy, running
from common import chunks
from common.ids import COORDINATOR
from support.patience import within
from support.polling import eventually
from support.post import LAB, post
from support.proxy import Proxy, Weather
from support.require import need

MODEL = random.Random(7).randbytes(6_650_000)
MANIFEST = chunks.describe(MODEL, codec="f32", schema="0" * 64)


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


def test_eight_receivers_share_one_broadcast(engine, tmp_path):
    async def test(broker):
        names = [f"client-{number}" for number in range(8)]
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


def test_a_restarted_receiver_goes_on_where_it_was(engine, tmp_path):
    async def test(broker):
        async with post(COORDINATOR, broker.port, tmp_path) as (coordinator, store):
            store.put(MODEL)
            coordinator.courier.offer(MANIFEST, expected=["a"])
            async with (
                Proxy(broker.host, broker.port, Weather(bytes_per_s=20_000_000)) as proxy,
                post("a", proxy.port, tmp_path) as (client, _store),
            ):
                fetching = asyncio.create_task(client.fetch(COORDINATOR, MANIFEST))
                await eventually(lambda: client.courier.bytes_in >= 0.5 * len(MODEL))
                fetching.cancel()
                await asyncio.wait([fetching])
                before = client.courier.bytes_in
            async with post("a", broker.port, tmp_path) as (client, got):
                await client.fetch(COORDINATOR, MANIFEST)

                assert got.read(MANIFEST.digest) == MODEL
                assert client.courier.bytes_in == len(MODEL) - before

    run(engine, test)

"""The courier over a bus in memory: sharing, cancelling, failing, closing."""

import asyncio
import random
from contextlib import asynccontextmanager

import msgspec
import pytest

from common import chunks, limits, topics
from common.blobs import BlobStore
from common.bus import Arrived, LinkDown, LinkUp
from common.courier import Courier, Lanes
from common.errors import StorageFullError, TransferError, TransportError
from common.ids import ClientId, FederationId
from common.messages import Reason, Want
from common.topics import Topics
from support.memory_bus import MemoryBroker, MemoryBus
from support.polling import eventually

LAB = Topics(FederationId("lab"))
A, B, COORDINATOR = ClientId("a"), ClientId("b"), ClientId("coordinator")
BLOB = random.Random(3).randbytes(20 * 1024 + 5)
MANIFEST = chunks.describe(BLOB, codec="f32", schema="0" * 64, chunk=1024)
FRAMES = LAB.model(MANIFEST.digest)


class Side:
    """A bus, a store and a courier, and somebody who listens."""

    def __init__(self, bus, store, courier):
        self.bus, self.store, self.courier = bus, store, courier
        self.wants = []
        self.up = asyncio.Event()

    async def listen(self):
        while True:
            match await self.bus.next():
                case Arrived(topic, payload):
                    self.courier.arrived(topics.parse(topic), payload)
                case LinkUp():
                    self.courier.link_up()
                    self.up.set()
                case LinkDown():
                    self.courier.link_down()

    def asking(self, peer, me):
        """Make a `want` that reaches a peer's courier at once."""

        async def want(message):
            self.wants.append(message)
            if not self.bus.is_up:
                raise TransportError("down")
            assert peer.courier.wanted(me, message) is None

        return want


def recorded(client, coordinator):
    """Make a `want` whose answer does not matter."""

    async def want(message):
        client.wants.append(message)
        coordinator.courier.wanted(A, message)

    return want


@asynccontextmanager
async def side(broker, name, directory, bytes_max=1 << 20):
    store = BlobStore(directory / name, bytes_max)
    lanes = Lanes.of_coordinator(LAB) if name == COORDINATOR else Lanes.of_client(LAB, name)
    async with MemoryBus(broker, name) as bus, Courier(bus, store, lanes) as courier:
        await bus.subscribe(LAB.all_up() if name == COORDINATOR else LAB.all_down(name))
        one = Side(bus, store, courier)
        listening = asyncio.create_task(one.listen())
        await one.up.wait()
        try:
            yield one
        finally:
            listening.cancel()


@pytest.fixture
def run(tmp_path):
    """Run a test between a coordinator that offers the blob, and a client."""

    def run_it(test, bytes_max=1 << 20):
        async def main():
            broker = MemoryBroker()
            async with (
                asyncio.timeout(10),
                side(broker, COORDINATOR, tmp_path) as coordinator,
                side(broker, A, tmp_path, bytes_max) as client,
            ):
                coordinator.store.put(BLOB)
                await test(coordinator, client)

        asyncio.run(main())

    return run_it


def test_a_blob_is_fetched_once_and_then_there(run):
    async def test(coordinator, client):
        coordinator.courier.offer(MANIFEST, expected=[A])
        want = client.asking(coordinator, A)
        assert await client.courier.fetch(MANIFEST, want=want, frames=FRAMES) == MANIFEST.digest
        assert await client.courier.fetch(MANIFEST, want=want, frames=FRAMES) == MANIFEST.digest

        assert client.store.read(MANIFEST.digest) == BLOB
        assert client.wants == [Want(digest=MANIFEST.digest)]
        assert client.courier.bytes_in == coordinator.courier.bytes_out == len(BLOB)
        assert FRAMES not in client.bus.filters

    run(test)


def test_an_upload_goes_the_other_way(run):
    async def test(coordinator, client):
        client.store.put(BLOB[::-1])
        manifest = chunks.describe(BLOB[::-1], codec="f32", schema="0" * 64, chunk=1024)
        client.courier.offer(manifest, expected=[COORDINATOR])
        await coordinator.courier.fetch(manifest, want=coordinator.asking(client, COORDINATOR))

        assert coordinator.store.read(manifest.digest) == BLOB[::-1]

    run(test)


def test_several_callers_share_one_transfer(run):
    async def test(coordinator, client):
        coordinator.courier.offer(MANIFEST, expected=[A])
        want = client.asking(coordinator, A)
        fetches = [client.courier.fetch(MANIFEST, want=want) for _ in range(3)]
        assert await asyncio.gather(*fetches) == [MANIFEST.digest] * 3

        assert coordinator.courier.bytes_out < 2 * len(BLOB)

    run(test)


def test_one_caller_that_leaves_does_not_end_it_for_the_others(run):
    async def test(coordinator, client):
        want = client.asking(coordinator, A)
        coordinator.courier.offer(MANIFEST, expected=[A, B])  # B never asks
        leaving = asyncio.create_task(client.courier.fetch(MANIFEST, want=want, frames=FRAMES))
        staying = asyncio.create_task(client.courier.fetch(MANIFEST, want=want, frames=FRAMES))
        await eventually(lambda: len(client.wants) == 2)
        leaving.cancel()
        assert await staying == MANIFEST.digest
        assert leaving.cancelled()

    run(test)


def test_a_cancelled_fetch_goes_on_from_its_part_and_listens_no_more_meanwhile(run):
    async def test(coordinator, client):
        want = recorded(client, coordinator)
        fetching = asyncio.create_task(client.courier.fetch(MANIFEST, want=want, frames=FRAMES))
        await eventually(lambda: client.wants)  # nothing is on offer: it waits
        for index in range(3):
            framed = chunks.frame(MANIFEST.digest, index, MANIFEST.chunks, chunks.cut(BLOB, MANIFEST, index))
            client.courier.arrived(topics.parse(FRAMES), framed)
        fetching.cancel()
        await asyncio.wait([fetching])
        assert FRAMES not in client.bus.filters

        coordinator.courier.offer(MANIFEST, expected=[A])
        client.wants.clear()
        await client.courier.fetch(MANIFEST, want=want)
        assert client.wants == [Want(digest=MANIFEST.digest, have=[(0, 2)])]

    run(test)


def test_a_fetch_that_is_cancelled_as_its_last_chunk_comes_leaves_a_whole_part(run):
    async def test(coordinator, client):
        fetching = asyncio.create_task(client.courier.fetch(MANIFEST, want=recorded(client, coordinator)))
        await eventually(lambda: client.wants)
        fetching.cancel()  # it hears of that after the chunks have come
        for index in range(MANIFEST.chunks):
            framed = chunks.frame(MANIFEST.digest, index, MANIFEST.chunks, chunks.cut(BLOB, MANIFEST, index))
            client.courier.arrived(topics.parse(FRAMES), framed)
        await asyncio.wait([fetching])
        assert not client.store.has(MANIFEST.digest)
        client.wants.clear()
        await client.courier.fetch(MANIFEST, want=recorded(client, coordinator))
        assert client.wants == []
        assert client.store.read(MANIFEST.digest) == BLOB

    run(test)


def test_one_that_does_not_answer_is_not_the_only_one_to_be_asked(run, monkeypatch):
    monkeypatch.setattr(limits, "REPAIR_FIRST_S", 0.01)
    silence = []

    async def unheard(message):
        silence.append(message)

    async def test(coordinator, client):
        honest = asyncio.create_task(client.courier.fetch(MANIFEST, want=recorded(client, coordinator)))
        await eventually(lambda: client.wants)  # nothing is on offer yet
        silent = asyncio.create_task(client.courier.fetch(MANIFEST, want=unheard))
        await eventually(lambda: silence)
        coordinator.courier.offer(MANIFEST, expected=[A])
        assert await asyncio.gather(honest, silent) == [MANIFEST.digest] * 2

    run(test)


def test_who_is_asked_again_sends_the_rest(run):
    async def test(coordinator, client):
        fetching = asyncio.create_task(client.courier.fetch(MANIFEST, want=recorded(client, coordinator)))
        await eventually(lambda: client.wants)  # nothing is on offer: it waits
        coordinator.courier.offer(MANIFEST, expected=[A])
        client.courier.ask_again(MANIFEST.digest)
        client.courier.ask_again("0" * 64)
        await fetching
        assert len(client.wants) == 2

    run(test)


def test_a_fetch_goes_on_when_the_link_is_back(run):
    async def test(coordinator, client):
        coordinator.courier.offer(MANIFEST, expected=[A])
        client.bus.break_link()
        want = client.asking(coordinator, A)
        fetching = asyncio.create_task(client.courier.fetch(MANIFEST, want=want))
        await eventually(lambda: client.wants)
        client.bus.restore()
        assert await fetching == MANIFEST.digest

    run(test)


def test_a_sender_goes_on_when_its_link_is_back(run):
    async def test(coordinator, client):
        coordinator.courier.offer(MANIFEST, expected=[A])
        want = client.asking(coordinator, A)
        coordinator.bus.break_link()
        fetching = asyncio.create_task(client.courier.fetch(MANIFEST, want=want))
        await eventually(lambda: client.wants)
        coordinator.bus.restore()
        await eventually(lambda: client.courier.bytes_in > 15 * 1024)
        again = asyncio.create_task(client.courier.fetch(MANIFEST, want=want))  # as after a new offer
        assert await fetching == await again == MANIFEST.digest

    run(test)


def test_what_is_not_on_offer_is_refused_and_a_refusal_ends_the_fetch(run):
    async def test(coordinator, client):
        assert coordinator.courier.wanted(A, Want(digest=MANIFEST.digest)) is Reason.TRANSFER_FAILED
        fetching = asyncio.create_task(client.courier.fetch(MANIFEST, want=recorded(client, coordinator)))
        await eventually(lambda: client.wants)
        client.courier.unavailable(MANIFEST.digest, Reason.TRANSFER_FAILED)
        with pytest.raises(TransferError, match="not to be had"):
            await fetching

    run(test)


def test_what_is_withdrawn_is_sent_no_more(run):
    async def test(coordinator, client):
        coordinator.courier.offer(MANIFEST, expected=[A])
        assert coordinator.courier.wanted(A, Want(digest=MANIFEST.digest)) is None
        coordinator.courier.withdraw(MANIFEST.digest)
        assert coordinator.courier.wanted(A, Want(digest=MANIFEST.digest)) is Reason.TRANSFER_FAILED
        for _ in range(50):
            await asyncio.sleep(0)
        assert coordinator.courier.bytes_out <= limits.WINDOW_CHUNKS_START * 1024

    run(test)


def test_one_that_wants_too_often_is_given_up(run):
    async def test(coordinator, _client):
        coordinator.courier.offer(MANIFEST, expected=[A])
        answers = []
        while len(answers) < 20 and Reason.TRANSFER_FAILED not in answers:
            before = coordinator.courier.bytes_out
            answers.append(coordinator.courier.wanted(A, Want(digest=MANIFEST.digest)))
            if answers[-1] is None:
                await eventually(lambda seen=before: coordinator.courier.bytes_out >= seen + len(BLOB))
        assert answers[-1] is Reason.TRANSFER_FAILED
        assert len(answers) == limits.REPAIR_BUDGET + 3

    run(test)


def test_a_blob_that_is_offered_again_waits_for_those_who_are_expected_then(run):
    async def test(coordinator, client):
        coordinator.courier.offer(MANIFEST, expected=[B])
        coordinator.courier.finished(B, MANIFEST.digest)
        coordinator.courier.offer(MANIFEST, expected=[A, B])
        fetching = asyncio.create_task(client.courier.fetch(MANIFEST, want=client.asking(coordinator, A)))
        await eventually(lambda: client.wants)
        assert coordinator.courier.bytes_out == 0
        coordinator.courier.gone(B)
        assert await fetching == MANIFEST.digest

    run(test)


def test_two_manifests_of_one_blob_do_not_mix(run):
    async def test(coordinator, client):
        want = recorded(client, coordinator)
        forged = msgspec.structs.replace(MANIFEST, hashes=bytes(len(MANIFEST.hashes)))
        fetching = asyncio.create_task(client.courier.fetch(forged, want=want))
        await eventually(lambda: client.wants)
        with pytest.raises(TransferError, match="another manifest"):
            await client.courier.fetch(MANIFEST, want=want)
        fetching.cancel()
        await asyncio.wait([fetching])

    run(test)


def test_a_full_store_ends_the_fetch(run):
    async def test(coordinator, client):
        with pytest.raises(StorageFullError):
            await client.courier.fetch(MANIFEST, want=client.asking(coordinator, A))

    run(test, bytes_max=10_000)


def test_a_manifest_that_cannot_be_is_refused(run):
    async def test(coordinator, client):
        with pytest.raises(TransferError, match="refused: malformed"):
            await client.courier.fetch(
                msgspec.structs.replace(MANIFEST, hashes=b""), want=client.asking(coordinator, A)
            )

    run(test)


def test_fetches_beyond_the_limit_wait_for_their_turn(run, monkeypatch):
    monkeypatch.setattr(limits, "OPEN_TRANSFERS_MAX", 1)

    async def test(coordinator, client):
        waiting = Courier(client.bus, client.store, Lanes.of_client(LAB, A))  # made under the smaller limit
        client.courier = waiting
        async with waiting:
            other = chunks.describe(BLOB[::-1], codec="f32", schema="0" * 64, chunk=1024)
            first = asyncio.create_task(waiting.fetch(other, want=recorded(client, coordinator)))
            await eventually(lambda: client.wants)
            coordinator.courier.offer(MANIFEST, expected=[A])
            want = client.asking(coordinator, A)
            turns = [asyncio.create_task(waiting.fetch(MANIFEST, want=want)) for _ in range(2)]
            for _ in range(20):
                await asyncio.sleep(0)
            assert [one.digest for one in client.wants] == [other.digest]
            first.cancel()
            assert await asyncio.gather(*turns) == [MANIFEST.digest] * 2
            assert await waiting.fetch(MANIFEST, want=want) == MANIFEST.digest

    run(test)


def test_chunks_that_nobody_asked_for_or_can_read_are_dropped(run):
    async def test(coordinator, client):
        client.courier.arrived(topics.parse(FRAMES), b"anything")
        fetching = asyncio.create_task(client.courier.fetch(MANIFEST, want=recorded(client, coordinator)))
        await eventually(lambda: client.wants)
        client.courier.arrived(topics.parse(FRAMES), b"anything")
        assert client.courier.bytes_in == 0
        fetching.cancel()
        await asyncio.wait([fetching])

    run(test)


def test_a_courier_that_closes_leaves_nobody_waiting(tmp_path):
    async def main():
        async with asyncio.timeout(10):
            broker = MemoryBroker()
            async with (
                side(broker, COORDINATOR, tmp_path) as coordinator,
                side(broker, A, tmp_path) as client,
            ):
                fetching = asyncio.create_task(
                    client.courier.fetch(MANIFEST, want=recorded(client, coordinator))
                )
                await eventually(lambda: client.wants)
            with pytest.raises(TransferError, match="closed"):
                await fetching

    asyncio.run(main())


def test_an_error_of_ours_in_a_task_ends_the_service(tmp_path):
    async def broken(_want):
        raise ZeroDivisionError

    async def main():
        async with side(MemoryBroker(), A, tmp_path) as client:
            await client.courier.fetch(MANIFEST, want=broken)

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.group_contains(ZeroDivisionError)

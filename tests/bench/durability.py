"""What durability costs: the outbox, the ledger, an idle client's memory, and a storm of reconnects.

    python tests/bench/durability.py [--clients 200]

Times are medians with fsync, on the disk that holds $TMPDIR.
"""

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

from rich.console import Console

from broker.engine import BrokerPolicy, running
from common import identity, limits, outbox
from common.blobs import BlobStore
from common.bus import LinkDown, LinkUp
from common.database import Database
from common.ids import ClientId, Digest, RunId, sha256
from common.messages import Manifest, Update
from common.mqtt import Address, MqttLink
from coordinator.ledger import Ledger, Settled
from coordinator.round import Offered
from edge_client.custody import Custody

ROOT = Path(__file__).parents[2]
DELTA_BYTES = 1_663_370 * 4
ROWS = 100_000
TAKEN = Settled(None, "", late=False)


def main() -> None:
    say = Console().print
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as directory:
        folder = Path(directory)
        for name in ("outbox", "ledger", "idle", "storm"):
            (folder / name).mkdir()
        say(f"keep an update of {DELTA_BYTES / 1e6:.2f} MB: {1e3 * keep(folder / 'outbox'):.1f} ms")
        say(f"accept an update, {ROWS} rows: {1e3 * accept(folder / 'ledger'):.2f} ms")
        say(f"idle link, outbox and session beside torch: {asyncio.run(idle(folder / 'idle')) / 1e6:.1f} MB")
        took = asyncio.run(storm(folder / "storm", given.clients))
        say(f"{given.clients} clients back after a broker's restart: {took:.1f} s")


def update(client: str, delta: Digest, base: Digest, size: int = 8) -> Update:
    """An update as a client offers it."""
    manifest = Manifest(
        digest=delta, size=size, chunk=limits.CHUNK_BYTES, hashes=b"", codec="none", schema="0" * 64
    )
    return Update(run=RunId("run-1"), round=1, client=ClientId(client), base=base, delta=manifest, examples=1)


def median(work: Callable[[int], None], times: int) -> float:
    took = []
    for number in range(times):
        begin = time.perf_counter()
        work(number)
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def keep(folder: Path) -> float:
    """Put an update where a kill does not reach it: the blob, then the row."""
    with closing(Database(folder / outbox.FILE, outbox.TABLES)) as database:
        kept = outbox.Outbox(database, bytes_max=limits.OUTBOX_BYTES_MAX, age_s_max=limits.OUTBOX_AGE_S_MAX)
        custody = Custody(kept, BlobStore(folder, limits.BLOB_STORE_BYTES_MAX))
        deltas = [secrets.token_bytes(DELTA_BYTES) for _ in range(9)]

        def put(number: int) -> None:
            data = deltas[number]
            base = sha256(str(number).encode())
            custody.keep(update("client-1", sha256(data), base, len(data)), data)

        return median(put, len(deltas))


def accept(folder: Path) -> float:
    """Settle one more update in a ledger that is full of them."""
    with closing(Ledger(folder / "state.db")) as ledger:

        def offer(number: int) -> Offered:
            base, delta = sha256(f"base {number // 1000}".encode()), sha256(f"delta {number}".encode())
            return Offered(update(f"client-{number % 1000}", delta, base), b"proof" * 300)

        with ledger._database.transaction() as rows:  # by itself each would be a commit
            rows.executemany(
                "INSERT INTO offer (run, client, base, delta, proof, detail, late, merged) VALUES (?,?,?,?,?,'',0,1)",
                [
                    (one.update.run, one.client, one.update.base, one.delta, one.proof)
                    for one in map(offer, range(ROWS))
                ],
            )
        return median(lambda number: ledger.settle(offer(ROWS + number), TAKEN) and None, 101)


IDLE = """
import asyncio, json, sys
import psutil, torch, sklearn.datasets
from common import datasets, models
from common.settings import Settings
process = psutil.Process()
before = process.memory_info().rss
from edge_client.assembly import serve

async def main():
    serving = asyncio.create_task(serve(Settings(**json.loads(sys.argv[1])), "client-1", report=lambda facts: None))
    while not [one for one in process.net_connections() if one.status == "ESTABLISHED"]:
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)
    print(process.memory_info().rss - before)
    serving.cancel()

asyncio.run(main())
"""


async def idle(folder: Path) -> float:
    """Measure what an idle client holds beside torch: the growth of a process that has imported it."""
    identity.create_root(folder / "keys", "demo")
    async with running(BrokerPolicy("amqtt", "127.0.0.1", 0, None, folder / "broker")) as listening:
        settings = {
            "state_dir": str(folder / "client-1"),
            "keys_dir": str(folder / "keys"),
            "link": {"brokers": [f"127.0.0.1:{listening.port}"]},
        }
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IDLE, json.dumps(settings), stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        said, _ = await child.communicate()
    return float(said)


async def storm(folder: Path, clients: int) -> float:
    """Restart a broker under many links; time until the last is back."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            running(BrokerPolicy("amqtt", "127.0.0.1", 0, None, folder / "first"))
        )
        port = first.port
        links = [
            MqttLink([Address("127.0.0.1", port)], f"client-{n}", username=f"client-{n}")
            for n in range(clients)
        ]
        async with AsyncExitStack() as linked:
            for link in links:
                await linked.enter_async_context(link)
            await asyncio.gather(*(until(link, LinkUp) for link in links))
            await stack.aclose()
            await asyncio.gather(*(until(link, LinkDown) for link in links))
            async with running(BrokerPolicy("amqtt", "127.0.0.1", port, None, folder / "second")):
                begin = time.perf_counter()
                await asyncio.gather(*(until(link, LinkUp) for link in links))
                return time.perf_counter() - begin


async def until(link: MqttLink, kind: type) -> None:
    """Wait for an event of a link."""
    while not isinstance(await link.next(), kind):
        pass


if __name__ == "__main__":
    main()

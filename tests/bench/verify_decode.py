"""What checking an update costs the coordinator, above hashing its bytes once and copying them once.

    .venv/bin/python tests/bench/verify_decode.py [--codec none] [--repeat 15]

From the signed envelope and the chunk frames to the screened vector, without the network and the disk. Each stage and
the whole are medians; the whole and what it is compared with take turns, in one process.
"""

import argparse
import hashlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from common import chunks, codec, compression, envelope, identity
from common.identity import Role
from common.ids import Boot, ClientId, FederationId, RunId
from common.ingress import Ingress, Said
from common.messages import Manifest, Reason, Update
from common.topics import Kind, Topics
from common.transfer import ChunkCame, Receiver
from common.trust import TrustStore
from coordinator.screening import screen

ELEMENTS = 1_663_370  # float32: 6.65 MB, the update of `round_overhead`
TARGET_MS = 25
SCHEMA = "5" * 64
TOPICS = Topics(FederationId("bench"))
REPLY = TOPICS.client(ClientId("client-1"), Kind.REPLY)


class Least:
    """Chance that always draws the lower bound."""

    def uniform(self, a: float, b: float, /) -> float:
        return a


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--codec", choices=tuple(compression.CODECS), default="none")
    options.add_argument("--repeat", type=int, default=15)
    given = options.parse_args()
    delta = np.random.default_rng(1).normal(0, 1e-3, ELEMENTS).astype(np.float32)
    blob = bytes(compression.encode(given.codec, delta))
    manifest = chunks.describe(blob, codec=given.codec, schema=SCHEMA)
    frames = [
        chunks.frame(manifest.digest, index, manifest.chunks, chunks.cut(blob, manifest, index))
        for index in range(manifest.chunks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        rounds = offers(Path(folder), manifest)
    whole, plain, parts = [], [], []
    for _ in range(given.repeat):
        plain.append(timed(partial(baseline, blob))[0])
        seconds, stages = timed(partial(check, next(rounds), manifest, frames, blob))
        whole.append(seconds)
        parts.append(stages)
    table = Table(
        title=f"an update of {len(blob) / 1e6:.2f} MB in codec {given.codec}, medians of {given.repeat}"
    )
    for name in ("what", "ms"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for name in parts[0]:
        table.add_row(name, f"{1e3 * statistics.median(stages[name] for stages in parts):.2f}")
    checked, bare = (1e3 * statistics.median(one) for one in (whole, plain))
    table.add_section()
    table.add_row("all of it", f"{checked:.2f}")
    table.add_row("one SHA-256 and one copy of the same bytes", f"{bare:.2f}")
    table.add_row(f"difference (target: {TARGET_MS} at most)", f"{checked - bare:.2f}")
    Console().print(table)


def offers(folder: Path, manifest: Manifest):
    """Make an ingress that knows a client with an RSA key, and yield its next offer for ever."""
    root = identity.create_root(folder, "bench")
    client = identity.issue(folder, Role.CLIENT, "client-1")
    trust = TrustStore(root)
    trust.admit(client.certificate_der)
    door = Ingress(FederationId("bench"), trust)
    update = Update(
        run=RunId("run"), round=1, client=ClientId("client-1"), base="b" * 64, delta=manifest, examples=1
    )
    payload = codec.encode(update)

    def said():
        for number in itertools.count():
            header = envelope.Header(
                federation="bench", sender="client-1", boot=Boot("0b" * 8), sequence=number
            )
            yield door, envelope.seal(client, REPLY, "update", header, payload)

    return said()


def check(
    offer: tuple[Ingress, bytes], manifest: Manifest, frames: list[bytes], blob: bytes
) -> dict[str, float]:
    """Take an update in as `service`, `courier` and `model` do; give the seconds of each stage."""
    stages = {}
    stages["envelope: verified and decoded"], said = timed(partial(offer[0].admit, REPLY, offer[1]))
    assert isinstance(said, Said)
    stages["manifest"], problem = timed(partial(offered, said.message.delta))
    assert problem is None
    stages[f"{len(frames)} chunks: parsed and hashed"], kept = timed(partial(collected, manifest, frames))
    assert kept == len(frames)
    stages["the whole: hashed"], digest = timed(lambda: hashlib.sha256(blob).hexdigest())
    assert digest == manifest.digest
    stages["decoded and screened"], delta = timed(
        partial(screen, blob, codec=manifest.codec, elements=ELEMENTS)
    )
    assert not isinstance(delta, Reason)
    return stages


def offered(manifest: Manifest) -> Reason | None:
    """Judge a manifest as `GlobalModel.refuse_offer` does."""
    assert compression.CODECS[manifest.codec].allows(manifest.size, ELEMENTS)
    return chunks.check(manifest)


def collected(manifest: Manifest, frames: list[bytes]) -> int:
    """Count the chunks that a receiver keeps, and the end."""
    receiver = Receiver(manifest, Least())
    return sum(len(receiver.handle(ChunkCame(chunks.parse(one)), 0.0)) for one in frames) - 1


def baseline(blob: bytes) -> bytearray:
    """Hash the bytes once and copy them once."""
    hashlib.sha256(blob).digest()
    return bytearray(blob)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


if __name__ == "__main__":
    main()

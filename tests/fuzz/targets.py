"""What is given arbitrary bytes, and which exceptions it may answer with: nothing else may ever come out.

`tests/security/test_any_bytes.py` plays them with Hypothesis in every run of the tests, `make fuzz` with atheris for
as long as one likes. Their seeds are the golden bytes of the wire.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from broker import packets
from broker.packets import Framer, Type
from common import chunks, codec, envelope, lines
from common.errors import DecodeError
from common.identity import Role
from common.inflate import deflate, inflate
from common.ingress import Frame, Ingress, Refused, Said
from common.limits import ENVELOPE_BYTES_MAX, PACKET_BYTES_MAX_UNKNOWN
from common.messages import BY_CONTROL, BY_REPLY, BY_TASK
from common.topics import Kind, Topics
from common.transfer import ChunkCame, Receiver
from support import federation, hostile, raw_mqtt

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "v1.json").read_text(encoding="utf-8"))
PAYLOADS = tuple(bytes.fromhex(text) for text in GOLDEN["payloads"].values())
LINES = tuple(text.encode() for text in (*GOLDEN["lines"].values(), GOLDEN["line"]))
ENVELOPES = tuple(bytes.fromhex(text) for text in (GOLDEN["envelope"], GOLDEN["rsa"]["envelope"]))
FRAME = bytes.fromhex(GOLDEN["chunk"])
STREAM = b"".join(
    (
        b"\x10\x0e" + raw_mqtt.text("MQTT") + b"\x04\x02\0\x1e" + raw_mqtt.text("c1"),
        b"\x32\x09" + raw_mqtt.text("a/b") + b"\0\x07hi",
        b"\x82\x08\0\x01" + raw_mqtt.text("a/#") + b"\x01",
        b"\xa2\x07\0\x02" + raw_mqtt.text("a/#"),
        b"\x40\x02\0\x07\xc0\0\xe0\0",
    )
)


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads what a stranger sends."""

    run: Callable[[bytes], None]
    allowed: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]

    def play(self, data: bytes) -> None:
        """Let it read; what is not allowed comes out."""
        with suppress(*self.allowed):
            self.run(data)


TARGETS: dict[str, Target] = {}


def target(
    *allowed: type[Exception], seeds: tuple[bytes, ...]
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Enter a function in the table, under its name."""

    def enter(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run, allowed, seeds)
        return run

    return enter


@target(DecodeError, seeds=ENVELOPES)
def envelopes(data: bytes) -> None:
    """What is read has one spelling."""
    read = envelope.read(data)
    parts = [read.type, read.kid, read.header, bytes(read.payload), read.signature]
    assert codec.pack([envelope.VERSION, *parts]) == data


@target(DecodeError, seeds=LINES)
def line(data: bytes) -> None:
    """A line, and then what it says; its certificate is bytes or nothing."""
    read = lines.read(data) if b'"sig"' in data else lines.Line(data[:-1], bytes(16), b"")
    assert isinstance(read.certificate(), bytes | None)
    assert read.message()


@target(DecodeError, seeds=PAYLOADS)
def canonical(data: bytes) -> None:
    """What is read has one spelling, and what it means can be spelled."""
    assert codec.pack(codec.unpack(data, bytes_max=ENVELOPE_BYTES_MAX)) == data
    for kind in (BY_TASK, BY_REPLY, BY_CONTROL, envelope.Header):
        with suppress(DecodeError):
            assert codec.decode(codec.encode(codec.decode(data, kind)), kind)


@target(
    seeds=tuple(bytes((mode,)) + one for mode in range(24) for one in (*PAYLOADS[:4], *LINES[:2], *ENVELOPES))
)
def ingress(data: bytes) -> None:
    """The one way in never raises: as it came, as a signed payload, as a signed header, as a signed line."""
    door, alice, topics = _door()
    way, at = divmod(data[0] if data else 0, len(topics))
    topic, body = topics[at], data[1:]
    if way == 1:
        body = hostile.sealed(alice, topic, body)
    elif way == 2:
        body = hostile.sealed(alice, topic, head=body)
    elif way == 3:
        body = hostile.signed_line(alice, topic, body)
    assert isinstance(door.admit(topic, body), Said | Frame | Refused | None)


@target(DecodeError, seeds=(FRAME,))
def frames(data: bytes) -> None:
    """What is read has one spelling, and a receiver keeps nothing but what its manifest names."""
    chunk = chunks.parse(data)
    assert chunks.frame(chunk.digest16.hex() * 2, chunk.index, chunk.count, chunk.data) == data
    receiver = Receiver(chunks.describe(b"abc" * 1000, codec="none", schema="0" * 64, chunk=1024), _Least())
    assert all(bytes(one.data) in b"abc" * 1000 for one in receiver.handle(ChunkCame(chunk), 0.0))


@target(DecodeError, seeds=(STREAM,))
def packet(data: bytes) -> None:
    """A stream is cut into packets, and each of them is read."""
    for found in Framer(PACKET_BYTES_MAX_UNKNOWN).feed(data):
        with suppress(DecodeError):
            _PARSED.get(found.kind, packets.parse_packet_id)(found.body)
        with suppress(DecodeError):
            packets.parse_publish(found)


@target(DecodeError, seeds=(deflate(b"abc" * 100), deflate(bytes(300))))
def deflated(data: bytes) -> None:
    """There come out as many bytes as were agreed on."""
    assert len(inflate(data, 300)) == 300


_PARSED = {
    Type.CONNECT: packets.parse_connect,
    Type.SUBSCRIBE: packets.parse_subscribe,
    Type.UNSUBSCRIBE: packets.parse_unsubscribe,
}


class _Least:
    """Chance that always draws the lower bound."""

    def uniform(self, a: float, b: float, /) -> float:
        return a


@cache
def _people() -> tuple[Path, object]:
    """Make a federation in a directory of its own."""
    keys_dir = Path(tempfile.mkdtemp(prefix="fedmq-fuzz-"))
    atexit.register(shutil.rmtree, keys_dir, ignore_errors=True)
    alice = federation.member(keys_dir, Role.CLIENT, "a")
    return federation.ingress(keys_dir, alice).trust, alice


def _door() -> tuple[Ingress, object, tuple[str, ...]]:
    trust, alice = _people()
    mine = Topics(federation.NAME)
    said = tuple(mine.client("a", kind) for kind in (Kind.REPLY, Kind.STATUS, Kind.INFO, Kind.METRICS))
    topics = (*said, mine.control, mine.coordinator(Kind.COORDINATOR_MODEL))
    return Ingress(federation.NAME, trust), alice, topics

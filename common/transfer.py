"""One blob on its way, sans I/O: the receiver pulls, the sender serves what was wanted last.

    receiver   Offered -> Ask -> chunks ... -> Complete     no progress for max(3 rtt, 3 s): Ask again
    sender     Wanted -> coalesce -> SendChunk, a window at a time; a later Wanted repairs

A chunk that many want goes to the broadcast topic, others to each receiver's own. A PUBACK (`Sent`) only
opens the window; the proof of delivery is the receiver's `Done`. What was under way when the link broke is
not sent again unasked: most of it has arrived, and the receiver asks for the rest.
Laws: 1. A byte that does not match the manifest is never kept. 2. Duplicates are harmless, in both machines.
3. A want never costs more than the receiver's budget. Units: seconds, chunks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from common import limits
from common.chunks import DIGEST_BYTES, Chunk, chunk_hash, length
from common.ids import ClientId
from common.machine import Seconds, Tick
from common.messages import Manifest

Ranges = tuple[tuple[int, int], ...]  # of chunk indices, inclusive, ascending


class Chance(Protocol):
    """Where randomness comes from."""

    def uniform(self, a: float, b: float, /) -> float:
        """Draw from [a, b]."""
        ...


# --- what happens ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offered:
    """The blob is to be had now; once more after the sender's own link broke."""


@dataclass(frozen=True, slots=True)
class ChunkCame:
    """A chunk came in."""

    chunk: Chunk


@dataclass(frozen=True, slots=True)
class LinkLost:
    """Our link to the broker broke."""


@dataclass(frozen=True, slots=True)
class LinkBack:
    """Our link to the broker stands again."""


@dataclass(frozen=True, slots=True)
class Expected:
    """These receivers are about to ask, perhaps once more."""

    receivers: frozenset[ClientId]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A receiver asks for all chunks but those it has."""

    receiver: ClientId
    have: Ranges


@dataclass(frozen=True, slots=True)
class Sent:
    """The broker acknowledged a chunk."""

    index: int
    to: ClientId | None


@dataclass(frozen=True, slots=True)
class Finished:
    """A receiver has the whole blob."""

    receiver: ClientId


@dataclass(frozen=True, slots=True)
class Gone:
    """A receiver is away, or needs the blob no more."""

    receiver: ClientId


ReceiverEvent = Offered | ChunkCame | LinkLost | LinkBack | Tick
SenderEvent = Expected | Wanted | Sent | LinkLost | LinkBack | Finished | Gone | Tick


# --- what is to be done ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keep:
    """Write a chunk that was checked to its place."""

    index: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Ask:
    """Tell the sender what we have."""

    have: Ranges


@dataclass(frozen=True, slots=True)
class Complete:
    """All chunks are there."""


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Send a chunk to one receiver, or to all that listen."""

    index: int
    to: ClientId | None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A receiver has used up its budget: serve it no more."""

    receiver: ClientId


def ranges(indices: Iterable[int]) -> Ranges:
    """Write ascending indices as inclusive ranges."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return tuple(found)


class Receiver:
    """Collects one blob."""

    def __init__(self, manifest: Manifest, chance: Chance, have: Iterable[int] = ()) -> None:
        self.manifest = manifest
        self.refused = 0  # chunks that did not match the manifest
        self.repeated = 0  # chunks that were there already
        self._chance = chance
        self._missing = dict.fromkeys(range(manifest.chunks))  # a set in order
        for index in have:
            self._missing.pop(index, None)
        self._linked = True
        self._complete = False
        self._asked_at: Seconds | None = None  # the last time, as long as nothing has come since
        self._rtt: Seconds = 0.0
        self._wait: Seconds = 0.0
        self._ask_at: Seconds | None = None

    def handle(self, event: ReceiverEvent, now: Seconds) -> tuple[Keep | Ask | Complete, ...]:
        """Take an event in and say what is to be done."""
        match event:
            case Offered():
                return tuple(self._ask(now)) if self._linked else ()
            case ChunkCame(chunk):
                return tuple(self._take(chunk, now))
            case LinkLost():
                self._linked = False
                self._ask_at = None
                return ()
            case LinkBack():
                self._linked = True
                return tuple(self._ask(now))
            case Tick():
                due = self._ask_at is not None and now >= self._ask_at
                return tuple(self._ask(now)) if due else ()

    def wake_at(self) -> Seconds | None:
        """Say when to ask again, if nothing comes."""
        return self._ask_at

    def have(self) -> Ranges:
        """List what is there; as much of it as a want may say."""
        got = (index for index in range(self.manifest.chunks) if index not in self._missing)
        return ranges(got)[: limits.WANT_RANGES_MAX]

    def _ask(self, now: Seconds) -> Iterator[Ask | Complete]:
        if self._complete:
            return
        if not self._missing:
            yield from self._end()
            return
        self._wait = min(max(self._patience(), 2 * self._wait), limits.REPAIR_MAX_S)
        self._asked_at = now
        self._expect(now)
        yield Ask(self.have())

    def _take(self, chunk: Chunk, now: Seconds) -> Iterator[Keep | Complete]:
        if not self._matches(chunk):
            self.refused += 1
        elif chunk.index not in self._missing:
            self.repeated += 1
        else:
            del self._missing[chunk.index]
            if self._asked_at is not None:
                self._rtt = now - self._asked_at
                self._asked_at = None
            self._wait = self._patience()
            self._expect(now)
            yield Keep(chunk.index, chunk.data)
            if not self._missing:
                yield from self._end()

    def _matches(self, chunk: Chunk) -> bool:
        manifest, index = self.manifest, chunk.index
        at = index * limits.CHUNK_HASH_BYTES
        return (
            chunk.digest16 == bytes.fromhex(manifest.digest)[:DIGEST_BYTES]
            and chunk.count == manifest.chunks
            and 0 <= index < manifest.chunks
            and len(chunk.data) == length(manifest, index)
            and chunk_hash(chunk.data) == manifest.hashes[at : at + limits.CHUNK_HASH_BYTES]
        )

    def _patience(self) -> Seconds:
        return min(max(3 * self._rtt, limits.REPAIR_FIRST_S), limits.REPAIR_MAX_S)

    def _expect(self, now: Seconds) -> None:
        if self._linked:  # jittered upwards only: many receivers of one broadcast must not ask at once
            self._ask_at = now + self._chance.uniform(self._wait, 1.5 * self._wait)

    def _end(self) -> Iterator[Complete]:
        self._complete = True
        self._ask_at = None
        yield Complete()


Slot = tuple[int, ClientId | None]  # a chunk, and to whom it goes


class Sender:
    """Serves one blob to one receiver or to many."""

    def __init__(self, manifest: Manifest, expected: Iterable[ClientId] = ()) -> None:
        self.manifest = manifest
        self.window = limits.WINDOW_CHUNKS_START
        self._expected = set(expected)  # who is sure to ask, and has not yet
        self._knows_who = bool(self._expected)  # else there may always be one more who asks in a moment
        self._open: set[ClientId] = set()  # who asked and is not finished
        self._pending: dict[ClientId, frozenset[int]] = {}  # what each asked for, not yet queued
        self._serve_at: Seconds | None = None
        self._queue: dict[Slot, None] = {}  # in order
        self._under_way: set[Slot] = set()
        self._spent: dict[ClientId, int] = {}  # chunks, per receiver
        self._linked = True
        self._trip = 0  # chunks acknowledged since `_trip_start`
        self._trip_start: Seconds = 0.0

    def handle(self, event: SenderEvent, now: Seconds) -> tuple[SendChunk | GiveUp, ...]:
        """Take an event in and say what is to be done."""
        return tuple(self._handle(event, now))

    def _handle(self, event: SenderEvent, now: Seconds) -> Iterator[SendChunk | GiveUp]:
        match event:
            case Expected(receivers):
                self._expect(receivers)
            case Wanted(receiver, have):
                yield from self._want(receiver, have, now)
            case Sent(index, to):
                self._acknowledge((index, to), now)
            case LinkLost():
                self._break()
            case LinkBack():
                self._linked = True
            case Finished(receiver) | Gone(receiver):
                self._close(receiver)
            case Tick():
                pass
        if self._serve_at is not None and (now >= self._serve_at or self._all_asked()):
            self._serve()
        yield from self._pump(now)

    def wake_at(self) -> Seconds | None:
        """Say when the wants gathered so far are to be served."""
        return self._serve_at

    def _expect(self, receivers: frozenset[ClientId]) -> None:
        self._expected |= receivers - self._open
        self._knows_who = self._knows_who or bool(receivers)
        for receiver in receivers:
            self._spent.pop(receiver, None)

    def _all_asked(self) -> bool:
        return self._knows_who and (self._expected | self._open) <= self._pending.keys()

    def _want(self, receiver: ClientId, have: Ranges, now: Seconds) -> Iterator[GiveUp]:
        self._expected.discard(receiver)
        self._open.add(receiver)
        for slot in [slot for slot in self._queue if slot[1] == receiver]:
            del self._queue[slot]  # asked anew: what it asked for before is void
        count = self.manifest.chunks
        if self._spent.get(receiver, 0) > count + limits.REPAIR_BUDGET * max(count, limits.WINDOW_CHUNKS_MAX):
            self._close(receiver)
            yield GiveUp(receiver)
            return
        had = {index for first, last in have for index in range(first, min(last + 1, count))}
        self._pending[receiver] = frozenset(range(count)) - had
        if self._serve_at is None:
            self._serve_at = now + limits.WANT_COALESCE_S

    def _serve(self) -> None:
        """Queue what was asked for: index by index, so that no receiver waits for another's repair."""
        asked, self._pending, self._serve_at = self._pending, {}, None
        many = max(2, (len(self._open) + 1) // 2)
        for index in range(self.manifest.chunks):
            wanting = sorted(receiver for receiver, missing in asked.items() if index in missing)
            to_all = (index, None) in self._queue or (index, None) in self._under_way
            if not to_all and len(wanting) >= many:
                self._queue[index, None] = None
            elif not to_all:
                alone = ((index, receiver) for receiver in wanting)
                self._queue.update((slot, None) for slot in alone if slot not in self._under_way)

    def _pump(self, now: Seconds) -> Iterator[SendChunk]:
        while self._linked and self._queue and len(self._under_way) < self.window:
            if not self._under_way:
                self._trip, self._trip_start = 0, now
            slot = next(iter(self._queue))
            del self._queue[slot]
            self._under_way.add(slot)
            for receiver in self._open if slot[1] is None else (slot[1],):
                self._spent[receiver] = self._spent.get(receiver, 0) + 1
            yield SendChunk(*slot)

    def _acknowledge(self, slot: Slot, now: Seconds) -> None:
        if slot not in self._under_way:
            return
        self._under_way.discard(slot)
        self._trip += 1
        if self._trip < self.window:
            return
        took = now - self._trip_start
        if took <= limits.KEEPALIVE_S / 4:  # a PING behind the window must come through in time
            self.window = min(self.window + 1, limits.WINDOW_CHUNKS_MAX)
        elif took > limits.KEEPALIVE_S / 2:
            self.window = max(self.window // 2, 1)
        self._trip, self._trip_start = 0, now

    def _break(self) -> None:
        if self._linked:
            self.window = max(self.window // 2, 1)
        self._linked = False
        self._under_way.clear()

    def _close(self, receiver: ClientId) -> None:
        self._expected.discard(receiver)
        self._open.discard(receiver)
        self._pending.pop(receiver, None)
        if not self._pending:
            self._serve_at = None
        for slot in [slot for slot in self._queue if slot[1] == receiver or not self._open]:
            del self._queue[slot]

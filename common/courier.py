"""Carries blobs between a store and a bus: performs what the machines of `transfer` decide.

The service that owns it passes on what it hears: chunks (`arrived`), wants, dones, presence, and the link's
ups and downs. It sends `Want`, `Done` and `Unavailable` itself, because those are signed.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from common import chunks, limits
from common.blobs import BlobStore, Part
from common.bus import Bus
from common.crew import Crew
from common.errors import DecodeError, NotFoundError, StorageError, TransferError, TransportError
from common.ids import ClientId, Digest
from common.machine import Seconds, Tick
from common.messages import Manifest, Reason, Want
from common.topics import DIGEST_DIGITS, Place, Topics
from common.transfer import (
    Ask,
    Chance,
    ChunkCame,
    Complete,
    Expected,
    Finished,
    GiveUp,
    Gone,
    Keep,
    LinkBack,
    LinkLost,
    Offered,
    Receiver,
    ReceiverEvent,
    SendChunk,
    Sender,
    SenderEvent,
    Sent,
    Wanted,
)

Tell = Callable[[Want], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Lanes:
    """On which topics our chunks go out."""

    to_all: Callable[[Digest], str]
    to_one: Callable[[ClientId, Digest], str]

    @classmethod
    def of_coordinator(cls, topics: Topics) -> Self:
        """Models for everybody, repairs for one client."""
        return cls(topics.model, topics.down)

    @classmethod
    def of_client(cls, topics: Topics, me: ClientId) -> Self:
        """Uploads: the coordinator alone listens."""
        return cls(lambda digest: topics.up(me, digest), lambda _coordinator, digest: topics.up(me, digest))


@dataclass(slots=True, eq=False)
class _Download:
    machine: Receiver
    part: Part
    wants: deque[Tell]  # of the callers: the next one to be asked first
    frames: str | None
    done: asyncio.Future[Digest]
    disk: asyncio.Lock = field(default_factory=asyncio.Lock)  # the part is being finished, or closed
    waiting: int = 0  # callers of `fetch`
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Upload:
    machine: Sender
    data: bytes | None = None  # read at the first want
    timer: asyncio.TimerHandle | None = None


class Courier:
    """Fetches and serves blobs for as long as it is open: `async with Courier(...) as courier`."""

    def __init__(
        self,
        bus: Bus,
        store: BlobStore,
        lanes: Lanes,
        *,
        clock: Callable[[], Seconds] = time.monotonic,
        chance: Chance = random,
    ) -> None:
        self.bytes_in = 0  # of chunks, repeated ones too
        self.bytes_out = 0
        self._bus, self._store, self._lanes = bus, store, lanes
        self._clock, self._chance = clock, chance
        self._downloads: dict[str, _Download] = {}  # by the digest's digits in topics
        self._uploads: dict[str, _Upload] = {}  # by digest
        self._turns = asyncio.Semaphore(limits.OPEN_TRANSFERS_MAX)  # of the downloads, one each
        self._opening = asyncio.Lock()  # one part at a time is looked into
        self._crew = Crew()

    async def __aenter__(self) -> Self:
        await self._crew.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for download in self._downloads.values():
            _disarm(download)
        for upload in self._uploads.values():
            _disarm(upload)
        self._crew.dismiss()
        if isinstance(
            error, asyncio.CancelledError
        ):  # perhaps because a task of ours failed: the group knows
            await self._crew.__aexit__(kind, error, trace)
        else:
            await self._crew.__aexit__(None, None, None)
        for download in self._downloads.values():
            _fail(download, TransferError("the courier was closed"))  # its callers put the part away

    # --- receiving ---

    async def fetch(self, manifest: Manifest, *, want: Tell, frames: str | None = None) -> Digest:
        """Have a blob in the store; callers share one transfer, and each call asks the sender anew.

        `frames` is the topic that it is broadcast on. Once nobody waits, a part stays on disk. Where
        `OPEN_TRANSFERS_MAX` are open, it begins when one of them ends.
        Raises: StorageError; TransportError where the broker refuses the subscription; TransferError for
        a manifest that cannot be, or a blob that is not to be had.
        """
        digest = Digest(manifest.digest)
        if self._store.has(digest):
            return digest
        key = digest[:DIGEST_DIGITS]
        if key not in self._downloads:
            await self._open(key, manifest, frames)
        if self._store.has(digest):
            return digest  # it came while this call waited for its turn
        download = self._downloads[key]
        if download.machine.manifest != manifest:
            raise TransferError(f"blob {digest[:12]} is being fetched by another manifest")
        download.waiting += 1
        download.wants.appendleft(want)
        try:
            if download.frames is not None:
                await self._bus.subscribe(download.frames)
            self._receive(download, Offered())
            return await asyncio.shield(download.done)
        finally:
            download.waiting -= 1
            download.wants.remove(want)
            if download.waiting == 0:
                await self._drop(key, download)

    def ask_again(self, digest: str) -> None:
        """Ask for the rest of a blob that is being fetched: its sender offers it anew."""
        download = self._downloads.get(digest[:DIGEST_DIGITS])
        if download is not None:
            self._receive(download, Offered())

    def arrived(self, place: Place, payload: bytes) -> None:
        """Take in what came on a chunk topic."""
        download = self._downloads.get(place.digest or "")
        if download is None:
            return  # of a transfer that is over: brokers are late
        with suppress(DecodeError):
            chunk = chunks.parse(payload)
            self.bytes_in += len(chunk.data)
            self._receive(download, ChunkCame(chunk))

    def unavailable(self, digest: str, reason: Reason) -> None:
        """Hear that a blob is not to be had: its fetches end in TransferError."""
        download = self._downloads.get(digest[:DIGEST_DIGITS])
        if download is not None:
            _fail(download, TransferError(f"blob {digest[:12]} is not to be had: {reason}"))

    # --- sending ---

    def offer(self, manifest: Manifest, *, expected: Iterable[ClientId] = ()) -> None:
        """Serve a blob of the store to whoever wants it; it begins when all that are expected have asked."""
        known = self._uploads.get(manifest.digest)
        if known is None:
            self._uploads[manifest.digest] = _Upload(Sender(manifest, expected))
        else:
            self._send(known, Expected(frozenset(expected)))

    def withdraw(self, digest: str) -> None:
        """Serve a blob no more."""
        upload = self._uploads.pop(digest, None)
        if upload is not None:
            _disarm(upload)

    def wanted(self, receiver: ClientId, want: Want) -> Reason | None:
        """Serve a want, or say why it cannot be (for an `Unavailable`)."""
        upload = self._uploads.get(want.digest)
        if upload is None:
            return Reason.TRANSFER_FAILED
        if upload.data is None:
            try:
                upload.data = self._store.read(want.digest)
            except (NotFoundError, StorageError):
                return Reason.TRANSFER_FAILED
        have = tuple((first, last) for first, last in want.have)
        gave_up = self._send(upload, Wanted(receiver, have))
        return Reason.TRANSFER_FAILED if gave_up else None

    def finished(self, receiver: ClientId, digest: str) -> None:
        """Hear that a receiver has the whole blob."""
        upload = self._uploads.get(digest)
        if upload is not None:
            self._send(upload, Finished(receiver))

    def gone(self, receiver: ClientId) -> None:
        """Hear that a receiver is away."""
        for upload in tuple(self._uploads.values()):
            self._send(upload, Gone(receiver))

    # --- the link ---

    def link_up(self) -> None:
        """Hear that the link stands: go on, and ask for what was lost meanwhile."""
        for upload in tuple(self._uploads.values()):
            self._send(upload, LinkBack())
        for download in tuple(self._downloads.values()):
            self._receive(download, LinkBack())

    def link_down(self) -> None:
        """Hear that the link broke."""
        for upload in tuple(self._uploads.values()):
            self._send(upload, LinkLost())
        for download in tuple(self._downloads.values()):
            self._receive(download, LinkLost())

    # --- inside ---

    async def _open(self, key: str, manifest: Manifest, frames: str | None) -> None:
        """Begin a download when it is its turn; it may have been begun by then."""
        if (reason := chunks.check(manifest)) is not None:
            raise TransferError(f"blob {manifest.digest[:12]} is refused: {reason}")
        await self._turns.acquire()
        try:
            async with self._opening:
                if key not in self._downloads and not self._store.has(manifest.digest):
                    part = self._store.open_part(manifest)
                    machine = Receiver(manifest, self._chance, await _look_into(part))
                    done: asyncio.Future[Digest] = asyncio.get_running_loop().create_future()
                    self._downloads[key] = _Download(machine, part, deque(), frames, done)
                    return
        except BaseException:
            self._turns.release()
            raise
        self._turns.release()

    def _receive(self, download: _Download, event: ReceiverEvent) -> None:
        if download.done.done():
            return
        for effect in download.machine.handle(event, self._clock()):
            match effect:
                case Keep(index, data):
                    try:
                        download.part.write(index, data)
                    except (StorageError, OSError) as error:
                        _fail(download, error)
                        return
                case Ask(have):
                    self._crew.spawn(
                        self._ask(download, Want(digest=download.machine.manifest.digest, have=list(have)))
                    )
                case Complete():
                    self._crew.spawn(self._finish(download))
        _rearm(download, self._clock(), lambda: self._receive(download, Tick()))

    def _send(self, upload: _Upload, event: SenderEvent) -> bool:
        """Feed a sender; tell whether it gave the receiver up."""
        if self._uploads.get(upload.machine.manifest.digest) is not upload:
            return False  # withdrawn
        gave_up = False
        for effect in upload.machine.handle(event, self._clock()):
            match effect:
                case SendChunk(index, to):
                    self._crew.spawn(self._publish(upload, index, to))
                case GiveUp():
                    gave_up = True
        _rearm(upload, self._clock(), lambda: self._send(upload, Tick()))
        return gave_up

    async def _publish(self, upload: _Upload, index: int, to: ClientId | None) -> None:
        manifest, data = upload.machine.manifest, upload.data
        assert data is not None
        digest = Digest(manifest.digest)
        topic = self._lanes.to_all(digest) if to is None else self._lanes.to_one(to, digest)
        chunk = chunks.cut(data, manifest, index)
        try:
            await self._bus.publish(topic, chunks.frame(digest, index, manifest.chunks, chunk))
        except TransportError:
            self._send(upload, LinkLost())  # `link_up` goes on from here
        else:
            self.bytes_out += len(chunk)
            self._send(upload, Sent(index, to))

    async def _ask(self, download: _Download, want: Want) -> None:
        """Ask one of those who have it: who does not answer is not the only one to be asked."""
        if not download.wants:
            return
        ask = download.wants[0]
        download.wants.rotate(-1)
        with suppress(TransportError):  # asked again when the link is back
            await ask(want)

    async def _finish(self, download: _Download) -> None:
        async with download.disk:
            if download.done.done():
                return  # dropped meanwhile
            try:
                await asyncio.to_thread(download.part.finish)
            except (TransferError, OSError) as error:
                _fail(download, error)
            else:
                if not download.done.done():
                    download.done.set_result(Digest(download.machine.manifest.digest))

    async def _drop(self, key: str, download: _Download) -> None:
        del self._downloads[key]
        self._turns.release()
        download.done.cancel()
        _disarm(download)
        if download.frames is not None:
            with suppress(TimeoutError):  # it is forgotten at once; only the broker may take its time
                async with asyncio.timeout(limits.FAREWELL_S):
                    await self._bus.unsubscribe(download.frames)
        async with download.disk:
            download.part.close()


async def _look_into(part: Part) -> tuple[int, ...]:
    """List the chunks that are in a part already."""
    try:
        return await asyncio.to_thread(part.have)
    except BaseException:
        part.close()
        raise


def _fail(download: _Download, error: Exception) -> None:
    if not download.done.done():
        download.done.set_exception(error)


def _disarm(one: _Download | _Upload) -> None:
    if one.timer is not None:
        one.timer.cancel()


def _rearm(one: _Download | _Upload, now: Seconds, wake: Callable[[], object]) -> None:
    """Keep one timer per machine, for the moment that it names."""
    _disarm(one)
    at = one.machine.wake_at()
    one.timer = None if at is None else asyncio.get_running_loop().call_later(max(0.0, at - now), wake)

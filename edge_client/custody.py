"""What a client has made and nobody has judged yet: deltas in the blob store, their rows in the outbox.

Laws: 1. Blob first, row second; a row goes first, its blob second. 2. A blob is deleted when no row needs it: two
updates may have equal deltas.
Everything here blocks: callers are in threads.
"""

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from common.blobs import BlobStore
from common.errors import FedmqError, StorageError
from common.ids import Digest
from common.messages import Declined, Reason, Update, Verdict
from common.outbox import Outbox, Outcome
from edge_client.session import Key


@dataclass(frozen=True, slots=True)
class Restored:
    """What an earlier start left."""

    pending: tuple[Update, ...]  # the oldest first
    judged: Mapping[Key, Verdict]
    declined: Declined | None
    lost: tuple[Outcome, ...]  # updates that can no longer be offered


class Custody:
    """The outbox and the blobs that belong to it."""

    def __init__(self, outbox: Outbox, store: BlobStore) -> None:
        self.outbox = outbox
        self._store = store
        self._lock = threading.Lock()  # an update may come while another one with the same blob goes

    def restore(self) -> Restored:
        """Find out where an earlier start left off. Raises: StorageError, DamagedError."""
        lost = list(self.expire())
        pending: list[Update] = []
        declined: Declined | None = None
        for entry in self.outbox.waiting():
            match entry.message:
                case Declined() as said:
                    declined = said
                case Update(run=run, base=base) as update:
                    if self._store.has(update.delta.digest):
                        pending.append(update)
                    elif gone := self.outbox.settle(
                        run, base, refused=Reason.DISK, detail="the delta is not on disk any more"
                    ):
                        lost.append(gone)
                case _:
                    pass
        judged: dict[Key, Verdict] = {
            (one.run, one.base): verdict_of(one) for one in reversed(self.outbox.outcomes())
        }
        return Restored(tuple(pending), judged, declined, tuple(lost))

    def keep(self, update: Update, encoded: bytes | memoryview) -> tuple[Outcome, ...]:
        """Put a delta and its update on disk, and clear away what nobody needs beside them and the base.

        Returns the updates that had to go. Raises: StorageFullError, StorageError, DamagedError.
        """
        with self._lock:
            try:
                self._store.put(encoded)
                evicted = self.outbox.put(update)
            except OSError as error:
                raise StorageError(f"cannot keep an update: {error}") from error
            except FedmqError:
                with suppress(StorageError):
                    self._let_go(update.delta.digest)
                raise
            with suppress(OSError, StorageError):  # the next update's turn
                self._store.sweep({Digest(update.base), *self.outbox.blobs()})
        return evicted

    def settle(self, update: Key, verdict: Verdict) -> None:
        """Write a verdict down and let the delta go. Raises: StorageError, DamagedError."""
        run, base = update
        with self._lock:
            self.outbox.settle(run, base, refused=verdict.refused, detail=verdict.detail, late=verdict.late)
            self._let_go(verdict.delta)

    def expire(self) -> tuple[Outcome, ...]:
        """Give up what is too old; returns the updates among it. Raises: StorageError, DamagedError."""
        with self._lock:
            expired = self.outbox.expire()
            for one in expired:
                self._let_go(one.delta)
        return expired

    def _let_go(self, delta: str) -> None:
        if delta not in self.outbox.blobs():
            try:
                self._store.delete(delta)
            except OSError as error:
                raise StorageError(f"cannot delete a delta: {error}") from error


def verdict_of(outcome: Outcome) -> Verdict:
    """Say an outcome as a verdict."""
    return Verdict(
        run=outcome.run,
        round=outcome.round,
        delta=outcome.delta,
        refused=outcome.refused,
        detail=outcome.detail,
        late=outcome.late,
    )

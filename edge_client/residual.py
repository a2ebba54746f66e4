"""What a codec left out of a client's updates: it goes into the next one.

    sent = C(Δ + e),  e = Δ + e − sent;  of an update that does not count: e = e + sent

Source: Stich et al. 2018, Algorithm 1 (arXiv:1809.07599).
Law: what was sent and counts, and what is left here, are together all that was trained; over restarts as well, for the
residual's name is written down in the transaction that the update is.
Not here: an update that is revoked after it was taken is lost, as its bytes are.
Shapes: float32[d].
"""

from common import compression
from common.blobs import BlobStore
from common.errors import NotFoundError
from common.messages import Update
from common.outbox import Outbox
from common.tensors import Vector

FACT = "residual"  # schema and blob


class Residual:
    """The residual of one client, a blob in its store."""

    def __init__(self, outbox: Outbox, store: BlobStore) -> None:
        self._outbox, self._store = outbox, store

    def read(self, schema: str) -> Vector | None:
        """Read what is left of updates of this schema. Raises: StorageError, DamagedError."""
        of, blob = self._fact()
        if not blob or of != schema:
            return None
        try:
            data = self._store.read(blob)
        except NotFoundError:  # the disk lost it
            return None
        return compression.decode("none", data, len(data) // 4)

    def blobs(self) -> set[str]:
        """Name its blob, if there is one. Raises: StorageError, DamagedError."""
        _, blob = self._fact()
        return {blob} if blob else set()

    def keep(self, schema: str, residual: Vector) -> dict[str, str]:
        """Put a residual on disk; returns the fact that makes it the one that counts. Raises: StorageError."""
        return {FACT: f"{schema} {self._store.put(compression.encode('none', residual))}"}

    def give_back(self, update: Update) -> dict[str, str]:
        """Add what an update carried that does not count. Raises: StorageError, DamagedError."""
        left = self.read(update.delta.schema)
        if left is None or not compression.CODECS[update.delta.codec].forgets:
            return {}
        try:
            data = self._store.read(update.delta.digest)
        except NotFoundError:
            return {}
        sent = compression.decode(update.delta.codec, data, left.size)
        return self.keep(update.delta.schema, left + sent)

    def _fact(self) -> tuple[str, str]:
        schema, _, blob = (self._outbox.fact(FACT) or "").partition(" ")
        return schema, blob

"""The global model: where updates become the next one. Everything here blocks; the service calls it in a thread.

Memory is that of the model, whatever the cohort: blobs are streamed from disk, in the order of the updates.
"""

from collections.abc import Sequence

from common import chunks, compression
from common.blobs import BlobStore
from common.ids import Digest
from common.messages import Manifest, Reason, Update
from common.tensors import Schema, Vector
from coordinator import screening, strategies
from coordinator.strategies import Memory, Strategy


class GlobalModel:
    """The model of now, as a vector and as a blob, and what its strategy remembers."""

    def __init__(self, schema: Schema, vector: Vector, strategy: Strategy, store: BlobStore) -> None:
        self.schema = schema
        self.vector = vector  # float32[d]
        self.strategy, self._store = strategy, store
        self._memory: Memory = ()
        self.manifest = self._put(vector)

    @property
    def digest(self) -> Digest:
        """Its blob's name."""
        return Digest(self.manifest.digest)

    def refuse_offer(self, update: Update, codec: str) -> Reason | None:
        """Say why an update's blob cannot be what the round needs, before a byte of it is fetched."""
        if update.delta.schema != self.schema.digest:
            return Reason.WRONG_SCHEMA
        if update.delta.codec != codec:
            return Reason.MALFORMED
        if update.delta.size != self.schema.elements * compression.CODECS[codec].itemsize:
            return Reason.WRONG_SIZE
        return chunks.check(update.delta)

    def screen(self, update: Update) -> Reason | None:
        """Look at an update's blob: does it decode, is it finite, is it within the norm?"""
        screened = screening.screen(
            self._store.read(update.delta.digest),
            codec=update.delta.codec,
            elements=self.schema.elements,
        )
        return screened if isinstance(screened, Reason) else None

    def merge(self, updates: Sequence[Update]) -> bool:
        """Take updates in, in their order; False where the result is not finite, and then nothing changes."""
        deltas = ((self._delta(update), self.strategy.weigh(update), 0) for update in updates)
        advanced = strategies.merge(self.strategy, self.vector, deltas, self._memory)
        if advanced is None:
            return False
        vector, self._memory = advanced
        self.manifest = self._put(vector)
        self.vector = vector
        return True

    def _delta(self, update: Update) -> Vector:
        data = self._store.read(update.delta.digest)
        return compression.decode(update.delta.codec, data, self.schema.elements)

    def _put(self, vector: Vector) -> Manifest:
        data = compression.encode("none", vector)
        self._store.put(data)
        return chunks.describe(data, codec="none", schema=self.schema.digest)

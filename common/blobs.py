"""Blobs on disk by their content: whole ones, and parts that survive a restart.

    <directory>/blobs/<sha256>                       whole and checked
    <directory>/parts/<sha256>.<chunk bytes>         some chunks, each in its place
    <directory>/parts/<sha256>.<chunk bytes>.have    a bit per chunk that is surely in it

Laws: 1. A file below `blobs` is what its name says. 2. A bit is written after its chunk is safely on disk: a
crash may forget chunks, never invent them. 3. What is written is within the quota before it is begun.
Not here: what to keep (the services), where chunks come from (courier).
"""

import hashlib
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common import files
from common.errors import NotFoundError, StorageFullError, TransferError
from common.ids import DIGEST, Digest, sha256
from common.limits import PART_CHUNKS_UNSYNCED_MAX, PART_UNSYNCED_S
from common.messages import Manifest

_BITS_SUFFIX = ".have"


class BlobStore:
    """The blobs of one process."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._blobs, self._parts = directory / "blobs", directory / "parts"
        for folder in (self._blobs, self._parts):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._bytes_max = bytes_max
        found = (path for folder in (self._blobs, self._parts) for path in folder.iterdir())
        self._sizes = {path: path.stat().st_size for path in found if path.suffix != _BITS_SUFFIX}

    @property
    def bytes_used(self) -> int:
        """How much the blobs and parts take, finished or promised."""
        return sum(tuple(self._sizes.values()))  # a copy: threads put and finish

    def has(self, digest: str) -> bool:
        """Tell whether the whole blob is here."""
        return self._path(digest) in self._sizes

    def put(self, data: bytes | memoryview) -> Digest:
        """Keep a blob. Raises: StorageError."""
        digest = sha256(data)
        path = self._path(digest)
        if path not in self._sizes:
            self._reserve(path, len(data))
            with self._released_on_failure(path):
                files.replace(path, data)
        return digest

    def read(self, digest: str) -> bytes:
        """Read a whole blob. Raises: NotFoundError, StorageError."""
        try:
            return self._path(digest).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"blob {digest} is not in the store") from None
        except OSError as error:
            raise files.storage_error(error) from error

    def delete(self, digest: str) -> None:
        """Forget a blob, and what has come of it so far. Raises: StorageError."""
        self._path(digest)
        with files.said_plainly():
            for path in [path for path in tuple(self._sizes) if path.name[:64] == digest]:
                self._remove(path)

    def sweep(self, keep: Collection[str], *, parts: bool = True) -> None:
        """Delete every blob but these, and every part if wanted; parts that are being written belong to `keep`."""
        for path in tuple(self._sizes):
            if path.name[:64] not in keep and (parts or path.parent == self._blobs):
                self._remove(path)

    def open_part(self, manifest: Manifest) -> "Part":
        """Begin to collect a blob, or go on after a restart. Raises: StorageError."""
        path = self._parts / f"{self._path(manifest.digest).name}.{manifest.chunk}"
        self._reserve(path, manifest.size)
        with self._released_on_failure(path):
            return Part(self, manifest, path)

    def _path(self, digest: str) -> Path:
        if re.fullmatch(DIGEST, digest) is None:  # it comes from a peer, and becomes a path
            raise NotFoundError(f"{digest!r} is not a digest")
        return self._blobs / digest

    def _reserve(self, path: Path, size: int) -> None:
        used = self.bytes_used - self._sizes.get(path, 0)
        if used + size > self._bytes_max:
            raise StorageFullError(
                f"a blob of {size} bytes does not fit: {used} of {self._bytes_max} bytes are used"
            )
        self._sizes[path] = size

    def _adopt(self, part: Path, digest: str) -> Path:
        """Take a finished part among the blobs."""
        path = self._path(digest)
        part.replace(path)
        files.sync_directory(self._blobs)
        self._sizes[path] = self._sizes.pop(part)
        return path

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}{_BITS_SUFFIX}").unlink(missing_ok=True)
        self._sizes.pop(path, None)

    @contextmanager
    def _released_on_failure(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._sizes.pop(path, None)
            with suppress(OSError):  # of a disk that takes nothing
                self._remove(path)
            raise files.storage_error(error) from error


class Part:
    """A blob that is still coming in."""

    def __init__(self, store: BlobStore, manifest: Manifest, path: Path) -> None:
        self._store, self._manifest, self._path = store, manifest, path
        self._bits_path = path.with_name(f"{path.name}{_BITS_SUFFIX}")
        self._bits = self._read_bits()
        self._unsynced = 0
        self._synced_at = time.monotonic()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def have(self) -> tuple[int, ...]:
        """List the chunks that are here."""
        return tuple(i for i in range(self._manifest.chunks) if self._bits[i >> 3] >> (i & 7) & 1)

    @property
    def is_sync_due(self) -> bool:
        """Whether `sync` should be called, in a thread."""
        late = time.monotonic() - self._synced_at >= PART_UNSYNCED_S
        return self._unsynced >= PART_CHUNKS_UNSYNCED_MAX or (late and self._unsynced > 0)

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Put a checked chunk in its place. Raises: StorageError."""
        try:
            written = os.pwrite(self._handle, data, index * self._manifest.chunk)
        except OSError as error:
            raise files.storage_error(error) from error
        if written < len(data):
            raise StorageFullError(f"the disk is full: {written} of {len(data)} bytes were written")
        self._bits[index >> 3] |= 1 << (index & 7)
        self._unsynced += 1

    def sync(self) -> None:
        """Make what was written durable: first the chunks, then the bits that vouch for them."""
        bits, self._unsynced, self._synced_at = bytes(self._bits), 0, time.monotonic()
        os.fsync(self._handle)
        handle = os.open(self._bits_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(
                handle, bits, 0
            )  # in place: bits are only ever added, so a torn write claims too little
            os.fsync(handle)
        finally:
            os.close(handle)

    def finish(self) -> Path:
        """Check the whole and take it among the blobs; slow, for a thread. Raises: TransferError."""
        with open(self._handle, "rb", buffering=0, closefd=False) as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self._manifest.digest:
            self.discard()
            raise TransferError(f"the chunks of {self._manifest.digest} do not make it up")
        os.fsync(self._handle)
        self._unsynced = 0
        self.close()
        path = self._store._adopt(self._path, digest)  # noqa: SLF001 - a part is the store's own
        self._bits_path.unlink(missing_ok=True)
        return path

    def close(self) -> None:
        """Leave the part on disk for another time; in a thread, as `sync`."""
        if self._handle >= 0:
            try:
                if self._unsynced > 0:
                    self.sync()
            finally:
                os.close(self._handle)
                self._handle = -1

    def discard(self) -> None:
        """Delete the part."""
        self._unsynced = 0
        self.close()
        self._store._remove(self._path)  # noqa: SLF001 - a part is the store's own

    def _read_bits(self) -> bytearray:
        size = -(-self._manifest.chunks // 8)
        try:
            bits = self._bits_path.read_bytes() if self._path.exists() else b""
        except FileNotFoundError:
            bits = b""
        return bytearray(bits[:size].ljust(size, b"\0"))

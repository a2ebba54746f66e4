"""One SQLite file with one writer: what is committed survives a kill at any instruction.

WAL, `synchronous=FULL`: a commit is on disk when `transaction` is left. A file that is no database any more is
moved aside, never replaced in silence. Everything here blocks: callers are in threads.

Laws: 1. Blob first, row second: a crash leaves an orphan file, never a row without its blob. 2. A transaction
is there whole or not at all.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import DamagedError, NotFoundError, StorageError, StorageFullError

BUSY_S = 10.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Database:
    """A file's one connection, shared by the threads of a process."""

    def __init__(self, path: Path, schema: str) -> None:
        """Open the file and make its tables. Raises: StorageError."""
        self.path = path
        self.moved_aside: Path | None = None  # where a damaged one lies now
        self._lock = threading.RLock()
        try:
            self._connection = _open(path, schema)
        except DamagedError:
            self.moved_aside = _move_aside(path)
            self._connection = _open(path, schema)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Change rows, all or none; without `durable` a power cut may forget it, a kill never.

        Raises: StorageError, DamagedError.
        """
        with self._lock, _said_plainly(self.path):
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Read rows. Raises: StorageError, DamagedError."""
        with self._lock, _said_plainly(self.path):
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def read(path: Path, *queries: tuple[object, ...]) -> list[list[tuple[Any, ...]]]:
    """Read rows from a file that another process may be writing: of each query (its SQL, its values) a list.

    Raises: NotFoundError, StorageError, DamagedError.
    """
    if not path.exists():
        raise NotFoundError(f"there is no {path}")
    with _said_plainly(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
        try:
            return [connection.execute(str(sql), values).fetchall() for sql, *values in queries]
        finally:
            connection.close()


def _open(path: Path, schema: str) -> sqlite3.Connection:
    with _said_plainly(path):
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            _check(connection, path)
            connection.executescript(schema)
        except BaseException:
            connection.close()
            raise
        return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise DamagedError(f"{path} is damaged: {found}")


def _move_aside(path: Path) -> Path:
    """Keep a damaged file and its log under another name."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    return aside


@contextmanager
def _said_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise DamagedError(f"{path} is damaged: {error}") from error
        if code == sqlite3.SQLITE_FULL:
            raise StorageFullError(f"there is no room for {path}: {error}") from error
        raise StorageError(f"cannot keep state in {path}: {error}") from error

"""One file, one writer: what is committed is there, what failed is not, and damage is never hidden."""

import sqlite3
import threading

import pytest

from common.database import Database, read
from common.errors import DamagedError, NotFoundError, StorageError, StorageFullError

TABLES = "CREATE TABLE IF NOT EXISTS word (word TEXT NOT NULL UNIQUE);"
WORDS = "SELECT word FROM word ORDER BY word"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
def database(path):
    opened = Database(path, TABLES)
    yield opened
    opened.close()


def say(database, *words, durable=True):
    with database.transaction(durable=durable) as rows:
        for word in words:
            rows.execute("INSERT INTO word VALUES (?)", (word,))


def reopened(path):
    again = Database(path, TABLES)
    again.close()
    return again


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_committed_is_there(database, path, durable):
    say(database, "a", "b", durable=durable)
    assert database.rows(WORDS) == [("a",), ("b",)]
    assert database.rows("SELECT word FROM word WHERE word > ?", "a") == [("b",)]
    assert read(path, (WORDS,), ("SELECT ?", 7)) == [[("a",), ("b",)], [(7,)]]


def test_a_durable_commit_waits_for_the_disk_and_another_does_not(database):
    with database.transaction() as rows:
        assert rows.execute("PRAGMA synchronous").fetchone() == (2,)
    with database.transaction(durable=False) as rows:
        assert rows.execute("PRAGMA synchronous").fetchone() == (1,)
    assert database.rows("PRAGMA journal_mode") == [("wal",)]


def test_a_transaction_that_fails_changes_nothing(database):
    say(database, "a")
    with pytest.raises(StorageError, match="UNIQUE"):
        say(database, "b", "a")
    with pytest.raises(ZeroDivisionError), database.transaction() as rows:
        rows.execute("INSERT INTO word VALUES (?)", (1 / 0,))
    assert database.rows(WORDS) == [("a",)]
    say(database, "b")


def test_threads_take_turns(database):
    def work(name):
        for number in range(20):
            say(database, f"{name}{number}", durable=False)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(database.rows(WORDS)) == 60


def test_a_file_that_is_no_database_is_moved_aside(path):
    path.write_bytes(b"junk" * 1000)
    again = reopened(path)
    assert again.moved_aside.read_bytes() == b"junk" * 1000
    assert read(path, (WORDS,)) == [[]]


def test_a_database_with_a_spoilt_page_is_moved_aside(path):
    database = Database(path, TABLES)
    say(database, *(f"{number:0500}" for number in range(200)))
    database.close()
    spoilt = bytearray(path.read_bytes())
    spoilt[4096:-4096] = bytes(len(spoilt) - 2 * 4096)
    path.write_bytes(spoilt)
    assert reopened(path).moved_aside.read_bytes() == spoilt
    assert reopened(path).moved_aside is None


def test_damage_that_comes_to_light_later_is_said(database, path):
    say(database, *(f"{number:0500}" for number in range(200)))
    database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    database.rows("PRAGMA cache_size = 0")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100_000)
    with pytest.raises(DamagedError):
        database.rows("SELECT * FROM word")


def test_a_database_that_grows_no_more_is_full(database):
    database.rows("PRAGMA max_page_count = 8")
    with pytest.raises(StorageFullError):
        say(database, "x" * 100_000)
    assert database.rows(WORDS) == []
    say(database, "a")


def test_a_place_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="cannot keep state"):
        Database(tmp_path / "nowhere" / "state.db", TABLES)


def test_a_database_that_was_closed_is_an_error(path):
    with pytest.raises(StorageError):
        reopened(path).rows(WORDS)


def test_reading_changes_nothing_and_makes_nothing(database, path, tmp_path):
    with pytest.raises(StorageError):
        read(path, ("INSERT INTO word VALUES ('a')",))
    with pytest.raises(NotFoundError):
        read(tmp_path / "other.db", (WORDS,))
    assert not (tmp_path / "other.db").exists()


def test_reading_what_is_no_database_says_so_and_leaves_it(path):
    path.write_bytes(b"junk" * 1000)
    with pytest.raises(DamagedError):
        read(path, (WORDS,))
    assert path.exists()


def test_reading_waits_for_no_writer(database, path):
    say(database, "a")
    with database.transaction() as rows:
        rows.execute("INSERT INTO word VALUES ('b')")
        assert read(path, (WORDS,)) == [[("a",)]]


def test_a_writer_of_another_connection_is_waited_for(database, path):
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    waiting = threading.Thread(target=say, args=(database, "a"))
    waiting.start()
    other.execute("COMMIT")
    waiting.join()
    other.close()
    assert database.rows(WORDS) == [("a",)]

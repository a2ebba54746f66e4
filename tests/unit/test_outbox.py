"""What waits is kept, judged once, and makes room in one order; whatever happens, nothing committed is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from common import codec, limits
from common.blobs import BlobStore
from common.database import Database
from common.errors import DecodeError, NotFoundError, StorageError, StorageFullError
from common.ids import sha256
from common.messages import ClientMetrics, Declined, Reason
from common.outbox import TABLES, Outbox, Outcome, Priority, key_of, look, priority_of
from edge_client.custody import Custody
from support.patience import within
from support.running import ROOT, environment
from support.updates import RUN, manifest, update

DECLINED = Declined(run=RUN, round=1, reason=Reason.DIVERGED)
BLOB = 1000
DAY = 86_400.0


def made(number, *, size=BLOB, word=None):
    """The update of one round, from a base of its own."""
    delta = manifest(word or f"delta {number}", size)
    return replace(update("a", number=number, base=manifest(f"base {number}").digest), delta=delta)


def metrics(number, **more):
    return ClientMetrics(run=RUN, round=number, **more)


def size_of(message):
    return len(codec.encode(message)) + (message.delta.size if priority_of(message) is Priority.UPDATE else 0)


@pytest.fixture
def opened(tmp_path):
    """Open an outbox; it reads the time from `clock`."""
    databases = []

    def at(bytes_max=10**6, age_s_max=30 * DAY, path=tmp_path / "state.db"):
        databases.append(Database(path, TABLES))
        return Outbox(databases[-1], bytes_max=bytes_max, age_s_max=age_s_max, clock=lambda: clock.now)

    clock = type("Clock", (), {"now": 1000.0})()
    at.clock = clock
    yield at
    for database in databases:
        database.close()


def messages(box):
    return [entry.message for entry in box.waiting()]


def outcome(one, refused=None, detail="", at=1000.0, *, late=False):
    return Outcome(one.run, one.base, one.round, one.delta.digest, refused, detail, late, at)


# --- what waits -----------------------------------------------------------------------------------


def test_what_is_put_waits_by_priority_then_the_oldest_first(opened):
    box = opened()
    for one in (metrics(1), made(2), metrics(2), made(1), DECLINED):
        assert box.put(one) == ()
    assert messages(box) == [DECLINED, made(2), made(1), metrics(1), metrics(2)]
    assert box.bytes_used == sum(map(size_of, messages(box)))
    assert box.blobs() == {made(1).delta.digest, made(2).delta.digest}


def test_what_waits_is_there_after_a_restart(opened):
    opened().put(made(1))
    assert messages(opened()) == [made(1)]


def test_one_entry_a_key(opened):
    box = opened()
    again = replace(made(1), delta=manifest("another"))
    for one in (made(1), metrics(1), DECLINED, again, metrics(1, loss=1.0), replace(DECLINED, round=2)):
        box.put(one)
    assert messages(box) == [replace(DECLINED, round=2), again, metrics(1, loss=1.0)]


@pytest.mark.parametrize("other", [replace(made(1), run="run-2"), made(2)])
def test_an_update_is_known_by_its_run_and_base(other):
    assert key_of(other) != key_of(made(1))
    assert key_of(replace(made(1), round=9)) == key_of(made(1))


def test_what_needs_no_verdict_is_deleted_and_an_update_is_not(opened):
    box = opened()
    for one in (DECLINED, metrics(1), made(1)):
        box.put(one)
        box.delete(key_of(one))
    assert messages(box) == [made(1)]


def test_a_message_that_nobody_could_read_is_not_written_down(opened):
    box = opened()
    with pytest.raises(DecodeError):
        box.put(replace(made(1), loss=float("nan")))
    assert messages(box) == []


def test_metrics_beyond_their_number_push_out_the_oldest(opened, monkeypatch):
    monkeypatch.setattr(limits, "OUTBOX_METRICS_MAX", 3)
    box = opened()
    box.put(made(1))
    for number in range(5):
        box.put(metrics(number))
    assert messages(box) == [made(1), metrics(2), metrics(3), metrics(4)]


# --- outcomes -------------------------------------------------------------------------------------


def test_a_judged_update_becomes_an_outcome(opened):
    box = opened()
    box.put(made(1))
    assert box.settle(RUN, made(1).base, late=True) == outcome(made(1), late=True)
    assert (messages(box), box.bytes_used) == ([], 0)
    assert box.outcomes() == (outcome(made(1), late=True),)


def test_the_last_word_counts(opened):
    box = opened()
    for number in (1, 2):
        box.put(made(number))
        box.settle(RUN, made(number).base)
    opened.clock.now = 2000.0
    over = outcome(made(1), Reason.RUN_OVER, "the run ended", 2000.0)
    assert box.settle(RUN, made(1).base, refused=Reason.RUN_OVER, detail="the run ended") == over
    assert box.outcomes() == (over, outcome(made(2)))
    assert box.outcomes(1) == (over,)


def test_what_was_never_put_has_no_outcome(opened):
    box = opened()
    assert box.settle(RUN, made(1).base) is None
    assert box.outcomes() == ()


def test_the_last_outcomes_are_kept(opened, monkeypatch):
    monkeypatch.setattr(limits, "OUTCOMES_KEPT", 3)
    box = opened()
    for number in range(5):
        box.put(made(number))
        box.settle(RUN, made(number).base)
    assert [one.round for one in box.outcomes(10)] == [4, 3, 2]


def test_facts_are_kept(opened):
    assert opened().fact("epoch") is None
    opened().set_fact("epoch", "3")
    opened().set_fact("epoch", "4")
    assert opened().fact("epoch") == "4"


def test_what_was_kept_before_a_device_knew_the_time_is_not_too_old_when_it_does(opened):
    box = opened()
    box.put(made(1))
    opened.clock.now = 1.8e9
    assert box.expire() == ()
    opened.clock.now += 29 * DAY
    assert box.expire() == ()
    opened.clock.now += 2 * DAY
    assert [one.refused for one in box.expire()] == [Reason.EXPIRED]


# --- making room ----------------------------------------------------------------------------------


def test_room_is_made_by_what_is_too_old_then_metrics_then_older_updates(opened):
    held = [made(1), metrics(1), made(2), metrics(2), DECLINED, made(3)]
    box = opened(bytes_max=sum(map(size_of, held)))
    for one in held:
        box.put(one)
        opened.clock.now += 1
    assert not box.is_full

    opened.clock.now = 1000.5 + 30 * DAY  # the first update alone is too old
    gone = box.put(made(4))
    assert [(one.round, one.refused) for one in gone] == [(1, Reason.EXPIRED)]
    assert messages(box) == [DECLINED, made(2), made(3), made(4), metrics(1), metrics(2)]

    opened.clock.now = 2000.0
    assert box.put(made(5, size=BLOB - size_of(metrics(1)))) != ()  # more than one line of metrics frees
    assert messages(box) == [DECLINED, made(3), made(4), made(5, size=BLOB - size_of(metrics(1)))]
    assert box.outcomes(1) == (outcome(made(2), Reason.EVICTED, "a newer update needed the room", 2000.0),)


def test_no_more_goes_than_has_to(opened):
    box = opened(bytes_max=size_of(made(1)) + 2 * size_of(metrics(1)))
    for one in (made(1), metrics(1), metrics(2)):
        box.put(one)
    box.put(metrics(3))
    assert messages(box) == [made(1), metrics(2), metrics(3)]
    small = made(2, size=1)
    box.put(small)
    assert messages(box) == [small]
    box.put(metrics(4))
    assert messages(box) == [small, metrics(4)]


@pytest.mark.parametrize("held", [[made(1)], [made(1), made(2)]])
def test_the_newest_update_and_control_never_go(opened, held):
    box = opened(bytes_max=sum(map(size_of, held)) + size_of(DECLINED) - 1)
    for one in held:
        box.put(one)
    if len(held) == 1:
        with pytest.raises(StorageFullError):
            box.put(DECLINED)
        assert messages(box) == held
    else:
        assert [one.round for one in box.put(DECLINED)] == [1]
        assert messages(box) == [DECLINED, made(2)]


def test_metrics_never_push_an_update_out(opened):
    box = opened(bytes_max=size_of(made(1)) + size_of(made(2)))
    for one in (made(1), made(2)):
        box.put(one)
    with pytest.raises(StorageFullError):
        box.put(metrics(1))
    assert messages(box) == [made(1), made(2)]
    assert not box.is_full  # it is said of updates


def test_what_finds_no_room_changes_nothing(opened):
    box = opened(bytes_max=size_of(made(1)) + size_of(DECLINED) + size_of(metrics(1)))
    for one in (DECLINED, made(1), metrics(1)):
        box.put(one)
    opened.clock.now += 31 * DAY  # even what is too old stays
    with pytest.raises(StorageFullError, match=r"\d+ bytes more"):
        box.put(made(2, size=10**6))
    assert messages(box) == [DECLINED, made(1), metrics(1)]
    assert box.outcomes() == ()
    assert box.is_full
    box.settle(RUN, made(1).base)
    assert not box.is_full


def test_an_update_that_fits_again_ends_the_want_of_room(opened):
    box = opened(bytes_max=2 * size_of(made(1)))
    with pytest.raises(StorageFullError):
        box.put(made(1, size=10**6))
    box.put(metrics(1))
    assert box.is_full
    box.put(made(1))
    assert not box.is_full


def test_a_replaced_entry_makes_its_own_room(opened):
    box = opened(bytes_max=size_of(made(1)))
    box.put(made(1))
    assert box.put(made(1)) == ()
    assert messages(box) == [made(1)]


def test_what_is_too_old_is_given_up_but_for_control(opened):
    box = opened()
    for one in (DECLINED, made(1), metrics(1)):
        box.put(one)
    opened.clock.now += 30 * DAY
    assert box.expire() == ()
    opened.clock.now += 1
    expired = outcome(made(1), Reason.EXPIRED, "it waited for more than 30 days", opened.clock.now)
    assert box.expire() == (expired,)
    assert messages(box) == [DECLINED]
    assert box.outcomes() == (expired,)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 4000)), max_size=25))
def test_no_update_is_lost_and_the_quota_holds(tmp_path_factory, steps):
    """Whatever is put: each update waits or has an outcome, and what waits is within the quota."""
    path = tmp_path_factory.mktemp("box") / "state.db"
    with closing(Database(path, TABLES)) as database:
        box, put = Outbox(database, bytes_max=6000, age_s_max=DAY), set()
        for kind, number, size in steps:
            one = (metrics(number), made(number, size=size), DECLINED)[kind]
            before = messages(box)
            try:
                gone = box.put(one)
            except StorageFullError:
                assert messages(box) == before
                continue
            assert one in messages(box)
            put |= {one.base} if kind == 1 else set()
            waiting = {m.base for m in messages(box) if priority_of(m) is Priority.UPDATE}
            assert {o.base for o in gone}.isdisjoint(waiting)
            assert waiting | {o.base for o in box.outcomes()} == put
            assert box.bytes_used <= 6000


# --- disks ----------------------------------------------------------------------------------------

CHILD = """
import sys
from contextlib import closing
from pathlib import Path
from common import chunks
from common.blobs import BlobStore
from common.database import Database
from common.messages import Verdict
from common.outbox import TABLES, Outbox
from edge_client.custody import Custody
from msgspec.structs import replace
from support.updates import manifest, update

directory = Path(sys.argv[1])
with closing(Database(directory / "state.db", TABLES)) as database:
    store = BlobStore(directory, 1 << 30)
    custody = Custody(Outbox(database, bytes_max=1 << 30, age_s_max=1e9), store)
    number = len(custody.outbox.outcomes()) + len(custody.outbox.waiting())
    while True:
        number += 1
        data = bytes(number % 5) + str(number).encode()
        delta = chunks.describe(data, codec="none", schema="e" * 64)
        base = manifest(str(number)).digest
        one = replace(update("a", number=number, base=base), delta=delta)
        custody.keep(one, data)
        print("kept", number, flush=True)
        if number % 3 == 0:
            custody.settle((one.run, base), Verdict(run=one.run, round=number, delta=delta.digest))
            print("judged", number, flush=True)
"""


def test_whenever_it_is_killed_nothing_kept_is_lost_and_no_row_is_without_its_blob(tmp_path):
    kept, judged = set(), set()
    for words in (1, 2, 7, 16):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            said = [child.stdout.readline() for _ in range(words)]
            child.send_signal(signal.SIGKILL)
            said += child.stdout.readlines()
        for word, number in (line.split() for line in said if line.endswith("\n")):
            (kept if word == "kept" else judged).add(int(number))

        with closing(Database(tmp_path / "state.db", TABLES)) as database:
            assert database.moved_aside is None
            box, store = Outbox(database, bytes_max=1 << 30, age_s_max=1e9), BlobStore(tmp_path, 1 << 30)
            waiting = {entry.message.round for entry in box.waiting()}
            settled = {one.round for one in box.outcomes()}
            assert all(store.has(blob) for blob in box.blobs())
        assert kept <= waiting | settled
        assert judged <= settled
        assert waiting.isdisjoint(settled)
        assert len(waiting | settled) <= len(kept) + words  # it counts on from what is there
        kept |= waiting | settled


def test_a_damaged_file_is_moved_aside_and_said(opened, tmp_path):
    opened(path=tmp_path / "state.db").put(made(1))
    with closing(Database(tmp_path / "other.db", TABLES)):
        pass
    (tmp_path / "other.db").write_bytes(b"no database" * 1000)
    box = opened(path=tmp_path / "other.db")
    assert box.moved_aside.read_bytes() == b"no database" * 1000
    assert messages(box) == []
    assert opened().moved_aside is None


def test_a_read_only_directory_is_an_error(tmp_path):
    (tmp_path / "frozen").mkdir(mode=0o500)
    if os.access(tmp_path / "frozen", os.W_OK):
        pytest.skip("root may write anywhere")
    with pytest.raises(StorageError):
        Database(tmp_path / "frozen" / "state.db", TABLES)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_takes_nothing_half_and_goes_on_when_there_is_room(small_disk):
    store = BlobStore(small_disk, 1 << 30)
    with closing(Database(small_disk / "state.db", TABLES)) as database:
        custody = Custody(Outbox(database, bytes_max=1 << 30, age_s_max=DAY), store)
        kept = []

        def fill():
            for number in range(1, 1000):
                data = f"{number} ".encode() * 20_000
                one = made(number, size=len(data))
                one = replace(one, delta=replace(one.delta, digest=sha256(data)))
                custody.keep(one, data)
                kept.append(one)

        with pytest.raises(StorageFullError):
            fill()
        assert kept
        assert messages(custody.outbox) == kept
        assert {one.delta.digest for one in kept} == {path.name for path in (small_disk / "blobs").iterdir()}
        store.delete(kept[0].delta.digest)  # somebody makes room
        assert custody.outbox.settle(RUN, kept[0].base) is not None
        custody.outbox.put(made(1000, size=1))


# --- reading from outside -------------------------------------------------------------------------


def test_the_outbox_can_be_read_while_its_client_runs(opened, tmp_path):
    box = opened()
    box.put(made(1))
    box.put(made(2))
    box.settle(RUN, made(1).base)
    waiting, outcomes = look(tmp_path / "state.db", 20)
    assert waiting == box.waiting()
    assert outcomes == box.outcomes()


def test_the_outbox_can_be_read_when_its_client_has_ended(tmp_path):
    with closing(Database(tmp_path / "state.db", TABLES)) as database:
        Outbox(database, bytes_max=10**6, age_s_max=DAY).put(made(1))
    ((entry,), ()) = look(tmp_path / "state.db", 20)
    assert entry.message == made(1)
    assert time.time() - within(60) < entry.created <= time.time()


def test_an_outbox_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(NotFoundError):
        look(tmp_path / "state.db", 20)
    assert not (tmp_path / "state.db").exists()

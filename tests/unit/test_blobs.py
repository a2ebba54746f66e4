"""What the store says it has is there, whole; what came in survives a restart; nothing exceeds the quota."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import chunks
from common.blobs import BlobStore
from common.errors import NotFoundError, StorageFullError, TransferError
from common.ids import sha256

DATA = bytes(range(256)) * 18  # 4608 bytes: four chunks of 1024 and a half one
MANIFEST = chunks.describe(DATA, codec="f32", schema="0" * 64, chunk=1024)


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path, 10_000)


def write(part, *indices):
    for index in indices:
        part.write(index, chunks.cut(DATA, MANIFEST, index))


def test_a_blob_is_named_by_its_content_and_found_again_after_a_restart(store, tmp_path):
    digest = store.put(DATA)

    assert digest == sha256(DATA)
    assert store.put(memoryview(DATA)) == digest
    again = BlobStore(tmp_path, 10_000)
    assert again.has(digest)
    assert again.read(digest) == DATA
    assert again.bytes_used == len(DATA)


def test_a_deleted_blob_is_gone_and_its_bytes_are_free(store):
    digest = store.put(DATA)
    store.delete(digest)
    store.delete(digest)

    assert not store.has(digest)
    assert store.bytes_used == 0
    with pytest.raises(NotFoundError):
        store.read(digest)


@pytest.mark.parametrize("name", ["", "../escape", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_name_that_is_no_digest_never_becomes_a_path(store, name):
    for ask in (store.has, store.read, store.delete):
        with pytest.raises(NotFoundError):
            ask(name)


def test_what_does_not_fit_is_refused_before_it_is_written(store):
    store.put(DATA)
    part = store.open_part(MANIFEST)  # promised: twice 4608 bytes

    with pytest.raises(StorageFullError):
        store.put(bytes(1000))
    part.discard()
    store.put(bytes(1000))


def test_a_part_becomes_a_blob_once_all_its_chunks_are_there(store, tmp_path):
    part = store.open_part(MANIFEST)
    write(part, 4, 0, 2, 1, 3)
    part.sync()

    path = part.finish()

    assert path.read_bytes() == DATA
    assert store.has(MANIFEST.digest)
    assert store.bytes_used == len(DATA)
    assert list((tmp_path / "parts").iterdir()) == []


def test_what_was_synced_is_there_after_a_restart_and_nothing_else_is_claimed(store, tmp_path):
    part = store.open_part(MANIFEST)
    write(part, 0, 3)
    part.sync()
    write(part, 1)
    os.close(part._handle)  # as a crash does: chunk 1 was never vouched for

    again = BlobStore(tmp_path, 10_000)
    part = again.open_part(MANIFEST)

    assert part.have() == (0, 3)
    write(part, 1, 2, 4)
    assert part.finish().read_bytes() == DATA


def test_bits_without_their_part_claim_nothing(store, tmp_path):
    part = store.open_part(MANIFEST)
    write(part, 0)
    part.sync()
    part.close()
    (tmp_path / "parts" / f"{MANIFEST.digest}.1024").unlink()

    part = BlobStore(tmp_path, 10_000).open_part(MANIFEST)

    assert part.have() == ()
    part.close()


def test_a_part_is_synced_when_enough_has_come(tmp_path):
    manifest = chunks.describe(bytes(20 * 1024), codec="f32", schema="0" * 64, chunk=1024)
    part = BlobStore(tmp_path, 100_000).open_part(manifest)

    due = []
    for index in range(17):
        part.write(index, bytes(1024))
        due.append(part.is_sync_due)
    part.sync()

    assert due == [False] * 15 + [True] * 2
    assert not part.is_sync_due
    part.close()


def test_chunks_that_do_not_make_up_the_blob_are_deleted(store):
    part = store.open_part(MANIFEST)
    write(part, 0, 1, 2, 3)
    part.write(4, bytes(512))

    with pytest.raises(TransferError):
        part.finish()
    assert not store.has(MANIFEST.digest)
    assert store.bytes_used == 0


def test_a_sweep_keeps_what_it_is_told_to_keep(store, tmp_path):
    kept, lost = store.put(b"kept"), store.put(b"lost")
    store.open_part(MANIFEST).close()

    store.sweep({kept})

    assert store.has(kept)
    assert not store.has(lost)
    assert store.bytes_used == 4
    assert list((tmp_path / "parts").iterdir()) == []


def test_an_empty_blob_is_a_blob(store):
    manifest = chunks.describe(b"", codec="f32", schema="0" * 64)

    assert store.open_part(manifest).finish().read_bytes() == b""
    assert store.has(manifest.digest)


def test_a_full_disk_is_said_plainly(store):
    part = store.open_part(MANIFEST)
    os.close(part._handle)
    part._handle = os.open("/dev/full", os.O_RDWR)

    with pytest.raises(StorageFullError, match="disk is full"):
        write(part, 0)
    part.close()


def test_a_part_that_is_put_away_forgets_nothing(store, tmp_path):
    part = store.open_part(MANIFEST)
    write(part, 1, 2)
    part.close()

    part = BlobStore(tmp_path, 10_000).open_part(MANIFEST)
    assert part.have() == (1, 2)
    part.close()


@settings(max_examples=50)
@given(st.permutations(range(5)), st.integers(0, 5), st.integers(0, 5))
def test_any_order_with_a_crash_anywhere_makes_the_blob(tmp_path_factory, order, synced, crash):
    directory = tmp_path_factory.mktemp("store")
    part = BlobStore(directory, 10_000).open_part(MANIFEST)
    for at, index in enumerate(order[:crash]):
        if at == synced:
            part.sync()
        write(part, index)
    os.close(part._handle)

    part = BlobStore(directory, 10_000).open_part(MANIFEST)
    assert set(part.have()) <= set(order[:crash])
    write(part, *(index for index in range(5) if index not in part.have()))

    assert part.finish().read_bytes() == DATA


def test_two_cuts_of_one_blob_do_not_mix(store):
    part = store.open_part(MANIFEST)
    write(part, 0)
    part.sync()
    part.close()

    other = store.open_part(chunks.describe(DATA, codec="f32", schema="0" * 64, chunk=2048))

    assert other.have() == ()
    other.close()

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


def test_what_the_disk_spoilt_is_moved_out_of_the_way_at_the_next_start(store, tmp_path):
    whole, spoilt = store.put(DATA), store.put(b"spoilt")
    (tmp_path / "blobs" / spoilt).write_bytes(b"spoil")

    again = BlobStore(tmp_path, 10_000)

    assert (again.has(whole), again.has(spoilt), again.bytes_used) == (True, False, len(DATA))
    (moved,) = again.damaged
    assert moved.read_bytes() == b"spoil"
    assert again.put(b"spoilt") == spoilt
    assert BlobStore(tmp_path, 10_000).damaged == ()


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

    path = part.finish()

    assert path.read_bytes() == DATA
    assert store.has(MANIFEST.digest)
    assert store.bytes_used == len(DATA)
    assert list((tmp_path / "parts").iterdir()) == []


def test_what_was_written_is_there_after_a_kill(store, tmp_path):
    part = store.open_part(MANIFEST)
    write(part, 0, 3)
    os.close(part._handle)

    part = BlobStore(tmp_path, 10_000).open_part(MANIFEST)

    assert part.have() == (0, 3)
    write(part, 1, 2, 4)
    assert part.finish().read_bytes() == DATA


def test_a_chunk_that_a_crash_tore_is_not_there(store, tmp_path):
    part = store.open_part(MANIFEST)
    write(part, 0, 1, 4)
    part.close()
    with (tmp_path / "parts" / f"{MANIFEST.digest}.1024").open("r+b") as file:
        file.seek(1500)
        file.write(b"torn")
        file.truncate(4600)

    part = BlobStore(tmp_path, 10_000).open_part(MANIFEST)

    assert part.have() == (0,)
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


@settings(max_examples=50)
@given(st.permutations(range(5)), st.integers(0, 5))
def test_any_order_with_a_kill_anywhere_makes_the_blob(tmp_path_factory, order, killed):
    directory = tmp_path_factory.mktemp("store")
    part = BlobStore(directory, 10_000).open_part(MANIFEST)
    write(part, *order[:killed])
    os.close(part._handle)

    part = BlobStore(directory, 10_000).open_part(MANIFEST)
    assert part.have() == tuple(sorted(order[:killed]))
    write(part, *order[killed:])

    assert part.finish().read_bytes() == DATA


def test_two_cuts_of_one_blob_do_not_mix(store):
    part = store.open_part(MANIFEST)
    write(part, 0)
    part.close()

    other = store.open_part(chunks.describe(DATA, codec="f32", schema="0" * 64, chunk=2048))

    assert other.have() == ()
    other.close()

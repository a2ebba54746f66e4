"""What is a client's own is there for the next training, over restarts, and only with the update that it came of."""

import numpy as np
import pytest

from common import chunks
from common.blobs import BlobStore
from common.database import Database
from common.errors import StorageFullError
from common.ids import ClientId, RunId, sha256
from common.messages import Update, Verdict
from common.outbox import TABLES, Outbox
from edge_client.custody import Custody
from edge_client.personal import NOTHING, Kept

SCHEMA, OTHER = sha256(b"schema"), sha256(b"another schema")
RUN = RunId("run-1")
D = 5


def vector(first: float) -> np.ndarray:
    return np.array([first, np.nan, 3, 4, 5], np.float32)


class Client:
    """Keeps what trainings leave, and starts as often as a test likes."""

    def __init__(self, directory):
        self.directory = directory
        self.start()

    def start(self):
        self.store = BlobStore(self.directory, 2**30)
        self.database = Database(self.directory / "state.db", TABLES)
        self.outbox = Outbox(self.database, bytes_max=10_000, age_s_max=100.0, clock=lambda: 2e9)
        self.custody = Custody(self.outbox, self.store)

    def restart(self):
        self.database.close()
        self.start()

    def train(self, number, kept, schema=SCHEMA, size=8):
        encoded = bytes([number]) * size
        update = Update(
            run=RUN,
            round=number,
            client=ClientId("a"),
            base=sha256(f"model {number}".encode()),
            delta=chunks.describe(encoded, codec="none", schema=schema),
            examples=1,
        )
        self.custody.keep(update, encoded, None, kept)
        return update

    def kept(self, schema=SCHEMA, run=RUN):
        return self.custody.keepsakes.read(schema, run)


@pytest.fixture
def client(tmp_path):
    made = Client(tmp_path)
    yield made
    made.database.close()


def same(one: Kept, other: Kept) -> bool:
    return all(
        (mine is None and theirs is None)
        or (mine is not None and np.array_equal(mine, theirs, equal_nan=True))
        for mine, theirs in (
            (one.personal, other.personal),
            (one.ditto, other.ditto),
            (one.momentum, other.momentum),
        )
    )


def test_nothing_is_there_before_the_first_training(client):
    assert client.kept() == NOTHING


def test_what_a_training_left_is_there_after_a_restart_each_in_its_place(client):
    left = Kept(vector(1), vector(2), vector(3)[:2])
    client.train(1, left)
    assert same(client.kept(), left)
    client.restart()
    assert same(client.kept(), left)


def test_the_newest_counts_and_its_blobs_alone_are_left_after_it_was_judged(client):
    for number in (1, 2, 3):
        update = client.train(number, Kept(vector(number), vector(10 + number)))
        client.custody.settle((RUN, update.base), Verdict(run=RUN, round=number, delta=update.delta.digest))
    client.restart()
    assert same(client.kept(), Kept(vector(3), vector(13)))
    blobs = {path.name for path in (client.directory / "blobs").iterdir()}
    assert blobs == client.custody.keepsakes.blobs()
    assert len(blobs) == 2


def test_what_a_training_does_not_leave_is_left_as_it_was(client):
    client.train(1, Kept(vector(1), vector(2)))
    client.train(2, NOTHING)
    assert same(client.kept(), Kept(vector(1), vector(2)))


def test_another_model_begins_without_and_another_run_without_momentum(client):
    client.train(1, Kept(vector(1), vector(2), vector(3)))
    assert client.kept(OTHER) == NOTHING
    assert same(client.kept(run=RunId("run-2")), Kept(vector(1), vector(2)))
    client.train(2, Kept(vector(4)), OTHER)
    assert client.kept().personal is None


def test_an_update_that_there_is_no_room_for_changes_nothing(client):
    before = Kept(vector(1), vector(2), vector(3))
    client.train(1, before)
    with pytest.raises(StorageFullError):
        client.train(2, Kept(vector(7), vector(8), vector(9)), size=20_000)
    assert same(client.kept(), before)
    client.restart()
    assert same(client.kept(), before)


def test_a_blob_that_the_disk_lost_is_nothing(client):
    client.train(1, Kept(vector(1)))
    for blob in client.custody.keepsakes.blobs():
        client.store.delete(blob)
    assert client.kept() == NOTHING

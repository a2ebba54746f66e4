"""What a codec left out is in a later update, whatever becomes of the one before, and over restarts."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import chunks, compression
from common.blobs import BlobStore
from common.database import Database
from common.ids import ClientId, RunId, sha256
from common.messages import Reason, Update, Verdict
from common.outbox import TABLES, Outbox
from edge_client.custody import Custody

D, CODEC = 40, "topk-10"
SCHEMA, OTHER = sha256(b"schema"), sha256(b"another schema")
RUN = RunId("run-1")


class Client:
    """Trains random deltas, spells and keeps them, as the service does."""

    def __init__(self, directory):
        self.directory, self.numbers = directory, itertools.count()
        self.now = 2e9
        self.start()

    def start(self):
        self.store = BlobStore(self.directory, 2**30)
        self.database = Database(self.directory / "state.db", TABLES)
        self.outbox = Outbox(self.database, bytes_max=10_000, age_s_max=100.0, clock=lambda: self.now)
        self.custody = Custody(self.outbox, self.store)

    def restart(self):
        self.database.close()
        self.start()

    def train(self, delta, schema=SCHEMA):
        left = self.custody.residual.read(schema)
        whole = delta if left is None else delta + left
        encoded = compression.encode(CODEC, whole)
        sent = compression.decode(CODEC, encoded, D)
        number = next(self.numbers)
        update = Update(
            run=RUN,
            round=number,
            client=ClientId("a"),
            base=sha256(f"model {number}".encode()),
            delta=chunks.describe(encoded, codec=CODEC, schema=schema),
            examples=1,
        )
        self.custody.keep(update, encoded, whole - sent)
        return update, sent

    def judge(self, update, refused=None):
        verdict = Verdict(run=RUN, round=update.round, delta=update.delta.digest, refused=refused)
        self.custody.settle((RUN, update.base), verdict)

    def left(self, schema=SCHEMA):
        return self.custody.residual.read(schema)


@pytest.fixture
def client(tmp_path):
    made = Client(tmp_path)
    yield made
    made.database.close()


steps = st.lists(
    st.sampled_from(["taken", "refused", "expired", "restart", "waits"]), min_size=1, max_size=10
)


@given(steps=steps, seed=st.integers(0, 2**32))
def test_what_counts_and_what_is_left_are_all_that_was_trained(tmp_path_factory, steps, seed):
    client = Client(tmp_path_factory.mktemp("client"))
    rng = np.random.default_rng(seed)
    trained, counted, waits = np.zeros(D), np.zeros(D), np.zeros(D)
    for step in steps:
        delta = rng.normal(size=D).astype(np.float32)
        trained += delta
        update, sent = client.train(delta)
        match step:
            case "taken":
                client.judge(update)
                counted += sent
            case "refused":
                client.judge(update, Reason.TOO_STALE)
            case "expired":
                client.now += 101
                client.custody.expire()
                waits[:] = 0
            case "restart":
                client.restart()
                client.judge(update)
                counted += sent
            case "waits":
                waits += sent
    assert client.left() + counted + waits == pytest.approx(
        trained, abs=1e-2
    )  # values are spelled as half floats
    client.database.close()


def test_another_model_begins_without_what_was_left_of_the_last(client):
    client.train(np.ones(D, np.float32))
    assert client.left(OTHER) is None
    client.train(np.ones(D, np.float32), OTHER)
    assert client.left() is None
    assert client.left(OTHER).sum() == D - 4


def test_its_blob_stays_while_others_are_cleared_away(client):
    for _ in range(3):
        update, _ = client.train(np.ones(D, np.float32))
        client.judge(update)
    client.restart()
    assert client.left() is not None
    assert len(list((client.directory / "blobs").iterdir())) <= 3


def test_a_residual_that_the_disk_lost_is_none(client):
    client.train(np.ones(D, np.float32))
    for blob in client.custody.residual.blobs():
        client.store.delete(blob)
    assert client.left() is None
    update, _ = client.train(np.ones(D, np.float32))
    client.judge(update, Reason.TOO_STALE)
    assert client.left().sum() == pytest.approx(D)


def test_a_codec_that_leaves_nothing_out_leaves_nothing(client):
    data = np.ones(D, np.float32).tobytes()
    update = Update(
        run=RUN,
        round=1,
        client=ClientId("a"),
        base=sha256(b"base"),
        delta=chunks.describe(data, codec="none", schema=SCHEMA),
        examples=1,
    )
    client.custody.keep(update, data)
    client.judge(update, Reason.TOO_STALE)
    assert client.left() is None

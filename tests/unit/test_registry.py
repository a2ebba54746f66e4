"""A run's folder: the last models, and lines that are copies of what the ledger holds."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import RunId, sha256
from common.tensors import Schema
from coordinator import registry, saved
from coordinator.registry import CHECKPOINTS_KEPT, RunFolder

RUN = RunId("run-1")
SCHEMA = Schema.from_wire([("weight", "float32", [2, 3])])
LINES = [b"one", b"two", b"three"]
WHOLE = b"one\ntwo\nthree\n"


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path, RUN)
    made.create({"seed": 1, "run.strategy": "fedavg"})
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines.jsonl"


def model(number):
    return np.full(SCHEMA.elements, number, dtype=np.float32)


def read(path):
    """Read a saved model: the value of all its weights, and its round."""
    vector, number = saved.read(path.read_bytes(), SCHEMA, RUN)
    assert len(set(vector.tolist())) == 1
    return vector[0], number


def checkpoints(folder):
    return {path.name: read(path) for path in folder.checkpoints.iterdir()}


# --- models ---------------------------------------------------------------------------------------


def test_a_folder_begins_with_its_configuration(tmp_path, folder):
    assert json.loads(folder.config.read_bytes()) == {"seed": 1, "run.strategy": "fedavg"}
    assert folder.path == tmp_path / "runs" / RUN
    assert not any(path.exists() for path in (folder.model, folder.metrics, folder.transcript, folder.blobs))


def test_a_folder_can_be_begun_again(folder):
    folder.save(SCHEMA, model(0), 0)
    folder.create({"seed": 2})
    assert json.loads(folder.config.read_bytes()) == {"seed": 2}
    assert read(folder.model) == (0, 0)


def test_the_model_is_that_of_the_round_that_was_saved_last(folder):
    for number in (0, 1, 4):
        folder.save(SCHEMA, model(number), number)
        assert read(folder.model) == (number, number)
    assert checkpoints(folder) == {
        f"round-0000{number}.safetensors": (number, number) for number in (0, 1, 4)
    }


@pytest.mark.parametrize("first", [0, 8, 99_998])
def test_of_the_checkpoints_the_last_few_rounds_are_kept(folder, first):
    """Also where their numbers become longer."""
    rounds = range(first, first + CHECKPOINTS_KEPT + 2)
    for number in rounds:
        folder.save(SCHEMA, model(number), number)
    kept = [*rounds][-CHECKPOINTS_KEPT:]
    assert sorted(number for _, number in checkpoints(folder).values()) == kept


def test_a_round_that_is_saved_again_is_saved_once(folder):
    for value in (1, 2):
        folder.save(SCHEMA, model(value), 1)
    assert checkpoints(folder) == {"round-00001.safetensors": (2, 1)}


def test_a_blob_is_kept_under_its_digest_and_written_once(folder):
    digest = sha256(b"delta")
    folder.keep(digest, b"delta")
    kept = folder.blobs / digest
    before = kept.stat().st_ino
    folder.keep(digest, b"delta")
    folder.keep(sha256(b"other"), b"other")
    assert kept.read_bytes() == b"delta"
    assert kept.stat().st_ino == before
    assert {path.name for path in folder.blobs.iterdir()} == {digest, sha256(b"other")}


# --- lines ----------------------------------------------------------------------------------------


def test_lines_are_added_to_what_is_there(path):
    registry.append(path, LINES[:1])
    registry.append(path, [])
    registry.append(path, LINES[1:])
    assert path.read_bytes() == WHOLE


@pytest.mark.parametrize("there", [WHOLE[:size] for size in range(len(WHOLE) + 1)])
def test_a_file_that_was_cut_off_anywhere_is_gone_on_with(path, there):
    path.write_bytes(there)
    file = path.stat().st_ino
    registry.follow(path, LINES)
    assert path.read_bytes() == WHOLE
    assert path.stat().st_ino == file  # whoever follows it as it grows goes on reading


@pytest.mark.parametrize(
    "there", [WHOLE + b"four\n", WHOLE + b"x", b"One\ntwo\n", b"two\n", b"one\n\x00\x00", b"\n"]
)
def test_a_file_that_says_anything_else_is_written_anew(path, there):
    path.write_bytes(there)
    registry.follow(path, LINES)
    assert path.read_bytes() == WHOLE
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_not_there_is_made(path):
    registry.follow(path, [])
    assert path.read_bytes() == b""
    path.unlink()
    registry.follow(path, LINES)
    assert path.read_bytes() == WHOLE


@given(st.binary(max_size=12), st.lists(st.sampled_from([b"", b"a", b"ab"]), max_size=4))
def test_whatever_a_file_says_it_becomes_these_lines(tmp_path_factory, there, lines):
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(there)
    for _ in range(2):
        registry.follow(path, lines)
        assert path.read_bytes() == b"".join(line + b"\n" for line in lines)

"""Which model is the newest, and how a client notices that it is told of an older one, of two, or of none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import limits
from common.ids import sha256
from common.messages import ModelLine
from edge_client.lineage import FORKED, FROZEN, ROLLED_BACK, Lineage

SCHEMA = sha256(b"schema")


def line(version: int, epoch: int = 1, word: str = "") -> ModelLine:
    """What the coordinator says of its model; another word makes another model of it."""
    digest = sha256(f"model {version} {word}".encode())
    return ModelLine(
        run="run-1",
        round=version,
        digest=digest,
        size=8,
        chunk=1024,
        hashes="",
        codec="none",
        schema=SCHEMA,
        tensors=[],
        version=version,
        epoch=epoch,
    )


@given(st.lists(st.integers(0, 2), max_size=12), st.data())
def test_what_an_honest_coordinator_says_is_never_doubted_whatever_is_missed_or_heard_again(steps, data):
    """Over restarts of the coordinator, which raise its epoch, and of the client, which reads what it wrote down."""
    lineage, version, epoch = Lineage(), 1, 1
    for now, step in enumerate(steps):
        version += step
        epoch += data.draw(st.integers(0, 1))
        for _ in range(data.draw(st.integers(0, 2))):
            assert lineage.take(line(version, epoch), float(now)) is None
            assert (lineage.version, lineage.epoch) == (version, epoch)
        if data.draw(st.booleans()):
            lineage = Lineage.read(str(lineage))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.sampled_from(["", "other"])), max_size=20))
def test_what_is_believed_of_one_coordinator_only_rises_and_one_number_stays_one_model(rows):
    lineage, believed = Lineage(), [Lineage()]
    for epoch, version, word in rows:
        said = line(version, epoch, word)
        problem = lineage.take(said, 0.0)
        last = believed[-1]
        is_older = version < last.version or epoch < last.epoch
        is_other = version == last.version and said.digest != last.digest
        assert problem == (ROLLED_BACK if is_older else FORKED if is_other else None)
        if problem is None or epoch > last.epoch:
            believed.append(Lineage.read(str(lineage)))
            assert (lineage.epoch, lineage.version, lineage.digest) == (epoch, version, said.digest)
        else:
            assert str(lineage) == str(last)  # what is doubted is forgotten


def test_an_older_model_is_a_rollback_whoever_says_it():
    lineage = Lineage()
    assert lineage.take(line(5, epoch=2), 0) is None
    assert lineage.take(line(4, epoch=2), 1) == ROLLED_BACK
    assert lineage.take(line(6, epoch=1), 1) == ROLLED_BACK  # nor may an earlier coordinator go on
    assert lineage.take(line(5, epoch=1), 1) == ROLLED_BACK
    assert lineage.take(line(6, epoch=2), 2) is None


def test_a_later_coordinator_that_goes_back_is_doubted_once():
    lineage = Lineage()
    lineage.take(line(5, epoch=2), 0)
    assert lineage.take(line(1, epoch=3), 1) == ROLLED_BACK
    assert lineage.take(line(1, epoch=3), 2) is None
    assert lineage.take(line(6, epoch=2), 3) == ROLLED_BACK
    assert lineage.take(line(1, epoch=4, word="other"), 4) == FORKED
    assert lineage.take(line(1, epoch=4, word="other"), 5) is None


def test_two_models_with_one_number_are_a_fork():
    lineage = Lineage()
    lineage.take(line(5), 0)
    assert lineage.take(line(5, word="other"), 1) == FORKED
    assert lineage.take(line(5), 2) is None
    assert lineage.take(line(6, word="other"), 3) is None


def test_an_earlier_start_is_gone_on_with():
    lineage = Lineage.read(None)
    assert str(lineage) == "0 0 "
    assert lineage.take(line(5, epoch=2), 0) is None
    again = Lineage.read(str(lineage))
    assert (again.epoch, again.version, again.digest) == (2, 5, line(5).digest)
    assert again.heard_at is None
    assert again.take(line(4, epoch=2), 0) == ROLLED_BACK
    assert again.take(line(5, epoch=2, word="other"), 0) == FORKED
    assert str(Lineage.read("0 0 ")) == "0 0 "


# --- frozen ---------------------------------------------------------------------------------------

STALE = limits.MODEL_STALE_S


def test_silence_is_told_of_once_until_something_is_heard():
    lineage = Lineage()
    lineage.heard(0)
    assert lineage.check(STALE - 1) is None
    assert lineage.check(STALE) == FROZEN
    assert lineage.check(2 * STALE) is None
    lineage.take(line(1), 2 * STALE)
    assert lineage.check(3 * STALE - 1) is None
    assert lineage.check(3 * STALE) == FROZEN


@pytest.mark.parametrize("said", [line(4), line(5, word="other")], ids=["older", "fork"])
def test_what_is_doubted_does_not_break_the_silence(said):
    lineage = Lineage()
    lineage.take(line(5), 0)
    assert lineage.take(said, STALE - 1) is not None
    assert lineage.check(STALE) == FROZEN


def test_nothing_is_expected_while_the_link_is_down():
    lineage = Lineage()
    assert lineage.check(10 * STALE) is None
    lineage.heard(0)
    lineage.link_down()
    assert lineage.check(10 * STALE) is None
    lineage.heard(10 * STALE)
    assert lineage.check(11 * STALE - 1) is None
    assert lineage.check(11 * STALE) == FROZEN


def test_a_coordinator_says_its_model_often_enough_that_one_lost_line_is_no_silence():
    assert 3 * limits.MODEL_FRESH_S < STALE

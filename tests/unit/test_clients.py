"""Who takes part: who is here, was born, fits, and is not barred."""

import pytest
from msgspec.structs import replace

from common import limits
from common.ids import Boot, ClientId, sha256
from common.messages import Info, Reason
from coordinator.clients import Clients

SCHEMA, OTHER = sha256(b"schema"), sha256(b"other")
ANN, BOB = ClientId("ann"), ClientId("bob")
INFO = Info(boot=Boot("01" * 8), version="1", certificate="", examples=1, schema=SCHEMA)


@pytest.fixture
def clients():
    """Ann was born and is here."""
    found = Clients(SCHEMA)
    assert found.born(ANN, INFO, b"key")
    found.here.add(ANN)
    return found


def test_a_client_takes_part_once_it_was_born_is_here_and_fits(clients):
    assert clients.may_take_part(ANN)
    assert not clients.may_take_part(BOB)
    clients.here.add(BOB)
    assert not clients.may_take_part(BOB)  # nobody knows what it can train
    clients.born(BOB, replace(INFO, schema=OTHER), b"bob")
    assert not clients.may_take_part(BOB)
    clients.here.discard(ANN)
    assert not clients.may_take_part(ANN)


@pytest.mark.parametrize("reason", [Reason.EXCLUDED, Reason.REVOKED])
def test_who_is_barred_takes_no_part(clients, reason):
    clients.barred[ANN] = reason
    assert not clients.may_take_part(ANN)
    del clients.barred[ANN]
    assert clients.may_take_part(ANN)


def test_a_birth_is_news_once_and_again_with_another_key_or_start(clients):
    assert not clients.born(ANN, INFO, b"key")
    assert clients.born(ANN, INFO, b"new key")
    assert clients.kids[ANN] == b"new key"
    again = replace(INFO, boot=Boot("02" * 8))
    assert clients.born(ANN, again, b"new key")
    assert clients.boots[ANN] == again.boot


def test_a_birth_that_is_no_news_says_which_start_is_the_newest_all_the_same(clients):
    clients.boots[ANN] = Boot("03" * 8)
    assert not clients.born(ANN, INFO, b"key")
    assert clients.boots[ANN] == INFO.boot


def test_only_those_whom_an_operator_excluded_are_listed_as_far_as_there_is_room(clients, monkeypatch):
    clients.barred |= {ClientId(name): Reason.EXCLUDED for name in ("eve", "ann", "bob")}
    clients.barred[ClientId("dan")] = Reason.REVOKED
    assert clients.excluded() == ["ann", "bob", "eve"]
    monkeypatch.setattr(limits, "ARRAY_ITEMS_MAX", 2)
    assert clients.excluded() == ["ann", "bob"]


def test_a_client_that_trains_another_model_hears_of_both(clients):
    assert clients.problem(ANN) is None
    assert clients.problem(BOB) is None
    clients.born(BOB, replace(INFO, schema=OTHER), b"bob")
    reason, detail = clients.problem(BOB)
    assert reason is Reason.WRONG_SCHEMA
    assert OTHER[:12] in detail
    assert SCHEMA[:12] in detail

"""What an operator is shown of the clients: folded out of what they and the coordinator say."""

import base64

import pytest

from common import lines, topics
from common.identity import Role
from common.ids import Boot, ClientId
from common.ingress import Said
from common.messages import Info, Presence, RoundState, Status
from common.topics import Kind, Topics
from compose import operate
from compose.operate import Picture
from support import federation
from support.federation import ingress, member

TOPICS = Topics(federation.NAME)
BOOT = Boot("0b" * 8)
SCHEMA = "0" * 64


@pytest.fixture
def said(tmp_path):
    """Let somebody say something, and have it proved."""
    doors = {}

    def say(who, topic, message):
        door = doors.setdefault("door", ingress(tmp_path, member(tmp_path, Role.COORDINATOR, "coordinator")))
        admitted = door.admit(topic, lines.seal(who, topic, message))
        assert isinstance(admitted, Said)
        return admitted

    return say


@pytest.fixture
def picture(tmp_path, said):
    """ann is online, bob is lost and excluded, eve was never here; dan has no birth line."""
    made = Picture()
    for name, state in (("ann", Presence.ONLINE), ("bob", Presence.LOST), ("dan", Presence.ONLINE)):
        who = member(tmp_path, Role.CLIENT, name)
        certificate = base64.b64encode(who.certificate_der).decode()
        status = Status(state=state, boot=BOOT, sequence=1, certificate=certificate)
        made.take(said(who, TOPICS.client(ClientId(name), Kind.STATUS), status))
    for name, examples in (("bob", 20), ("eve", 5)):
        who = member(tmp_path, Role.CLIENT, name)
        info = Info(
            boot=BOOT,
            sequence=2,
            version="1",
            certificate=base64.b64encode(who.certificate_der).decode(),
            examples=examples,
            schema=SCHEMA,
            model="mlp",
            dataset="digits",
        )
        made.take(said(who, TOPICS.client(ClientId(name), Kind.INFO), info))
    coordinator = member(tmp_path, Role.COORDINATOR, "coordinator")
    state = RoundState(run="r", round=1, rounds=2, phase="reporting", excluded=["bob", "zoe"])
    made.take(said(coordinator, TOPICS.coordinator(Kind.COORDINATOR_ROUND), state))
    return made


def test_each_client_is_listed_once_sorted_with_what_is_known_of_it(picture, tmp_path):
    listed = {one["client"]: one for one in operate.clients(picture)}
    assert list(listed) == ["ann", "bob", "dan", "eve"]
    assert listed["bob"] == {
        "client": "bob",
        "state": Presence.LOST,
        "excluded": True,
        "examples": 20,
        "model": "mlp",
        "dataset": "digits",
        "kid": member(tmp_path, Role.CLIENT, "bob").kid.hex(),
    }
    assert (listed["ann"]["state"], listed["ann"]["excluded"], listed["ann"]["kid"]) == (
        Presence.ONLINE,
        False,
        None,
    )
    assert (listed["eve"]["state"], listed["eve"]["examples"]) == ("unknown", 5)


def test_one_client_reads_in_one_line(picture, tmp_path):
    kid = member(tmp_path, Role.CLIENT, "bob").kid.hex()
    listed = {one["client"]: operate.client_line(one) for one in operate.clients(picture)}
    assert listed["bob"] == f"bob: lost, excluded, 20 examples, mlp on digits, kid {kid}"
    assert listed["ann"].startswith("ann: online, ")
    assert "excluded" not in listed["ann"]


def test_nothing_is_listed_of_an_empty_federation():
    assert list(operate.clients(Picture())) == []
    assert Picture().excluded == frozenset()
    assert not Picture().is_online


def test_who_is_excluded_is_what_the_coordinator_says(picture):
    assert picture.excluded == {"bob", "zoe"}
    assert operate.state(picture)["phase"] == "reporting"


def test_an_operator_looks_at_all_that_is_public():
    kinds = {topics.parse(TOPICS.coordinator(kind)).kind for kind in topics.COORDINATOR_KINDS}
    assert Kind.COORDINATOR_ROUND in kinds

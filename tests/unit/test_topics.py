"""Topics: what is built is parsed back, and nothing else is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import ids, limits, topics
from common.topics import BY_CLIENT, CHUNKS, COORDINATOR_KINDS, ENVELOPES, LINES, PAIRING, Kind, Place, Topics

names = st.from_regex(ids.NAME, fullmatch=True)
digests = st.from_regex(ids.DIGEST, fullmatch=True)
numbers = st.integers(0, 10**10 - 1)
tokens = st.from_regex("[0-9a-f]{16}", fullmatch=True)
PLAIN = (Kind.STATUS, Kind.INFO, Kind.HEARTBEAT, Kind.METRICS, Kind.TASK, Kind.REPLY)


@st.composite
def built(draw):
    """Any topic that can be built, with the place that it means."""
    federation = draw(names)
    ours = Topics(federation)
    client, digest, number, token = draw(names), draw(digests), draw(numbers), draw(tokens)
    short = digest[:32]
    kind = draw(st.sampled_from(COORDINATOR_KINDS))
    plain = draw(st.sampled_from(PLAIN))
    return draw(
        st.sampled_from(
            [
                (ours.coordinator(kind), Place(federation, kind)),
                (ours.control, Place(federation, Kind.CONTROL)),
                (ours.model(digest), Place(federation, Kind.MODEL, digest=short)),
                (ours.client(client, plain), Place(federation, plain, client=client)),
                (ours.up(client, digest), Place(federation, Kind.UP, client=client, digest=short)),
                (ours.down(client, digest), Place(federation, Kind.DOWN, client=client, digest=short)),
                (ours.summary(number), Place(federation, Kind.SUMMARY, number=number)),
                (ours.enrol_request(token), Place(federation, Kind.ENROL_REQUEST, token=token)),
                (ours.enrol_answer(token), Place(federation, Kind.ENROL_ANSWER, token=token)),
            ]
        )
    )


def rebuilt(place):
    ours = Topics(place.federation)
    match place.kind:
        case Kind.CONTROL:
            return ours.control
        case Kind.MODEL:
            return ours.model(place.digest)
        case Kind.UP:
            return ours.up(place.client, place.digest)
        case Kind.DOWN:
            return ours.down(place.client, place.digest)
        case Kind.SUMMARY:
            return ours.summary(place.number)
        case Kind.ENROL_REQUEST:
            return ours.enrol_request(place.token)
        case Kind.ENROL_ANSWER:
            return ours.enrol_answer(place.token)
        case kind if kind in PLAIN:
            return ours.client(place.client, kind)
        case kind:
            return ours.coordinator(kind)


@given(built())
def test_what_is_built_is_parsed_back_and_within_the_limits(pair):
    topic, place = pair
    assert topics.parse(topic) == place
    assert rebuilt(place) == topic
    assert len(topic.encode()) <= limits.TOPIC_BYTES_MAX
    assert topic.count("/") < limits.TOPIC_LEVELS_MAX


@given(st.text() | st.text("fedmq/cliontrup+#0\n").map("fedmq/demo/".__add__))
def test_garbage_is_nobodys_place_or_else_exactly_what_we_would_build(text):
    place = topics.parse(text)
    assert place is None or rebuilt(place) == text


@given(built(), st.data())
def test_a_topic_with_one_wrong_character_more_is_none(pair, data):
    topic, _ = pair
    at = data.draw(st.integers(0, len(topic)))
    longer = topic[:at] + data.draw(st.sampled_from("/+#$ \n\0Aé")) + topic[at:]
    assert topics.parse(longer) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fedmq",
        "fedmq/demo",
        "fedmq/demo/",
        "/fedmq/demo/control",
        "fedmq/demo/control/",
        "fedmq/demo/control\n",
        "fedmq/+/control",
        "fedmq/demo/#",
        "$share/x/fedmq/demo/control",
        "fedmq/demo/client/a",
        "fedmq/demo/client/a/up",
        "fedmq/demo/client/a/up/" + "0" * 31,
        "fedmq/demo/client/a/up/" + "0" * 33,
        "fedmq/demo/client/a/up/" + "F" * 32,
        "fedmq/demo/client/a/config",
        "fedmq/demo/coordinator/task",
        "fedmq/demo/round/01/summary",
        "fedmq/demo/round/-1/summary",
        "fedmq/demo/round/\u0661/summary",
        "fedmq/demo/round/1",
        "fedmq/demo/enrol/0123456789abcdef",
        "fedmq/demo/enrol/0123456789abcde/request",
        "fedmq/demo/enrol/0123456789abcdef0/request",
        "fedmq/demo/enrol/0123456789ABCDEF/answer",
        "fedmq/demo/enrol/0123456789abcdef/reply",
    ],
)
def test_what_looks_like_a_topic_of_ours_but_is_none(text):
    assert topics.parse(text) is None


def test_the_kinds_are_divided_by_what_may_be_said():
    assert set(Kind) == CHUNKS | ENVELOPES | LINES | {Kind.REVOKED}
    assert len(Kind) == len(CHUNKS) + len(ENVELOPES) + len(LINES) + 1
    assert PAIRING < ENVELOPES
    assert not BY_CLIENT & PAIRING
    assert not BY_CLIENT & {Kind.TASK, Kind.DOWN, Kind.CONTROL, Kind.MODEL, *COORDINATOR_KINDS}


def test_filters_match_what_they_are_for():
    ours = Topics(ids.FederationId("demo"))
    client, digest = ids.ClientId("client-1"), ids.sha256(b"")
    for wide, topic in (
        (ours.all_up(), ours.up(client, digest)),
        (ours.all_up(client), ours.up(client, digest)),
        (ours.all_down(client), ours.down(client, digest)),
        (ours.client("+", Kind.STATUS), ours.client(client, Kind.STATUS)),
        (ours.summary("+"), ours.summary(7)),
        (ours.enrol_request("+"), ours.enrol_request("0123456789abcdef")),
        (ours.enrol_answer("+"), ours.enrol_answer("0123456789abcdef")),
    ):
        assert topics.parse(wide) is None
        assert re.fullmatch(wide.replace("+", "[^/]+"), topic)

"""Who may say and hear what: one table for both engines.

The role follows from the user's name, `%u` stands for it; over TLS it is the name in the certificate. A SUBSCRIBE is
judged by covering, never by matching: every topic that the wanted filter matches has to be matched by one that the
table allows.

Observers are names that the table does not know, `mosquitto_sub` among them. They may subscribe to anything and say
nothing; what they are sent is judged topic by topic, so `-t 'fedmq/#'` brings the JSON topics only. There are none over
TLS; a dashboard subscribes as they do. Newcomers come in by a listener of their own; their name is the id of the token
that they were invited with.

Law: this is defence in depth. What counts is the receiver's check of signature and topic.
"""

from dataclasses import dataclass
from enum import StrEnum

from common.ids import (
    BROKER,
    COORDINATOR,
    DASHBOARD,
    OPERATOR,
    ClientId,
    Digest,
    FederationId,
    is_client_name,
)
from common.topics import COORDINATOR_KINDS, LINES, ROOT, Kind, Topics, parse

ANY = Topics(FederationId("+"))
SELF = ClientId("%u")
OBSERVER = "observer"


class Action(StrEnum):
    """What a client may be allowed to do; the words are amqtt's."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    RECEIVE = "receive"


class Role(StrEnum):
    """What a user's name stands for."""

    COORDINATOR = COORDINATOR
    OPERATOR = OPERATOR
    DASHBOARD = DASHBOARD
    BROKER = BROKER
    CLIENT = "client"
    OBSERVER = OBSERVER
    NEWCOMER = "newcomer"


@dataclass(frozen=True, slots=True)
class Rule:
    """The filters that a role may write to and read from."""

    publish: tuple[str, ...] = ()
    read: tuple[str, ...] = ()


def _own(*kinds: Kind) -> tuple[str, ...]:
    return tuple(ANY.client(SELF, kind) for kind in kinds)


def _each(*kinds: Kind) -> tuple[str, ...]:
    return tuple(ANY.client("+", kind) for kind in kinds)


_COORDINATOR_LINES = f"{ROOT}/+/coordinator/+"
_CHUNKS_OF_MODELS = ANY.model(Digest("+"))
_SUMMARIES = ANY.summary("+")
_REVOKED = ANY.revoked
_ALL_LINES = (
    _COORDINATOR_LINES,
    _REVOKED,
    *_each(Kind.STATUS, Kind.INFO, Kind.HEARTBEAT, Kind.METRICS),
    _SUMMARIES,
)

RULES = {
    Role.COORDINATOR: Rule(
        publish=(
            *(ANY.coordinator(kind) for kind in COORDINATOR_KINDS),
            _CHUNKS_OF_MODELS,
            *_each(Kind.TASK, Kind.STATUS, Kind.INFO),  # the last two only to clear them
            ANY.all_down(ClientId("+")),
            _SUMMARIES,
            _REVOKED,
        ),
        read=(ANY.control, _COORDINATOR_LINES, f"{ROOT}/+/client/#", _SUMMARIES, _REVOKED),
    ),
    Role.CLIENT: Rule(
        publish=(
            *_own(Kind.STATUS, Kind.INFO, Kind.HEARTBEAT, Kind.METRICS, Kind.REPLY),
            ANY.all_up(SELF),
        ),
        read=(
            *_own(Kind.TASK, Kind.STATUS),
            ANY.all_down(SELF),
            _COORDINATOR_LINES,
            _CHUNKS_OF_MODELS,
            _SUMMARIES,
            _REVOKED,
        ),
    ),
    Role.DASHBOARD: Rule(read=_ALL_LINES),
    Role.OPERATOR: Rule(
        publish=(ANY.control, _REVOKED, ANY.enrol_answer("+")), read=(*_ALL_LINES, ANY.enrol_request("+"))
    ),
    Role.BROKER: Rule(read=(_REVOKED,)),
    Role.OBSERVER: Rule(read=_ALL_LINES),
    Role.NEWCOMER: Rule(publish=(ANY.enrol_request(SELF),), read=(ANY.enrol_answer(SELF),)),
}


def role_of(user: str) -> Role:
    """Say what a user's name stands for."""
    if user in {COORDINATOR, OPERATOR, DASHBOARD, BROKER}:
        return Role(user)
    return Role.CLIENT if is_client_name(user) else Role.OBSERVER


def covers(allowed: str, requested: str) -> bool:
    """Tell whether every topic that `requested` matches is matched by `allowed`; a topic matches itself."""
    if requested.startswith("$") and not allowed.startswith("$"):
        return False
    wanted = requested.split("/")
    levels = allowed.split("/")
    for i, level in enumerate(levels):
        if level == "#":
            return True
        if i >= len(wanted) or wanted[i] == "#":
            return False
        if level not in {"+", wanted[i]}:
            return False
    return len(wanted) == len(levels)


def may(role: Role, user: str, action: str, topic: str) -> bool:
    """Say whether a user may publish to or receive from a topic, or subscribe to a filter."""
    if role is Role.OBSERVER:
        return _may_observe(action, topic)
    if role is Role.DASHBOARD and action == Action.SUBSCRIBE:
        return not topic.startswith("$")  # as observers: what it is sent is judged topic by topic
    rule = RULES[role]
    allowed = rule.publish if action == Action.PUBLISH else rule.read
    return any(covers(row.replace(SELF, user), topic) for row in allowed)


def _may_observe(action: str, topic: str) -> bool:
    if action == Action.SUBSCRIBE:
        return not topic.startswith("$")
    place = parse(topic)
    return action == Action.RECEIVE and place is not None and place.kind in LINES | {Kind.REVOKED}

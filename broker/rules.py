"""Who may say and hear what: one table for both engines.

The role follows from the client id; `%c` stands for it. A SUBSCRIBE is judged by covering, never by matching:
every topic that the wanted filter matches has to be matched by one that the table allows.

Observers are ids that the table does not know, `mosquitto_sub` among them. They may subscribe to anything and
say nothing; what they are sent is judged topic by topic, so `-t 'fedmq/#'` brings the JSON topics only.

Law: this is defence in depth. What counts is the receiver's check of signature and topic.
"""

from dataclasses import dataclass
from enum import StrEnum

from common.ids import COORDINATOR, OPERATOR, ClientId, Digest, FederationId, is_client_name, is_name
from common.topics import COORDINATOR_KINDS, LINES, ROOT, Kind, Topics, parse

ANY = Topics(FederationId("+"))
SELF = ClientId("%c")
DASHBOARD = "dashboard"
OBSERVER = "observer"


class Action(StrEnum):
    """What a client may be allowed to do; the words are amqtt's."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    RECEIVE = "receive"


class Role(StrEnum):
    """What a client id stands for."""

    COORDINATOR = COORDINATOR
    OPERATOR = OPERATOR
    DASHBOARD = DASHBOARD
    CLIENT = "client"
    OBSERVER = OBSERVER


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
_ALL_LINES = (
    _COORDINATOR_LINES,
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
        ),
        read=(ANY.control, _COORDINATOR_LINES, f"{ROOT}/+/client/#", _SUMMARIES),
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
        ),
    ),
    Role.DASHBOARD: Rule(read=_ALL_LINES),
    Role.OPERATOR: Rule(publish=(ANY.control,), read=_ALL_LINES),
    Role.OBSERVER: Rule(read=_ALL_LINES),
}


def role_of(client_id: str) -> Role:
    """Say what a client id stands for."""
    if client_id == COORDINATOR or (client_id.startswith(f"{COORDINATOR}-") and is_name(client_id)):
        return Role.COORDINATOR
    if client_id == OPERATOR or (client_id.startswith(f"{OPERATOR}-") and is_name(client_id)):
        return Role.OPERATOR
    if client_id.startswith(DASHBOARD) and is_name(client_id):
        return Role.DASHBOARD
    return Role.CLIENT if is_client_name(client_id) else Role.OBSERVER


def user_of(client_id: str) -> str:
    """Give the MQTT user name that belongs to a client id.

    Mosquitto's rules go by user name and have no patterns for roles, so that all operators share one, and all
    dashboards, and all coordinators: the second of them has to come in to hear of the first.
    """
    role = role_of(client_id)
    return role.value if role in {Role.COORDINATOR, Role.OPERATOR, Role.DASHBOARD} else client_id


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


def may(client_id: str, action: str, topic: str) -> bool:
    """Say whether a client may publish to or receive from a topic, or subscribe to a filter."""
    role = role_of(client_id)
    if role is Role.OBSERVER:
        return _may_observe(action, topic)
    rule = RULES[role]
    allowed = rule.publish if action == Action.PUBLISH else rule.read
    return any(covers(row.replace(SELF, client_id), topic) for row in allowed)


def _may_observe(action: str, topic: str) -> bool:
    if action == Action.SUBSCRIBE:
        return not topic.startswith("$")
    place = parse(topic)
    return action == Action.RECEIVE and place is not None and place.kind in LINES

"""Access rules: covering against brute force, and the table role by role."""

import itertools

import pytest

from broker.rules import OBSERVER, Action, Role, covers, may, role_of

DIGEST = "0" * 32
LINES = [
    "fedmq/lab/coordinator/status",
    "fedmq/lab/coordinator/round",
    "fedmq/lab/coordinator/model",
    "fedmq/lab/coordinator/metrics",
    "fedmq/lab/coordinator/config",
    "fedmq/lab/client/c1/status",
    "fedmq/lab/client/c1/info",
    "fedmq/lab/client/c1/heartbeat",
    "fedmq/lab/client/c1/metrics",
    "fedmq/lab/round/7/summary",
    "fedmq/lab/revoked",
]
SECRETS = [
    "fedmq/lab/control",
    f"fedmq/lab/model/{DIGEST}",
    "fedmq/lab/client/c1/task",
    "fedmq/lab/client/c1/reply",
    f"fedmq/lab/client/c1/up/{DIGEST}",
    f"fedmq/lab/client/c1/down/{DIGEST}",
]
ALL = [*LINES, *SECRETS]
OF_COORDINATOR = {*LINES[:5], LINES[9], LINES[10]}
WRITES = {
    "coordinator": {*OF_COORDINATOR, SECRETS[1], SECRETS[2], SECRETS[5], *LINES[5:7]},
    "c1": {*LINES[5:9], SECRETS[3], SECRETS[4]},
    "c2": set(),
    "operator": {SECRETS[0], LINES[10]},
    "dashboard": set(),
    "broker": set(),
    "observer-1": set(),
    "mosq/9f3": set(),
}
READS = {
    "coordinator": {*LINES, SECRETS[0], *SECRETS[2:]},
    "c1": {*OF_COORDINATOR, LINES[5], SECRETS[1], SECRETS[2], SECRETS[5]},
    "c2": {*OF_COORDINATOR, SECRETS[1]},
    "operator": set(LINES),
    "dashboard": set(LINES),
    "broker": {LINES[10]},
    "observer-1": set(LINES),
    "mosq/9f3": set(LINES),
}


def matches(name: str, topic: str) -> bool:
    """Follow MQTT 3.1.1, section 4.7, by the letter."""
    if topic.startswith("$") and name[0] in "+#":
        return False
    rest, levels = name.split("/"), topic.split("/")
    while rest and rest[0] != "#":
        if not levels or rest.pop(0) not in {"+", levels.pop(0)}:
            return False
    return bool(rest) or not levels


def paths(letters: str, depth: int) -> list[str]:
    return ["/".join(path) for n in range(1, depth + 1) for path in itertools.product(letters, repeat=n)]


def test_what_is_covered_is_what_every_topic_says():
    topics = paths("abc$", 4)
    filters = [*paths("ab+$", 3), "#", *(f"{path}/#" for path in paths("ab+$", 2))]
    matched = {name: {topic for topic in topics if matches(name, topic)} for name in filters}
    for allowed, requested in itertools.product(filters, repeat=2):
        truth = matched[requested] <= matched[allowed]
        said = covers(allowed, requested)
        assert truth or not said, (allowed, requested)  # never too much
        wildcard_first = allowed[0] in "+#" or requested[0] in "+#$"
        assert said or not truth or wildcard_first, (allowed, requested)  # and seldom too little


@pytest.mark.parametrize("topic", [*paths("ab", 3), "$SYS/a"])
@pytest.mark.parametrize("name", ["#", "+", "a/#", "a/+", "+/b", "a/b", "a", "+/+/b", "$SYS/#", "+/#"])
def test_a_topic_is_covered_exactly_when_it_matches(name, topic):
    assert covers(name, topic) == matches(name, topic)


@pytest.mark.parametrize("client_id", sorted(WRITES))
def test_who_may_say_what(client_id):
    assert {topic for topic in ALL if may(role_of(client_id), client_id, Action.PUBLISH, topic)} == WRITES[
        client_id
    ]


@pytest.mark.parametrize("client_id", sorted(READS))
def test_who_may_hear_what(client_id):
    assert {topic for topic in ALL if may(role_of(client_id), client_id, Action.RECEIVE, topic)} == READS[
        client_id
    ]


@pytest.mark.parametrize(
    ("client_id", "name", "allowed"),
    [
        ("c1", "fedmq/lab/client/c1/task", True),
        ("c1", "fedmq/lab/client/c1/down/+", True),
        ("c1", f"fedmq/lab/model/{DIGEST}", True),
        ("c1", "fedmq/lab/coordinator/status", True),
        ("c1", "fedmq/lab/client/+/task", False),
        ("c1", "fedmq/lab/client/c1/#", False),
        ("c1", "fedmq/lab/client/c2/task", False),
        ("c1", "fedmq/#", False),
        ("c1", "#", False),
        ("coordinator", "fedmq/lab/client/+/up/+", True),
        ("coordinator", "fedmq/lab/client/+/reply", True),
        ("coordinator", "fedmq/lab/control", True),
        ("coordinator", "fedmq/#", False),
        ("operator", "fedmq/lab/coordinator/+", True),
        ("operator", "fedmq/lab/control", False),
        ("dashboard", "fedmq/lab/client/+/status", True),
        ("dashboard", "fedmq/lab/client/+/reply", True),  # and is sent nothing of it
        ("dashboard", "fedmq/#", True),
        ("dashboard", "$SYS/#", False),
        ("observer-1", "fedmq/#", True),
        ("mosq/9f3", "#", True),
        ("mosq/9f3", "$SYS/#", False),
        ("mosq/9f3", "$share/g/fedmq/#", False),
    ],
)
def test_who_may_subscribe_to_what(client_id, name, allowed):
    assert may(role_of(client_id), client_id, Action.SUBSCRIBE, name) is allowed


@pytest.mark.parametrize(
    ("user", "role"),
    [
        ("coordinator", Role.COORDINATOR),
        ("operator", Role.OPERATOR),
        ("dashboard", Role.DASHBOARD),
        ("broker", Role.BROKER),
        ("c1", Role.CLIENT),
        ("operators", Role.CLIENT),
        (f"{OBSERVER}-1", Role.OBSERVER),
        ("operator-1", Role.OBSERVER),
        ("dashboard-7", Role.OBSERVER),
        ("bridge-a", Role.OBSERVER),
        ("mosq/9f3", Role.OBSERVER),
        ("C1", Role.OBSERVER),
        ("operator-+", Role.OBSERVER),
        ("dashboard/#", Role.OBSERVER),
        ("", Role.OBSERVER),
    ],
)
def test_the_role_follows_from_the_name(user, role):
    assert role_of(user) is role


def test_what_is_no_topic_of_ours_is_nobodys():
    for client_id in WRITES:
        for topic in ("other/lab/control", "fedmq/lab/client/c1/other", "$SYS/broker/uptime", "fedmq"):
            assert not may(role_of(client_id), client_id, Action.PUBLISH, topic)

"""`fedmq outbox`: what an operator reads of a client's outbox, while the client holds it open."""

import json
from contextlib import closing

import pytest

from common.database import Database
from common.messages import Declined, Reason
from common.outbox import FILE, TABLES, Outbox
from support.running import finish
from support.updates import RUN, manifest, update

VERB = ("outbox", "--client-id", "client-1", "--state-dir")


def made(number):
    return update("client-1", number=number, base=manifest(f"base {number}").digest)


def test_it_shows_what_waits_and_what_became_of_the_last_updates(tmp_path):
    with closing(Database(tmp_path / FILE, TABLES)) as database:
        box = Outbox(database, bytes_max=10**6, age_s_max=3600, clock=lambda: 0.0)
        for number, verdict in enumerate(
            ({}, {"late": True}, {"refused": Reason.TOO_STALE, "detail": "21 models behind"}), start=1
        ):
            box.put(made(number))
            box.settle(RUN, made(number).base, **verdict)
        box.put(made(4))
        box.put(Declined(run=RUN, round=5, reason=Reason.DIVERGED))
        code, out, _ = finish(*VERB, tmp_path, "--json")
        _, text, _ = finish(*VERB, tmp_path)
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "client-1").symlink_to(tmp_path)
        assert finish(*VERB, tmp_path / "demo", "--json")[1] == out  # a demo keeps it one folder down
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(one["event"], one["round"]) for one in events] == [
        ("outbox.waiting", 5),
        ("outbox.waiting", 4),
        ("outbox.outcome", 1),
        ("outbox.outcome", 2),
        ("outbox.outcome", 3),
    ]
    assert [one["kind"] for one in events[:2]] == ["declined", "update"]
    assert [one["outcome"] for one in events[2:]] == ["taken", "taken late", "refused: too-stale"]
    assert events[1]["update"] == made(4).delta.digest
    assert events[4] == {
        "event": "outbox.outcome",
        "run": RUN,
        "round": 3,
        "update": made(3).delta.digest,
        "outcome": "refused: too-stale",
        "detail": "21 models behind",
        "at": "1970-01-01T00:00:00+00:00",
    }
    first, declined, waits, last, taken, _, refused = text.splitlines()
    assert (first, last) == ("2 messages not yet answered:", "what became of the last updates:")
    assert declined.split()[-3:] == ["declined", "56", "B"]
    assert f"{RUN}  round 4     update    {made(4).delta.digest[:12]}  " in waits
    assert taken.startswith(f"  1970-01-01 00:00:00 UTC  {RUN}  round 1  ")
    assert refused.endswith(f"{made(3).delta.digest[:12]}  refused: too-stale (21 models behind)")


def test_that_nothing_waits_is_said(tmp_path):
    Database(tmp_path / FILE, TABLES).close()
    assert finish(*VERB, tmp_path)[:2] == (0, "nothing waits\n")
    assert finish(*VERB, tmp_path, "--json")[:2] == (0, "")


def test_what_others_said_cannot_steer_a_terminal(tmp_path):
    with closing(Database(tmp_path / FILE, TABLES)) as database:
        box = Outbox(database, bytes_max=10**6, age_s_max=3600, clock=lambda: 0.0)
        box.put(made(1))
        box.settle(RUN, made(1).base, refused=Reason.TOO_STALE, detail="\x1b[2J")
    assert "(\\u001b[2J)" in finish(*VERB, tmp_path)[1]


@pytest.mark.parametrize("client", ["../client-1", "coordinator", ""])
def test_a_client_that_cannot_be_is_a_wrong_command_line(tmp_path, client):
    code, _, said = finish("outbox", "--client-id", client, "--state-dir", tmp_path)
    assert code == 2
    assert f"no client can be called {client!r}" in said


def test_a_client_that_never_ran_here_is_not_found(tmp_path):
    code, out, said = finish(*VERB, tmp_path)
    assert (code, out) == (3, "")
    assert f"client-1 has no outbox in {tmp_path}" in said
    assert "--state-dir" in said
    assert not list(tmp_path.iterdir())

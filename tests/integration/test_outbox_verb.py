"""`fedmq outbox`: what an operator reads of a client's outbox, while the client holds it open."""

import json
from contextlib import closing

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
    assert f"outbox.waiting kind=update run={RUN} round=4 update={made(4).delta.digest}" in text
    assert "outcome=refused: too-stale" in text


def test_a_client_that_never_ran_here_is_not_found(tmp_path):
    code, out, said = finish(*VERB, tmp_path)
    assert (code, out) == (3, "")
    assert f"there is no {tmp_path / FILE}" in said
    assert not list(tmp_path.iterdir())

"""The checker finds every way in which an update can be lost or counted twice, and says nothing of a clean state."""

import contextlib
import hashlib
import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common import codec
from common.messages import Manifest, Update
from faults import checker

RUN = "20260101-000000-abcd"
TABLES = """
CREATE TABLE entry (
  id INTEGER PRIMARY KEY, priority INTEGER NOT NULL, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, run TEXT NOT NULL,
  round INTEGER NOT NULL, body BLOB NOT NULL, blob TEXT, bytes INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE outcome (
  run TEXT NOT NULL, base TEXT NOT NULL, round INTEGER NOT NULL, delta TEXT NOT NULL, refused TEXT,
  detail TEXT NOT NULL, late INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (run, base, delta));
"""


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


M0, M1, M2 = (digest(f"model {number}") for number in range(3))


@dataclass
class State:
    """A state directory that a test writes: two clients, two rounds, all well."""

    path: Path
    outcomes: dict[str, list[tuple[str, str, str | None]]] = field(
        default_factory=dict
    )  # base, delta, refused
    waiting: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    facts: list[dict] = field(default_factory=list)

    def merge(self, number, base, model, *updates, **more):
        """Add a round's line; an update is (client, base, delta)."""
        merged = [
            {"client": client, "base": start, "delta": delta, "staleness": int(start != base)}
            for client, start, delta in updates
        ]
        outcome = "committed" if model != base else "abandoned"
        self.facts.append(
            {
                "kind": "round",
                "round": number,
                "outcome": outcome,
                "base": base,
                "model": model,
                "updates": merged,
                "refusals": [],
                **more,
            }
        )

    def write(self):
        folder = self.path / "coordinator" / "runs" / RUN
        folder.mkdir(parents=True)
        previous, lines = checker.ZEROS, []
        for fact in self.facts:
            line = json.dumps({"previous": previous, **fact}, separators=(",", ":"))
            lines.append(line)
            previous = hashlib.sha256(line.encode()).hexdigest()
        (folder / "transcript.jsonl").write_text("".join(line + "\n" for line in lines))
        for client in sorted(self.outcomes.keys() | self.waiting.keys()):
            (self.path / client).mkdir()
            with contextlib.closing(sqlite3.connect(self.path / client / "state.db")) as database, database:
                database.executescript(TABLES)
                self._fill(database, client)
        return folder / "transcript.jsonl"

    def _fill(self, database, client):
        for base, delta, refused in self.outcomes.get(client, ()):
            database.execute(
                "INSERT INTO outcome VALUES (?, ?, 1, ?, ?, '', 0, 0)", (RUN, base, delta, refused)
            )
        for base, delta in self.waiting.get(client, ()):
            manifest = Manifest(
                digest=delta, size=4, chunk=1024, hashes=bytes(16), codec="f32", schema="0" * 64
            )
            update = Update(run=RUN, round=1, client=client, base=base, delta=manifest, examples=1)
            database.execute(
                "INSERT INTO entry (priority, key, kind, run, round, body, blob, bytes, created)"
                " VALUES (1, ?, 'update', ?, 1, ?, ?, 4, 0)",
                (f"update/{base}/{delta}", RUN, codec.encode(update), delta),
            )

    def check(self):
        self.write()
        return checker.check(self.path)


D1, D2, D3, D4 = (digest(f"delta {number}") for number in range(4))


@pytest.fixture
def state(tmp_path):
    """Hold a clean state: three updates merged, one of them late, one refused."""
    state = State(tmp_path)
    state.outcomes = {
        "client-1": [(M0, D1, None), (M1, D3, None)],
        "client-2": [(M0, D2, None), (M1, D4, "not-finite")],
    }
    state.facts.append({"kind": "opened", "run": RUN, "model": M0})
    state.merge(1, M0, M1, ("client-1", M0, D1))
    state.facts.append({"kind": "resumed", "epoch": 2})
    state.merge(2, M1, M1)
    state.merge(3, M1, M2, ("client-1", M1, D3), ("client-2", M0, D2))
    state.facts.append({"kind": "closed", "rounds": 2, "completed": True, "model": M2, "refusals": []})
    return state


def found(report):
    """List what is wrong, without whose update it is."""
    return [said.split(f" in run {RUN} ")[-1] for said in report.violations]


def test_a_clean_state_is_clean(state):
    report = state.check()
    assert report.violations == []
    assert (report.committed, report.resumed, report.late) == (2, 1, 1)
    total = report.total
    assert (total.finished, total.once, total.twice, total.lost, total.waiting) == (4, 3, 0, 0, 0)
    assert total.refused == {"not-finite": 1}
    assert [row.client for row in report.rows] == ["client-1", "client-2"]


def test_a_refusal_in_the_transcript_alone_is_recorded_too(state):
    state.outcomes["client-2"][1] = (M1, D4, None)
    state.facts[-1]["refusals"] = [{"client": "client-2", "delta": D4, "reason": "run-over"}]
    report = state.check()
    assert report.violations == []
    assert report.total.refused == {"run-over": 1}


def test_a_taken_update_that_was_refused_for_another_reason_is_lost(state):
    state.outcomes["client-2"][1] = (M1, D4, None)
    state.facts[-1]["refusals"] = [{"client": "client-2", "delta": D4, "reason": "too-late"}]
    assert found(state.check()) == ["was taken and is in no aggregate"]


def test_an_update_that_was_taken_and_not_merged_is_lost(state):
    state.outcomes["client-2"].append((M2, digest("lost"), None))
    report = state.check()
    assert found(report) == ["was taken and is in no aggregate"]
    assert report.total.lost == 1


def test_an_update_in_two_aggregates_counts_twice(state):
    state.facts[4]["updates"].append({"client": "client-1", "base": M0, "delta": D1, "staleness": 1})
    report = state.check()
    assert found(report) == ["is in 2 aggregates"]
    assert report.total.twice == 1


def test_an_update_twice_in_one_aggregate_counts_twice(state):
    state.facts[4]["updates"] *= 2
    assert found(state.check()) == ["is in 2 aggregates"] * 2


def test_two_updates_with_the_same_bytes_are_two(state):
    state.facts[4]["updates"][0]["delta"] = D1  # the first round's bytes, from another base
    state.outcomes["client-1"][1] = (M1, D1, None)
    assert state.check().violations == []


def test_an_update_that_was_merged_and_refused_to_its_client(state):
    state.outcomes["client-1"][0] = (M0, D1, "expired")
    assert found(state.check()) == ["is in an aggregate, and its client was told expired"]


def test_an_update_that_was_merged_and_refused_in_the_transcript(state):
    state.facts[3]["refusals"] = [{"client": "client-1", "delta": D1, "reason": "too-late"}]
    assert found(state.check()) == ["is in an aggregate, and refused in the transcript: too-late"]


def test_a_merged_update_that_its_client_never_made(state):
    state.outcomes["client-1"].pop(0)
    assert found(state.check()) == ["is in an aggregate, and its client does not know it"]


def test_a_merged_update_of_a_client_that_is_not_there(state):
    del state.outcomes["client-2"]
    assert found(state.check()) == ["is in an aggregate, and its client does not know it"]


def test_a_client_whose_database_was_damaged_need_not_know(state, tmp_path):
    state.outcomes["client-1"].pop(0)
    state.write()
    (tmp_path / "client-1" / "state.db.damaged-20260101-000000").touch()
    assert checker.check(tmp_path).violations == []


def test_a_client_whose_history_was_cut_need_not_know(state, monkeypatch):
    state.outcomes["client-1"].pop(0)
    monkeypatch.setattr(checker, "OUTCOMES_KEPT", 1)
    assert state.check().violations == []


@pytest.mark.parametrize("where", ["nowhere", "merged", "refused"])
def test_nothing_waits_at_the_end(state, where):
    state.outcomes["client-1"].pop(0)
    if where != "merged":
        state.facts[1]["updates"] = []
    if where == "refused":
        state.facts[1]["refusals"] = [{"client": "client-1", "delta": D1, "reason": "too-late"}]
    state.waiting["client-1"] = [(M0, D1)]
    report = state.check()
    assert found(report) == ["still waits"]
    total = report.total
    assert (total.waiting, total.lost, total.finished) == (1, 0, 4)
    assert total.once == (3 if where == "merged" else 2)


def test_what_is_judged_does_not_wait(state):
    state.waiting["client-1"] = [(M0, D1)]
    report = state.check()
    assert found(report) == ["is judged and still waits"]
    assert report.total.finished == 4


# --- the chain ------------------------------------------------------------------------------------


def rewritten(state, change):
    path = state.write()
    lines = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in change(lines)))
    return checker.check(state.path).violations


def test_a_line_that_was_changed_breaks_the_chain(state):
    said = rewritten(state, lambda lines: [lines[0], lines[1].replace('"round":1', '"round":7'), *lines[2:]])
    assert said == [f"transcript of {RUN}: line 3: it does not name the line before it"]


def test_a_line_that_is_gone_breaks_the_chain(state):
    said = rewritten(state, lambda lines: lines[:3] + lines[4:])
    assert said == [f"transcript of {RUN}: line 4: it does not name the line before it"]


def test_a_transcript_begins_with_its_opening_and_nothing_else_opens_it(state):
    first = state.facts.pop(0)
    state.facts.insert(1, first)
    said = [each.removeprefix(f"transcript of {RUN}: ") for each in state.check().violations]
    assert said[0] == "line 1: it is round"
    assert said[1] == "line 2: it is opened"


def test_a_run_has_its_own_name(state):
    state.facts[0]["run"] = "another"
    assert state.check().violations == [f"transcript of {RUN}: line 1: it is of the run another"]


def test_nothing_follows_the_end(state):
    state.merge(4, M2, digest("model 3"))
    assert state.check().violations == [f"transcript of {RUN}: line 7: the run was closed before it"]


def test_each_round_starts_from_the_model_that_the_one_before_made(state):
    state.facts[4]["base"] = M0
    said = state.check().violations
    assert said == [f"transcript of {RUN}: line 5: it starts from another model than the one before it made"]


def test_an_abandoned_round_merges_nothing(state):
    state.facts[3]["updates"] = [state.facts[4]["updates"].pop()]
    said = state.check().violations
    assert said == [f"transcript of {RUN}: line 4: it was abandoned, and merged something"]


def test_a_torn_line_is_told(state):
    path = state.write()
    path.write_text(path.read_text()[:-20])
    said = checker.check(state.path).violations
    assert said[0] == f"transcript of {RUN}: its last line is torn"
    assert said[1].startswith(f"transcript of {RUN}: line 6: it cannot be read")


# --- for people -----------------------------------------------------------------------------------


def test_the_table_says_it_all(state):
    state.outcomes["client-2"].append((M2, digest("lost"), None))
    lines = checker.table(state.check())
    assert lines[0].split() == ["client", "finished", "in", "one", "refused", "waiting", "lost", "twice"]
    assert lines[1].split() == ["client-1", "2", "2", "0", "0", "0", "0"]
    assert lines[2].split() == ["client-2", "3", "1", "1", "0", "1", "0", "not-finite", "1"]
    assert lines[3].split()[:7] == ["all", "5", "3", "1", "0", "1", "0"]
    assert lines[4] == "2 aggregates, 1 times resumed, 1 updates merged late"


def test_the_facts_are_json(state):
    facts = json.loads(json.dumps(checker.as_facts(state.check())))
    assert (facts["finished"], facts["once"], facts["lost"], facts["twice"]) == (4, 3, 0, 0)
    assert facts["refused"] == {"not-finite": 1}
    assert facts["violations"] == []

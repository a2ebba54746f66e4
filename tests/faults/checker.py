"""Whether every update counts once: proved from what lies on disk, with nothing of the code that wrote it.

    <state>/client-*/state.db                     what each client finished, and what it was told
    <state>/coordinator/runs/*/transcript.jsonl   what went into each aggregate, and what was refused

For every update that a client finished: it is in exactly one aggregate, or its refusal is recorded; never both.
For every update in an aggregate: its client knows it. The lines of each transcript name one another by hash.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from common import codec
from common.limits import OUTCOMES_KEPT
from common.messages import Update

ZEROS = "0" * 64
RUN_OVER = "run-over"


@dataclass(frozen=True, slots=True)
class Key:
    """Which update: a client makes at most one from a base in a run."""

    client: str
    run: str
    base: str
    delta: str

    def __str__(self):
        return f"{self.client}'s update {self.delta[:12]} from {self.base[:12]} in run {self.run}"


@dataclass(slots=True)
class Client:
    """What one client's database says."""

    name: str
    outcomes: dict[Key, str | None] = field(default_factory=dict)  # the reason, or None: taken
    waiting: set[Key] = field(default_factory=set)
    is_whole: bool = True  # nothing of its history was cut away

    @property
    def finished(self) -> list[Key]:
        return [*self.outcomes, *sorted(self.waiting - self.outcomes.keys(), key=str)]


@dataclass(slots=True)
class Transcript:
    """What one run's transcript says."""

    run: str
    merged: Counter[Key] = field(default_factory=Counter)
    refused: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # (client, delta) -> reasons
    committed: int = 0
    resumed: int = 0
    late: int = 0  # merged in a later round than that of their base
    problems: list[str] = field(default_factory=list)
    is_closed: bool = False


@dataclass(slots=True)
class Row:
    """A line of the table."""

    client: str
    finished: int = 0
    once: int = 0  # in one aggregate
    twice: int = 0  # or more often
    lost: int = 0
    waiting: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Report:
    """What was found."""

    rows: list[Row] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    committed: int = 0
    resumed: int = 0
    late: int = 0

    @property
    def total(self) -> Row:
        total = Row("all")
        for row in self.rows:
            for name in ("finished", "once", "twice", "lost", "waiting"):
                setattr(total, name, getattr(total, name) + getattr(row, name))
            total.refused += row.refused
        return total


def check(state: Path) -> Report:
    """Read a state directory and say what is wrong with it."""
    transcripts = {path.parent.name: read_transcript(path) for path in sorted(state.glob(TRANSCRIPTS))}
    clients = [read_client(path.parent.name, path) for path in sorted(state.glob("client-*/state.db"))]
    report = Report()
    for transcript in transcripts.values():
        report.violations += [f"transcript of {transcript.run}: {said}" for said in transcript.problems]
        report.committed += transcript.committed
        report.resumed += transcript.resumed
        report.late += transcript.late
    for client in clients:
        _check_client(client, transcripts, report)
    _check_strangers({client.name: client for client in clients}, transcripts, report)
    return report


TRANSCRIPTS = "coordinator/runs/*/transcript.jsonl"


def _check_client(client: Client, transcripts: dict[str, Transcript], report: Report) -> None:
    row = Row(client.name)
    report.rows.append(row)
    for key in client.finished:
        transcript = transcripts.get(key.run) or Transcript(key.run)
        said = transcript.refused.get((key.client, key.delta), set())
        row.finished += 1
        row.once += transcript.merged[key] == 1
        row.twice += transcript.merged[key] > 1
        own = client.outcomes.get(key)
        if not transcript.merged[key]:
            if own or said:
                row.refused[own or min(said)] += 1
            elif key not in client.waiting:
                row.lost += 1
        row.waiting += key in client.waiting
        report.violations += [
            f"{key} {wrong}" for wrong in _wrongs(key, client, transcript.merged[key], said)
        ]


def _wrongs(key: Key, client: Client, merged: int, said: set[str]) -> list[str]:
    """List what is wrong with one update; `said`: why the transcript says it was refused."""
    wrongs = []
    own, is_judged = client.outcomes.get(key), key in client.outcomes
    if merged > 1:
        wrongs.append(f"is in {merged} aggregates")
    if merged and own:
        wrongs.append(f"is in an aggregate, and its client was told {own}")
    if merged and said:
        wrongs.append(f"is in an aggregate, and refused in the transcript: {', '.join(sorted(said))}")
    if is_judged and own is None and not merged and RUN_OVER not in said:
        wrongs.append("was taken and is in no aggregate")
    if key in client.waiting:
        wrongs.append("is judged and still waits" if is_judged else "still waits")
    return wrongs


def _check_strangers(clients: dict[str, Client], transcripts: dict[str, Transcript], report: Report) -> None:
    """Find what was merged and was never made."""
    for transcript in transcripts.values():
        for key, count in transcript.merged.items():
            client = clients.get(key.client)
            is_known = client is not None and (key in client.outcomes or key in client.waiting)
            if not is_known and (client is None or client.is_whole):
                report.violations.append(f"{key} is in an aggregate, and its client does not know it")
                if count > 1:
                    report.violations.append(f"{key} is in {count} aggregates")


# --- what is on disk ------------------------------------------------------------------------------


def read_client(name: str, path: Path) -> Client:
    """Read a client's database, of a process that runs or was killed too."""
    client = Client(name, is_whole=not list(path.parent.glob("state.db.damaged-*")))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
        for run, base, delta, refused in database.execute("SELECT run, base, delta, refused FROM outcome"):
            client.outcomes[Key(name, run, base, delta)] = refused
        for (body,) in database.execute("SELECT body FROM entry WHERE kind = 'update'"):
            update = codec.decode(body, Update)
            client.waiting.add(Key(name, update.run, update.base, update.delta.digest))
    client.is_whole = client.is_whole and len(client.outcomes) < OUTCOMES_KEPT
    return client


def read_transcript(path: Path) -> Transcript:
    """Read a transcript, and check its chain."""
    transcript = Transcript(path.parent.name)
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        transcript.problems.append("its last line is torn")
    previous, model = ZEROS, ""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            fact = json.loads(line)
            problem = _follows(transcript, number, fact, previous, model)
            model = _take(transcript, fact, model)
        except (ValueError, KeyError, TypeError) as error:
            problem = f"it cannot be read: {error!r}"
        if problem:
            transcript.problems.append(f"line {number}: {problem}")
        previous = hashlib.sha256(line).hexdigest()
    return transcript


def _follows(transcript: Transcript, number: int, fact, previous: str, model: str) -> str | None:
    """Say what is wrong with a line at this place."""
    if fact["previous"] != previous:
        return "it does not name the line before it"
    if (number == 1) != (fact["kind"] == "opened"):
        return f"it is {fact['kind']}"
    if transcript.is_closed:
        return "the run was closed before it"
    if fact["kind"] == "opened" and fact["run"] != transcript.run:
        return f"it is of the run {fact['run']}"
    if fact["kind"] == "round" and fact["base"] != model:
        return "it starts from another model than the one before it made"
    if (
        fact["kind"] == "round"
        and fact["outcome"] == "abandoned"
        and (fact.get("updates") or fact["model"] != model)
    ):
        return "it was abandoned, and merged something"
    return None


def _take(transcript: Transcript, fact, model: str) -> str:
    """Fold a line in; give the model after it."""
    for refusal in fact.get("refusals", ()):
        key = refusal["client"], refusal["delta"]
        transcript.refused.setdefault(key, set()).add(refusal["reason"])
    for update in fact.get("updates", ()):
        key = Key(update["client"], transcript.run, update["base"], update["delta"])
        transcript.merged[key] += 1
        transcript.late += update["staleness"] > 0
    transcript.committed += fact.get("outcome") == "committed"
    transcript.resumed += fact["kind"] == "resumed"
    transcript.is_closed = fact["kind"] == "closed"
    return fact.get("model", model)


# --- for people -----------------------------------------------------------------------------------


def table(report: Report) -> list[str]:
    """Write the table."""
    lines = [
        f"{'client':<12}{'finished':>10}{'in one':>8}{'refused':>9}{'waiting':>9}{'lost':>6}{'twice':>7}"
    ]
    for row in (*report.rows, report.total):
        refused = row.refused.total()
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(row.refused.items()))
        lines.append(
            f"{row.client:<12}{row.finished:>10}{row.once:>8}{refused:>9}{row.waiting:>9}{row.lost:>6}"
            f"{row.twice:>7}  {reasons}".rstrip()
        )
    lines.append(
        f"{report.committed} aggregates, {report.resumed} times resumed, {report.late} updates merged late"
    )
    return lines


def as_facts(report: Report) -> dict[str, object]:
    """Put it into facts for machines."""
    facts = msgspec.to_builtins(report.total)
    return {
        **{name: value for name, value in facts.items() if name != "client"},
        "aggregates": report.committed,
        "resumed": report.resumed,
        "late": report.late,
        "violations": report.violations,
    }

"""`fedmq outbox`: finds what a client on this machine still owes, and shows it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from common import ids, log, outbox, parts
from common.certificates import Role
from common.errors import NotFoundError, UsageError
from common.messages import Update
from common.outbox import Entry, Outcome
from common.settings import Settings
from compose.wording import count, size

OUTCOMES_SHOWN = 20
DIGEST_SHOWN = 12  # characters, for people

Event = dict[str, object]
Found = tuple[tuple[Entry, ...], tuple[Outcome, ...]]  # what waits; what was judged, the newest first


def look(settings: Settings, client: str) -> Found:
    """Read a client's outbox. Raises: UsageError, NotFoundError, StorageError, DamagedError."""
    if not ids.is_client_name(client):
        raise UsageError(f"no client can be called {client!r}")
    return outbox.look(_file(parts.state_dir(settings, Role.CLIENT, client), client), OUTCOMES_SHOWN)


def _file(directory: Path, client: str) -> Path:
    """Find the file in the client's own directory, or in that of a demo. Raises: NotFoundError."""
    for file in (directory / outbox.FILE, directory / client / outbox.FILE):
        if file.exists():
            return file
    raise NotFoundError(
        f"{client} has no outbox in {directory}",
        advice="It has one once it was started. Say with --state-dir where the client, or the demo, keeps its state.",
    )


# --- for programs ---------------------------------------------------------------------------------


def events(found: Found) -> Iterator[Event]:
    """Say it for programs."""
    waiting, outcomes = found
    yield from map(entry, waiting)
    yield from map(outcome, reversed(outcomes))


def entry(one: Entry) -> Event:
    """Say what waits."""
    return {
        "event": "outbox.waiting",
        "kind": _kind(one),
        "run": one.message.run,
        "round": one.message.round,
        "update": _update(one),
        "bytes": one.bytes,
        "since": _date(one.created),
    }


def outcome(one: Outcome) -> Event:
    """Say what became of an update."""
    return {
        "event": "outbox.outcome",
        "run": one.run,
        "round": one.round,
        "update": one.delta,
        "outcome": verdict(one),
        "detail": one.detail or None,
        "at": _date(one.at),
    }


def verdict(one: Outcome) -> str:
    """Say in two words whether an update counts."""
    if one.refused:
        return f"refused: {one.refused}"
    return "taken late" if one.late else "taken"


# --- for people -----------------------------------------------------------------------------------


def lines(found: Found) -> Iterator[str]:
    """Say it for people; what others said can neither end a line nor steer a terminal."""
    yield from map(log.escape, _lines(*found))


def _lines(waiting: tuple[Entry, ...], outcomes: tuple[Outcome, ...]) -> Iterator[str]:
    yield f"{count(len(waiting), 'message')} not yet answered:" if waiting else "nothing waits"
    for one in waiting:
        what = f"{_kind(one):9} {_shortened(_update(one)):{DIGEST_SHOWN}}  {size(one.bytes)}"
        yield _row(one.created, one.message.run, one.message.round, what)
    if outcomes:
        yield "what became of the last updates:"
    for judged in reversed(outcomes):
        detail = f" ({judged.detail})" if judged.detail else ""
        what = f"{'update':9} {_shortened(judged.delta)}  {verdict(judged)}{detail}"
        yield _row(judged.at, judged.run, judged.round, what)


def _row(seconds: float, run: str, number: int, what: str) -> str:
    return f"  {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC  {run}  round {number:<4}  {what}"


def _kind(one: Entry) -> str:
    return str(one.message.__struct_config__.tag)


def _update(one: Entry) -> str | None:
    return one.message.delta.digest if isinstance(one.message, Update) else None


def _shortened(digest: str | None) -> str:
    return (digest or "")[:DIGEST_SHOWN]


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

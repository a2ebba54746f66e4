"""How a client's outbox reads, as events: pure."""

from datetime import UTC, datetime

from common.messages import Update
from common.outbox import Entry, Outcome

OUTCOMES_SHOWN = 20

Event = dict[str, object]


def entry(one: Entry) -> Event:
    """Say what waits."""
    message = one.message
    return {
        "event": "outbox.waiting",
        "kind": message.__struct_config__.tag,
        "run": message.run,
        "round": message.round,
        "update": message.delta.digest if isinstance(message, Update) else None,
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


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

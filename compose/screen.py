"""What people see of a running demo: a live table on a terminal, one line a round elsewhere, JSON Lines on request."""

import json
import sys
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.settings import Settings

Event = dict[str, object]
BAR_CELLS = 20


class Screen(Protocol):
    """Shows events as they come. `say` and `fail` are for people."""

    def begin(self, settings: Settings, state_dir: Path) -> None:
        """Show what is about to run."""

    def show(self, event: Event) -> None:
        """Show one event."""

    def say(self, text: str) -> None:
        """Tell the operator something."""

    def fail(self, event: Event, state_dir: Path) -> None:
        """Tell the operator why it failed, and what to do."""

    def end(self) -> None:
        """Show no more."""


def choose(*, as_json: bool) -> Screen:
    """Choose by what standard output is."""
    if as_json:
        return JsonLines()
    return LiveTable() if sys.stdout.isatty() else PlainLines()


class JsonLines:
    """One object a line on standard output, and nothing else."""

    def begin(self, settings: Settings, state_dir: Path) -> None:
        self.show({"event": "started", "state_dir": str(state_dir), "clients": settings.data.num_clients})

    def show(self, event: Event) -> None:
        print(json.dumps(event), flush=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def fail(self, event: Event, state_dir: Path) -> None:
        _complain(event, state_dir, sys.stderr)

    def end(self) -> None:
        pass


class PlainLines:
    """One line a round."""

    def __init__(self) -> None:
        self._rounds: list[Event] = []

    def begin(self, settings: Settings, state_dir: Path) -> None:
        self.say(_title(settings))
        self.say(f"state: {state_dir}")

    def show(self, event: Event) -> None:
        match event["event"]:
            case "broker.listening":
                self.say(f"broker: {event['host']}:{event['port']}")
                for line in _observe(event):
                    self.say(line)
            case "round.finished":
                self._rounds.append(event)
                self.say("  ".join(f"{name} {value}" for name, value in _cells(event).items()))
            case "run.finished":
                self.say("")
                for line in _closing(event, self._rounds):
                    self.say(line)
            case _:
                if (note := _note(event)) is not None:
                    self.say(note)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def fail(self, event: Event, state_dir: Path) -> None:
        _complain(event, state_dir, sys.stderr)

    def end(self) -> None:
        pass


class LiveTable:
    """A table that grows by a row a round, with what is going on under it."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._rounds: list[Event] = []
        self._title = ""
        self._notes: list[str] = []
        self._now = "starting: broker, coordinator, clients"
        self._closing: list[str] = []

    def begin(self, settings: Settings, state_dir: Path) -> None:
        self._title = _title(settings)
        self._notes = [f"state: {state_dir}"]
        self._live.start()
        self._paint()

    def show(self, event: Event) -> None:
        match event["event"]:
            case "broker.listening":
                self._notes.extend(_observe(event))
            case "round.started":
                self._now = f"round {event['round']}: {event['clients']} clients are training"
            case "run.gathering":
                self._now = f"waiting for clients: {event['clients']} of {event['needed']} are here"
            case "round.finished":
                self._rounds.append(event)
            case "run.finished":
                self._now = ""
                self._closing = _closing(event, self._rounds)
            case _:
                if (note := _note(event)) is not None:
                    self._notes.append(note)
        self._paint()

    def say(self, text: str) -> None:
        self._notes.append(text)
        self._paint()

    def fail(self, event: Event, state_dir: Path) -> None:
        _complain(event, state_dir, sys.stderr)

    def end(self) -> None:
        self._live.stop()
        for line in self._closing:
            self._console.print(Text(line))

    def _paint(self) -> None:
        table = Table(title=self._title, title_justify="left")
        for name in _cells({}):
            table.add_column(name, justify="right")
        table.add_column("learnt", justify="left", min_width=BAR_CELLS)
        for event in self._rounds:
            table.add_row(*_cells(event).values(), _bar(event.get("accuracy")))
        notes = [Text(note, style="dim") for note in self._notes[-6:]]
        self._live.update(Group(table, *notes, Text(self._now, style="bold")), refresh=True)


def _title(settings: Settings) -> str:
    data, run = settings.data, settings.run
    return (
        f"fedmq: {data.num_clients} clients train {settings.model.name} on {data.dataset} "
        f"({data.partition}{f', alpha {data.alpha:g}' if data.partition == 'dirichlet' else ''}), "
        f"{run.num_rounds} rounds of {run.strategy}, {settings.broker.engine} broker"
    )


def _cells(event: Event) -> dict[str, str]:
    """Give a round's row: what it brought, and what it took."""
    seconds, training = _number(event.get("seconds")), _number(event.get("train_seconds"))
    return {
        "round": str(event.get("round", "")),
        "loss": _fixed(event.get("loss"), 4),
        "accuracy": _fixed(event.get("accuracy"), 4),
        "clients": str(event.get("clients", "")),
        "train s": _fixed(training, 2),
        "other s": _fixed(None if seconds is None or training is None else seconds - training, 2),
        "up": _bytes(event.get("bytes_up")),
        "down": _bytes(event.get("bytes_down")),
    }


def _note(event: Event) -> str | None:
    """Put what an operator should see into words."""
    match event["event"]:
        case "client.offline" if event["why"] != "offline":
            return f"{event['client']} is away: {event['why']}"
        case "client.exited":
            return f"{event['client']} ended with exit code {event['code']}"
        case "client.refused" | "update.refused" | "update.declined":
            detail = f" ({event['detail']})" if event.get("detail") else ""
            return f"{event['event']}: {event['client']}: {event['reason']}{detail}"
        case "round.abandoned":
            return f"round {event['round']} came to nothing: {event['outcome']}"
        case "broker.unreachable":
            return f"{event.get('part', 'here')}: no broker: {event['why']}; trying again"
        case _:
            return None


def _closing(event: Event, rounds: list[Event]) -> list[str]:
    """Sum a run up, and say what to try next."""
    done = f"{event['rounds']} rounds in {_fixed(event['seconds'], 1)} s"
    ending = done if event["completed"] else f"ended after {done}: {event['why']}"
    learnt = ", ".join(_fixed(each.get("accuracy"), 3) for each in rounds)
    return [
        ending,
        f"accuracy {_fixed(event['accuracy'], 4)}, loss {_fixed(event['loss'], 4)}; round by round: {learnt}",
        f"{_bytes(event['bytes_up'])} up, {_bytes(event['bytes_down'])} down",
        f"model:  {event['model']}",
        f"digest: {event['model_digest']}",
        f"state:  {event['state_dir']}",
        "",
        "next:   fedmq demo --dataset fashion-mnist --model cnn --num-clients 10 --local-epochs 1",
        "        fedmq demo --engine mosquitto",
        "        fedmq --help",
    ]


def _observe(event: Event) -> list[str]:
    host, port = event["host"], event["port"]
    look = [f"look at the topics: mosquitto_sub -h {host} -p {port} -v -t 'fedmq/#'"]
    if "keys_dir" in event:
        look.append(f"ask or stop it: fedmq status --broker {host}:{port} --keys-dir {event['keys_dir']}")
    return look


def _complain(event: Event, state_dir: Path, to: TextIO) -> None:
    print(f"error: {event.get('part', 'demo')}: {event.get('error', 'it ended without a word')}", file=to)
    if event.get("advice"):
        print(event["advice"], file=to)
    print(f"logs: {state_dir / 'logs'}", file=to, flush=True)


def _bar(accuracy: object) -> Text:
    share = _number(accuracy) or 0.0
    return Text("█" * round(share * BAR_CELLS), style="green")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _fixed(value: object, digits: int) -> str:
    number = _number(value)
    return "-" if number is None else f"{number:.{digits}f}"


def _bytes(value: object) -> str:
    size = _number(value)
    if size is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'B' else 2}f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"

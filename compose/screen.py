"""What people see of a run: a live table on a terminal, one line a round elsewhere, JSON Lines on request."""

import json
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.settings import Settings
from compose import wording
from compose.wording import Event

NOTES_SHOWN = 6
NOTES_KEPT = 100
LINES_AROUND = NOTES_SHOWN + 7  # of a terminal's height that is not rows
WIDTH_FOR_BARS = 100


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

    def end(self, after: Sequence[str] = ()) -> None:
        """Show no more, but these lines for people."""


def choose(*, as_json: bool) -> Screen:
    """Choose by what standard output is."""
    if as_json:
        return JsonLines()
    return LiveTable() if sys.stdout and sys.stdout.isatty() else PlainLines()  # it may be closed


class JsonLines:
    """One object a line on standard output, and nothing else."""

    def __init__(self) -> None:
        self._out = sys.stdout  # which a verb may point elsewhere, for what plug-ins print

    def begin(self, settings: Settings, state_dir: Path) -> None:
        self.show({"event": "started", "state_dir": str(state_dir), "clients": settings.data.num_clients})

    def show(self, event: Event) -> None:
        print(json.dumps(event), file=self._out, flush=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def fail(self, event: Event, state_dir: Path) -> None:
        print(wording.complaint(event, state_dir), file=sys.stderr, flush=True)

    def end(self, after: Sequence[str] = ()) -> None:
        pass


class PlainLines:
    """One line a round."""

    def __init__(self) -> None:
        self._rounds: list[Event] = []

    def begin(self, settings: Settings, state_dir: Path) -> None:
        self.say(wording.title(settings))
        self.say(f"state: {state_dir}")

    def show(self, event: Event) -> None:
        match event["event"]:
            case "broker.listening":
                for line in wording.observe(event):
                    self.say(line)
            case "round.finished":
                self._rounds.append(event)
                self.say("  ".join(f"{name} {value}" for name, value in wording.cells(event).items()))
            case "run.finished":
                for line in ("", *wording.closing(event, self._rounds)):
                    self.say(line)
            case _:
                if (note := wording.note(event)) is not None:
                    self.say(note)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def fail(self, event: Event, state_dir: Path) -> None:
        print(wording.complaint(event, state_dir), file=sys.stderr, flush=True)

    def end(self, after: Sequence[str] = ()) -> None:
        for line in after:
            self.say(line)


class LiveTable:
    """A table that grows by a row a round, with what is going on under it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._rounds: list[Event] = []
        self._title = ""
        self._notes: deque[str] = deque(maxlen=NOTES_KEPT)
        self._now = "starting"

    def begin(self, settings: Settings, state_dir: Path) -> None:
        self._title = wording.title(settings)
        self._notes.append(f"state: {state_dir}")
        self._live.start()
        self._paint()

    def show(self, event: Event) -> None:
        match event["event"]:
            case "broker.listening":
                self._notes.extend(wording.observe(event))
            case "round.started":
                self._now = f"round {event['round']}: {wording.count(event['clients'], 'client')} at work"
            case "run.gathering":
                self._now = wording.note(event) or ""
            case "round.finished":
                self._rounds.append(event)
            case "run.finished":
                self._now = ""
                self._notes.extend(["", *wording.closing(event, self._rounds)])
            case _:
                if (note := wording.note(event)) is not None:
                    self._notes.append(note)
        self._paint()

    def say(self, text: str) -> None:
        self._notes.append(text)
        self._paint()

    def fail(self, event: Event, state_dir: Path) -> None:
        print(wording.complaint(event, state_dir), file=sys.stderr, flush=True)

    def end(self, after: Sequence[str] = ()) -> None:
        """Leave the table with all its rows and notes behind; long lines are the terminal's to break."""
        self._live.update(Text(""), refresh=True)
        self._live.stop()
        if self._title:
            self._console.print(self._table(len(self._rounds)))
        for note in (*self._notes, *after):
            self._console.print(note, soft_wrap=True, markup=False, highlight=False)

    def _paint(self) -> None:
        rows = max(3, self._console.height - LINES_AROUND)
        notes = [
            Text(note, style="dim", no_wrap=True, overflow="ellipsis")
            for note in list(self._notes)[-NOTES_SHOWN:]
        ]
        now = Text(self._now, style="bold")
        self._live.update(Group(self._table(rows), *notes, now), refresh=True)

    def _table(self, rows: int) -> Table:
        table = Table(title=self._title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        with_bars = self._console.width >= WIDTH_FOR_BARS
        for name in wording.cells({}):
            table.add_column(name, justify="right", no_wrap=True)
        if with_bars:
            table.add_column("learnt", min_width=wording.BAR_CELLS, no_wrap=True, style="green")
        for event in self._rounds[-rows:]:
            bar = [wording.bar(wording.score(event, "accuracy"))] if with_bars else []
            table.add_row(*wording.cells(event).values(), *bar)
        return table

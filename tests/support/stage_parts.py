"""The process that a stage's parts are forked from, again and again: torch is imported once.

    stage --order, one JSON object a line--> this --fork--> broker, coordinator, client-1, …
    stage <--started, ended, failed-- this

An order names a part and what is to be done with it: to start it, or a signal. A part leads a process group of its
own, so that a kill takes what it started with it. It writes its events to `<state>/<part>/events.jsonl`, which
outlive it. Nothing here runs a thread, an event loop or a tensor operation: what is forked must start clean.
"""

import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path

from broker.engine import BrokerPolicy
from common import log
from common.settings import Link, Settings
from compose import nursery
from compose.nursery import Brood, Main, Part

EVENTS = "events.jsonl"


class Parts:
    """What runs, and how to start more of it."""

    def __init__(self, settings: Settings, state_dir: Path, brood: Brood):
        self.settings, self.state_dir, self.brood = settings, state_dir, brood

    def obey(self, order: dict[str, object]) -> None:
        """Start a part, or send it a signal."""
        name = str(order["part"])
        if "signal" in order:
            self._signal(name, int(str(order["signal"])))
            return
        pid = self.brood.fork(name, self._main(name, int(str(order["port"]))))
        self.brood.demo.report({"event": "started", "name": name, "pid": pid})

    def tell_ended(self) -> None:
        """Report who ended, and how."""
        for name, code in self.brood.reap():
            self.brood.demo.report({"event": "ended", "name": name, "code": code})

    def _signal(self, name: str, number: int) -> None:
        for pid in [pid for pid, other in self.brood.pids.items() if other == name]:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:  # it does not lead its group yet
                os.kill(pid, number)

    def _main(self, name: str, port: int) -> Main:
        """Make what a part does; `port` is where the broker listens, for this part."""
        directory = self.state_dir / name
        own = self.settings.model_copy(
            update={"state_dir": directory, "link": Link(brokers=(f"127.0.0.1:{port}",))}
        )

        async def run(part: Part) -> int:
            with contextlib.suppress(PermissionError):
                os.setpgid(0, 0)
            directory.mkdir(exist_ok=True)
            events = os.open(directory / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            report = Part(name, events).report
            report({"event": "began", "pid": os.getpid()})
            if name == "broker":
                from broker.engine import serve

                broker = BrokerPolicy(own.broker.engine, own.broker.host, port, None, directory)
                await serve(broker, lambda at: report({"event": "listening", **at.facts()}))
            elif name == "coordinator":
                from coordinator.assembly import serve

                await serve(own, hold=True, resume=True, report=report)
            else:
                from edge_client.assembly import serve

                await serve(own, name, report=report, threads=1)
            return 0

        return run


def main() -> int:
    """Fork what is ordered until standard input is closed; then end all of it."""
    first = json.loads(sys.stdin.buffer.raw.readline())
    settings, state_dir = Settings(**first["settings"]), Path(first["state_dir"])
    log.setup(settings.log.level, "console", state_dir / "logs" / "stage.log")
    stage = Part("stage", os.dup(1))
    os.dup2(2, 1)
    brood = Brood(
        state_dir / "logs", settings.log.level, stage
    )  # parts hang on us: they must not read our orders
    wakeup = nursery._wake_on_signals()
    nursery._import_once(settings)
    import coordinator.assembly  # noqa: F401 - once for all who are forked

    stage.report({"event": "ready"})
    parts, orders = Parts(settings, state_dir, brood), b""
    try:
        while True:
            ready, _, _ = select.select([sys.stdin, wakeup], [], [])
            if wakeup in ready:
                wakeup.recv(256)
                parts.tell_ended()
            if sys.stdin in ready:
                data = os.read(sys.stdin.fileno(), 65536)
                if not data:
                    return 0
                *lines, orders = (orders + data).split(b"\n")
                for line in lines:
                    parts.obey(json.loads(line))
    finally:
        for pid in brood.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)  # a paused one could not end
        brood.end(lambda name: name != "broker")
        brood.end(lambda _: True)


if __name__ == "__main__":
    sys.exit(main())

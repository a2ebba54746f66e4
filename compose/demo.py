"""Everything on one machine, in processes of their own: broker, coordinator, clients; one table.

Ctrl-C once ends the run after the open round, twice at once. No process is left behind, whatever happens: all
of them hang on the leash that the demo holds (`compose.nursery`).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from common import identity
from common.errors import FedmqError
from common.identity import Role
from common.ids import COORDINATOR, OPERATOR
from common.settings import Settings, default_state
from compose import nursery
from compose.screen import Screen

INTERRUPTED = 130
TERMINATED = 143


@dataclass(slots=True)
class Demo:
    """One demo while it runs."""

    screen: Screen
    process: subprocess.Popen[str]
    coordinator: int | None = None
    interrupts: int = 0
    terminated: bool = False
    finished: dict[str, object] = field(default_factory=dict)
    failed: dict[str, object] = field(default_factory=dict)

    def interrupted(self, number: int, frame: FrameType | None) -> None:
        """Take a Ctrl-C: once after this round, twice at once."""
        self.interrupts += 1
        if self.interrupts == 1 and self.coordinator is not None:
            self.screen.say("stopping after this round; Ctrl-C again stops now")
            os.kill(self.coordinator, signal.SIGINT)
        else:
            self.process.terminate()

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Take a SIGTERM."""
        self.terminated = True
        self.process.terminate()

    def hear(self, event: dict[str, object]) -> None:
        """Take in what a part reports."""
        match event.get("event"):
            case "coordinator.forked":
                self.coordinator = int(str(event["pid"]))
                return
            case "run.finished":
                self.finished = event
            case "failed" if not self.failed:
                self.failed = event
        self.screen.show(event)

    def exit_code(self) -> int:
        """Say how it went."""
        if self.terminated:
            return TERMINATED
        if self.interrupts:
            return INTERRUPTED
        if self.finished:
            return 0 if self.finished["completed"] else 1
        return int(str(self.failed.get("code", 1)))


def run(settings: Settings, screen: Screen, *, threads: int | None = None) -> int:
    """Run a whole federation on this machine until its run is over; returns the exit code."""
    state_dir = settings.state_dir or default_state(
        settings.federation, "demo", time.strftime("%Y%m%d-%H%M%S")
    )
    keys_dir = settings.keys_dir or state_dir / "keys"
    whole = settings.model_copy(update={"keys_dir": keys_dir, "state_dir": state_dir})
    threads = threads or max(1, (os.cpu_count() or 1) // settings.data.num_clients)
    (state_dir / "logs").mkdir(parents=True, exist_ok=True)
    identity.create_root(keys_dir, settings.federation)
    screen.begin(whole, state_dir)
    with (state_dir / "logs" / "stderr.log").open("a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "compose.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # a Ctrl-C is ours to pass on
        )
    demo = Demo(screen, process)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, demo.interrupted)
    signal.signal(signal.SIGTERM, demo.terminate)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(nursery.start_line(whole, state_dir, threads))
        process.stdin.flush()
        _provision(whole, keys_dir)  # while the nursery imports torch
        for line in process.stdout:
            demo.hear(json.loads(line))
    finally:
        _put_down(process)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        screen.end()
    if not demo.finished and not demo.interrupts and not demo.terminated:
        screen.fail(demo.failed, state_dir)
    return demo.exit_code()


def _provision(settings: Settings, keys_dir: Path) -> None:
    """Make a key for everybody."""
    identity.load(keys_dir, Role.COORDINATOR, COORDINATOR)
    identity.load(keys_dir, Role.OPERATOR, OPERATOR)
    for number in range(1, settings.data.num_clients + 1):
        identity.load(keys_dir, Role.CLIENT, f"client-{number}")


def _put_down(process: subprocess.Popen[str]) -> None:
    """Let go of the leash and wait; parts that do not end by themselves end themselves by force."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(2 * nursery.GRACE_S + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        raise FedmqError("the demo's processes did not end and were killed") from None

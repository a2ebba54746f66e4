"""Real parts, killed for good: what was trained counts, and a run goes on where it was left."""

import json
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.ports import free_port
from support.running import fedmq, finish

LONG = ("--local-epochs", "300")  # some seconds of training on the digits


@pytest.fixture
def parts():
    """Start parts that end with the test: `parts("client", "--client-id", "client-1")`."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(fedmq(*arguments))


def kill(part):
    """Kill a part with -9."""
    part.process.send_signal(signal.SIGKILL)
    part.process.wait()


def waiting(client):
    """List the updates that wait in a client's outbox."""
    code, shown, _ = finish("outbox", "--client-id", client, "--json")
    events = [json.loads(line) for line in shown.splitlines()]
    return [
        one for one in events if code == 0 and one["event"] == "outbox.waiting" and one["kind"] == "update"
    ]


def test_what_a_client_trained_while_the_broker_was_down_counts_though_the_client_was_killed(parts):
    port = free_port()
    linked = ("--num-clients", "2", "--broker", f"127.0.0.1:{port}")
    broker = parts("broker", "--port", port)
    broker.wait_for("broker.listening")
    coordinator = parts("coordinator", "--num-rounds", "1", "--quorum-share", "1", *LONG, *linked)
    coordinator.wait_for("started")
    other = parts("client", "--client-id", "client-2", *linked)
    client = parts("client", "--client-id", "client-1", *linked)
    other.wait_for("task.started")
    client.wait_for("task.started")
    kill(broker)
    coordinator.wait_for("broker.unreachable")
    while not waiting("client-1"):
        pass
    kill(client)
    client = parts("client", "--client-id", "client-1", *linked)
    client.wait_for("broker.unreachable")
    parts("broker", "--port", port).wait_for("broker.listening")
    finished = coordinator.wait_for("round.finished", 120)
    assert (finished["clients"], finished["refused"]) == (2, {})
    client.wait_for("update.judged", refused=None)
    assert not client.named("task.started")  # it did not train again
    assert not waiting("client-1")


def test_a_coordinator_that_is_killed_goes_on_and_ends_in_the_same_model(parts, tmp_path):
    port = free_port()
    linked = ("--num-clients", "2", "--broker", f"127.0.0.1:{port}")
    flags = ("--num-rounds", "4", "--quorum-share", "1", "--local-epochs", "40", *linked)
    parts("broker", "--port", port).wait_for("broker.listening")
    for name in ("client-1", "client-2"):
        assert finish("keys", "issue", "client", name)[0] == 0
        parts("client", "--client-id", name, *linked)
    whole = parts("coordinator", "--state-dir", tmp_path / "whole", *flags)
    assert whole.ended() == 0, whole.stderr
    (expected,) = whole.named("run.finished")

    coordinator = parts("coordinator", "--state-dir", tmp_path / "killed", "--keep-updates", *flags)
    for number in (1, 2, 3):
        coordinator.wait_for("round.finished", round=number)
        kill(coordinator)
        flags = ("--resume", "--state-dir", tmp_path / "killed", *linked)
        coordinator = parts("coordinator", *flags)
    assert coordinator.ended() == 0, coordinator.stderr
    (ended,) = coordinator.named("run.finished")
    assert (ended["rounds"], ended["model_digest"]) == (4, expected["model_digest"])
    code, shown, said = finish("audit", "verify", ended["run"], "--state-dir", tmp_path / "killed", "--json")
    assert code == 0, shown + said
    audited = json.loads(shown.splitlines()[-1])
    assert (audited["rounds"], audited["reaggregated"]) == (4, True)
    code, _, said = finish("coordinator", *flags)
    assert code == 3  # nothing is left to be resumed
    assert "without --resume" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_coordinator_that_is_told_twice_or_terminated_leaves_its_run(parts, tmp_path, number, code):
    port = free_port()
    linked = ("--broker", f"127.0.0.1:{port}", "--num-clients", "1")
    parts("broker", "--port", port).wait_for("broker.listening")
    assert finish("keys", "issue", "client", "client-1")[0] == 0
    parts("client", "--client-id", "client-1", *linked)
    flags = ("--state-dir", tmp_path, "--num-rounds", "3", "--local-epochs", "200", *linked)
    coordinator = parts("coordinator", *flags)
    coordinator.wait_for("round.started")
    if number == signal.SIGINT:
        coordinator.interrupt()
        coordinator.wait_for("run.ending")
    coordinator.process.send_signal(number)
    assert coordinator.ended() == code
    (left,) = coordinator.named("run.left")
    again = parts("coordinator", "--resume", "--state-dir", tmp_path, *linked[:2])
    assert again.ended() == 0, again.stderr
    (ended,) = again.named("run.finished")
    assert (ended["run"], ended["rounds"], ended["completed"]) == (left["run"], 3, True)
    assert ended["bytes_up"] >= sum(one["bytes_up"] for one in again.named("round.finished"))


def test_a_run_that_is_not_resumed_is_closed_and_that_is_said(parts, tmp_path):
    port = free_port()
    flags = ("--state-dir", tmp_path, "--num-clients", "1", "--broker", f"127.0.0.1:{port}")
    parts("broker", "--port", port).wait_for("broker.listening")
    coordinator = parts("coordinator", *flags)
    run = coordinator.wait_for("run.started")["run"]
    kill(coordinator)
    again = parts("coordinator", *flags)
    assert again.wait_for("run.closed")["run"] == run
    assert again.wait_for("run.started")["run"] != run


def test_a_resumed_run_keeps_its_settings(parts, tmp_path):
    port = free_port()
    linked = ("--num-clients", "1", "--broker", f"127.0.0.1:{port}")
    parts("broker", "--port", port).wait_for("broker.listening")
    coordinator = parts("coordinator", "--state-dir", tmp_path, "--lr", "0.01", *linked)
    coordinator.wait_for("run.gathering")
    kill(coordinator)
    code, _, said = finish("coordinator", "--resume", "--state-dir", tmp_path, "--lr", "0.02", *linked)
    assert code == 78
    assert "training.lr = 0.01, not 0.02" in said


@pytest.mark.parametrize("hold", [(), ("--hold",)])
def test_a_run_is_not_resumed_with_a_new_root(tmp_path, hold):
    code, _, said = finish("coordinator", "--resume", *hold, "--keys-dir", tmp_path / "mistyped")
    assert code == 78
    assert f"{tmp_path / 'mistyped'} holds no root.pem" in said
    assert not list(tmp_path.iterdir())


def test_a_second_coordinator_of_a_federation_does_not_start(parts, tmp_path):
    port = free_port()
    linked = ("--num-clients", "1", "--broker", f"127.0.0.1:{port}")
    parts("broker", "--port", port).wait_for("broker.listening")
    first = parts("coordinator", *linked)
    first.wait_for("run.gathering")
    code, _, said = finish("coordinator", "--state-dir", tmp_path / "second", *linked)
    assert code == 6, said
    assert "is running already" in said
    parts("client", "--client-id", "client-1", *linked)
    assert first.ended() == 0, first.stderr
    assert not first.named("broker.unreachable")  # the second one did not cut it off


def test_a_demo_that_is_killed_goes_on(parts, tmp_path):
    flags = ("--num-rounds", "4", "--local-epochs", "40", "--quorum-share", "1")
    demo = parts("demo", "--state-dir", tmp_path, *flags)
    demo.wait_for("round.finished", round=1)
    kill(demo)
    assert not demo.left_behind()
    again = parts("demo", "--state-dir", tmp_path, "--resume")
    assert again.ended() == 0, again.stderr
    (ended,) = again.named("run.finished")
    assert (ended["rounds"], ended["completed"]) == (4, True)
    assert again.named("run.resumed")
    assert finish("audit", "verify", ended["run"], "--state-dir", tmp_path)[0] == 0
    code, shown, _ = finish("outbox", "--client-id", "client-1", "--state-dir", tmp_path)
    assert (code, shown.count("  taken")) == (0, 4)
    transcript = tmp_path / "coordinator" / "runs" / ended["run"] / "transcript.jsonl"
    whole = transcript.read_bytes()
    transcript.write_bytes(whole[:-1])  # as a kill in the middle of its last line would
    assert finish("demo", "--state-dir", tmp_path, "--resume")[0] == 3
    assert transcript.read_bytes() == whole
    assert finish("demo", "--resume")[0] == 2


def test_a_damaged_ledger_is_moved_aside_and_reported(parts, tmp_path):
    port = free_port()
    linked = ("--num-clients", "1", "--broker", f"127.0.0.1:{port}")
    parts("broker", "--port", port).wait_for("broker.listening")
    (tmp_path / "state.db").write_bytes(b"this is no database, and it is long enough to be read as one" * 100)
    coordinator = parts("coordinator", "--state-dir", tmp_path, *linked)
    damaged = coordinator.wait_for("database.damaged")
    assert Path(damaged["moved_to"]).read_bytes().startswith(b"this is no database")
    coordinator.wait_for("run.gathering")

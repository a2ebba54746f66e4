"""The parts in processes of their own, as an operator starts them; what they do when something breaks."""

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from support.patience import within
from support.ports import free_port
from support.require import need
from support.running import ROOT, fedmq, finish


@pytest.fixture
def parts():
    """Start parts that end with the test: `parts("client", "--client-id", "client-1")`."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(fedmq(*arguments))


@pytest.fixture
def broker(parts):
    """The address of a broker that runs."""
    port = free_port()
    parts("broker", "--port", port).wait_for("broker.listening")
    return f"127.0.0.1:{port}"


def status(broker: str) -> dict[str, object]:
    _, shown, said = finish("status", "--broker", broker, "--json")
    assert shown, said
    return json.loads(shown)


def test_start_status_config_watch_and_stop(parts, broker):
    linked = ("--broker", broker)
    coordinator = parts("coordinator", "--hold", "--num-clients", "2", *linked)
    coordinator.wait_for("started")
    clients = [parts("client", "--client-id", f"client-{n}", "--num-clients", "2", *linked) for n in (1, 2)]
    while {event["client"] for event in coordinator.named("client.online")} != {"client-1", "client-2"}:
        coordinator.wait_for("client.online")
    assert "say mqtt://127.0.0.1" in finish("status", "--broker", f"mqtts://{broker}")[2]
    before = status(broker)
    assert (before["coordinator"], before["phase"]) == ("online", "idle")
    assert set(before["clients"]) == {"client-1", "client-2"}
    assert finish("stop", *linked)[0] == 6  # there is nothing to stop

    watching = parts("watch", *linked)
    watching.wait_for("message", kind="status")
    code, shown, said = finish("start", "--num-rounds", "2", *linked, "--json")
    assert code == 0, said
    run = json.loads(shown)["run"]
    ended = coordinator.wait_for("run.finished")
    assert (ended["rounds"], ended["completed"], ended["run"]) == (2, True, run)
    watching.wait_for("message", kind="metrics", verified=True, round=2)
    assert all(event["verified"] for event in watching.events)
    assert not any(
        "weights" in str(event) or event["topic"].split("/")[-2] == "up" for event in watching.events
    )

    code, shown, _ = finish("config", "show", "--running", *linked, "--json")
    assert code == 0
    assert json.loads(shown)["settings"]["data.num_clients"] == 2
    assert status(broker)["phase"] == "over"

    assert finish("start", "--num-rounds", "100000", *linked)[0] == 0
    coordinator.wait_for("round.finished")
    code, shown, said = finish("clients", "exclude", "client-9", *linked)
    assert (code, shown.startswith("client-9 is excluded: ")) == (0, True)
    assert said == "warning: no client called client-9 was here yet; there are: client-1, client-2\n"
    assert finish("clients", "exclude", "client-2", "--json", *linked)[2] == ""
    shown = finish("status", *linked)[1]
    assert "client-2: online, excluded, " in shown
    assert "client-9: unknown, excluded" in shown
    assert finish("clients", "admit", "client-2", *linked)[1] == "client-2 is admitted: it takes part again\n"
    assert finish("start", *linked)[0] == 6  # one run at a time
    assert finish("stop", *linked)[0] == 0
    assert coordinator.wait_for("run.finished")["why"] == "stopped"
    coordinator.interrupt()
    assert coordinator.ended() == 0
    for client in clients:
        client.interrupt()
        assert client.ended() == 0
    assert finish("status", *linked)[0] == 4  # the coordinator said farewell


@pytest.mark.parametrize("engine", ["amqtt", "mosquitto"])
def test_a_broker_that_is_killed_and_comes_back_empty_only_delays_the_round(parts, engine):
    if engine == "mosquitto":
        need("mosquitto")
    port = free_port()
    linked = ("--broker", f"127.0.0.1:{port}")
    first = parts("broker", "--port", port, "--engine", engine)
    first.wait_for("broker.listening")
    coordinator = parts("coordinator", "--num-clients", "2", "--num-rounds", "3", *linked)
    coordinator.wait_for("started")
    flags = ("--num-clients", "2", "--local-epochs", "60", *linked)
    for n in (1, 2):
        parts("client", "--client-id", f"client-{n}", *flags[:2], *linked)
    coordinator.wait_for("round.finished", round=1)
    first.process.kill()  # its Mosquitto then ends in order, and says everybody's will
    coordinator.wait_for("broker.unreachable")
    parts("broker", "--port", port, "--engine", engine).wait_for("broker.listening")
    assert coordinator.ended(120) == 0, coordinator.stderr
    assert [event["clients"] for event in coordinator.named("round.finished")] == [2, 2, 2]
    assert len(coordinator.named("broker.unreachable")) == 1  # said once


def test_clients_may_come_before_the_coordinator_and_before_the_broker(parts, tmp_path):
    port = free_port()
    linked = ("--broker", f"127.0.0.1:{port}")
    assert finish("keys", "issue", "client", "client-1")[0] == 0
    client = parts("client", "--client-id", "client-1", "--num-clients", "1", *linked)
    client.wait_for("broker.unreachable")
    parts("broker", "--port", port).wait_for("broker.listening")
    coordinator = parts("coordinator", "--num-clients", "1", "--num-rounds", "1", *linked)
    assert coordinator.ended() == 0, coordinator.stderr


def test_a_client_of_another_model_is_told_both_schemas(parts, broker):
    linked = ("--broker", broker, "--num-clients", "1")
    coordinator = parts("coordinator", "--model", "linear", *linked)
    coordinator.wait_for("started")
    code, _, said = finish("client", "--client-id", "client-1", "--model", "mlp", *linked)
    assert code == 78, said
    refused = coordinator.wait_for("client.refused", client="client-1")
    assert refused["reason"] == "wrong-schema"
    theirs, ours = refused["detail"].split("the schema ")[1].split(",")[0], refused["detail"].split()[-1]
    assert theirs in said
    assert ours in said
    assert theirs != ours


def test_a_client_whose_loss_is_not_a_number_declines_and_the_round_goes_on(parts, broker):
    data = ("--dataset", "support.troubled:one_has_nan", "--model", "linear")
    linked = ("--broker", broker, "--num-clients", "3", *data)
    coordinator = parts("coordinator", "--num-rounds", "2", *linked)
    coordinator.wait_for("started")
    clients = {n: parts("client", "--client-id", f"client-{n}", *linked) for n in (1, 2, 3)}
    assert coordinator.ended() == 0, coordinator.stderr
    assert [event["clients"] for event in coordinator.named("round.finished")] == [2, 2]
    assert coordinator.named("round.finished")[0]["refused"] == {"diverged": 1}
    assert clients[1].wait_for("task.declined")["reason"] == "diverged"


def test_a_model_that_always_diverges_ends_the_run_in_words(parts, broker):
    linked = ("--broker", broker, "--num-clients", "2", "--model", "support.troubled:explodes")
    coordinator = parts("coordinator", *linked)
    coordinator.wait_for("started")
    for n in (1, 2):
        parts("client", "--client-id", f"client-{n}", *linked)
    assert coordinator.ended() == 1
    ended = coordinator.events[-1]
    assert (ended["event"], ended["rounds"]) == ("run.finished", 0)
    assert "3 rounds in a row" in ended["why"]


def test_a_client_that_vanishes_and_returns_takes_part_again(parts, broker):
    linked = ("--broker", broker, "--num-clients", "2")
    coordinator = parts("coordinator", "--num-rounds", "8", "--local-epochs", "100", *linked)
    coordinator.wait_for("started")
    vanishing = parts("client", "--client-id", "client-1", *linked)
    parts("client", "--client-id", "client-2", *linked)
    coordinator.wait_for("round.finished", round=1)
    vanishing.put_down()
    coordinator.wait_for("client.offline", client="client-1")
    parts("client", "--client-id", "client-1", *linked)
    assert coordinator.ended(120) == 0, coordinator.stderr
    assert len(coordinator.named("round.finished")) == 8
    assert coordinator.named("round.finished")[-1]["clients"] == 2


def test_two_coordinators_cannot_share_a_state_directory(parts, broker):
    parts("coordinator", "--hold", "--broker", broker).wait_for("started")
    code, _, said = finish("coordinator", "--hold", "--broker", broker)
    assert code == 6
    assert "in use by the process" in said


def test_two_processes_of_one_name_are_told(parts, broker, tmp_path):
    linked = ("--broker", broker, "--num-clients", "1")
    coordinator = parts("coordinator", "--hold", *linked)
    coordinator.wait_for("started")
    first = parts("client", "--client-id", "client-1", *linked)
    coordinator.wait_for("client.online", client="client-1")
    parts("client", "--client-id", "client-1", "--state-dir", tmp_path, *linked)
    assert first.wait_for("client.doubled")["client"] == "client-1"


def test_what_a_plug_in_prints_is_not_among_the_events(parts, broker):
    linked = (
        "--broker",
        broker,
        "--num-clients",
        "1",
        "--dataset",
        "support.troubled:talks",
        "--model",
        "linear",
    )
    coordinator = parts("coordinator", "--num-rounds", "1", *linked)
    coordinator.wait_for("started")
    client = parts("client", "--client-id", "client-1", *linked)
    client.wait_for("task.started")  # every line was JSON
    client.wait_for_words("client-1 reads")
    assert coordinator.ended() == 0


def test_an_idle_client_ends_at_once_and_one_in_training_too(parts, broker):
    linked = ("--broker", broker, "--num-clients", "1")
    coordinator = parts("coordinator", "--local-epochs", "9000", *linked)
    coordinator.wait_for("started")
    client = parts("client", "--client-id", "client-1", *linked)
    client.wait_for("task.started")
    began = time.monotonic()
    client.interrupt()
    assert client.ended(within(30)) == 0
    coordinator.wait_for("client.offline", client="client-1", why="offline")
    assert time.monotonic() - began < within(30)  # the training would have taken minutes


def test_a_state_directory_that_cannot_be_is_named(tmp_path):
    assert finish("keys", "issue", "client", "client-1", "--key-type", "ed25519")[0] == 0
    (tmp_path / "file").touch()
    code, _, said = finish("client", "--client-id", "client-1", "--state-dir", tmp_path / "file" / "state")
    assert code == 78
    assert "cannot keep state in" in said


def test_a_number_of_rounds_that_cannot_be_is_refused_at_once():
    code, _, said = finish("start", "--num-rounds", "0", seconds=10)
    assert code == 78
    assert "num_rounds" in said


def test_a_key_that_is_not_here_is_named_with_what_to_do(tmp_path):
    code, _, said = finish("client", "--client-id", "client-1", "--keys-dir", tmp_path)
    assert code == 78
    assert "fedmq pair invite" in said


@pytest.mark.parametrize(
    ("part", "code"), [(("coordinator",), 78), (("edge_client", "client-1"), 78), (("edge_client",), 2)]
)
def test_a_container_says_what_is_wrong(monkeypatch, tmp_path, part, code):
    monkeypatch.setenv("FEDMQ_KEYS_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", *part],
        capture_output=True,
        text=True,
        timeout=within(30),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("CLIENT-ID" if code == 2 else str(tmp_path)) in done.stderr


def test_containers_run_a_federation(parts, monkeypatch):
    port = free_port()
    parts("broker", "--port", port).wait_for("broker.listening")
    assert finish("keys", "issue", "client", "client-1")[0] == 0
    for name, value in (
        ("LINK__BROKERS", f"127.0.0.1:{port}"),
        ("DATA__NUM_CLIENTS", "1"),
        ("RUN__NUM_ROUNDS", "1"),
    ):
        monkeypatch.setenv(f"FEDMQ_{name}", value)
    client = subprocess.Popen(
        [sys.executable, "-m", "edge_client", "client-1"], stdout=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "coordinator"],
            capture_output=True,
            text=True,
            timeout=within(60),
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["event"] == "run.finished"
    finally:
        client.terminate()
        assert client.wait(within(20)) == 0


def test_keys_of_another_federation_are_not_taken(tmp_path):
    assert finish("keys", "issue", "client", "client-1", "--keys-dir", tmp_path)[0] == 0
    flags = ("--client-id", "client-1", "--federation", "other", "--keys-dir", tmp_path)
    code, _, said = finish("client", *flags)
    assert code == 78
    assert "'demo', not of 'other'" in said


def test_a_mistyped_federation_is_noticed(empty_home):
    assert finish("keys", "init", "--federation", "lab")[0] == 0
    mistyped = ("--federation", "lba")
    for verb in (("client", "--client-id", "client-1"), ("clients", "list"), ("pair", "invite")):
        code, _, said = finish(*verb, *mistyped)
        assert code == 78
        assert "There are keys of: lab. Did you mean --federation lab?" in said
    assert [path.name for path in (empty_home / "state" / "fedmq").iterdir()] == ["lab"]
    assert finish("client", "--client-id", "no-number", "--federation", "lab")[0] == 2
    assert finish("keys", "issue", "nobody", "x", *mistyped)[0] == 2
    assert [path.name for path in (empty_home / "state" / "fedmq").rglob("*") if path.is_dir()] == [
        "lab",
        "keys",
    ]
    code, _, said = finish("keys", "issue", "client", "client-1", *mistyped)
    assert code == 0
    assert "WARNING: lba is a NEW federation on this machine. There are keys of: lab. Did you mean" in said


def test_verbs_of_keys_say_one_event_each(tmp_path):
    def event(*words, ends=0):
        code, shown, said = finish(*words, "--keys-dir", tmp_path / "keys", "--json")
        assert code == ends, said
        return json.loads(shown)

    made = event("keys", "init", "--key-type", "ed25519")
    assert (made["event"], made["federation"], made["is_new"]) == ("root.made", "demo", True)
    issued = event("keys", "issue", "client", "c1", "--key-type", "ed25519")
    assert (issued["event"], issued["role"], issued["name"]) == ("certificate.issued", "client", "c1")
    exported = event("keys", "export", "client", "c1", "--to", tmp_path / "away")
    assert exported["event"] == "keys.exported"
    assert {Path(path).name for path in exported["files"]} == {"client-c1.key", "client-c1.pem", "root.pem"}
    assert exported["fingerprint"] == made["fingerprint"]
    replaced = event("keys", "rotate", "client", "c1")
    assert (replaced["event"], replaced["name"]) == ("certificate.replaced", "c1")
    nowhere = ("--broker", f"127.0.0.1:{free_port()}")
    for verb in (("keys", "revoke", "client"), ("clients", "revoke")):
        revoked = event(*verb, "c1", *nowhere, ends=69)  # the federation was not told
        assert (revoked["event"], revoked["name"], revoked["told"]) == ("certificate.revoked", "c1", False)
        assert "refused" in revoked["why"]


def test_keys_for_another_machine_are_three_files(tmp_path):
    code, shown, said = finish("keys", "issue", "client", "ward-7", "--keys-dir", tmp_path)
    assert code == 0, said
    assert "fedmq keys export client ward-7 --federation" in shown
    away = tmp_path / "away"
    assert finish("keys", "export", "client", "ward-7", "--to", away, "--keys-dir", tmp_path)[0] == 0
    assert {path.name for path in away.iterdir()} == {"client-ward-7.key", "client-ward-7.pem", "root.pem"}
    assert Path(away, "client-ward-7.key").stat().st_mode & 0o777 == 0o600
    public = tmp_path / "public"
    assert finish("keys", "export", "--to", public, "--keys-dir", tmp_path)[0] == 0
    assert [path.name for path in public.iterdir()] == ["root.pem"]
    assert finish("keys", "export", "client", "--keys-dir", tmp_path)[0] == 2
    assert finish("keys", "issue", "nobody", "x", "--keys-dir", tmp_path)[0] == 2
    assert finish("keys", "issue", "client", "coordinator", "--keys-dir", tmp_path)[0] == 78


def test_no_process_of_ours_is_left():
    assert not [
        one for one in psutil.Process().children(recursive=True) if "compose" in " ".join(one.cmdline())
    ]

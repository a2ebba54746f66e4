"""A fleet of two, enrolled as the README says: a server with TLS, two other machines, a picture of a code each.

The machines are loopback addresses and home directories of their own. What is run is what the README says, but for
addresses and ports.
"""

import base64
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from common import invitation, qr
from support.patience import within
from support.ports import free_ports_in_a_row
from support.require import need
from support.running import ROOT, environment

SERVER = "127.0.0.2"
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The same on several machines\n")[2]
STEPS = re.findall(r"^fedmq .+$", SECTION.partition("\n## ")[0], re.MULTILINE)
PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of a test


class Machine:
    """A home directory, and the processes that run there."""

    def __init__(self, home: Path, stack: ExitStack, **variables: str) -> None:
        self.home = home
        self.home.mkdir()
        self._stack = stack
        own = {
            "XDG_STATE_HOME": str(home),
            "FEDMQ_KEY_TYPE": "ed25519",
            "FEDMQ_LOG__LEVEL": "debug",
            "FEDMQ_LOG__FORMAT": "console",
        }
        self._environment = {**environment(), **own, **variables}
        self.outputs: list[str] = []

    def start(self, command: str) -> "Running":
        return self._stack.enter_context(Running(shlex.split(command)[1:], self._environment, self.outputs))

    def run(self, command: str, code: int = 0) -> str:
        with Running(shlex.split(command)[1:], self._environment, self.outputs) as running:
            assert running.process.wait(within(60)) == code, running.said
            running.reading.join(within(10))
            return "".join(running.said)


class Running:
    """A command; what it prints, on either stream, stands in `said`."""

    def __init__(self, words: list[str], env: dict[str, str], outputs: list[str]) -> None:
        self.said: list[str] = []
        self._outputs = outputs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "compose", *words],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self) -> None:
        while letter := self.process.stdout.read(1):  # a question has no end of line
            self.said.append(letter)

    def waits_for(self, pattern: str, seconds: float = 40) -> re.Match[str]:
        until = time.monotonic() + within(seconds)
        while (found := re.search(pattern, "".join(self.said))) is None:
            assert time.monotonic() < until, f"{pattern!r} was not said: {''.join(self.said)}"
            assert self.process.poll() is None or self.reading.is_alive(), "".join(self.said)
            time.sleep(0.01)
        return found

    def ends(self) -> tuple[int, str]:
        code = self.process.wait(within(30))
        self.reading.join(within(10))
        return code, "".join(self.said)

    def interrupt(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        return self.ends()

    def type(self, words: str) -> None:
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(within(20))
        self.reading.join(within(10))
        self.process.stdin.close()
        self.process.stdout.close()
        self._outputs.append("".join(self.said))


class Fleet:
    """The README's machines, and its commands with our addresses."""

    def __init__(self, tmp_path: Path, stack: ExitStack, **variables: str) -> None:
        self.port = free_ports_in_a_row()
        self.server = Machine(tmp_path / "server", stack, **variables)
        self.machines = [Machine(tmp_path / f"machine-{n}", stack) for n in (1, 2)]

    def step(self, beginning: str, **changed: str) -> str:
        """Take the README's command that begins so, with our addresses in it."""
        (found,) = [one for one in STEPS if one.startswith(beginning)]
        for theirs, ours in (
            ("0.0.0.0 --port 8883", f"{SERVER} --tls --port {self.port}"),
            ("127.0.0.1:8883", f"{SERVER}:{self.port}"),
            ("192.0.2.1:8884", f"{SERVER}:{self.port + 1}"),
            *changed.items(),
        ):
            found = found.replace(theirs, ours)
        return found

    def everything(self, but_for: list[str]) -> bytes:
        """Read all that was written, but for the keys and some of what was printed: the rest of it, logs, state."""
        machines = (self.server, *self.machines)
        written = [
            path.read_bytes()
            for machine in machines
            for path in machine.home.rglob("*")
            if path.is_file() and "keys" not in path.parts
        ]
        printed = [text for machine in machines for text in machine.outputs]
        said = [text.encode() for text in printed if text not in but_for]
        return b"\n".join([*written, *said])


def enrolled(fleet: Fleet, number: int, tmp_path: Path) -> tuple[str, Running, Running]:
    """Enrol a machine: its code, the client that runs there now, and the command that invited it."""
    picture = tmp_path / f"code-{number}.png"
    inviting = fleet.server.start(
        fleet.step("fedmq pair invite", **{"client-1": f"client-{number}"}) + f" --png {picture}"
    )
    inviting.waits_for("until .* once")
    client = fleet.machines[number - 1].start(
        fleet.step("fedmq client --join-image", **{"code.png": str(picture)})
    )
    theirs = client.waits_for(r"pairing.code code=(\d+ \d+)")[1]
    assert inviting.waits_for(r"code=(\d+ \d+)")[1] == theirs
    inviting.type("y")
    client.waits_for(f"pairing.done role=client name=client-{number}")
    return qr.read_image(picture), client, inviting


@pytest.fixture(params=["amqtt", "mosquitto"])
def engine(request):
    if request.param == "mosquitto":
        need("mosquitto")
    return request.param


@pytest.mark.timeout(400)
def test_two_clients_are_enrolled_on_a_server_with_tls_train_and_can_be_revoked(engine, tmp_path):
    with ExitStack() as stack:
        variables = {"FEDMQ_BROKER__ENGINE": engine}
        if engine == "amqtt":  # Mosquitto cannot be told a passphrase
            (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
            variables["FEDMQ_PASSPHRASE_FILE"] = str(tmp_path / "passphrase")
        fleet = Fleet(tmp_path, stack, **variables)
        server = fleet.server
        printed = server.run(fleet.step("fedmq keys init"))
        fingerprint = re.search(r"fingerprint: (\S+)", printed)[1]
        server.start(fleet.step("fedmq broker")).waits_for("broker.listening .*tls=True")
        coordinator = server.start(fleet.step("fedmq coordinator") + " --hold")
        codes, clients, invitations = zip(*(enrolled(fleet, n, tmp_path) for n in (1, 2)), strict=True)
        coordinator.waits_for(r"client.online[\s\S]*client.online")
        server.run(f"fedmq start --num-rounds 2 --federation lab --broker mqtts://{SERVER}:{fleet.port}")
        coordinator.waits_for("2 rounds in", 60)

        listed = server.run(fleet.step("fedmq clients list"))
        assert re.findall(r"^(client-\d): online", listed, re.MULTILINE) == ["client-1", "client-2"]
        server.run(fleet.step("fedmq clients exclude"))
        assert "client-2: online, excluded" in server.run(fleet.step("fedmq clients list"))
        server.run(fleet.step("fedmq clients admit"))
        assert "excluded" not in server.run(fleet.step("fedmq clients list"))

        # from then on a client needs no code, and knows its broker; the code is used up, and does no harm
        clients[0].process.terminate()
        assert clients[0].process.wait(within(20)) == 0
        again = fleet.machines[0].start(f"fedmq client --join '{codes[0]}' --num-clients 2")
        coordinator.waits_for(r"client.offline[\s\S]*client.online client=client-1")
        again.process.terminate()
        assert again.process.wait(within(20)) == 0
        fleet.machines[0].start(fleet.step("fedmq client --federation lab --client-id client-1"))
        coordinator.waits_for(r"client.offline[\s\S]*client.offline[\s\S]*client.online client=client-1")

        told = server.run(fleet.step("fedmq clients revoke"))
        assert "told to the federation" in told
        clients[1].waits_for("was revoked")
        assert clients[1].process.wait(within(30)) == 65
        assert "client client-2: revoked" in server.run(fleet.step("fedmq keys show"))
        stranger = fleet.machines[1].run(
            f"fedmq status --federation lab --broker mqtts://{SERVER}:{fleet.port}", code=78
        )
        assert "holds no key of operator" in stranger
        assert fingerprint in server.run(fleet.step("fedmq keys show"))

    shown = ["".join(inviting.said) for inviting in invitations]
    found = fleet.everything(but_for=shown)
    assert b"client-1" in found  # it is what was written
    for secret in secrets_of(fleet, codes):
        assert secret not in found


@pytest.mark.timeout(200)
def test_who_leaves_a_pairing_tells_the_other_side_and_both_end_with_the_same_reason(tmp_path):
    with ExitStack() as stack:
        fleet = Fleet(tmp_path, stack)
        server, (machine, other) = fleet.server, fleet.machines
        server.run(fleet.step("fedmq keys init"))
        server.start(fleet.step("fedmq broker")).waits_for("broker.listening .*tls=True")
        invite = fleet.step("fedmq pair invite")

        def pairing(command: str = invite) -> tuple[Running, Running]:
            inviting = server.start(command)
            code = inviting.waits_for(r"(?s)'(FEDMQ1:[^']+)'")[1]
            return inviting, machine.start(f"fedmq pair join '{code}'")

        # nobody is shown a way that leads nowhere
        nowhere = invite.replace(f":{fleet.port + 1}", f":{fleet.port}")
        assert f"no newcomer can come in at {SERVER}:{fleet.port}" in server.run(nowhere, code=69)

        # the newcomer gives up, and the operator is asked no more
        inviting, joining = pairing()
        inviting.waits_for(r"\[y/N\]")
        joining.waits_for("pairing.code")
        code, said = joining.interrupt()
        assert (code, "unreachable" in said, "Traceback" in said) == (130, False, False)
        code, said = inviting.ends()
        assert (code, "unreachable" in said, "Traceback" in said) == (6, False, False)
        assert "the pairing failed: given-up, the newcomer ended it" in said

        # the operator gives up, and the newcomer waits no more
        inviting, joining = pairing()
        inviting.waits_for(r"\[y/N\]")
        joining.waits_for("pairing.code")
        code, said = inviting.interrupt()
        assert (code, "unreachable" in said, "Traceback" in said) == (130, False, False)
        code, said = joining.ends()
        assert code == 6
        assert "the pairing failed: given-up, the operator ended the pairing" in said

        # the newcomer cannot keep its keys
        machine.run(fleet.step("fedmq keys init"))  # another root's are there
        inviting, joining = pairing(f"{invite} --yes")
        assert joining.ends()[0] == 78
        code, said = inviting.ends()
        assert code == 6
        assert "the pairing failed: not-kept" in said
        assert "client-1 has a certificate now that nobody uses" in said

        # another broker than the one that the invitation names answers
        inviting = server.start(f"{invite} --replace")
        spelled = inviting.waits_for(r"(?s)'(FEDMQ1:[^']+)'")[1]
        wrong = replace(invitation.parse(spelled), spki=bytes(32)).code
        assert "another key than the invitation names" in other.run(f"fedmq pair join '{wrong}'", code=78)

        # and it goes well, with words on what comes next
        joining = other.start(f"fedmq pair join '{spelled}'")
        joining.waits_for("pairing.code")
        inviting.waits_for("replaces=True")
        inviting.type("y")
        assert "pairing.next command=fedmq client --client-id client-1 --federation lab" in joining.ends()[1]
        assert inviting.ends()[0] == 0


def secrets_of(fleet: Fleet, codes: list[str]) -> list[bytes]:
    """List what nobody may find: tokens and private keys in all their spellings, the passphrase."""
    found = [PASSPHRASE.encode()]
    for code in codes:
        token = invitation.parse(code).token
        found += [code.encode(), token, token.hex().encode(), base64.b64encode(token), repr(token).encode()]
    for machine in (fleet.server, *fleet.machines):
        for path in machine.home.rglob("*.key"):
            lines = path.read_text().splitlines()
            found += [line.encode() for line in lines if re.fullmatch(r"[A-Za-z0-9+/=]{32,}", line)]
    return found

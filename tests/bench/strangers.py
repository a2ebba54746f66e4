"""What a connection that is not let in costs the embedded broker, in milliseconds of its processor time.

    .venv/bin/python tests/bench/strangers.py --connections 300

Each kind of stranger connects one after the other, and is refused or gives up; the broker's own account is compared
before and after. Beside it, what the same processor needs for one RSA signature: each handshake has one.
"""

import argparse
import asyncio
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from broker.engine import BrokerPolicy, Private, running
from common import identity, keys
from common.identity import Role
from common.tls import Files
from common.trust import TrustStore

CONNECT = b"\x10\x14\x00\x04MQTT\x04\x82\x00\x1e\x00\x01a\x00\x05alice"


async def serve(directory: Path) -> None:
    """Run a broker with TLS, and say where it listens."""
    identity.create_root(directory, "bench")
    us = identity.issue(directory, Role.BROKER, "broker")
    private = Private(
        us,
        Files.of(directory, Role.BROKER, "broker"),
        directory / "root.pem",
        TrustStore(us.root),
        pairing_port=0,
    )
    async with (
        running(BrokerPolicy(port=0, private=private)) as secure,
        running(BrokerPolicy(port=0)) as plain,
    ):
        print(plain.port, secure.port, secure.pairing_port, flush=True)  # noqa: T201
        await asyncio.Event().wait()


def silent(port: int) -> None:
    """Connect, and leave."""
    socket.create_connection(("127.0.0.1", port)).close()


def refused(port: int) -> None:
    """Say hello under a name that does not come in without a certificate."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.sendall(CONNECT.replace(b"alice", b"\xff\xfe\xfd\xfc\xfb"))
        plain.recv(4)


def nameless(port: int) -> None:
    """Shake hands without a certificate."""
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port)) as plain,
        _context().wrap_socket(plain) as secure,
    ):
        secure.sendall(CONNECT)
        secure.recv(4)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def cost_ms(broker: psutil.Process, connections: int, connect: Callable[[int], None], port: int) -> float:
    """Measure one kind of stranger."""
    connect(port)
    before = sum(broker.cpu_times()[:2])
    for _ in range(connections):
        connect(port)
    time.sleep(0.2)  # what is left is cleared up
    return (sum(broker.cpu_times()[:2]) - before) / connections * 1000


def signature_ms() -> float:
    """Measure one RSA signature here."""
    key = keys.generate(keys.KeyType.RSA)
    began = time.process_time()
    for _ in range(200):
        keys.sign(key, b"x")
    return (time.process_time() - began) / 200 * 1000


def main() -> None:
    """Measure all kinds, and print a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--connections", type=int, default=300)
    options.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve))
        return
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, __file__, "--serve", folder], stdout=subprocess.PIPE, text=True
        )
        try:
            plain, secure, pairing = map(int, child.stdout.readline().split())
            broker = psutil.Process(child.pid)
            print(f"{'stranger':<44}{'ms of the broker':>18}")  # noqa: T201
            for words, connect, port in (
                ("plain: connects and leaves", silent, plain),
                ("plain: a CONNECT that is malformed", refused, plain),
                ("TLS: connects and leaves", silent, secure),
                ("TLS: a handshake without a certificate", nameless, secure),
                ("pairing: a handshake, a CONNECT, refused", nameless, pairing),
            ):
                print(f"{words:<44}{cost_ms(broker, given.connections, connect, port):>18.2f}")  # noqa: T201
            print(f"{'one RSA-2048 signature':<44}{signature_ms():>18.2f}")  # noqa: T201
        finally:
            child.terminate()
            child.wait()


if __name__ == "__main__":
    main()

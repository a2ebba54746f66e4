"""Start either engine, know when it is ready, stop it.

`amqtt` runs hardened in this process's event loop; `mosquitto` as a child that does not outlive this process.
"""

import asyncio
import contextlib
import ctypes
import ipaddress
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from amqtt.errors import BrokerError

from broker import mosquitto, ports
from broker.hardened import HardenedBroker
from broker.packets import Type
from broker.rules import OBSERVER
from common import limits, log
from common.errors import ConfigError, TransportError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BROKEN = "Start it again; its log tells what it did, and --log-level debug makes it tell more."
PROBE_S = 0.02  # between two looks whether a child answers yet
SBIN = "/usr/sbin:/usr/local/sbin"  # where Debian puts it, and users' PATH does not look

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokerPolicy:
    """Which broker to run, and where."""

    engine: Literal["amqtt", "mosquitto"] = "amqtt"
    host: str = "127.0.0.1"
    port: int = 1883  # 0: any free one
    ws_port: int | None = None  # also MQTT over WebSocket; 0: any free port
    state_dir: Path | None = None  # Mosquitto's files; without it they are temporary


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that answers."""

    host: str
    port: int
    ws_port: int | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # set when it ends by itself


@contextlib.asynccontextmanager
async def running(policy: BrokerPolicy) -> AsyncIterator[Running]:
    """Run a broker for as long as the block lasts. Raises: TransportError, ConfigError."""
    if not is_loopback(policy.host):
        logger.warning(
            "broker.open", extra=log.facts(host=policy.host, advice="no TLS: anybody in reach may connect")
        )
    for port in (policy.port, policy.ws_port):
        if port:
            ports.check_free(policy.host, port)
    engine = _amqtt if policy.engine == "amqtt" else _mosquitto
    async with engine(policy) as broker:
        logger.info("broker.ready", extra=log.facts(engine=policy.engine, host=broker.host, port=broker.port))
        yield broker


async def serve(policy: BrokerPolicy, ready: Callable[[str, int], None]) -> None:
    """Run a broker until SIGINT or SIGTERM. Raises: TransportError, ConfigError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with running(policy) as broker:
            ready(broker.host, broker.port)
            waits = [asyncio.create_task(event.wait()) for event in (stop, broker.ended)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if broker.ended.is_set():
                raise TransportError(f"the broker on port {broker.port} ended by itself", advice=_BROKEN)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- amqtt ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _amqtt(policy: BrokerPolicy) -> AsyncIterator[Running]:
    broker = HardenedBroker(
        policy.host, policy.port, ws_port=policy.ws_port, observers=is_loopback(policy.host)
    )
    try:
        await broker.start()
    except BrokerError as error:
        raise TransportError(f"the broker did not start: {error}", advice=_BROKEN) from error
    ws_port = broker.port_of("ws") if policy.ws_port is not None else None
    try:
        yield Running(policy.host, broker.port_of(), ws_port)
    finally:
        async with asyncio.timeout(limits.BROKER_STOP_S):
            await broker.shutdown()


# --- Mosquitto ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _mosquitto(policy: BrokerPolicy) -> AsyncIterator[Running]:
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")
    if program is None:
        raise ConfigError("mosquitto is not installed: apt install mosquitto, or use --engine amqtt")
    policy = replace(
        policy,
        port=policy.port or ports.free_port(policy.host),
        ws_port=policy.ws_port if policy.ws_port != 0 else ports.free_port(policy.host),
    )
    broker = Running(policy.host, policy.port, policy.ws_port)
    with _directory(policy.state_dir) as directory:
        conf = _write_files(policy, directory)
        with (directory / "mosquitto.log").open("wb") as errors:
            child = await asyncio.create_subprocess_exec(
                program, "-c", str(conf), stdout=errors, stderr=errors, preexec_fn=_die_with_parent()
            )
        watching = asyncio.create_task(_watch(child, broker.ended), name="mosquitto")
        try:
            await _until_ready(broker, directory / "mosquitto.log")
            yield broker
        finally:
            await _stop(child)
            await watching


@contextlib.contextmanager
def _directory(state_dir: Path | None) -> Iterator[Path]:
    if state_dir is None:
        with tempfile.TemporaryDirectory(prefix="fedmq-mosquitto-") as name:
            yield Path(name)
    else:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield state_dir


def _write_files(policy: BrokerPolicy, directory: Path) -> Path:
    setup = mosquitto.Setup(
        host=policy.host,
        port=policy.port,
        directory=str(directory.absolute()),
        user="root" if os.geteuid() == 0 else None,
        ws_port=policy.ws_port,
        persistent=policy.state_dir is not None,
        observers=is_loopback(policy.host),
    )
    acl = Path(setup.acl_file)
    acl.touch(mode=0o600)
    acl.write_text(mosquitto.acl_text(observers=setup.observers))
    conf = directory / "mosquitto.conf"
    conf.write_text(mosquitto.conf_text(setup))
    return conf


def _die_with_parent() -> Callable[[], None] | None:
    """Give what a child has to call so that the kernel ends it together with us; Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec nothing may be imported
    parent = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask


async def _watch(child: asyncio.subprocess.Process, ended: asyncio.Event) -> None:
    await child.wait()
    ended.set()


async def _until_ready(broker: Running, errors: Path) -> None:
    try:
        async with asyncio.timeout(limits.BROKER_START_S):
            while not broker.ended.is_set():
                if await _answers(broker.host, broker.port):
                    return
                await asyncio.sleep(PROBE_S)
    except TimeoutError:
        raise TransportError(
            f"mosquitto did not answer within {limits.BROKER_START_S:.0f} s", advice=_BROKEN
        ) from None
    raise TransportError(f"mosquitto ended at once: {_last_line(errors)}", advice=_BROKEN)


def _last_line(errors: Path) -> str:
    lines = errors.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it did not say why"


async def _answers(host: str, port: int) -> bool:
    """Connect as an MQTT client, to see whether a broker answers."""
    name = f"{OBSERVER}-{secrets.token_hex(8)}".encode()
    hello = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(name).to_bytes(2) + name
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        writer.write(bytes((Type.CONNECT << 4, len(hello))) + hello)
        answer = await reader.readexactly(4)
        writer.write(bytes((Type.DISCONNECT << 4, 0)))
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.close()
    return answer[:2] == bytes((Type.CONNACK << 4, 2))


async def _stop(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(limits.BROKER_STOP_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()

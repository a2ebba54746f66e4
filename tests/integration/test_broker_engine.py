"""Both engines: started, used through paho and mosquitto_sub, stopped."""

import asyncio
import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
import pytest
import websockets
from paho.mqtt.enums import CallbackAPIVersion

from broker.engine import BrokerPolicy, Running, running
from common.errors import ConfigError, TransportError
from support.names import user_of
from support.patience import within
from support.raw_mqtt import Raw, connect
from support.require import need

ROOT = Path(__file__).parents[2]
DIGEST = "0" * 32
STATUS = "fedmq/lab/coordinator/status"
UP = f"fedmq/lab/client/c1/up/{DIGEST}"
MINE = "fedmq/lab/client/c1/status"


@pytest.fixture(params=["amqtt", "mosquitto"])
def engine(request) -> str:
    if request.param == "mosquitto":
        need("mosquitto")
    return request.param


class Peer:
    """A paho client; what it hears stands in a queue."""

    def __init__(self, broker: Running, client_id: str, *filters: str) -> None:
        self.heard: queue.Queue[tuple[str, bytes, bool]] = queue.Queue()
        self.granted: queue.Queue[list[int]] = queue.Queue()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, clean_session=True)
        if client_id:
            self.client.username_pw_set(user_of(client_id))
        self.client.on_message = lambda _, __, m: self.heard.put((m.topic, m.payload, m.retain))
        self.client.on_subscribe = lambda _, __, ___, codes, ____: self.granted.put([c.value for c in codes])
        self.client.connect(broker.host, broker.port, keepalive=30)
        self.client.loop_start()
        for name in filters:
            self.client.subscribe(name, qos=1)
            assert self.granted.get(timeout=within(5))[0] < 128

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(within(5))

    def hears(self) -> tuple[str, bytes, bool]:
        return self.heard.get(timeout=within(5))

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def with_broker(story, policy: BrokerPolicy) -> None:
    """Run a story that blocks, in a thread beside the broker's loop."""

    async def main():
        async with running(policy) as broker:
            assert not broker.ended.is_set()
            await asyncio.to_thread(story, broker)

    asyncio.run(main())


@contextlib.contextmanager
def peers(broker: Running):
    made: list[Peer] = []

    def peer(*args: str) -> Peer:
        made.append(Peer(broker, *args))
        return made[-1]

    try:
        yield peer
    finally:
        for one in made:
            one.leave()


def test_clients_and_coordinator_hear_each_other(engine):
    def story(broker):
        with peers(broker) as peer:
            coordinator = peer("coordinator", "fedmq/lab/client/+/up/+", "fedmq/lab/client/+/status")
            client = peer("c1", STATUS, "fedmq/lab/client/c1/task", "fedmq/lab/client/c1/down/+")
            chunk = os.urandom(245_760)
            client.say(UP, chunk)
            assert coordinator.hears() == (UP, chunk, False)
            coordinator.say(STATUS, b"online", retain=True)
            assert client.hears() == (STATUS, b"online", False)
            assert peer("c2", STATUS).hears() == (STATUS, b"online", True)

    with_broker(story, BrokerPolicy(engine=engine, port=0))


def test_an_observer_reads_json_topics_and_nothing_else(engine):
    def story(broker):
        with peers(broker) as peer:
            client, coordinator = peer("c1"), peer("coordinator", MINE)
            observer = peer("", "fedmq/#")
            client.say(UP, b"chunk")
            client.say("fedmq/lab/client/c1/reply", b"envelope")
            coordinator.say(f"fedmq/lab/model/{DIGEST}", b"chunk")
            coordinator.say("fedmq/lab/client/c1/task", b"envelope")
            peer("operator-1f").say("fedmq/lab/control", b"envelope")
            observer.say(STATUS, b"forged", retain=True)
            observer.say(MINE, b"forged", retain=True)
            client.say(MINE, b"{}")
            coordinator.say(STATUS, b"{}")
            assert [observer.hears() for _ in range(2)] == [(MINE, b"{}", False), (STATUS, b"{}", False)]
            assert coordinator.hears() == (MINE, b"{}", False)

    with_broker(story, BrokerPolicy(engine=engine, port=0))


def test_nobody_writes_for_another(engine):
    def story(broker):
        with peers(broker) as peer:
            coordinator = peer("coordinator", "fedmq/lab/client/#", "fedmq/lab/control", STATUS)
            client, operator, dashboard = peer("c1"), peer("operator-1f"), peer("dashboard-1")
            for liar in (client, operator, dashboard):
                liar.say("fedmq/lab/client/c2/reply", b"forged")
                liar.say(STATUS, b"forged")
            client.say("fedmq/lab/control", b"forged")
            operator.say("fedmq/lab/control", b"start")
            assert coordinator.hears() == ("fedmq/lab/control", b"start", False)

    with_broker(story, BrokerPolicy(engine=engine, port=0))


def test_mosquitto_sub_needs_no_set_up(engine):
    program = need("mosquitto_sub")

    def story(broker):
        with peers(broker) as peer:
            peer("coordinator").say(STATUS, b'{"state":"online"}', retain=True)
            words = [program, "-p", str(broker.port), "-t", "fedmq/#", "-v", "-C", "1", "-W", "5"]
            assert subprocess.check_output(words, text=True) == f'{STATUS} {{"state":"online"}}\n'

    with_broker(story, BrokerPolicy(engine=engine, port=0))


def test_a_port_that_is_taken_is_named_with_its_holder(engine):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
            with pytest.raises(TransportError) as caught:
                async with running(BrokerPolicy(engine=engine, port=port)):
                    pass
            assert f"port {port} " in str(caught.value)
            assert f"{psutil.Process().name()} (pid {os.getpid()})" in str(caught.value)

    asyncio.run(main())


def test_a_host_that_is_not_ours_is_an_error(engine):
    async def main():
        with pytest.raises(TransportError, match=r"192\.0\.2\.1") as raised:
            async with running(BrokerPolicy(engine=engine, host="192.0.2.1", port=1883)):
                pass
        assert "--host" in raised.value.advice

    asyncio.run(main())


def test_it_stops_at_once_with_idle_sockets_open(engine):
    async def main():
        async with asyncio.timeout(within(5)):
            async with running(BrokerPolicy(engine=engine, port=0)) as broker:
                silent = await Raw.open(broker.port)
                idle = await Raw.connected(broker.port, "c1")
            assert await silent.ends()
            assert await idle.ends()
        await Raw.close_all()

    asyncio.run(main())


def test_a_broker_is_restarted_on_its_port(engine):
    async def main():
        port = 0
        for _ in range(2):
            async with running(BrokerPolicy(engine=engine, port=port)) as broker:
                port = broker.port
                await Raw.connected(port, "c1")
            await Raw.close_all()

    asyncio.run(main())


def test_it_offers_websockets_if_asked(engine):
    async def main():
        async with running(BrokerPolicy(engine=engine, port=0, ws_port=0)) as broker:
            assert broker.ws_port
            uri = f"ws://127.0.0.1:{broker.ws_port}"
            async with websockets.connect(uri, subprotocols=[websockets.Subprotocol("mqtt")]) as client:
                await client.send(connect("c1", user="c1"))
                assert await client.recv() == b"\x20\x02\x00\x00"

    asyncio.run(main())


def test_an_address_that_others_reach_is_a_warning_and_has_no_observers(engine, caplog):
    async def main():
        policy = BrokerPolicy(engine=engine, host="0.0.0.0", port=0)  # noqa: S104 - that is the case
        with caplog.at_level(logging.WARNING):
            async with running(policy) as broker:
                assert "broker.open" in caplog.messages
                coordinator = await Raw.connected(broker.port, "coordinator", user="coordinator")
                await coordinator.publish(STATUS, b"online", retain=True)
                observer = await Raw.open(broker.port)
                if (
                    await observer.introduce(connect("")) == 0
                ):  # Mosquitto lets them in, and tells them nothing
                    await observer.subscribe("fedmq/#")
                    assert await observer.silent()
                await Raw.close_all()

    asyncio.run(main())


def test_mosquitto_keeps_retained_messages_in_its_state_directory(tmp_path):
    need("mosquitto")

    def first(broker):
        with peers(broker) as peer:
            peer("coordinator").say(STATUS, b"online", retain=True)

    def second(broker):
        with peers(broker) as peer:
            assert peer("c1", STATUS).hears() == (STATUS, b"online", True)

    policy = BrokerPolicy(engine="mosquitto", port=0, state_dir=tmp_path / "state")
    with_broker(first, policy)
    with_broker(second, policy)
    assert (tmp_path / "state" / "mosquitto.acl").stat().st_mode & 0o777 == 0o600


def test_a_mosquitto_that_dies_is_noticed():
    need("mosquitto")

    async def main():
        async with running(BrokerPolicy(engine="mosquitto", port=0)) as broker:
            for child in psutil.Process().children():
                if child.name() == "mosquitto":
                    child.kill()
            await asyncio.wait_for(broker.ended.wait(), within(5))

    asyncio.run(main())


def test_without_mosquitto_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("broker.engine.SBIN", str(tmp_path))

    async def main():
        with pytest.raises(ConfigError, match="apt install mosquitto"):
            async with running(BrokerPolicy(engine="mosquitto", port=0)):
                pass

    asyncio.run(main())


def environment(tmp_path: Path, engine: str, port: int) -> dict[str, str]:
    own = {"FEDMQ_BROKER__ENGINE": engine, "FEDMQ_BROKER__PORT": str(port), "FEDMQ_STATE_DIR": str(tmp_path)}
    return {**os.environ, **own}


def start(engine: str, tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "broker"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment(tmp_path, engine, 0)
    )
    return process, json.loads(process.stdout.readline())["port"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_says_where_it_listens_and_stops_when_told(engine, number, tmp_path):
    process, port = start(engine, tmp_path)
    with process:
        with socket.create_connection(("127.0.0.1", port)):
            process.send_signal(number)
            assert process.wait(within(5)) == 0
        assert process.stdout.read() == ""


def test_mosquitto_does_not_outlive_a_parent_that_is_killed(tmp_path):
    need("mosquitto")
    process, _ = start("mosquitto", tmp_path)
    with process:
        (child,) = psutil.Process(process.pid).children()
        assert child.name() == "mosquitto"
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs([child], timeout=within(5))
        assert not alive


def test_the_program_says_who_holds_its_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        own = environment(tmp_path, "amqtt", holder.getsockname()[1])
        command = [sys.executable, "-m", "broker"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=own)
    assert result.returncode == TransportError.exit_code
    assert f"(pid {os.getpid()})" in result.stderr

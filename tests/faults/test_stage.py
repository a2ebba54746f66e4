"""The stage's own parts: they start, are killed, stand still, go on, and nothing of them is left."""

import asyncio

import psutil
import pytest

from common.settings import Settings
from support.patience import within
from support.polling import eventually
from support.require import need
from support.stage import Stage

SETTINGS = {
    "data": {"dataset": "digits", "num_clients": 2},
    "model": {"name": "linear"},
    "training": {"local_epochs": 1},
    "run": {"num_rounds": 3},
}


def run(tmp_path, test, **more):
    """Run a test on a stage; afterwards none of its processes is left."""
    seen = set()

    async def main():
        async with asyncio.timeout(within(90)), Stage(tmp_path, Settings(**{**SETTINGS, **more})) as stage:
            seen.add(stage._process.pid)
            try:
                await test(stage)
            finally:
                seen.update(filter(None, stage.alive.values()))

    asyncio.run(main())
    assert not [pid for pid in seen if psutil.pid_exists(pid)]


@pytest.mark.parametrize("engine", ["amqtt", "mosquitto"])
def test_every_part_is_killed_and_comes_back(tmp_path, engine):
    if engine == "mosquitto":
        need("mosquitto")

    async def test(stage):
        for name in ("client-1", "client-2"):
            await stage.until("coordinator", "client.online", client=name)
        for name in stage.parts:
            before = stage.alive[name]
            stage.kill(name)
            await stage.until_gone(name)
            assert stage.ended[-1] == (name, -9)
            stage.start(name)
            await eventually(lambda name=name: len(beginnings(stage, name)) == 2)
            await eventually(lambda name=name: stage.alive.get(name))
            assert stage.alive[name] != before
        await eventually(lambda: len(named(stage, "broker", "listening")) == 2)
        assert not stage.failed

    run(tmp_path, test, broker={"engine": engine})


def beginnings(stage, name):
    return named(stage, name, "began")


def named(stage, name, event):
    return [one for one in stage.events(name) if one["event"] == event]


def test_a_part_stands_still_and_goes_on(tmp_path):
    async def test(stage):
        await stage.until("coordinator", "client.online", client="client-1")
        pid = stage.alive["client-1"]
        stage.pause("client-1")
        await eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        stage.go_on("client-1")
        await eventually(lambda: psutil.Process(pid).status() != psutil.STATUS_STOPPED)
        stage.ask_to_end("client-1")
        await stage.until_gone("client-1")
        assert stage.ended[-1] == ("client-1", 0)
        stage.pause("client-2")  # which ends with the stage all the same

    run(tmp_path, test)


def test_a_part_that_fails_says_why(tmp_path):
    async def test(stage):
        await eventually(lambda: {one["part"] for one in stage.failed} >= {"client-1"})
        assert "support.troubled:missing" in stage.failed[0]["error"]

    run(tmp_path, test, model={"name": "support.troubled:missing"})


def test_each_part_reaches_the_broker_through_its_own_proxy(tmp_path):
    async def test(stage):
        await stage.until("coordinator", "client.online", client="client-2")
        assert all(proxy.connections for proxy in stage.proxies.values())
        stage.proxies["client-1"].weather.refuse = True
        stage.proxies["client-1"].reset()
        await stage.until("coordinator", "client.offline", client="client-1")
        assert not named(stage, "coordinator", "broker.unreachable")

    run(tmp_path, test)


def test_news_come_once(tmp_path):
    async def test(stage):
        await stage.until("coordinator", "client.online", client="client-1")
        assert stage.news("coordinator")[0]["event"] == "began"
        assert "began" not in [one["event"] for one in stage.news("coordinator")]
        assert stage.news("nobody") == []

    run(tmp_path, test)


def test_when_the_driver_is_gone_so_are_the_parts(tmp_path):
    async def main():
        stage = Stage(tmp_path, Settings(**SETTINGS))
        await stage._open()
        await eventually(lambda: all(stage.alive.get(name) for name in stage.parts))
        pids = [stage._process.pid, *stage.alive.values()]
        stage._process.stdin.close()
        await stage._process.wait()
        await eventually(lambda: not any(map(psutil.pid_exists, pids)))
        await stage._stack.aclose()

    async def bounded():
        async with asyncio.timeout(within(60)):
            await main()

    asyncio.run(bounded())

"""What befalls a federation in a soak: who is killed when, and what links suffer; the same for the same seed."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

from support.mqtt_packets import Kind
from support.proxy import Weather
from support.stage import Stage

BROKER, COORDINATOR = "broker", "coordinator"
CALM_S = 3.0  # at the beginning: everybody comes, the run begins
AGAIN_SHARE = 0.15  # of kills hit the same part again while it starts
AGAIN_S = (0.1, 1.0)
DOWN_S = (0.0, 3.0)
FAULT_EVERY_S = 3.0  # on average, of all links together
LASTS_S = (0.5, 8.0)  # of what has a duration
STILL = "standing still"  # not the link but the part itself, which looks the same from outside
STILL_WEIGHT = 4


@dataclass(frozen=True)
class Kill:
    """One SIGKILL."""

    at_s: float  # since the beginning
    part: str
    down_s: float  # until it is started again


@dataclass(frozen=True)
class LinkFault:
    """Something that happens to one part's link."""

    at_s: float
    part: str
    name: str  # in LINK_FAULTS, or STILL
    nth: int  # of the packets that come
    lasts_s: float


def kills(seed: int, *, count: int, seconds: float, clients: list[str]) -> list[Kill]:
    """Spread kills over the time: most hit clients, some the coordinator, few the broker."""
    chance = random.Random(f"kills {seed}")
    planned: list[Kill] = []
    for at_s in sorted(chance.uniform(CALM_S, seconds) for _ in range(count)):
        again = planned and chance.random() < AGAIN_SHARE
        kind = chance.choices(("client", COORDINATOR, BROKER), (12, 5, 3))[0]
        part = chance.choice(clients) if kind == "client" else kind
        down_s = chance.choice((0.0, chance.uniform(*DOWN_S)))
        if again:
            last = planned[-1]
            planned.append(Kill(last.at_s + last.down_s + chance.uniform(*AGAIN_S), last.part, down_s))
        else:
            planned.append(Kill(at_s, part, down_s))
    return sorted(planned, key=lambda kill: kill.at_s)


def link_faults(seed: int, *, seconds: float, parts: list[str]) -> Iterator[LinkFault]:
    """Draw what befalls links, one after the other."""
    chance = random.Random(f"links {seed}")
    at_s = CALM_S
    names = [STILL] * STILL_WEIGHT + [
        name for name, (weight, _) in LINK_FAULTS.items() for _ in range(weight)
    ]
    while (at_s := at_s + chance.expovariate(1 / FAULT_EVERY_S)) < seconds:
        yield LinkFault(
            at_s, chance.choice(parts), chance.choice(names), chance.randint(1, 6), chance.uniform(*LASTS_S)
        )


async def befall(fault: LinkFault, stage: Stage) -> None:
    """Do it; where it has a duration, wait and undo it."""
    if fault.name == STILL:
        stage.pause(fault.part)
        await asyncio.sleep(fault.lasts_s)
        stage.go_on(fault.part)
        return
    undo = LINK_FAULTS[fault.name][1](stage.proxies[fault.part], fault.nth)
    if undo is not None:
        await asyncio.sleep(fault.lasts_s)
        undo()


def _both(name, *arguments, **options):
    """Plan the same on both lanes: one of them will be first."""

    def do(proxy, nth):
        for lane in (proxy.up, proxy.down):
            getattr(lane, name)(*arguments, nth, **options)

    return do


def _drop(kind):
    return lambda proxy, nth: (proxy.up if kind is Kind.PUBLISH else proxy.down).drop(kind, nth) or None


def _at_connect(kind):
    """Let the end of a handshake be lost: it takes a new one."""

    def do(proxy, _nth):
        proxy.down.drop(kind)
        proxy.reset()

    return do


def _held(kind):
    def do(proxy, _nth):
        proxy.down.hold(kind)
        return proxy.down.release

    return do


def _weather(**weather):
    def do(proxy, _nth):
        proxy.weather = Weather(**weather)
        return lambda: setattr(proxy, "weather", Weather())

    return do


def _parted(proxy, _nth):
    proxy.partition()
    return proxy.heal


def _refused(proxy, _nth):
    proxy.weather = Weather(refuse=True)
    proxy.reset()
    return lambda: setattr(proxy, "weather", Weather())


LINK_FAULTS = {  # how often, and what: it gives what ends it
    "lost PUBACK": (2, _drop(Kind.PUBACK)),
    "lost PUBLISH": (2, _drop(Kind.PUBLISH)),
    "lost PUBLISH, downwards": (2, lambda proxy, nth: proxy.down.drop(Kind.PUBLISH, nth)),
    "lost CONNACK": (1, _at_connect(Kind.CONNACK)),
    "lost SUBACK": (1, _at_connect(Kind.SUBACK)),
    "held PINGRESP": (1, _held(Kind.PINGRESP)),
    "held PUBACK": (2, _held(Kind.PUBACK)),
    "PUBLISH twice": (3, _both("double", dup=False)),
    "PUBLISH twice, marked": (2, _both("double")),
    "PUBLISHes swapped": (3, _both("swap")),
    "old PUBLISH": (3, _both("replay")),
    "cut": (4, _both("cut")),
    "RST": (2, lambda proxy, _nth: proxy.reset()),
    "FIN": (2, lambda proxy, _nth: proxy.finish()),
    "half-open": (1, lambda proxy, _nth: proxy.half_open()),
    "partition": (3, _parted),
    "refused": (2, _refused),
    "black hole": (1, _weather(blackhole=True)),
    "slow": (2, _weather(latency_s=0.05, jitter_s=0.1, slice_bytes=4096)),
}

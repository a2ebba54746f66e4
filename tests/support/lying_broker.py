"""A broker that lies, to the byte, and cannot sign: it drops, doubles, swaps, keeps back, replays, flips and moves.

    said --> each who listens: the truth, or a lie --> its inbox
    whoever comes back --> what is retained now, or was once; perhaps all that was ever said

Seeded. It remembers all that passed, and its victims' restarts make it forget nothing.
"""

import asyncio
import random
from collections import Counter, defaultdict

from common.bus import Arrived
from support.memory_bus import MemoryBroker, matches

LIES = ("drop", "double", "swap", "keep", "replay", "flip", "move")
CUT_S = 0.02  # it cuts somebody off so often: only so it is told anything twice
PAST_TOLD = 300  # messages at once


class LyingBroker(MemoryBroker):
    """Lies about a share of all deliveries, unless it is told to be honest."""

    def __init__(self, seed, *, share=0.25, lies=LIES):
        super().__init__()
        self.share, self.lies = share, lies
        self.told = Counter()  # lies, by kind
        self.past = []  # (topic, payload)
        self._chance = random.Random(seed)
        self._once_retained = defaultdict(list)
        self._kept = []  # (name, topic, payload)
        self._late = defaultdict(list)  # swapped: goes behind the next

    # --- what a broker does -----------------------------------------------------------------------

    def hand_on(self, topic, payload, retain):
        self.past.append((topic, payload))
        if retain and payload:
            self.retained[topic] = payload
            self._once_retained[topic].append(payload)
        elif retain:
            self.retained.pop(topic, None)
        for bus in tuple(self.connected.values()):
            if listens(bus, topic):
                self._deliver(bus, topic, payload)

    def hand_retained(self, bus, filters):
        for topic, payload in self.retained.items():
            if any(matches(one, topic) for one in filters):
                if self._lies("old", self.share):
                    payload = self._chance.choice(self._once_retained[topic])  # noqa: PLW2901 - that is the lie
                bus.inbox.put_nowait(Arrived(topic, payload, retain=True))
        if filters and self._lies("all", self.share / 4):
            self.tell_past(bus)

    # --- what a liar does -------------------------------------------------------------------------

    def tell_past(self, bus):
        """Say once more what somebody may have heard."""
        heard = [one for one in self.past if listens(bus, one[0])]
        for topic, payload in heard[-PAST_TOLD:]:
            bus.inbox.put_nowait(Arrived(topic, payload))

    def _lies(self, kind, share):
        lies = self._chance.random() < share
        self.told[kind] += lies
        return lies

    def _deliver(self, bus, topic, payload):
        late = self._late.pop(bus.name, [])
        lie = self._chance.choice(self.lies) if self._chance.random() < self.share else "truth"
        self.told[lie] += 1
        match lie:
            case "drop":
                said = []
            case "double":
                said = [(topic, payload)] * 2
            case "swap":
                said = []
                self._late[bus.name].append((topic, payload))
            case "keep":
                said = []
                self._kept.append((bus.name, topic, payload))
            case "replay":
                heard = [one for one in self.past if listens(bus, one[0])]
                said = [(topic, payload), self._chance.choice(heard)]
            case "flip":
                said = [(topic, self._flipped(payload))]
            case "move":
                others = [other for other, _ in self.past if listens(bus, other)]
                said = [(topic, payload), (self._chance.choice(others), payload)]
            case _:
                said = [(topic, payload)]
        for one in (*said, *late):
            bus.inbox.put_nowait(Arrived(*one))
        self._let_go_of_one()

    def _flipped(self, payload):
        if not payload:
            return payload
        at = self._chance.randrange(len(payload))
        return payload[:at] + bytes((payload[at] ^ 1 << self._chance.randrange(8),)) + payload[at + 1 :]

    def _let_go_of_one(self):
        """Deliver something that was kept back, perhaps to a later start of whom it was meant for."""
        if self._kept and self._chance.random() < self.share:
            name, topic, payload = self._kept.pop(self._chance.randrange(len(self._kept)))
            bus = self.connected.get(name)
            if bus is not None and listens(bus, topic):
                bus.inbox.put_nowait(Arrived(topic, payload))

    async def cut_links(self):
        """Break somebody's link again and again, and let it be made again."""
        while True:
            await asyncio.sleep(CUT_S)
            if self.connected:
                bus = self._chance.choice(list(self.connected.values()))
                bus.break_link()
                bus.restore()


def listens(bus, topic):
    return any(matches(one, topic) for one in bus.filters)

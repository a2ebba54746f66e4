"""One coordinator a federation: who is here stays, who is gone holds nobody up, and the newer epoch wins."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from common import limits
from common.bus import Arrived, LinkUp
from common.durably import Durably
from common.errors import RivalError
from common.identity import Role
from common.ids import Boot
from common.ingress import Said
from common.messages import Presence, Status
from common.mqtt import Will
from common.topics import Kind, Topics
from common.voice import Voice
from coordinator.claim import Claim
from coordinator.ledger import Ledger
from coordinator.notices import Notices
from support import federation
from support.federation import ingress, member
from support.memory_bus import MemoryBroker, MemoryBus
from support.patience import within
from support.polling import eventually

TOPICS = Topics(federation.NAME)
STATUS = TOPICS.coordinator(Kind.COORDINATOR_STATUS)
FAR = 2**40  # an epoch above every clock's


class Coordinator:
    """A coordinator that hears of others as the service does, and does nothing else."""

    def __init__(self, site, boot, place):
        self.site, self.ledger, self.is_lost = site, site.ledger(place or boot), False
        self.voice = Voice(site.us, TOPICS, Boot(boot))
        will = Will(STATUS, self.line(Presence.LOST))
        self.bus = MemoryBus(site.broker, boot, will=will)
        self.ingress = ingress(site.keys)
        self.notices = Notices(self.bus, self.voice)
        self.claim = Claim(self.notices, self.voice, self.ledger, Durably(lambda _: None))
        self.heard = []

    def line(self, state, **changes):
        return self.voice.line(STATUS, replace(self.voice.status(state), **changes))

    async def listen(self):
        while True:
            match await self.bus.next():
                case LinkUp():
                    self.claim.linked()
                case Arrived(topic, payload):
                    match self.ingress.admit(topic, payload):
                        case Said(_, _, Status() as status) if status.boot != self.voice.boot:
                            await self.meet(status)

    async def meet(self, status):
        self.heard.append(status)
        if self.claim.is_lost_to(status):
            self.is_lost = True
        elif self.claim.is_made:
            await self.notices.presence(Presence.ONLINE, answers=status.boot)
        else:
            self.claim.heard(status)

    async def lead(self):
        await self.claim.make()
        await self.notices.presence(Presence.ONLINE)

    @asynccontextmanager
    async def linked(self):
        await self.bus.subscribe(STATUS)
        async with self.bus:
            listening = asyncio.create_task(self.listen())
            try:
                yield self
            finally:
                listening.cancel()


class Site:
    """A broker, and whoever coordinates there."""

    def __init__(self, directory):
        self.directory, self.keys, self.broker = directory, directory / "keys", MemoryBroker()
        self.us = member(self.keys, Role.COORDINATOR, "coordinator")
        self.ledgers = []

    def ledger(self, name):
        self.ledgers.append(Ledger(self.directory / f"{name}.db"))
        return self.ledgers[-1]

    def coordinator(self, boot, place=""):
        """Start one, with the state that lies in a place: of its own unless told otherwise."""
        return Coordinator(self, boot, place)

    def left(self, state, epoch, boot="gone"):
        """Let something be retained of one that is gone."""
        self.say(state, epoch, boot, retain=True)

    def say(self, state, epoch=0, boot="other", answers="", *, retain=False):
        line = Voice(self.us, TOPICS, Boot(boot), epoch)
        status = replace(line.status(state), answers=answers)
        self.broker.hand_on(STATUS, line.line(STATUS, status), retain=retain)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    for ledger in made.ledgers:
        ledger.close()


@pytest.fixture
def endless(monkeypatch):
    """Whoever waits for an answer waits until the test gives up."""
    monkeypatch.setattr(limits, "CLAIM_S", 3600.0)


@pytest.fixture
def hasty(monkeypatch):
    """Who has not answered at once answers no more."""
    monkeypatch.setattr(limits, "CLAIM_S", 0.05)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """All that is retained comes at once."""
    monkeypatch.setattr(limits, "CLAIM_QUIET_S", 0.05)


def play(main):
    async def timed():
        async with asyncio.timeout(within(20)):
            return await main

    return asyncio.run(timed())


async def make(coordinator):
    async with coordinator.linked():
        await coordinator.claim.make()


# --- nobody is here -------------------------------------------------------------------------------


@pytest.mark.usefixtures("endless")
def test_the_first_coordinator_takes_an_epoch_of_its_clock(site):
    before, one = int(time.time()), site.coordinator("one")
    assert not one.claim.is_made
    play(make(one))
    assert one.claim.is_made
    assert before <= one.voice.epoch <= time.time()


@pytest.mark.usefixtures("endless")
def test_each_start_of_a_coordinator_has_a_higher_epoch(site):
    epochs = []
    for boot in ("one", "two", "three"):
        started = site.coordinator(boot, "here")
        play(make(started))
        epochs.append(started.voice.epoch)
    assert epochs == sorted(set(epochs))


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("state", [Presence.OFFLINE, Presence.LOST])
def test_one_that_left_holds_nobody_up_and_its_epoch_is_passed(site, state):
    site.left(state, FAR)
    one = site.coordinator("one")
    play(make(one))
    assert one.voice.epoch == FAR + 1


@pytest.mark.usefixtures("endless")
def test_one_whose_broker_said_its_will_holds_nobody_up(site):
    one, two = site.coordinator("one"), site.coordinator("two")

    async def main():
        async with one.linked():
            await one.lead()
            one.bus.break_link()
            await make(two)

    play(main())
    assert [status.state for status in two.heard] == [Presence.LOST]
    assert two.claim.is_made


@pytest.mark.usefixtures("endless")
def test_we_ourselves_before_a_kill_hold_nobody_up(site):
    one, two = site.coordinator("one", "here"), site.coordinator("two", "here")

    async def main():
        async with one.linked():
            await one.lead()
        await make(two)

    play(main())
    assert [(status.state, status.boot) for status in two.heard] == [(Presence.ONLINE, "one")]
    assert two.voice.epoch > one.voice.epoch


@pytest.mark.usefixtures("hasty")
def test_one_that_is_said_to_be_here_and_answers_nothing_is_gone(site):
    site.left(Presence.ONLINE, FAR)
    one = site.coordinator("one")
    play(make(one))
    assert one.claim.is_made
    assert one.voice.epoch == FAR + 1
    assert one.ledger.raise_epoch(0) == FAR + 2


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "said",
    [
        {"state": Presence.ONLINE, "epoch": FAR + 5, "answers": "somebody else"},
        {"state": Presence.ONLINE, "epoch": FAR + 5},
        {"state": Presence.OFFLINE, "epoch": FAR + 5},
        {"state": Presence.LOST},
    ],
)
def test_what_answers_somebody_else_is_no_answer_and_the_highest_epoch_that_was_heard_is_passed(site, said):
    site.left(Presence.ONLINE, FAR)
    one = site.coordinator("one")

    async def main():
        async with one.linked():
            making = asyncio.create_task(one.claim.make())
            await eventually(lambda: one.heard)
            site.say(**said)
            await making

    play(main())
    assert one.voice.epoch == max(FAR, said.get("epoch", 0)) + 1


def test_nobody_claims_anything_before_the_link_stands(site):
    one = site.coordinator("one")

    async def main():
        making = asyncio.create_task(one.claim.make())
        await asyncio.wait((making,), timeout=4 * limits.CLAIM_QUIET_S)
        assert not making.done()
        async with one.linked():
            await making

    play(main())
    assert one.claim.is_made


# --- somebody is here -----------------------------------------------------------------------------


@pytest.mark.usefixtures("endless")
def test_one_that_is_here_answers_and_stays(site):
    one, two = site.coordinator("one"), site.coordinator("two")

    async def main():
        async with one.linked():
            await one.lead()
            with pytest.raises(RivalError, match="of lab is running already"):
                await make(two)

    play(main())
    assert (two.claim.is_made, two.voice.epoch) == (False, 0)
    assert two.ledger.raise_epoch(0) == 1
    assert not one.is_lost
    (knock,) = one.heard
    assert (knock.state, knock.boot) == (Presence.OFFLINE, "two")


@pytest.mark.usefixtures("endless")
def test_whoever_comes_third_still_finds_the_one_that_is_here(site):
    """Who asked and was told to go leaves nothing behind."""
    one = site.coordinator("one")

    async def main():
        async with one.linked():
            await one.lead()
            for boot in ("two", "three"):
                with pytest.raises(RivalError, match="is running already"):
                    await make(site.coordinator(boot))

    play(main())


@pytest.mark.usefixtures("endless")
def test_one_that_is_here_is_found_though_another_newcomer_asks_first(site):
    """What a newcomer hears before all that is retained may be another one's question."""
    one, two = site.coordinator("one"), site.coordinator("two")

    async def main():
        async with one.linked():
            await one.lead()
            two.claim.heard(site.coordinator("three").voice.status(Presence.OFFLINE))
            with pytest.raises(RivalError):
                await make(two)

    play(main())


@pytest.mark.usefixtures("endless")
def test_of_two_that_begin_at_once_one_stays(site):
    one, two = site.coordinator("one"), site.coordinator("two")

    async def main():
        async with one.linked(), two.linked():
            await asyncio.gather(one.lead(), two.lead())
            await eventually(lambda: one.is_lost or two.is_lost)
            await eventually(lambda: one.bus.inbox.empty() and two.bus.inbox.empty())

    play(main())
    winner, loser = sorted((one, two), key=lambda it: (it.voice.epoch, it.voice.boot), reverse=True)
    assert loser.is_lost
    assert not winner.is_lost


# --- who has lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "boot", "is_lost"),
    [(8, "b", True), (8, "a", True), (7, "c", True), (7, "b", False), (7, "a", False), (6, "c", False)],
)
def test_the_newer_epoch_wins_and_of_two_equal_ones_the_higher_boot(site, epoch, boot, is_lost):
    one = site.coordinator("b")
    one.voice.epoch, one.claim.is_made = 7, True
    theirs = Voice(site.us, TOPICS, Boot(boot), epoch)
    assert one.claim.is_lost_to(theirs.status(Presence.ONLINE)) == is_lost
    for state in (Presence.OFFLINE, Presence.LOST):
        assert not one.claim.is_lost_to(theirs.status(state))


def test_what_was_not_claimed_cannot_be_lost(site):
    one = site.coordinator("one")
    assert not one.claim.is_lost_to(Voice(site.us, TOPICS, Boot("two"), FAR).status(Presence.ONLINE))

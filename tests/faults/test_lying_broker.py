"""A broker that lies about everything it hands on: it delays a run, and alters nothing that comes of it."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from common import identity, limits
from common.identity import Role
from common.ids import sha256
from common.messages import Exclude, ModelLine, Reason, Start, Stop
from common.topics import Kind
from coordinator import audit
from coordinator.buffer import BufferPolicy
from edge_client.lineage import FORKED, FROZEN, ROLLED_BACK
from faults.checker import check
from faults.test_crash import CLIENTS, Own, held, killed
from support.lab import TOPICS, Lab, served
from support.lying_broker import LIES, LyingBroker
from support.patience import within
from support.polling import eventually

SEEDS = range(4)
WHOLE = {"rounds": 3, "wait_for": 3, "quorum_share": 1.0, "first_deadline_s": 600}
MODEL = TOPICS.coordinator(Kind.COORDINATOR_MODEL)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits for what does not come."""
    for name in ("REANNOUNCE_S", "CLAIM_S", "CLAIM_QUIET_S", "CLAIM_KNOCK_S"):
        monkeypatch.setattr(limits, name, 0.05)


@pytest.fixture
def labs(tmp_path):
    """Make federations, each in a directory of its own, with a broker of its own."""
    made = []

    def lab(name, broker=None):
        one = Lab(tmp_path / name)
        one.broker = broker or truthful()
        made.append(one)
        return one

    yield lab
    for one in made:
        one.close()


def play(story):
    async def main():
        async with asyncio.timeout(within(40)):
            return await story()

    return asyncio.run(main())


@contextlib.asynccontextmanager
async def restless(broker):
    """Let a lying broker cut links for as long as the block lasts."""
    cutting = asyncio.create_task(broker.cut_links())
    try:
        yield
    finally:
        cutting.cancel()
        await asyncio.wait([cutting])


async def run_to_its_end(lab, **options):
    """Run a federation until its run is over and everybody knows what became of each update."""
    clients = [lab.client(name, Own(name)) for name in CLIENTS]
    async with served(*clients):
        coordinator = lab.coordinator(**options)
        serving = asyncio.create_task(coordinator.serve())
        await held(coordinator)
        return await seen_off(lab, coordinator, serving, clients)


async def seen_off(lab, coordinator, serving, clients):
    await eventually(lambda: lab.named("run.finished"))
    lab.broker.share = 0  # what it still keeps back stays there
    await eventually(lambda: all(is_done(client) for client in clients))
    coordinator.leave(now=True)
    await serving
    return coordinator.model.digest


def is_done(client):
    """Tell whether a client has nothing more to do, nor to hear."""
    is_idle = client.session.phase == "idle" and client._inbox.empty() and client.link.inbox.empty()
    return is_idle and not client.outbox.waiting()


def prove(lab):
    """Check that no update is lost or counted twice, and that the transcript holds."""
    assert not check(lab.tmp_path).violations
    for run in (lab.tmp_path / "coordinator" / "runs").iterdir():
        assert not audit.verify(run, identity.read_root(lab.tmp_path / "keys")).findings


@pytest.fixture
def honest(labs):
    """The digest of the model that a run ends with where nobody lies."""
    return play(lambda: run_to_its_end(labs("honest"), **WHOLE))


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_ends_in_the_same_model_whatever_its_broker_says(labs, honest, seed):
    broker = LyingBroker(seed)
    lab = labs("lied", broker)

    async def story():
        async with restless(broker):
            return await run_to_its_end(lab, **WHOLE)

    assert play(story) == honest
    prove(lab)
    assert broker.told.keys() >= {*LIES, "old", "all"}


@pytest.mark.parametrize("lie", LIES)
def test_a_broker_that_lies_in_one_way_most_of_the_time_alters_nothing(labs, honest, lie):
    broker = LyingBroker(7, share=0.4, lies=(lie,))
    lab = labs("lied", broker)

    async def story():
        async with restless(broker):
            return await run_to_its_end(lab, **WHOLE)

    assert play(story) == honest
    prove(lab)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_restarts_between_lies_alter_nothing(labs, honest, rounds):
    """A coordinator and a client are killed, and what was said before is said to those who come after them."""
    broker = LyingBroker(rounds)
    lab = labs("lied", broker)

    async def story():
        clients = [lab.client(name, Own(name)) for name in CLIENTS[1:]]
        async with restless(broker), served(*clients):
            for_kill = lab.client(CLIENTS[0], Own(CLIENTS[0]))
            serving_client = asyncio.create_task(for_kill.serve())
            coordinator = lab.coordinator(**WHOLE)
            serving = asyncio.create_task(coordinator.serve())
            await held(coordinator)
            await eventually(lambda: len(lab.named("round.finished")) == rounds)
            await eventually(lambda: len(lab.named("round.started")) == rounds + 1)
            await killed(coordinator, serving)
            assert not lab.named("run.finished")
            await killed(for_kill, serving_client)
            clients.append(lab.client(CLIENTS[0], Own(CLIENTS[0])))
            again = lab.coordinator(**WHOLE)
            async with served(clients[-1]):
                serving = asyncio.create_task(again.serve())
                await held(again)
                await eventually(lambda: {"coordinator", CLIENTS[0]} <= broker.connected.keys())
                for name in ("coordinator", CLIENTS[0]):
                    broker.tell_past(broker.connected[name])
                return await seen_off(lab, again, serving, clients)

    assert play(story) == honest
    prove(lab)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 3, "wait_for": 3, "quorum_share": 0.4, "first_deadline_s": 0.3},
        {"rounds": 3, "wait_for": 3, "buffer": BufferPolicy(size=2)},
    ],
    ids=["dropped", "buffered"],
)
def test_where_clients_are_left_out_no_update_counts_twice(labs, options, seed):
    broker = LyingBroker(seed)
    lab = labs("lied", broker)

    async def story():
        async with restless(broker):
            return await run_to_its_end(lab, **options)

    play(story)
    prove(lab)


# --- what clients notice --------------------------------------------------------------------------


def doubts(lab):
    return [(one["problem"], one["version"], one["known"]) for one in lab.named("model.doubtful")]


def model_lines(broker):
    return [payload for topic, payload in broker.past if topic == MODEL]


@contextlib.asynccontextmanager
async def after_a_run(lab):
    """Have a client that has heard of the models of a run, and goes on listening."""
    client = lab.client("client-1", Own("client-1"))
    client.report = lab.report
    async with served(client):
        await lab.coordinator(rounds=2, wait_for=1).serve()
        await eventually(lambda: client.lineage.version == 3)
        yield client


def truthful():
    return LyingBroker(0, share=0)


def test_a_model_that_was_rolled_back_is_said_also_after_a_restart(labs):
    broker = truthful()
    lab = labs("rolled", broker)

    async def story():
        async with after_a_run(lab) as client:
            assert not doubts(lab)
            broker.hand_on(MODEL, model_lines(broker)[0], retain=False)
            await eventually(lambda: doubts(lab) == [(ROLLED_BACK, 1, 3)])
            await eventually(lambda: client.outbox.fact("lineage") == str(client.lineage))
        broker.retained[MODEL] = model_lines(broker)[0]
        again = lab.client("client-1", Own("client-1"))
        again.report = lab.report
        async with served(again):
            await eventually(lambda: doubts(lab) == [(ROLLED_BACK, 1, 3)] * 2)

    play(story)


def test_a_fork_of_the_model_is_said_and_a_forged_one_is_refused(labs):
    broker = truthful()
    lab = labs("forked", broker)

    async def story():
        async with after_a_run(lab) as client:
            voice = lab.parts(Role.COORDINATOR, "coordinator").voice
            known = client.ingress.admit(MODEL, model_lines(broker)[-1]).message
            assert isinstance(known, ModelLine)
            fork = changed(known, digest=sha256(b"another model"))
            broker.hand_on(MODEL, voice.line(MODEL, fork), retain=True)
            await eventually(lambda: doubts(lab) == [(FORKED, 3, 3)])
            forger = lab.parts(Role.CLIENT, "mallory").voice
            broker.hand_on(MODEL, forger.line(MODEL, fork), retain=True)
            await eventually(lambda: client.ingress.refusals.total() == 1)
            assert len(doubts(lab)) == 1
            assert client.lineage.digest == known.digest

    play(story)


def test_a_client_that_is_told_nothing_any_more_says_so(labs, monkeypatch):
    monkeypatch.setattr(limits, "MODEL_STALE_S", 0.2)
    monkeypatch.setattr(limits, "MODEL_FRESH_S", 0.05)
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.02)
    broker = truthful()
    lab = labs("frozen", broker)

    async def story():
        client = lab.client("client-1", Own("client-1"))
        client.report = lab.report
        async with served(client):
            coordinator = lab.coordinator(rounds=1, wait_for=1)
            serving = asyncio.create_task(coordinator.serve())
            await held(coordinator)
            await eventually(lambda: len(model_lines(broker)) > 8)  # longer than it bears to be told nothing
            assert not doubts(lab)
            broker.share, broker.lies = 1, ("drop",)
            await eventually(lambda: doubts(lab) == [(FROZEN, 2, 2)])
            coordinator.leave(now=True)
            await serving

    play(story)


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        Start(command="go", rounds=1),
        Stop(command="halt", now=True),
        Exclude(command="out", client="client-1"),
    ],
    ids=["start", "stop", "exclude"],
)
def test_a_command_is_obeyed_once_and_never_by_a_later_coordinator(labs, command):
    broker = truthful()
    lab = labs("held", broker)

    def answers():
        return [payload for _, payload in broker.past if b'"kind":"answer"' in payload]

    @contextlib.asynccontextmanager
    async def holding():
        """Run a coordinator that waits for an operator."""
        one = lab.coordinator(rounds=1, wait_for=1)
        one.policy = replace(one.policy, hold=True)
        serving = asyncio.create_task(one.serve())
        await eventually(one._led.is_set)
        yield one
        one.leave(now=True)
        await serving

    async def story():
        us = lab.parts(Role.OPERATOR, "operator")
        told = changed(command, certificate=us.voice.identity.certificate_der)
        async with served(lab.client("client-1", Own("client-1"))), us.link:
            async with holding() as first:
                await us.voice.tell(us.link, TOPICS.control, told, first.voice.boot)
                await eventually(answers)
                await eventually(lambda: first._is_idle and not first._starting)
                runs = len(lab.named("run.started"))
                assert runs == len(lab.named("run.finished")) == isinstance(command, Start)
                (recorded,) = [one for one in broker.past if one[0] == TOPICS.control]
                broker.hand_on(*recorded, retain=False)
                await eventually(lambda: first.ingress.refusals[Reason.REPLAYED] == 1)
            async with holding() as second:
                broker.hand_on(*recorded, retain=True)
                await eventually(lambda: second.ingress.refusals[Reason.OTHER_START] == 1)
            assert len(answers()) == 1
            assert len(lab.named("run.started")) == runs

    play(story)

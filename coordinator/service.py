"""The coordinator's shell: bus <-> machines. Everything here waits, nothing decides.

bus -> ingress -> attendance -> run machine -> effects -> work in threads -> events -> run machine
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import asdict, replace

from common import log
from common.bus import Arrived, LinkDown, LinkUp
from common.courier import Courier, Lanes
from common.crew import Crew, in_background
from common.driver import drive
from common.errors import FedmqError, TransferError
from common.evaluation import Scores
from common.ids import ClientId, Digest, RunId
from common.ingress import Frame, Refused, Said
from common.messages import (
    Answer,
    Cancel,
    Declined,
    Done,
    Heartbeat,
    Info,
    Message,
    Plan,
    Presence,
    Reason,
    RoundState,
    Start,
    Status,
    Stop,
    Summary,
    Task,
    Unavailable,
    Update,
    Verdict,
    Want,
)
from common.parts import Parts
from common.presence import Attendance, Beat, Came, Declared, Left
from common.tensors import Vector
from common.topics import Kind
from coordinator import cohort, results
from coordinator.clients import Clients
from coordinator.model import GlobalModel
from coordinator.notices import Notices
from coordinator.registry import RunFolder
from coordinator.results import Traffic
from coordinator.round import (
    Assign,
    ClientCame,
    ClientDeclined,
    ClientLeft,
    Fetch,
    Judge,
    Merge,
    Merged,
    MergeFailed,
    Offered,
    Received,
    Release,
)
from coordinator.run import (
    CloseRound,
    EndRun,
    Evaluated,
    Gather,
    OpenRound,
    Phase,
    RunEffect,
    RunEvent,
    RunMachine,
    RunPolicy,
    Started,
    StopAsked,
    progress,
)

logger = log.logger(__name__)

Report = Callable[[dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """What this coordinator is to do."""

    run: RunPolicy
    rounds: int
    plan: Plan
    codec: str
    hold: bool  # wait for an operator's start, and go on waiting after a run
    config: dict[str, str | int | float | bool | None]  # to be shown


class Coordinator:
    """One federation's coordinator, from link up to link closed."""

    def __init__(
        self,
        policy: Policy,
        parts: Parts,
        *,
        model: GlobalModel,
        evaluate: Callable[[Vector], Scores] | None,
        report: Report,
    ) -> None:
        self.policy, self.model, self.evaluate = policy, model, evaluate
        self.link, self.voice, self.ingress, self.store = parts.link, parts.voice, parts.ingress, parts.store
        self.state_dir: Path = parts.state_dir
        self.topics = parts.voice.topics
        self.courier = Courier(self.link, self.store, Lanes.of_coordinator(self.topics))
        self.notices = Notices(self.link, self.voice)
        self.machine = RunMachine(policy.run)
        self.attendance = Attendance()
        self.clients = Clients(model.schema.digest)
        self.outcome: EndRun | None = None
        self._report = report
        self._run = RunId("none")
        self._folder: RunFolder | None = None
        self._served: Digest | None = None
        self._fetches: dict[ClientId, list[asyncio.Task[None]]] = {}  # of the open round
        self._is_down = False
        self._leaving = False
        self._starting = False  # a run that the machine has not heard of yet
        self._bytes_in = 0
        self._run_began, self._run_traffic = 0.0, Traffic()
        self._round_began, self._round_traffic = 0.0, Traffic()
        self._last: Summary | None = None  # of the rounds that committed
        self._run_inbox: asyncio.Queue[RunEvent] = asyncio.Queue()
        self._attendance_inbox: asyncio.Queue[Declared | Beat] = asyncio.Queue()
        self._over = asyncio.Event()
        self._crew = Crew()

    async def serve(self) -> EndRun | None:
        """Run until the run is over (on hold: until `leave`); returns how the last run ended."""
        kinds = (Kind.INFO, Kind.STATUS, Kind.HEARTBEAT, Kind.REPLY)
        filters = [self.topics.client("+", kind) for kind in kinds]
        await self.link.subscribe(*filters, self.topics.all_up(), self.topics.control)
        async with self.link, self.courier, self._crew as crew:
            crew.spawn(self._listen(), name="listen")
            crew.spawn(
                drive(self.attendance, self._attendance_inbox, self._perform_presence), name="presence"
            )
            crew.spawn(drive(self.machine, self._run_inbox, self._perform), name="run")
            if not self.policy.hold:
                await self._start(self.policy.rounds)
            await self._over.wait()
            await self.notices.presence(Presence.OFFLINE)
            crew.dismiss()
        return self.outcome

    def leave(self, *, now: bool) -> None:
        """End the service: after the open round, or at once."""
        self._leaving = True
        if self._is_idle:
            self._over.set()
        else:
            self._run_inbox.put_nowait(StopAsked(now))

    @property
    def _is_idle(self) -> bool:
        return self.machine.phase in {Phase.IDLE, Phase.OVER}

    # --- what comes in ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            match await self.link.next():
                case LinkUp():
                    self.courier.link_up()
                    self._is_down = False
                    self._crew.spawn(self._announce())
                case LinkDown(why, next_try_s):
                    self.courier.link_down()
                    if not self._is_down:  # say so once; it goes on trying by itself
                        facts = {"why": why, "next_try_s": round(next_try_s, 1)}
                        logger.warning("broker.unreachable", extra=log.facts(**facts))
                        self._report({"event": "broker.unreachable", **facts})
                    self._is_down = True
                case Arrived(topic, payload):
                    self._bytes_in += len(payload)
                    self._let_in(topic, payload)

    def _let_in(self, topic: str, payload: bytes) -> None:
        match self.ingress.admit(topic, payload):
            case Frame(place, data):
                self.courier.arrived(place, data)
            case Said(_, _, Start() | Stop() as command):
                self._crew.spawn(self._obey(command))
            case Said(_, sender, message):
                self._heard(ClientId(sender.name), message)
            case Refused(_, reason, detail, count) as refused if refused.is_news:
                about = {"topic": topic, "reason": reason, "detail": detail, "count": count}
                logger.warning("message.refused", extra=log.facts(**about))
                self._report({"event": "message.refused", **about})
            case Refused() | None:
                pass

    def _heard(self, client: ClientId, message: Message) -> None:
        match message:
            case Status(state=state, boot=boot):
                self._attendance_inbox.put_nowait(Declared(client, state, boot))
            case Heartbeat(boot=boot):
                self._attendance_inbox.put_nowait(Beat(client, boot))
            case Info():
                self._born(client, message)
            case Update():
                self._offered(client, message)
            case Declined():
                self._declined(client, message)
            case Want():
                refused = self.courier.wanted(client, message)
                if refused:
                    self._crew.spawn(self._tell(client, Unavailable(digest=message.digest, reason=refused)))
            case Done(digest=digest):
                self.courier.finished(client, digest)
            case Unavailable(digest=digest, reason=reason) if self.machine.awaits(client, digest):
                self.courier.unavailable(digest, reason)
            case _:
                pass

    def _born(self, client: ClientId, info: Info) -> None:
        if not self.clients.born(client, info):
            return
        problem = self.clients.problem(client)
        if problem is not None:
            reason, detail = problem
            logger.warning("client.refused", extra=log.facts(client=client, reason=reason, detail=detail))
            self._report({"event": "client.refused", "client": client, "reason": reason, "detail": detail})
        elif self.clients.may_take_part(client):
            self._run_inbox.put_nowait(ClientCame(client))

    def _offered(self, client: ClientId, update: Update) -> None:
        strange = update.client != client or update.run != self._run
        refused = Reason.NOT_INVITED if strange else self.model.refuse_offer(update, self.policy.codec)
        if refused:
            judged = Judge(client, Digest(update.delta.digest), refused)
            self._crew.spawn(self._judge(judged, update.run, update.round))
        else:
            self._run_inbox.put_nowait(Offered(update))

    def _declined(self, client: ClientId, message: Declined) -> None:
        if message.run == self._run and message.round == self.machine.number:
            about = {"client": client, "reason": message.reason, "detail": message.detail}
            logger.warning("update.declined", extra=log.facts(**about))
            self._report({"event": "update.declined", **about})
            self._run_inbox.put_nowait(ClientDeclined(client, message.reason))

    async def _obey(self, command: Start | Stop) -> None:
        refused = ""
        match command:
            case Start(rounds=rounds) if self._is_idle and not self._starting:
                await self._start(rounds or self.policy.rounds)
            case Start():
                refused = f"a run is going on already: {self._run}"
            case Stop() if self._is_idle:
                refused = "no run is going on"
            case Stop(now=now):
                self._run_inbox.put_nowait(StopAsked(now))
        await self.notices.answer(Answer(command=command.command, refused=refused, run=self._run))

    # --- what is to be done -----------------------------------------------------------------------

    def _perform_presence(self, effect: Came | Left) -> None:
        match effect:
            case Came(client):
                if client not in self.clients.here:
                    self._log("client.online", client=client)
                self.clients.here.add(client)
                self._crew.spawn(self._show_round())
                if self.clients.may_take_part(client):
                    self._run_inbox.put_nowait(ClientCame(client))
            case Left(client, why):
                self.clients.here.discard(client)
                self.courier.gone(client)
                self._log("client.offline", client=client, why=why)
                self._run_inbox.put_nowait(ClientLeft(client))
                self._crew.spawn(self._show_round())

    def _perform(self, effect: RunEffect) -> None:
        match effect:
            case Gather(here, needed):
                self._log("run.gathering", clients=here, needed=needed)
                self._crew.spawn(self._show_round())
            case OpenRound(number, _, asked, deadline_s):
                self._round_began, self._round_traffic = time.monotonic(), self._traffic()
                self._forgo(*self._fetches)
                self._serve_model(asked)
                self._log("round.started", round=number, clients=len(asked), deadline_s=round(deadline_s, 1))
                self._crew.spawn(self._show_round())
            case Assign(client):
                self._crew.spawn(self._assign(client))
            case Fetch(update):
                fetching = self._crew.spawn(self._fetch(update))
                self._fetches.setdefault(update.client, []).append(fetching)
            case Judge():
                self._crew.spawn(self._judge(effect, self._run, self.machine.number))
            case Release(client):
                self._forgo(client)
                self._crew.spawn(self._tell(client, Cancel(run=self._run, round=self.machine.number)))
            case Merge(updates):
                self._crew.spawn(self._merge(updates))
            case CloseRound():
                self._crew.spawn(self._conclude(effect))
            case EndRun():
                self._crew.spawn(self._end(effect))

    def _forgo(self, *clients: ClientId) -> None:
        """Fetch nothing more from them: the round goes on without them, and they may never send the rest."""
        for client in clients:
            for fetching in self._fetches.pop(client, ()):
                fetching.cancel()

    def _serve_model(self, asked: tuple[ClientId, ...]) -> None:
        """Let the cohort fetch the model of now, and no older one."""
        if self._served:
            self.courier.withdraw(self._served)
        self._served = self.model.digest
        self.courier.offer(self.model.manifest, expected=asked)

    async def _start(self, rounds: int) -> None:
        """Begin a run from the model at hand."""
        self._starting = True
        self._run = RunId(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
        self._folder = RunFolder(self.state_dir, self._run)
        self._run_began, self._run_traffic, self._last = time.monotonic(), self._traffic(), None
        await in_background(self._folder.create, self.policy.config)
        await in_background(self._folder.save, self.model.schema, self.model.vector, self.machine.number)
        self._log("run.started", run=self._run, rounds=rounds, central_test=self.evaluate is not None)
        self._run_inbox.put_nowait(Started(self.model.digest, rounds))
        self._starting = False

    async def _assign(self, client: ClientId) -> None:
        due = self.machine.wake_at()
        if due is None:
            return  # the round closed in the meantime
        number = self.machine.number
        task = Task(
            run=self._run,
            round=number,
            base=self.model.manifest,
            plan=replace(self.policy.plan, seed=cohort.plan_seed(self.policy.run.seed, number)),
            codec=self.policy.codec,
            answer_within_s=max(1.0, due - time.monotonic()),
        )
        await self._tell(client, task)

    async def _fetch(self, update: Update) -> None:
        client, delta = update.client, Digest(update.delta.digest)

        async def want(message: Want) -> None:
            await self._tell(client, message)

        try:
            await self.courier.fetch(update.delta, want=want)
            problem, detail = await in_background(self.model.screen, update), ""
        except TransferError as error:
            problem, detail = Reason.TRANSFER_FAILED, str(error)
        except (FedmqError, OSError) as error:  # ours: no room, no disk
            logger.exception("update.unreadable", extra=log.facts(client=client))
            problem, detail = Reason.DISK, str(error)
        self._run_inbox.put_nowait(Received(client, delta, problem, detail))

    async def _judge(self, judged: Judge, run: RunId, number: int) -> None:
        if judged.refused:
            about = {"client": judged.client, "reason": judged.refused, "detail": judged.detail}
            logger.warning("update.refused", extra=log.facts(round=number, **about))
            self._report({"event": "update.refused", "round": number, **about})
        verdict = Verdict(
            run=run, round=number, delta=judged.delta, refused=judged.refused, detail=judged.detail
        )
        await self._tell(judged.client, verdict)

    async def _merge(self, updates: tuple[Update, ...]) -> None:
        try:
            merged = await in_background(self.model.merge, updates)
        except Exception as error:  # whatever a strategy of someone's own raises: the model stays
            logger.exception("merge.failed")
            self._run_inbox.put_nowait(MergeFailed(f"{type(error).__name__}: {error}"))
            return
        event = Merged(self.model.digest) if merged else MergeFailed("the merged model is not finite")
        self._run_inbox.put_nowait(event)

    async def _conclude(self, closed: CloseRound) -> None:
        """Evaluate a round's model and record the round, on disk first."""
        assert self._folder is not None
        scores = None
        if closed.committed:
            if self.evaluate:
                scores = await in_background(self.evaluate, self.model.vector)
            await in_background(self._folder.save, self.model.schema, self.model.vector, closed.number)
        took_s = time.monotonic() - self._round_began
        traffic = self._traffic().since(self._round_traffic)
        summary = results.summary(self._run, closed, scores, traffic, took_s)
        event = "round.finished" if closed.committed else "round.abandoned"
        facts = {"event": event, **asdict(summary)}
        await in_background(self._folder.record, facts)
        self._last = summary if closed.committed else self._last
        logger.info(event, extra=log.facts(**asdict(summary)))
        self._report(facts)
        self._crew.spawn(self.notices.result(summary))
        self._crew.spawn(self.notices.model(self.model, self._run, closed.number))
        await in_background(self.store.sweep, {self.model.digest})
        self._run_inbox.put_nowait(Evaluated())

    async def _end(self, ended: EndRun) -> None:
        assert self._folder is not None
        self.outcome = ended
        traffic = self._traffic().since(self._run_traffic)
        facts = {
            "event": "run.finished",
            "run": self._run,
            "rounds": ended.rounds,
            "completed": ended.completed,
            "why": ended.why,
            "loss": self._last.loss if self._last else None,
            "accuracy": self._last.accuracy if self._last else None,
            "seconds": time.monotonic() - self._run_began,
            "bytes_up": traffic.bytes_in,
            "bytes_down": traffic.bytes_out,
            "model": str(self._folder.model),
            "model_digest": ended.model,
            "state_dir": str(self.state_dir),
        }
        await in_background(self._folder.record, facts)
        await self._show_round()
        logger.info("run.finished", extra=log.facts(rounds=ended.rounds, why=ended.why))
        self._report(facts)
        if self._leaving or not self.policy.hold:
            self._over.set()

    # --- what is said -----------------------------------------------------------------------------

    async def _announce(self) -> None:
        """Say who we are and where things stand: after every connect, for the retained tree may be empty."""
        await self.notices.presence(Presence.ONLINE)
        await self.notices.config(self.policy.config)
        await self.notices.model(self.model, self._run, self.machine.number)
        await self._show_round()

    async def _show_round(self) -> None:
        phase, asked, reported = progress(self.machine)
        state = RoundState(
            run=self._run,
            round=self.machine.number,
            rounds=self.machine.rounds,
            phase=phase,
            cohort=asked,
            reported=reported,
            clients=len(self.clients.here),
        )
        await self.notices.round(state)

    async def _tell(self, client: ClientId, message: Message) -> None:
        await self.voice.tell(self.link, self.topics.client(client, Kind.TASK), message)

    def _traffic(self) -> Traffic:
        return Traffic(self._bytes_in, self.voice.bytes_out + self.courier.bytes_out)

    def _log(self, event: str, **facts: object) -> None:
        """Tell the log and whoever reads our events."""
        logger.info(event, extra=log.facts(**facts))
        self._report({"event": event, **facts})

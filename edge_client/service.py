"""The client's shell: bus <-> session. Everything here waits, nothing decides."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from common import chunks, compression, limits, log
from common.bus import Arrived, LinkDown, LinkUp
from common.courier import Courier, Lanes
from common.crew import Crew, in_background
from common.driver import drive
from common.errors import ConfigError, FedmqError, StorageFullError
from common.ids import COORDINATOR, ClientId, Digest
from common.ingress import Frame, Refused, Said
from common.messages import (
    Cancel,
    ClientMetrics,
    Declined,
    Done,
    Heartbeat,
    Info,
    Manifest,
    Message,
    ModelLine,
    Presence,
    Reason,
    Status,
    Task,
    Unavailable,
    Update,
    Verdict,
    Want,
)
from common.parts import Parts
from common.topics import Kind
from common.voice import VERSION
from edge_client.session import (
    Asked,
    Decline,
    Drop,
    Fetch,
    Fetched,
    Judged,
    LinkBack,
    Offer,
    Released,
    Session,
    SessionEffect,
    SessionEvent,
    Train,
    Trained,
    Unfetchable,
    Untrained,
)
from edge_client.trainer import DivergedError, Trainer
from edge_client.trainer import Trained as Result

logger = log.logger(__name__)

Report = Callable[[dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class About:
    """What a client says of itself at birth."""

    dataset: str
    model: str
    device: str


class Client:
    """One client, from link up to link closed."""

    def __init__(
        self,
        about: About,
        parts: Parts,
        *,
        trainer: Trainer,
        report: Report,
    ) -> None:
        self.about = about
        self.link, self.voice, self.ingress, self.store = parts.link, parts.voice, parts.ingress, parts.store
        self.me = ClientId(self.voice.identity.name)
        self.topics = self.voice.topics
        self.trainer, self.report = trainer, report
        self.courier = Courier(self.link, self.store, Lanes.of_client(self.topics, self.me))
        self.session = Session(trainer.schema.digest)
        self.coordinator_boot: str | None = None
        self._inbox: asyncio.Queue[SessionEvent] = asyncio.Queue()
        self._over = asyncio.Event()
        self._crew = Crew()
        self._beats = 0
        self._heard_ourselves = False  # say online: after that, another boot is another process of this name
        self._is_down = False
        self._problem: FedmqError | None = None

    async def serve(self) -> None:
        """Run until `close`. Raises: ConfigError where the federation trains another model."""
        await self.link.subscribe(
            self.topics.coordinator(Kind.COORDINATOR_STATUS),
            self.topics.coordinator(Kind.COORDINATOR_MODEL),
            self.topics.client(self.me, Kind.TASK),
            self.topics.client(self.me, Kind.STATUS),
            self.topics.all_down(self.me),
        )
        async with self.link, self.courier, self._crew as crew:
            crew.spawn(self._listen(), name="listen")
            crew.spawn(self._beat(), name="heartbeat")
            crew.spawn(drive(self.session, self._inbox, self._perform), name="session")
            await self._over.wait()
            await self._show(Kind.STATUS, self.voice.status(Presence.OFFLINE), retain=True)
            crew.dismiss()
        if self._problem:
            raise self._problem

    def close(self) -> None:
        """End the service."""
        self._over.set()

    # --- what comes in ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            match await self.link.next():
                case LinkUp():
                    self._log("broker.connected")
                    self.courier.link_up()
                    self._is_down = False
                    self._crew.spawn(self._announce())
                    self._inbox.put_nowait(LinkBack())
                case LinkDown(why, next_try_s):
                    self.courier.link_down()
                    if not self._is_down:  # say so once; it goes on trying by itself
                        facts = {"why": why, "next_try_s": round(next_try_s, 1)}
                        logger.warning("broker.unreachable", extra=log.facts(**facts))
                        self.report({"event": "broker.unreachable", **facts})
                    self._is_down = True
                case Arrived(topic, payload):
                    self._let_in(topic, payload)

    def _let_in(self, topic: str, payload: bytes) -> None:
        match self.ingress.admit(topic, payload):
            case Frame(place, data):
                self.courier.arrived(place, data)
            case Said(place, _, Status() as status):
                self._status(place.kind, status)
            case Said(_, _, message):
                self._heard(message)
            case Refused(_, reason, detail, count) as refused if refused.is_news:
                about = {"topic": topic, "reason": reason, "detail": detail, "count": count}
                logger.warning("message.refused", extra=log.facts(**about))
            case Refused() | None:
                pass

    def _heard(self, message: Message) -> None:
        match message:
            case Task():
                self._inbox.put_nowait(Asked(message))
            case Cancel(run=run, round=number):
                self._inbox.put_nowait(Released(run, number))
            case Verdict():
                self._inbox.put_nowait(Judged(message))
            case Want(digest=digest):
                refused = self.courier.wanted(ClientId(COORDINATOR), message)
                if refused:
                    self._crew.spawn(self._tell(Unavailable(digest=digest, reason=refused)))
            case Done(digest=digest):
                self.courier.finished(ClientId(COORDINATOR), digest)
            case Unavailable(digest=digest, reason=reason):
                self.courier.unavailable(digest, reason)
            case ModelLine(schema=schema):
                self._check_schema(schema)
            case _:
                pass

    def _check_schema(self, schema: str) -> None:
        """Give up where the federation trains another model: no task could ever be done."""
        if schema != self.trainer.schema.digest:
            self._problem = ConfigError(
                f"{self.me} trains {self.about.model} on {self.about.dataset} with the schema "
                f"{self.trainer.schema.digest[:12]}, the federation's model has {schema[:12]}: "
                f"start the client with the coordinator's --dataset and --model"
            )
            self.close()

    def _status(self, kind: Kind, status: Status) -> None:
        """Answer a coordinator that started anew, and correct what is said of us."""
        if kind is Kind.COORDINATOR_STATUS:
            if status.state is Presence.ONLINE and status.boot != self.coordinator_boot:
                self.coordinator_boot = status.boot
                self._crew.spawn(self._announce_later())
        elif (status.state, status.boot) == (Presence.ONLINE, self.voice.boot):
            self._heard_ourselves = True
        elif not self._over.is_set():
            if status.boot != self.voice.boot and self._heard_ourselves:
                about = {"client": self.me, "boot": status.boot}
                logger.warning("client.doubled", extra=log.facts(**about))
                self.report({"event": "client.doubled", **about})
            self._crew.spawn(self._announce())

    # --- what is to be done -----------------------------------------------------------------------

    def _perform(self, effect: SessionEffect) -> None:
        match effect:
            case Fetch():
                self._crew.spawn(self._fetch(effect))
            case Train(task):
                self._crew.spawn(self._train(task))
            case Offer(update):
                self.courier.offer(update.delta, expected=(ClientId(COORDINATOR),))
                self._crew.spawn(self._tell(update))
            case Decline(task, reason, detail):
                logger.warning(
                    "task.declined", extra=log.facts(round=task.round, reason=reason, detail=detail)
                )
                self.report(
                    {"event": "task.declined", "round": task.round, "reason": reason, "detail": detail}
                )
                self._crew.spawn(
                    self._tell(Declined(run=task.run, round=task.round, reason=reason, detail=detail))
                )
            case Drop(update, verdict):
                self._dropped(update, verdict)

    def _dropped(self, update: Update, verdict: Verdict | None) -> None:
        digest = Digest(update.delta.digest)
        self.courier.withdraw(digest)
        self.store.delete(digest)
        refused = verdict.refused if verdict else Reason.TOO_LATE
        outcome = "taken" if refused is None else f"refused: {refused}"
        self._log("update.judged", round=update.round, outcome=outcome)
        self.report({"event": "update.judged", "round": update.round, "refused": refused})

    async def _fetch(self, effect: Fetch) -> None:
        digest = Digest(effect.base.digest)
        problem = chunks.check(effect.base)
        if problem is None and effect.base.size != self.trainer.schema.elements * 4:
            problem = Reason.WRONG_SIZE
        if problem:
            self._inbox.put_nowait(Unfetchable(digest, problem))
            return
        try:
            await self.courier.fetch(effect.base, want=self._tell, frames=self.topics.model(digest))
        except (FedmqError, OSError) as error:
            logger.warning("model.unfetchable", extra=log.facts(digest=digest[:12], why=str(error)))
            ours = isinstance(error, StorageFullError | OSError)  # no room, no disk
            self._inbox.put_nowait(Unfetchable(digest, Reason.DISK if ours else Reason.TRANSFER_FAILED))
            return
        self._inbox.put_nowait(Fetched(digest))
        await self._tell(Done(digest=digest))

    async def _train(self, task: Task) -> None:
        self._log("task.started", round=task.round)
        self.report(
            {"event": "task.started", "round": task.round, "answer_within_s": round(task.answer_within_s)}
        )
        try:
            update = await in_background(self._work, task)
        except DivergedError as error:
            self._inbox.put_nowait(Untrained(task.run, task.round, Reason.DIVERGED, str(error)))
        except StorageFullError as error:
            self._inbox.put_nowait(Untrained(task.run, task.round, Reason.DISK, str(error)))
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever a user's own model or data raises: the client lives on
            logger.exception("task.failed", extra=log.facts(round=task.round))
            detail = f"{type(error).__name__}: {error}"[: limits.TEXT_CHARACTERS_MAX]
            self._inbox.put_nowait(Untrained(task.run, task.round, Reason.TRAINING_FAILED, detail))
        else:
            self._inbox.put_nowait(Trained(update))
            await self._show_metrics(update)

    def _work(self, task: Task) -> Update:
        """Train, and put the delta on disk before anybody hears of it."""
        data = self.store.read(task.base.digest)
        base = compression.decode(task.base.codec, data, self.trainer.schema.elements)
        result = self.trainer.train(base, task.plan)
        encoded = compression.encode(task.codec, result.delta)
        delta = self.store.put(encoded)
        self.store.sweep({Digest(task.base.digest), delta})
        manifest = chunks.describe(encoded, codec=task.codec, schema=self.trainer.schema.digest)
        return self._update(task, result, manifest)

    def _update(self, task: Task, result: Result, manifest: Manifest) -> Update:
        local = result.local
        return Update(
            run=task.run,
            round=task.round,
            client=self.me,
            base=task.base.digest,
            delta=manifest,
            examples=result.examples,
            steps=result.steps,
            loss=result.loss,
            seconds=result.seconds,
            local_loss=local.loss if local else None,
            local_accuracy=local.accuracy if local else None,
            local_examples=local.examples if local else 0,
        )

    # --- what is said -----------------------------------------------------------------------------

    async def _announce(self) -> None:
        info = Info(
            boot=self.voice.boot,
            version=VERSION,
            certificate=self.voice.certificate,
            examples=self.trainer.examples,
            schema=self.trainer.schema.digest,
            device=self.about.device,
            dataset=self.about.dataset,
            model=self.about.model,
        )
        await self._show(Kind.INFO, info, retain=True)
        await self._show(Kind.STATUS, self.voice.status(Presence.ONLINE), retain=True)

    async def _announce_later(self) -> None:
        """Announce within a few seconds: not all clients of a federation at once."""
        await asyncio.sleep(random.uniform(0, limits.REANNOUNCE_S))
        await self._announce()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(limits.HEARTBEAT_S)
            self._beats += 1
            beat = Heartbeat(boot=self.voice.boot, sequence=self._beats, phase=self.session.phase)
            await self._show(Kind.HEARTBEAT, beat, retain=False, qos=0)

    async def _show_metrics(self, update: Update) -> None:
        metrics = ClientMetrics(
            run=update.run,
            round=update.round,
            loss=update.loss,
            seconds=update.seconds,
            examples=update.examples,
            cpu_percent=psutil.cpu_percent(),
            memory_bytes=psutil.Process().memory_info().rss,
        )
        await self._show(Kind.METRICS, metrics, retain=False, qos=0)

    async def _show(self, kind: Kind, message: Message, *, retain: bool, qos: int = 1) -> None:
        await self.voice.show(self.link, self.topics.client(self.me, kind), message, retain=retain, qos=qos)

    async def _tell(self, message: Message) -> None:
        await self.voice.tell(self.link, self.topics.client(self.me, Kind.REPLY), message)

    def _log(self, event: str, **facts: object) -> None:
        logger.info(event, extra=log.facts(**facts))

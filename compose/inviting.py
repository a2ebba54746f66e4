"""The inviter's shell: `fedmq pair invite` shows a code, and lets in who comes with it and was confirmed."""

import asyncio
import contextlib
import functools
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from common import certificates, files, identity, limits, parts, qr, tls
from common.bus import Arrived, LinkDown, LinkUp
from common.certificates import Role
from common.crew import in_background
from common.driver import drive
from common.errors import CommandRefusedError, ConfigError, FedmqError, TransportError, UsageError
from common.ids import DASHBOARD, OPERATOR
from common.invitation import TOKEN_BYTES, Invitation, link_fingerprint
from common.inviter import (
    Answer,
    Ask,
    Confirmed,
    Ended,
    Inviter,
    InviterEffect,
    InviterEvent,
    Issue,
    Issued,
    NotIssued,
    Offer,
    Rejected,
    Warn,
)
from common.keys import PublicKey
from common.mqtt import Address, MqttLink, is_loopback
from common.pairing import Heard, answer_topic, request_topic
from common.register import Register
from common.settings import Settings
from common.topics import TOKEN_ID_BYTES, Topics

NONCE_BYTES = 16
ONLY_NAME = {Role.CLIENT: "", Role.BRIDGE: "", Role.OPERATOR: OPERATOR, Role.DASHBOARD: DASHBOARD}
INBOX_MAX = 64  # messages that wait
Say = Callable[[dict[str, object]], None]
Vouch = Callable[[Role, str, PublicKey], x509.Certificate]


@dataclass(frozen=True, slots=True)
class Wish:
    """Who is invited, and how."""

    role: Role
    name: str  # empty: the newcomer chooses
    at: str | None  # HOST:PORT that newcomers reach; None: follows from the broker's address
    confirm: bool
    may_replace: bool


async def invite(
    settings: Settings,
    wish: Wish,
    secret: bytes | None,
    show: Callable[[Invitation], None],
    say: Say,
) -> None:
    """Invite one newcomer, and stay until it is in or the invitation is over.

    Raises: CommandRefusedError where nobody came in; ConfigError; TransportError.
    """
    directory = parts.keys_dir(settings)
    root = identity.root_identity(directory, secret)
    wish = _checked(wish, directory)
    us = identity.load(
        directory,
        Role.OPERATOR,
        OPERATOR,
        passphrase=parts.passphrase(settings),
        root_passphrase=secret,
    )
    link = parts.link(settings, us, parts.trust(settings, us), OPERATOR)
    async with link:
        await _up(link)
        invitation = _invitation(settings, wish, link, root.root)
        offer = Offer(
            invitation,
            wish.role,
            wish.name,
            confirm=wish.confirm,
            may_replace=wish.may_replace,
            brokers=_brokers(settings, invitation),
        )
        machine = Inviter(
            offer,
            root.root,
            root.key,
            nonce=secrets.token_bytes(NONCE_BYTES),
            is_enrolled=lambda name: bool(Register(directory).of(wish.role, name, datetime.now(UTC))),
        )
        await link.subscribe(request_topic(invitation))
        renewed = identity.refresh_revocations(directory, secret)
        if renewed is not None:  # what the root was to take back by now
            await link.publish(Topics(us.federation).revoked, renewed.pem, retain=True)
        show(invitation)
        overlap = timedelta(days=limits.ROTATION_OVERLAP_DAYS) if wish.may_replace else None
        vouch = functools.partial(identity.vouch, directory, passphrase=secret, overlap=overlap)
        await _Welcome(link, invitation, machine, vouch=vouch, say=say).over()


def _checked(wish: Wish, directory: Path) -> Wish:
    """Find out before anybody is shown a code what would come to nothing. Raises: UsageError, ConfigError."""
    if wish.role not in ONLY_NAME:
        raise UsageError(f"nobody is invited as {wish.role}; roles for that are: {', '.join(ONLY_NAME)}")
    wish = replace(wish, name=wish.name or ONLY_NAME[wish.role])
    if wish.name and not certificates.may_be_called(wish.role, wish.name):
        raise UsageError(f"no {wish.role} can be called {wish.name!r}")
    if not wish.may_replace and Register(directory).of(wish.role, wish.name, datetime.now(UTC)):
        raise ConfigError(
            f"{wish.role} {wish.name} has a certificate already",
            advice="Say --replace to give it another one, or --name to invite somebody else.",
        )
    return wish


async def _up(link: MqttLink) -> None:
    """Wait for the first connection. Raises: TransportError."""
    while True:
        match await link.next():
            case LinkUp():
                return
            case LinkDown(why, _):
                raise TransportError(why)
            case _:
                pass


def _invitation(settings: Settings, wish: Wish, link: MqttLink, root: certificates.Root) -> Invitation:
    broker = parts.addresses(settings)[0]
    own_port = parts.pairing_port(broker.port) if link.certificate is not None else broker.port
    at = Address.parse(wish.at) if wish.at else Address(broker.host, own_port)
    return Invitation(
        host=at.host,
        port=at.port,
        spki=tls.spki_hash(link.certificate) if link.certificate is not None else None,
        federation=root.federation,
        root_fingerprint=link_fingerprint(root),
        token_id=secrets.token_bytes(TOKEN_ID_BYTES),
        token=secrets.token_bytes(TOKEN_BYTES),
        expires=int(time.time()) + limits.PAIRING_TTL_S,
    )


def _brokers(settings: Settings, invitation: Invitation) -> tuple[str, ...]:
    """Say where participants connect: to the same host that newcomers reach, by the broker's own port."""
    scheme = "mqtts" if invitation.spki is not None else "mqtt"
    first, *others = parts.addresses(settings)
    return tuple(f"{scheme}://{address}" for address in (Address(invitation.host, first.port), *others))


def show(
    invitation: Invitation, *, png: Path | None, svg: Path | None, as_json: bool, is_named: bool = True
) -> None:
    """Show an invitation, and draw it into files. This is the one place where its secret is told."""
    for path, draw in ((png, qr.png), (svg, qr.svg)):
        if path is not None:
            with files.said_plainly():
                files.replace(path, draw(invitation.code))
    if as_json:
        about = {"code": invitation.code, "expires": invitation.expires}
        print(json.dumps({"event": "pairing.invitation", **about}), flush=True)
        return
    until = datetime.fromtimestamp(invitation.expires).astimezone()
    print(qr.terminal(invitation.code, colour=sys.stdout.isatty()))
    who = "" if is_named else " --client-id NAME"
    print(f"fedmq client --join '{invitation.code}'{who}")
    print(f"until {until:%H:%M:%S}, once, at {invitation.host}:{invitation.port}", flush=True)
    if is_loopback(invitation.host):
        print("Only this machine can reach that address; --at HOST:PORT names another.", flush=True)


class _Welcome:
    """One invitation, from the code to whoever came with it."""

    def __init__(
        self,
        link: MqttLink,
        invitation: Invitation,
        machine: Inviter,
        *,
        vouch: Vouch,
        say: Say,
    ) -> None:
        self._link, self._invitation, self._machine, self._say = link, invitation, machine, say
        self._vouch = vouch
        self._inbox: asyncio.Queue[InviterEvent] = asyncio.Queue()
        self._ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._asking: asyncio.Task[None] | None = None

    async def over(self) -> None:
        """Wait for the end. Raises: CommandRefusedError where nobody came in."""
        working: list[asyncio.Task[None]] = [
            asyncio.create_task(self._listen()),
            asyncio.create_task(drive(self._machine, self._inbox, self._perform, time.time)),
        ]
        waits: list[asyncio.Future[Any]] = [self._ended, *working]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in (*working, *([self._asking] if self._asking else [])):
            task.cancel()
        for one in await asyncio.gather(*working, return_exceptions=True):
            if isinstance(one, Exception):
                raise one
        ended = self._ended.result()
        if ended.reason is not None:
            detail = f": {ended.detail}" if ended.detail else ""
            raise CommandRefusedError(
                f"nobody was enrolled, {ended.reason}{detail}",
                advice="Run `fedmq pair invite` again for a new code.",
            )

    async def _listen(self) -> None:
        while True:
            match await self._link.next():
                case Arrived(_, payload) if len(payload) <= limits.PAIRING_BYTES_MAX:
                    if self._inbox.qsize() < INBOX_MAX:  # it is asked again
                        self._inbox.put_nowait(Heard(payload))
                case LinkDown(why, _):
                    self._say({"event": "broker.unreachable", "why": why})
                case _:
                    pass

    def _perform(self, effect: InviterEffect) -> Awaitable[None] | None:
        match effect:
            case Answer(data):
                return self._answer(data)
            case Ask():
                self._asking = asyncio.create_task(self._ask(effect))
            case Issue():
                return self._issue(effect)
            case Warn(reason, detail):
                self._say({"event": "pairing.warning", "reason": reason, "detail": detail})
            case Ended():
                self._ended.set_result(effect)
        return None

    async def _answer(self, data: bytes) -> None:
        with contextlib.suppress(TransportError):  # it asks again
            await self._link.publish(answer_topic(self._invitation), data)

    async def _ask(self, asked: Ask) -> None:
        code = f"{asked.code[:3]} {asked.code[3:]}"
        self._say(
            {
                "event": "pairing.asked",
                "role": asked.role,
                "name": asked.name,
                "code": code,
                "key": asked.fingerprint,
                "replaces": asked.replaces,
            }
        )
        question = f"Does {asked.name} show the code {code} as well? [y/N] "
        self._inbox.put_nowait(Confirmed() if await in_background(_yes, question) else Rejected())

    async def _issue(self, wanted: Issue) -> None:
        try:
            made = await in_background(self._vouch, wanted.role, wanted.name, wanted.key)
        except FedmqError as error:
            self._inbox.put_nowait(NotIssued(str(error)))
            return
        self._say({"event": "pairing.done", "role": wanted.role, "name": wanted.name})
        self._inbox.put_nowait(Issued(certificates.der(made)))


def _yes(question: str) -> bool:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}

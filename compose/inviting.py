"""The inviter's shell: `fedmq pair invite` shows a code, and lets in who comes with it and was confirmed."""

import asyncio
import contextlib
import functools
import json
import os
import re
import secrets
import sys
import termios
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509

from common import certificates, files, identity, joining, limits, parts, qr, tls
from common.bus import Arrived, LinkDown, LinkUp
from common.certificates import Role
from common.crew import in_background
from common.driver import drive
from common.errors import ConfigError, FedmqError, PairingError, TransportError, UsageError
from common.ids import DASHBOARD, OPERATOR
from common.invitation import HOST, TOKEN_BYTES, Invitation, link_fingerprint
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
    Withdrawn,
)
from common.keys import PublicKey
from common.messages import EnrolReason
from common.mqtt import Address, MqttLink, is_loopback
from common.pairing import NONCE_BYTES, Heard, answer_topic, request_topic
from common.register import Register
from common.settings import Settings
from common.topics import TOKEN_ID_BYTES, Topics
from compose import wording

ONLY_NAME = {Role.CLIENT: "", Role.BRIDGE: "", Role.OPERATOR: OPERATOR, Role.DASHBOARD: DASHBOARD}
_AGAIN = "Run `fedmq pair invite` again for a new code."
_UNUSED = (
    f"{_AGAIN} If it got a certificate, with --replace; the one that it replaces counts for "
    f"{limits.ROTATION_OVERLAP_DAYS:g} days more."
)
_SEEN = f"Somebody else has seen the code. {_AGAIN} Show it to nobody else."
_ADVICE = {
    EnrolReason.EXPIRED: f"{_AGAIN} It holds for ten minutes.",
    EnrolReason.USED: _SEEN,
    EnrolReason.WRONG_TOKEN: _AGAIN,
    EnrolReason.WRONG_ALGORITHM: f"Install the same version of fedmq on both machines. {_AGAIN}",
    EnrolReason.BAD_NAME: "Invite under the name that the newcomer asks for, or let it ask for yours.",
    EnrolReason.NAME_TAKEN: "Invite with --replace to give that name another certificate, or under another --name.",
    EnrolReason.REJECTED: f"If the codes differed, somebody else has seen the code. {_AGAIN} Show it to nobody else.",
    EnrolReason.NOT_ISSUED: f"Mend that. {_AGAIN}",
    EnrolReason.TOO_MANY_ATTEMPTS: _AGAIN,
    EnrolReason.GIVEN_UP: _UNUSED,
    EnrolReason.WRONG_ROOT: "The root of this machine is not that of its federation: look at `fedmq keys show`.",
    EnrolReason.BAD_CERTIFICATE: f"Install the same version of fedmq on both machines. {_UNUSED}",
    EnrolReason.OUT_OF_DATE: f"Set the clock of the newcomer's machine, or of this one. {_UNUSED}",
    EnrolReason.NOT_KEPT: f"The newcomer's machine says why it keeps no keys. {_UNUSED}",
}
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
    show: Callable[[Offer], None],
    say: Say,
) -> None:
    """Invite one newcomer, and stay until it is in or the invitation is over.

    Raises: PairingError where nobody came in; ConfigError; UsageError; TransportError.
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
            is_enrolled=lambda name: _is_taken(directory, wish.role, name),
        )
        await link.subscribe(request_topic(invitation))
        renewed = identity.refresh_revocations(directory, secret)
        if renewed is not None:  # what the root was to take back by now
            await link.publish(Topics(us.federation).revoked, renewed.pem, retain=True)
        await _probe(settings, invitation, is_said=wish.at is not None, say=say)
        show(offer)
        overlap = timedelta(days=limits.ROTATION_OVERLAP_DAYS) if wish.may_replace else None
        vouch = functools.partial(identity.vouch, directory, passphrase=secret, overlap=overlap)
        await _Welcome(link, invitation, machine, vouch=vouch, say=say).over()


def _is_taken(directory: Path, role: Role, name: str) -> bool:
    """Tell whether somebody has the name for himself."""
    return not role.is_shared and bool(Register(directory).of(role, name, datetime.now(UTC)))


def _names(role: Role) -> str:
    if ONLY_NAME[role]:
        return f"Leave --name out: all of that role share the name {ONLY_NAME[role]}, each with a key of its own."
    beginning = "It begins with bridge-, and" if role is Role.BRIDGE else "It"
    return f"{beginning} has lower-case letters, digits and hyphens."


def _checked(wish: Wish, directory: Path) -> Wish:
    """Find out before anybody is shown a code what would come to nothing. Raises: UsageError, ConfigError."""
    if wish.role not in ONLY_NAME:
        raise UsageError(f"nobody is invited as {wish.role}; roles for that are: {', '.join(ONLY_NAME)}")
    wish = replace(wish, name=wish.name or ONLY_NAME[wish.role])
    if wish.name and not certificates.may_be_called(wish.role, wish.name):
        raise UsageError(f"no {wish.role} can be called {wish.name!r}", advice=_names(wish.role))
    if wish.at is not None:
        _address(wish.at)
    if not wish.may_replace and _is_taken(directory, wish.role, wish.name):
        raise ConfigError(
            f"{wish.role} {wish.name} has a certificate already",
            advice="Say --replace to give it another one, or --name to invite somebody else.",
        )
    return wish


def _address(text: str) -> Address:
    """Read where newcomers come in. Raises: UsageError."""
    with contextlib.suppress(ConfigError):
        found = Address.parse(text)
        if re.fullmatch(HOST, found.host):
            return found
    raise UsageError(
        f"--at {text} is not HOST:PORT",
        advice="Name the port as well, as in --at 192.0.2.1:8884: with TLS the one after the broker's own.",
    )


async def _probe(settings: Settings, invitation: Invitation, *, is_said: bool, say: Say) -> None:
    """Come in as a newcomer would, before anybody is shown the way. Raises: TransportError.

    Where another address was named than this machine's or the broker's, it may be reached from elsewhere only.
    """
    at = Address(invitation.host, invitation.port)
    secure = tls.pinned(invitation.spki) if invitation.spki is not None else None
    try:
        async with joining.link(invitation, secure) as link:
            await _up(link)
    except TransportError as error:
        said = f"no newcomer can come in at {at}: {str(error).removeprefix(f'{at}: ')}"
        reached = {address.host for address in parts.addresses(settings)}
        if not is_said or at.host in reached or _is_here(at.host):
            raise TransportError(
                said,
                advice="Name with --at where the broker lets newcomers in: with TLS the port after its own, unless it "
                "was started with --no-pairing or --pairing-port.",
            ) from None
        detail = f"from this machine {said}; another one may have better luck"
        say({"event": "pairing.warning", "reason": "unreachable", "detail": detail})


def _is_here(host: str) -> bool:
    """Tell whether this is an address of this machine."""
    own = (one.address for those in psutil.net_if_addrs().values() for one in those)
    return is_loopback(host) or host in own


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
    at = _address(wish.at) if wish.at else Address(broker.host, own_port)
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


def show(offer: Offer, *, png: Path | None, svg: Path | None, as_json: bool) -> None:
    """Show an invitation, and draw it into files. This is the one place where its secret is told."""
    invitation = offer.invitation
    for path, draw in ((png, qr.png), (svg, qr.svg)):
        if path is not None:
            _keep(path, draw(invitation.code))
    at = str(Address(invitation.host, invitation.port))
    if as_json:
        about = {
            "role": offer.role,
            "name": offer.name or None,
            "at": at,
            "federation": invitation.federation,
            "expires": invitation.expires,
            "code": invitation.code,
        }
        print(json.dumps({"event": "pairing.invitation", **about}), flush=True)
        return
    until = datetime.fromtimestamp(invitation.expires).astimezone()
    print(qr.terminal(invitation.code, colour=sys.stdout.isatty()))
    who = wording.member(offer.role, offer.name)
    print(f"For {who}, until {until:%H:%M:%S}, once, at {at}. On its machine:")
    print(f"{_command(offer)}", flush=True)
    if is_loopback(invitation.host):
        print("Only this machine can reach that address; --at HOST:PORT names another.", flush=True)


def _command(offer: Offer) -> str:
    """Spell what the newcomer types."""
    code = f"'{offer.invitation.code}'"
    match offer.role:
        case Role.CLIENT:
            return f"fedmq client --join {code}{'' if offer.name else ' --client-id NAME'}"
        case _:
            return f"fedmq pair join {code}{'' if offer.name else f' --name {offer.role}-NAME'}"


def _keep(path: Path, picture: bytes) -> None:
    try:
        files.replace(path, picture)
    except OSError as error:
        raise UsageError(
            f"cannot draw the code into {path}: {error.strerror}",
            advice="Name a file in a folder that exists and that you may write to.",
        ) from error


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
        self._question = ""  # that stands on the last line

    async def over(self) -> None:
        """Wait for the end. Raises: PairingError where nobody came in."""
        working: list[asyncio.Task[None]] = [
            asyncio.create_task(self._listen()),
            asyncio.create_task(drive(self._machine, self._inbox, self._perform, time.time)),
        ]
        waits: list[asyncio.Future[Any]] = [self._ended, *working]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._stop(working)
            await self._withdraw()
            raise
        await self._stop(working)
        for one in working:
            if not one.cancelled() and (error := one.exception()) is not None:
                raise error
        ended = self._ended.result()
        if ended.reason is not None:
            detail = f", {ended.detail}" if ended.detail else ""
            said = f"the pairing failed: {ended.reason}{detail}"
            raise PairingError(said, advice=_ADVICE[ended.reason])

    async def _stop(self, working: list[asyncio.Task[None]]) -> None:
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            if self._question:
                _prompt("\n")
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)

    async def _withdraw(self) -> None:
        """Tell a newcomer that waits for us; the machine is ours, for nobody drives it any more."""
        for effect in self._machine.handle(Withdrawn(), time.time()):
            match effect:
                case Answer(data):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(limits.FAREWELL_S):
                            await self._answer(data)
                case Ended(EnrolReason() as reason, detail) if detail:
                    self._say({"event": "pairing.warning", "reason": reason, "detail": detail})
                case _:
                    pass

    async def _listen(self) -> None:
        is_down = False
        while True:
            match await self._link.next():
                case Arrived(_, payload) if len(payload) <= limits.PAIRING_BYTES_MAX:
                    if self._inbox.qsize() < limits.PAIRING_INBOX_MAX:  # it is asked again
                        self._inbox.put_nowait(Heard(payload))
                case LinkDown(why, _):
                    if not is_down:
                        self._interject({"event": "broker.unreachable", "why": why})
                    is_down = True
                case LinkUp() if is_down:
                    self._interject({"event": "broker.back"})
                    is_down = False
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
                self._interject({"event": "pairing.warning", "reason": reason, "detail": detail})
            case Ended():
                self._ended.set_result(effect)
        return None

    async def _answer(self, data: bytes) -> None:
        with contextlib.suppress(TransportError):  # it asks again
            await self._link.publish(answer_topic(self._invitation), data)

    async def _ask(self, asked: Ask) -> None:
        code = f"{asked.code[:3]} {asked.code[3:]}"
        about = {"role": asked.role, "name": asked.name, "code": code, "key": asked.fingerprint}
        self._say({"event": "pairing.asked", **about, **({"replaces": True} if asked.replaces else {})})
        _forget_typed()
        self._question = f"Does the screen of {asked.name} show the code {code} as well? [y/N] "
        _prompt(self._question)
        is_confirmed = await in_background(_yes)
        self._question = ""
        self._inbox.put_nowait(Confirmed() if is_confirmed else Rejected())

    def _interject(self, event: dict[str, object]) -> None:
        """Say something while a question may stand there: it is asked again below."""
        if self._question:
            _prompt("\n")
        self._say(event)
        _prompt(self._question)

    async def _issue(self, wanted: Issue) -> None:
        try:
            made = await in_background(self._vouch, wanted.role, wanted.name, wanted.key)
        except FedmqError as error:
            self._inbox.put_nowait(NotIssued(str(error)))
            return
        self._say({"event": "pairing.done", "role": wanted.role, "name": wanted.name})
        self._inbox.put_nowait(Issued(certificates.der(made)))


def _yes() -> bool:
    """Wait for an answer. It may still be waiting when the process ends: so it holds no lock of a Python stream."""
    typed = b""
    with contextlib.suppress(OSError):  # standard input may be closed
        while not typed.endswith(b"\n") and (more := os.read(0, 4096)):
            typed += more
    return typed.strip().lower() in {b"y", b"yes"}


def _forget_typed() -> None:
    """Let nothing that was typed before a question answer it."""
    with contextlib.suppress(OSError, ValueError, termios.error):  # standard input is no terminal, or closed
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _prompt(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()

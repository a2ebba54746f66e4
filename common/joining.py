"""A newcomer's shell: it connects to the broker that its invitation names, asks to be let in, and keeps its keys."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from common import files, identity, keys, limits, log, parts, tls
from common.bus import Arrived, LinkDown, LinkUp
from common.certificates import Role
from common.driver import drive
from common.errors import (
    ConfigError,
    FedmqError,
    InvitationError,
    PairingError,
    SignatureError,
    TransportError,
)
from common.identity import Identity, KeyType
from common.invitation import Invitation, link_fingerprint
from common.messages import EnrolReason
from common.mqtt import Address, MqttLink
from common.newcomer import (
    Begin,
    Enrolled,
    Failed,
    Farewell,
    GaveUp,
    Newcomer,
    NewcomerEffect,
    NewcomerEvent,
    Send,
    Show,
)
from common.pairing import NONCE_BYTES, Heard, answer_topic, request_topic
from common.settings import Settings
from common.tls import Tls
from common.voice import VERSION

UNANSWERED_S = 20.0  # after so long it is said that nobody answers
_NEW = "Ask for a new invitation: `fedmq pair invite` where the root's key is."
_SEEN = (
    "Unless it was an earlier try of yours, somebody else has seen the invitation: tell who invited you, and ask for a "
    "new one that nobody else sees."
)
_ADVICE = {
    EnrolReason.EXPIRED: f"{_NEW} It stays open until its code is confirmed, for ten minutes at most.",
    EnrolReason.USED: _SEEN,
    EnrolReason.WRONG_TOKEN: "This code is of an older invitation: take the newest, or ask for a new one.",
    EnrolReason.WRONG_ALGORITHM: "Install the same version of fedmq on both machines, and ask for a new invitation.",
    EnrolReason.BAD_NAME: "Say who this is, with --client-id or --name, and ask for a new invitation.",
    EnrolReason.NAME_TAKEN: "Ask for an invitation with --replace, or take another name.",
    EnrolReason.REJECTED: "If both machines did not show the same code, somebody is between them. Else: "
    "ask for a new invitation.",
    EnrolReason.NOT_ISSUED: "`fedmq pair invite` says on its machine what went wrong.",
    EnrolReason.GIVEN_UP: _NEW,
    EnrolReason.TOO_MANY_ATTEMPTS: _NEW,
    EnrolReason.WRONG_ROOT: "The invitation is not of that federation: ask for a new one.",
    EnrolReason.BAD_CERTIFICATE: "Install the same version of fedmq on both machines, and ask for a new invitation.",
    EnrolReason.OUT_OF_DATE: "Set the clock, here or at the root, and ask for an invitation with --replace.",
    EnrolReason.NOT_KEPT: "Make room for the keys, and ask for an invitation with --replace.",
}
Say = Callable[[dict[str, object]], None]


async def join(settings: Settings, invitation: Invitation, name: str, say: Say) -> tuple[Role, str]:
    """Be enrolled, and keep key, certificate, root and the brokers' addresses; returns as whom.

    `name`: the one that we want; empty: the one that we were invited under.
    Raises: PairingError where nothing came of it; InvitationError where the broker is another one than the invitation
    names; ConfigError where the keys cannot be kept.
    """
    directory = parts.keys_dir(settings)
    identity.require_room(directory)
    secret = parts.passphrase(settings)
    key = keys.generate(KeyType(settings.key_type))
    machine = Newcomer(
        invitation,
        key,
        nonce=secrets.token_bytes(NONCE_BYTES),
        today=lambda: datetime.now(UTC),
        name=name,
        version=VERSION,
    )

    def keep(enrolled: Enrolled) -> Identity:
        certificate = x509.load_der_x509_certificate(enrolled.certificate)
        if enrolled.brokers:  # first, so that what cannot be kept is said of keys that are not
            _keep_brokers(directory, enrolled.brokers)
        return identity.install(directory, enrolled.root.certificate, certificate, key, secret)

    us = await _Pairing(invitation, machine, name, say).over(keep)
    say({"event": "pairing.done", "role": us.role, "name": us.name, "keys_dir": str(directory)})
    return us.role, us.name


def enrolled_already(
    settings: Settings, invitation: Invitation, role: Role, name: str
) -> tuple[Role, str] | None:
    """Say as whom this machine was enrolled by the root that invites us, if it was: an invitation holds only once."""
    directory = parts.keys_dir(settings)
    if not (directory / "root.pem").exists():
        return None
    if link_fingerprint(identity.read_root(directory)) != invitation.root_fingerprint:
        raise ConfigError(
            f"{directory} holds the keys of another root than the one that invites us",
            advice="Give this federation a directory of its own with --keys-dir.",
        )
    here = [
        (one, found)
        for one, found in identity.found(directory)
        if one is role and found == (name or found) and _counts(settings, one, found)
    ]
    return here[0] if len(here) == 1 else None


def _counts(settings: Settings, role: Role, name: str) -> bool:
    """Tell whether a certificate that we have is in date and not revoked, as far as this machine knows."""
    directory = parts.keys_dir(settings)
    peer, root = identity.peer(directory, role, name), identity.read_root(directory)
    places = (directory, parts.state_dir(settings, role, name))
    lists = [identity.read_revocations(place, root) for place in places]
    revoked = any(one is not None and peer.serial in one for one in lists)
    return peer.not_after > datetime.now(UTC) and not revoked


def link(invitation: Invitation, secure: Tls | None) -> MqttLink:
    """Make a link to where the invitation leads, as a newcomer comes: with no certificate of its own."""
    at = Address(invitation.host, invitation.port, tls=secure is not None)
    client_id = f"{invitation.user}-{secrets.token_hex(8)}"
    return MqttLink([at], client_id, username=invitation.user, tls=secure)


class _Pairing:
    """One newcomer's way in, from the first connection to the certificate."""

    def __init__(self, invitation: Invitation, machine: Newcomer, name: str, say: Say) -> None:
        self._invitation, self._machine, self._name, self._say = invitation, machine, name, say
        self._link = link(invitation, self._pinned(invitation.spki))
        self._inbox: asyncio.Queue[NewcomerEvent] = asyncio.Queue()
        self._ended: asyncio.Future[Enrolled | Failed] = asyncio.get_running_loop().create_future()
        self._is_other_broker = False
        self._why_down = ""
        self._was_up = False
        self._answered = False

    def _pinned(self, spki: bytes | None) -> Tls | None:
        """Take the broker with this key; where another one answers, asking again for ten minutes will not help."""
        if spki is None:
            return None
        pinned = tls.pinned(spki)

        def check(certificate_der: bytes) -> None:
            try:
                pinned.check(certificate_der)
            except SignatureError:
                self._is_other_broker = True
                raise

        return Tls(pinned.context, check)

    async def over(self, keep: Callable[[Enrolled], Identity]) -> Identity:
        """Wait for the end, and keep what came of it. Raises: PairingError; InvitationError; what `keep` raises."""
        await self._link.subscribe(answer_topic(self._invitation))
        async with self._link:
            try:
                enrolled = await self._enrolled()
            except asyncio.CancelledError:
                await self._take_leave(EnrolReason.GIVEN_UP)
                raise
            try:
                return keep(enrolled)
            except FedmqError:
                await self._take_leave(EnrolReason.NOT_KEPT)
                raise

    async def _enrolled(self) -> Enrolled:
        working: list[asyncio.Task[None]] = [
            asyncio.create_task(self._listen()),
            asyncio.create_task(drive(self._machine, self._inbox, self._perform, time.monotonic)),
        ]
        complaint = asyncio.get_running_loop().call_later(UNANSWERED_S, self._complain)
        self._inbox.put_nowait(Begin())
        waits: list[asyncio.Future[Any]] = [self._ended, *working]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            complaint.cancel()
            for task in working:
                task.cancel()
            done = await asyncio.gather(*working, return_exceptions=True)
        for one in done:
            if isinstance(one, Exception):
                raise one
        match self._ended.result():
            case Enrolled() as enrolled:
                return enrolled
            case Failed() as failed:
                raise _error(failed, self._why_down)

    def _complain(self) -> None:
        """Say that nobody answers: the other side may have ended long before the invitation does."""
        if not self._answered:
            self._say({"event": "pairing.unanswered", "hint": "has `fedmq pair invite` ended?"})

    async def _listen(self) -> None:
        while True:
            match await self._link.next():
                case LinkUp():
                    self._say({"event": "broker.back" if self._was_up else "pairing.connected"})
                    self._was_up, self._why_down = True, ""
                case LinkDown() if self._is_other_broker:
                    raise self._another_broker()
                case LinkDown(why, _):
                    if not self._why_down:
                        self._say({"event": "broker.unreachable", "why": why})
                    self._why_down = why
                case Arrived(_, payload) if len(payload) <= limits.PAIRING_BYTES_MAX:
                    if self._inbox.qsize() < limits.PAIRING_INBOX_MAX:  # we ask again
                        self._inbox.put_nowait(Heard(payload))
                case _:
                    pass

    def _another_broker(self) -> InvitationError:
        at = Address(self._invitation.host, self._invitation.port)
        return InvitationError(
            f"the broker at {at} has another key than the invitation names",
            advice="Ask for a new invitation: this one is of another broker, or of a key that it had before. If a new "
            "one fails in the same way, somebody else answers at that address.",
        )

    def _perform(self, effect: NewcomerEffect) -> Awaitable[None] | None:
        match effect:
            case Send(data):
                return self._send(data)
            case Farewell(data):
                return self._send_farewell(data)
            case Show(code):
                self._answered = True
                shown = f"{code[:3]} {code[3:]}"
                self._say({"event": "pairing.code", "code": shown, "name": self._name or None})
            case Enrolled() | Failed():
                self._ended.set_result(effect)
        return None

    async def _send(self, data: bytes) -> None:
        await self._link.publish(
            request_topic(self._invitation), data, qos=0
        )  # asked again until it is answered

    async def _send_farewell(self, data: bytes) -> None:
        with contextlib.suppress(TransportError, TimeoutError):  # then they find out by themselves
            async with asyncio.timeout(limits.FAREWELL_S):
                await self._link.publish(request_topic(self._invitation), data)

    async def _take_leave(self, reason: EnrolReason) -> None:
        """Tell who invited us that we leave; the machine is ours, for nobody drives it any more."""
        for effect in self._machine.handle(GaveUp(reason), time.monotonic()):
            if isinstance(effect, Farewell):
                await self._send_farewell(effect.data)


def _error(failed: Failed, why_down: str) -> PairingError:
    """Say why nothing came of it; the words of the other side among that steer no terminal."""
    detail = f", {log.escape(failed.detail)}" if failed.detail else ""
    why = f"; the broker: {why_down}" if why_down else ""
    return PairingError(f"the pairing failed: {failed.reason}{detail}{why}", advice=_ADVICE[failed.reason])


def _keep_brokers(directory: Path, brokers: tuple[str, ...]) -> None:
    with files.said_plainly():
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.replace(directory / parts.BROKERS_FILE, json.dumps(brokers).encode())

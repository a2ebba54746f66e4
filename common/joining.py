"""A newcomer's shell: it connects to the broker that its invitation names, asks to be let in, and keeps its keys."""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from common import files, identity, keys, limits, parts, tls
from common.bus import Arrived, LinkDown, LinkUp
from common.certificates import Role
from common.driver import drive
from common.errors import ConfigError, InvitationError
from common.identity import KeyType
from common.invitation import Invitation, link_fingerprint
from common.messages import EnrolReason
from common.mqtt import Address, MqttLink
from common.newcomer import Begin, Enrolled, Failed, Newcomer, NewcomerEffect, NewcomerEvent, Send, Show
from common.pairing import Heard, answer_topic, request_topic
from common.settings import Settings
from common.voice import VERSION

NONCE_BYTES = 16
INBOX_MAX = 64  # messages that wait
UNANSWERED_S = 20.0  # after so long it is said that nobody answers
_ADVICE = {
    EnrolReason.NAME_TAKEN: "Ask for an invitation with --replace, or take another name.",
    EnrolReason.BAD_NAME: "Say who this is, with --client-id or --name, and ask for a new invitation.",
}
Say = Callable[[dict[str, object]], None]


async def join(settings: Settings, invitation: Invitation, name: str, say: Say) -> tuple[Role, str]:
    """Be enrolled, and keep key, certificate, root and the brokers' addresses; returns as whom.

    `name`: the one that we want; empty: the one that we were invited under.
    Raises: InvitationError where nothing came of it; ConfigError where the keys cannot be kept.
    """
    directory = parts.keys_dir(settings)
    identity.require_room(directory)
    secret = parts.passphrase(settings)
    key = keys.generate(KeyType(settings.key_type))
    machine = Newcomer(invitation, key, nonce=secrets.token_bytes(NONCE_BYTES), name=name, version=VERSION)
    enrolled = await _Pairing(invitation, machine, say).enrolled()
    us = identity.install(
        directory,
        enrolled.root.certificate,
        x509.load_der_x509_certificate(enrolled.certificate),
        key,
        secret,
    )
    if enrolled.brokers:
        _keep_brokers(directory, enrolled.brokers)
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


class _Pairing:
    """One newcomer's way in, from the first connection to the certificate."""

    def __init__(self, invitation: Invitation, machine: Newcomer, say: Say) -> None:
        self._invitation, self._machine, self._say = invitation, machine, say
        at = Address(invitation.host, invitation.port, tls=invitation.spki is not None)
        secure = tls.pinned(invitation.spki) if invitation.spki is not None else None
        client_id = f"{invitation.user}-{secrets.token_hex(8)}"
        self._link = MqttLink([at], client_id, username=invitation.user, tls=secure)
        self._inbox: asyncio.Queue[NewcomerEvent] = asyncio.Queue()
        self._ended: asyncio.Future[Enrolled | Failed] = asyncio.get_running_loop().create_future()
        self._why_down = ""
        self._answered = False

    async def enrolled(self) -> Enrolled:
        """Wait for the end. Raises: InvitationError."""
        await self._link.subscribe(answer_topic(self._invitation))
        async with self._link:
            working: list[asyncio.Task[None]] = [
                asyncio.create_task(self._listen()),
                asyncio.create_task(drive(self._machine, self._inbox, self._perform, time.time)),
            ]
            loop = asyncio.get_running_loop()
            complaint = loop.call_later(UNANSWERED_S, self._complain)
            self._inbox.put_nowait(Begin())
            waits: list[asyncio.Future[Any]] = [self._ended, *working]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
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
            case Failed(reason, detail):
                why = f"; the broker: {self._why_down}" if self._why_down else ""
                said = f"the pairing failed: {reason}{f', {detail}' if detail else ''}{why}"
                raise InvitationError(said, advice=_ADVICE.get(reason, "Ask for a new invitation."))

    def _complain(self) -> None:
        """Say that nobody answers: the other side may have ended long before the invitation does."""
        if not self._answered:
            self._say({"event": "pairing.unanswered", "hint": "has `fedmq pair invite` ended?"})

    async def _listen(self) -> None:
        while True:
            match await self._link.next():
                case LinkUp():
                    self._why_down = ""
                    self._say({"event": "pairing.connected"})
                case LinkDown(why, _):
                    if not self._why_down:
                        self._say({"event": "broker.unreachable", "why": why})
                    self._why_down = why
                case Arrived(_, payload) if len(payload) <= limits.PAIRING_BYTES_MAX:
                    if self._inbox.qsize() < INBOX_MAX:  # we ask again
                        self._inbox.put_nowait(Heard(payload))
                case _:
                    pass

    def _perform(self, effect: NewcomerEffect) -> Awaitable[None] | None:
        match effect:
            case Send(data):
                return self._send(data)
            case Show(code):
                self._answered = True
                self._say({"event": "pairing.code", "code": f"{code[:3]} {code[3:]}"})
            case Enrolled() | Failed():
                self._ended.set_result(effect)
        return None

    async def _send(self, data: bytes) -> None:
        await self._link.publish(
            request_topic(self._invitation), data, qos=0
        )  # asked again until it is answered


def _keep_brokers(directory: Path, brokers: tuple[str, ...]) -> None:
    with files.said_plainly():
        files.replace(directory / parts.BROKERS_FILE, json.dumps(brokers).encode())

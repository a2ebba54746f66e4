"""A newcomer, sans I/O: with an invitation and a key of its own it asks until it has a certificate.

    phase       event                               effects                  next
    READY       Begin                               Send                     ASKING
    ASKING      challenge to our request            Show                     SHOWING
                its root is of another federation   Farewell, Failed         FAILED
    SHOWING     certificate for our request         Enrolled                 ENROLLED
                not for our key, name or day        Farewell, Failed         FAILED
    last two    refused                             Failed                   FAILED
                every 3 s                           Send                     the same
                10 minutes after Begin              Farewell, Failed         FAILED
                anything else that comes            (counted)                the same
    all four    GaveUp                              (Farewell,) Failed       FAILED

Laws: 1. It believes nothing before the signature of the root that the invitation names holds, and only what answers
its own request. 2. It hands out nothing to be stored before the certificate is checked. 3. What is not so signed is
counted and changes nothing: anybody may write garbage. 4. It asks again and again, with the same bytes, and ends ten
minutes after it began; while it shows its code a little later, for what was confirmed in the last moment. Whether the
invitation has expired is for the inviter to say: a newcomer's clock may be wrong. 5. Where it has asked and ends by
itself, it says so.

Times are monotonic seconds; only the dates of a certificate are compared with the clock on the wall, `today`.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from common import certificates, codec, envelope, ids, keys, limits, pairing
from common.certificates import Role, Root
from common.errors import ConfigError, OutOfDateError, SignatureError, TransitionError
from common.invitation import Invitation
from common.keys import PrivateKey
from common.machine import Seconds, Tick
from common.messages import (
    BY_ENROL_ANSWER,
    EnrolCancel,
    EnrolCertificate,
    EnrolChallenge,
    EnrolReason,
    EnrolRefused,
    EnrolRequest,
)
from common.pairing import Heard

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The newcomer listens for answers: it may ask."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Whoever sits here wants no more, or what was `Enrolled` could not be stored."""

    reason: EnrolReason
    detail: str = ""


NewcomerEvent = Begin | Heard | GaveUp | Tick

# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Publish the request."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Farewell:
    """Publish, once and with an acknowledgement, that the request is taken back."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Show:
    """Let people compare this code with the one at the inviter."""

    code: str


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Store these: the pairing is done."""

    root: Root
    certificate: bytes  # DER
    role: Role
    name: str
    brokers: tuple[str, ...]  # HOST:PORT, where participants connect


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing came of it: a new invitation is needed."""

    reason: EnrolReason
    detail: str


NewcomerEffect = Send | Farewell | Show | Enrolled | Failed
Effects = Iterator[NewcomerEffect]
Answered = EnrolChallenge | EnrolCertificate | EnrolRefused

# --- the machine ----------------------------------------------------------------------------------


class Phase(StrEnum):
    """What the newcomer is doing."""

    READY = "ready"
    ASKING = "asking"
    SHOWING = "showing"  # the code, while it waits for its certificate
    ENROLLED = "enrolled"
    FAILED = "failed"


MOVES = {
    Phase.READY: {Phase.ASKING, Phase.FAILED},
    Phase.ASKING: {Phase.SHOWING, Phase.FAILED},
    Phase.SHOWING: {Phase.ENROLLED, Phase.FAILED},
    Phase.ENROLLED: {Phase.FAILED},
    Phase.FAILED: set[Phase](),
}


class Newcomer:
    """Asks to be let in, until it has a certificate or must give up."""

    def __init__(
        self,
        invitation: Invitation,
        key: PrivateKey,
        *,
        nonce: bytes,
        today: Callable[[], datetime],
        name: str = "",
        version: str = "",
    ) -> None:
        """Make the request of this key.

        `nonce`: 16 random bytes; `today`: by the clock on the wall, UTC; `name`: a wish, empty for as invited.

        Raises: ConfigError for a name that nobody can have.
        """
        if name and not ids.is_name(name):
            raise ConfigError(f"name {name!r} does not match {ids.NAME}")
        self.phase = Phase.READY
        self.ignored = 0  # messages that were not of the pinned root, or not for us
        self._invitation = invitation
        self._name = name
        self._key = key
        self._kid = keys.kid_of(key.public_key())
        self._today = today
        self._root: Root | None = None
        self._begun: Seconds = 0.0
        self._ask_at: Seconds | None = None
        unsigned = EnrolRequest(
            name=name,
            algorithm=keys.type_of(key.public_key()),
            spki=keys.spki_of(key.public_key()),
            nonce=nonce,
            version=version,
            mac=bytes(32),
        )
        self._digest = pairing.request_digest(codec.encode(unsigned))
        mac = pairing.mac_of(invitation.token, pairing.CLIENT, self._digest)
        request = msgspec.structs.replace(unsigned, mac=mac)
        self._request = self._sealed(request)

    def handle(self, event: NewcomerEvent, now: Seconds) -> tuple[NewcomerEffect, ...]:
        """Take in what happened; say what is to be done, in order."""
        return tuple(self._handle(event, now))

    def wake_at(self) -> Seconds | None:
        """Say when to ask again, or to give up."""
        return None if self._ask_at is None else min(self._ask_at, self._until)

    @property
    def _until(self) -> Seconds:
        """Say when to give up: what was issued in the last moment may still be under way."""
        late_s = limits.PAIRING_LINGER_S if self.phase is Phase.SHOWING else 0
        return self._begun + limits.PAIRING_TTL_S + late_s

    def _handle(self, event: NewcomerEvent, now: Seconds) -> Effects:
        is_waiting = self.phase in {Phase.ASKING, Phase.SHOWING}
        if is_waiting and now >= self._until:
            yield from self._leave(EnrolReason.EXPIRED, f"no certificate came in time{self._noise()}")
            return
        match event:
            case Begin():
                if self.phase is Phase.READY:
                    self._begun = now
                    self._move(Phase.ASKING)
                    yield from self._ask(now)
            case Heard(data):
                if is_waiting:
                    yield from self._heard(data)
            case GaveUp(reason, detail):
                yield from self._give_up(reason, detail)
            case Tick():
                if self._ask_at is not None and now >= self._ask_at:
                    yield from self._ask(now)

    def _give_up(self, reason: EnrolReason, detail: str) -> Effects:
        if self.phase is Phase.READY:  # nobody knows of us
            yield from self._fail(reason, detail)
        elif self.phase is not Phase.FAILED:
            yield from self._leave(reason, detail)

    def _ask(self, now: Seconds) -> Effects:
        self._ask_at = now + limits.PAIRING_AGAIN_S
        yield Send(self._request)

    def _heard(self, data: bytes) -> Effects:
        match self._believed(data):
            case EnrolChallenge(nonce=nonce, root=root) if self.phase is Phase.ASKING:
                yield from self._show(nonce, root)
            case EnrolChallenge():  # comes with each answer to a request that was sent again
                return
            case EnrolCertificate() as certified if self._root:
                yield from self._take(self._root, certified)
            case EnrolRefused(reason=reason, detail=detail):
                yield from self._fail(reason, detail)
            case _:
                self.ignored += 1

    def _believed(self, data: bytes) -> Answered | None:
        """Read what the pinned root says in answer to our request; None for anything else."""
        read: tuple[envelope.Envelope, Answered] | None = pairing.read(data, BY_ENROL_ANSWER)
        if read is None:
            return None
        parts, message = read
        root = self._root_for(message)
        if root is None or not _is_signed_by(parts, root, pairing.answer_topic(self._invitation)):
            return None
        return message if self._is_for_us(message) else None

    def _root_for(self, message: Answered) -> x509.Certificate | None:
        match message:
            case EnrolChallenge(root=der) | EnrolRefused(root=der):
                return self._pinned(der)
            case EnrolCertificate():
                return self._root.certificate if self._root else None

    def _pinned(self, der: bytes) -> x509.Certificate | None:
        """Read a root's certificate, if it is the one that the invitation names."""
        fingerprint = hashlib.sha256(der).digest()
        if not hmac.compare_digest(fingerprint, self._invitation.root_fingerprint):
            return None
        try:
            return x509.load_der_x509_certificate(der)
        except ValueError:
            return None

    def _is_for_us(self, message: Answered) -> bool:
        match message:
            case EnrolChallenge(nonce=nonce, root=root, mac=mac):
                challenged = pairing.challenged(self._digest, nonce, root)
                right = pairing.mac_of(self._invitation.token, pairing.COORDINATOR, challenged)
                return hmac.compare_digest(mac, right)
            case EnrolCertificate(request=request) | EnrolRefused(request=request):
                return hmac.compare_digest(request, self._digest)

    def _show(self, nonce: bytes, der: bytes) -> Effects:
        try:
            root = certificates.read_root(x509.load_der_x509_certificate(der))
        except SignatureError as error:
            yield from self._leave(EnrolReason.WRONG_ROOT, str(error))
            return
        if root.federation != self._invitation.federation:
            detail = f"the root is that of {root.federation}, not of {self._invitation.federation}"
            yield from self._leave(EnrolReason.WRONG_ROOT, detail)
            return
        self._move(Phase.SHOWING)
        self._root = root
        challenge = hashlib.sha256(pairing.challenged(self._digest, nonce, der)).digest()
        yield Show(pairing.code_of(self._digest, challenge))

    def _take(self, root: Root, certified: EnrolCertificate) -> Effects:
        today = self._today()
        try:
            peer = certificates.check(root, certified.certificate, today)
        except OutOfDateError as error:
            clock = f"the clock of this machine says {today:%Y-%m-%d %H:%M} UTC, and may be wrong"
            yield from self._leave(EnrolReason.OUT_OF_DATE, f"{error}; {clock}")
            return
        except SignatureError as error:
            yield from self._leave(EnrolReason.BAD_CERTIFICATE, str(error))
            return
        if peer.kid != self._kid:
            yield from self._leave(
                EnrolReason.BAD_CERTIFICATE, "the certificate is for another key than ours"
            )
        elif self._name not in ("", peer.name):
            detail = f"the certificate is for {peer.name}, and we asked to be called {self._name}"
            yield from self._leave(EnrolReason.BAD_CERTIFICATE, detail)
        else:
            self._move(Phase.ENROLLED)
            self._ask_at = None
            brokers = tuple(certified.brokers)
            yield Enrolled(root, certified.certificate, peer.role, peer.name, brokers)

    def _leave(self, reason: EnrolReason, detail: str) -> Effects:
        """End by ourselves, and tell who invited us, or its operator goes on being asked."""
        covered = pairing.cancelled(self._digest, reason)
        mac = pairing.mac_of(self._invitation.token, pairing.CANCEL, covered)
        yield Farewell(self._sealed(EnrolCancel(request=self._digest, reason=reason, mac=mac)))
        yield from self._fail(reason, detail)

    def _fail(self, reason: EnrolReason, detail: str) -> Effects:
        self._move(Phase.FAILED)
        self._ask_at = None
        yield Failed(reason, detail)

    def _sealed(self, message: EnrolRequest | EnrolCancel) -> bytes:
        topic = pairing.request_topic(self._invitation)
        return pairing.seal(self._key, topic, self._invitation.user, self._invitation, message)

    def _move(self, to: Phase) -> None:
        if to not in MOVES[self.phase]:
            raise TransitionError(f"a newcomer cannot go from {self.phase} to {to}")
        self.phase = to

    def _noise(self) -> str:
        return f"; {self.ignored} messages were not by the root in the invitation" if self.ignored else ""


def _is_signed_by(parts: envelope.Envelope, certificate: x509.Certificate, topic: str) -> bool:
    try:
        key = keys.usable(certificate.public_key())
    except (SignatureError, ValueError, UnsupportedAlgorithm):
        return False
    return parts.is_signed_with(key, topic)

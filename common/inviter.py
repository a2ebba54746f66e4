"""An inviter, sans I/O: who holds the root's key lets in the first one that proves to hold the token.

    phase       event                               effects                  next
    WAITING     first request with the right MAC    Answer, Ask              CONFIRMING
                the same, none need confirm         Answer, Issue            ISSUING
                the same, it cannot be granted      Answer, Ended            ENDED
                request with a wrong token          Answer, Warn             WAITING; the 5th: Ended, ENDED
    CONFIRMING  Confirmed                           Issue                    ISSUING
                Rejected                            Answer, Ended            ENDED
    ISSUING     Issued                              Answer                   ANSWERING
                NotIssued                           Answer, Ended            ENDED
    ANSWERING   nobody asked again for 10 s         Ended                    ENDED
    CONFIRMING  the newcomer took its request back  Ended                    ENDED
    ISSUING     the same                            (Ended, once issued)     the same
    ANSWERING   the same                            Ended                    ENDED
    first two   `expires` has come                  (Answer,) Ended          ENDED
    all but     Withdrawn                           (Answer,) Ended          ENDED
    all but     the same request again              the same Answers         the same
    ENDED       another request, the right MAC      Answer, Warn             the same, after WAITING

Laws: 1. The first request with the right MAC burns the token, also where it is refused; another one is refused and the
operator is told. 2. The same request gets the same answers, in every phase but the last. 3. What no key in it has
signed is counted and changes nothing. Five requests with a wrong token end an invitation that nobody has used; once
it is used, they are counted only, so that nobody without the token ends a pairing that is under way. 4. Nothing is
confirmed after `expires`. 5. Only the request that burned the token can be taken back, by the same key and with the
token. 6. The token is in memory only: nothing of it is written to disk, and it ends with the
process; it is in no `repr` and no effect.

Times are unix seconds, as in the invitation.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from common import certificates, envelope, keys, limits, pairing
from common.certificates import Role, Root
from common.errors import ConfigError, DecodeError, SignatureError, TransitionError
from common.invitation import Invitation, link_fingerprint
from common.keys import PrivateKey, PublicKey
from common.machine import Seconds, Tick
from common.messages import (
    ADDRESS,
    BY_ENROL_REQUEST,
    EnrolCancel,
    EnrolCertificate,
    EnrolChallenge,
    EnrolReason,
    EnrolRefused,
    EnrolRequest,
    Message,
)
from common.pairing import Heard

_ROOT = "root"  # the sender in the headers of answers

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The operator sees the same code on both screens."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The operator does not want this newcomer, or sees another code."""


@dataclass(frozen=True, slots=True)
class Issued:
    """The certificate that was asked for is made, and on disk where it is kept."""

    certificate: bytes  # DER


@dataclass(frozen=True, slots=True)
class NotIssued:
    """The certificate could not be made."""

    detail: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The operator wants no more of it."""


InviterEvent = Heard | Confirmed | Rejected | Issued | NotIssued | Withdrawn | Tick

# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """Publish an answer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Let the operator compare this code with the one at the newcomer, and tell by `Confirmed` or `Rejected`."""

    code: str
    role: Role
    name: str
    fingerprint: str  # of the newcomer's public key
    replaces: bool  # somebody of that name is enrolled already


@dataclass(frozen=True, slots=True)
class Issue:
    """Make the certificate, and tell by `Issued` or `NotIssued`."""

    role: Role
    name: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Warn:
    """Tell the operator that somebody was refused, while the invitation goes on."""

    reason: EnrolReason
    detail: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The invitation is over: used well, or for a reason."""

    reason: EnrolReason | None
    detail: str = ""


InviterEffect = Answer | Ask | Issue | Warn | Ended
Effects = Iterator[InviterEffect]

# --- the machine ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """What the bearer of an invitation may become. Raises: ConfigError for a name that the role cannot have."""

    invitation: Invitation
    role: Role
    name: str = ""  # empty: the newcomer chooses
    confirm: bool = True  # by the operator, who compares the codes
    may_replace: bool = False  # one of that name who is enrolled already
    brokers: tuple[str, ...] = ()  # HOST:PORT, where participants connect

    def __post_init__(self) -> None:
        if self.name and not certificates.may_be_called(self.role, self.name):
            raise ConfigError(f"no {self.role} can be called {self.name!r}")
        if len(self.brokers) > limits.PAIRING_BROKERS_MAX:
            raise ConfigError(f"a newcomer is told of {limits.PAIRING_BROKERS_MAX} brokers at most")
        for broker in self.brokers:
            if re.fullmatch(ADDRESS, broker) is None:
                raise ConfigError(f"{broker!r} is no HOST:PORT")


class Phase(StrEnum):
    """What the inviter is doing."""

    WAITING = "waiting"
    CONFIRMING = "confirming"
    ISSUING = "issuing"
    ANSWERING = "answering"  # the certificate once more, to a newcomer that has not heard it
    ENDED = "ended"


MOVES = {
    Phase.WAITING: {Phase.CONFIRMING, Phase.ISSUING, Phase.ENDED},
    Phase.CONFIRMING: {Phase.ISSUING, Phase.ENDED},
    Phase.ISSUING: {Phase.ANSWERING, Phase.ENDED},
    Phase.ANSWERING: {Phase.ENDED},
    Phase.ENDED: set[Phase](),
}


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that is signed by the key in it."""

    said: EnrolRequest
    key: PublicKey
    digest: bytes
    identity: bytes  # of the whole request with its MAC: the same again gets the same answers


class Inviter:
    """Lets in the first one who proves that it holds the token."""

    def __init__(
        self,
        offer: Offer,
        root: Root,
        key: PrivateKey,
        *,
        nonce: bytes,
        is_enrolled: Callable[[str], bool],
    ) -> None:
        """Wait for a request. `key`: the root's own; `nonce`: 16 random bytes."""
        assert offer.invitation.root_fingerprint == link_fingerprint(root)
        assert offer.invitation.federation == root.federation
        self.phase = Phase.WAITING
        self.ignored = 0  # messages that no newcomer signed
        self._offer = offer
        self._root = certificates.der(root.certificate)
        self._key = key
        self._nonce = nonce
        self._is_enrolled = is_enrolled
        self._answers: dict[bytes, list[bytes]] = {}  # by the identity of the request
        self._wrong = 0  # requests with a wrong token
        self._rivals = 0
        self._taken: _Request | None = None  # the one that burned the token
        self._left: EnrolReason | None = None  # why the newcomer did, while its certificate was being made
        self._quiet_at: Seconds | None = None

    def handle(self, event: InviterEvent, now: Seconds) -> tuple[InviterEffect, ...]:
        """Take in what happened; say what is to be done, in order."""
        return tuple(self._handle(event, now))

    def wake_at(self) -> Seconds | None:
        """Say when the invitation ends, if nothing else happens."""
        match self.phase:
            case Phase.WAITING | Phase.CONFIRMING:
                return self._offer.invitation.expires
            case Phase.ISSUING | Phase.ANSWERING | Phase.ENDED:
                return self._quiet_at

    def _handle(self, event: InviterEvent, now: Seconds) -> Effects:  # noqa: C901 - one branch an event
        match event:
            case Heard(data):
                if self.phase is not Phase.ENDED:
                    yield from self._heard(data, now)
            case Confirmed():
                if self.phase is Phase.CONFIRMING and now < self._offer.invitation.expires:
                    yield from self._issue()
            case Rejected():
                if self.phase is Phase.CONFIRMING:
                    detail = "the operator did not confirm the code"
                    yield from self._refuse_taken(EnrolReason.REJECTED, detail)
            case Issued(certificate):
                if self.phase is Phase.ISSUING:
                    yield from self._certify(certificate, now)
            case NotIssued(detail):
                if self.phase is Phase.ISSUING:
                    yield from self._give_up(detail)
            case Withdrawn():
                yield from self._withdraw()
            case Tick():
                pass
        yield from self._end_in_time(now)

    def _end_in_time(self, now: Seconds) -> Effects:
        wake_at = self.wake_at()
        if wake_at is None or now < wake_at:
            return
        if self.phase is Phase.ANSWERING:
            yield from self._end(None)
        elif self._taken:
            yield from self._refuse_taken(EnrolReason.EXPIRED, "nobody confirmed the code in time")
        else:
            yield from self._end(EnrolReason.EXPIRED, "nobody came in time")

    # --- requests ---------------------------------------------------------------------------------

    def _heard(self, data: bytes, now: Seconds) -> Effects:
        read: tuple[envelope.Envelope, EnrolRequest | EnrolCancel] | None = pairing.read(
            data, BY_ENROL_REQUEST
        )
        match read:
            case (parts, EnrolRequest() as said):
                yield from self._asked(self._request(parts, said), now)
            case (parts, EnrolCancel() as said) if self._taken and self._takes_back(self._taken, parts, said):
                yield from self._cancel(said.reason)
            case _:
                self.ignored += 1

    def _asked(self, request: _Request | None, now: Seconds) -> Effects:
        if request is None:
            self.ignored += 1
        elif request.identity in self._answers:
            yield from self._repeat(request, now)
        elif not self._is_right(request):
            yield from self._wrong_token(request)
        elif self._taken is None:
            yield from self._first(request, now)
        else:
            yield from self._rival(request)

    def _request(self, parts: envelope.Envelope, said: EnrolRequest) -> _Request | None:
        try:
            key = keys.read_spki(said.spki)
            digest = pairing.request_digest(parts.payload)
        except (SignatureError, DecodeError):
            return None
        topic = pairing.request_topic(self._offer.invitation)
        if parts.kid != keys.kid_of(key) or not parts.is_signed_with(key, topic):
            return None
        return _Request(said, key, digest, hashlib.sha256(parts.payload).digest())

    def _is_right(self, request: _Request) -> bool:
        right = pairing.mac_of(self._offer.invitation.token, pairing.CLIENT, request.digest)
        return hmac.compare_digest(request.said.mac, right)

    def _takes_back(self, taken: _Request, parts: envelope.Envelope, said: EnrolCancel) -> bool:
        covered = pairing.cancelled(taken.digest, said.reason)
        right = pairing.mac_of(self._offer.invitation.token, pairing.CANCEL, covered)
        topic = pairing.request_topic(self._offer.invitation)
        return (
            said.request == taken.digest
            and hmac.compare_digest(said.mac, right)
            and parts.is_signed_with(taken.key, topic)
        )

    def _repeat(self, request: _Request, now: Seconds) -> Effects:
        if self._taken and request.identity == self._taken.identity and self.phase is Phase.ANSWERING:
            self._linger(now)
        for answer in self._answers[request.identity]:
            yield Answer(answer)

    def _wrong_token(self, request: _Request) -> Effects:
        if self._taken:  # a third one: what it says cannot end a pairing that is under way
            self.ignored += 1
            return
        self._wrong += 1
        detail = f"a request with a wrong token, {self._wrong} of {limits.PAIRING_ATTEMPTS}"
        yield from self._refuse(request, EnrolReason.WRONG_TOKEN, "the token is not that of this invitation")
        yield Warn(EnrolReason.WRONG_TOKEN, detail)
        if self._wrong >= limits.PAIRING_ATTEMPTS:
            yield from self._end(EnrolReason.TOO_MANY_ATTEMPTS, "somebody is guessing; make a new invitation")

    def _rival(self, request: _Request) -> Effects:
        self._rivals += 1
        if self._rivals > limits.PAIRING_ATTEMPTS:
            self.ignored += 1
            return
        yield from self._refuse(request, EnrolReason.USED, "another machine used this invitation first")
        shown = keys.fingerprint(request.said.spki)
        yield Warn(EnrolReason.USED, f"a second machine holds this invitation; its key is {shown}")

    def _first(self, request: _Request, now: Seconds) -> Effects:
        self._taken = request
        objection = self._objection(request, now)
        if objection:
            yield from self._refuse_taken(*objection)
            return
        challenged = pairing.challenged(request.digest, self._nonce, self._root)
        mac = pairing.mac_of(self._offer.invitation.token, pairing.COORDINATOR, challenged)
        yield from self._answer(request, EnrolChallenge(nonce=self._nonce, root=self._root, mac=mac))
        if not self._offer.confirm:
            yield from self._issue()
            return
        self._move(Phase.CONFIRMING)
        yield Ask(
            pairing.code_of(request.digest, hashlib.sha256(challenged).digest()),
            self._offer.role,
            self._name(request),
            keys.fingerprint(request.said.spki),
            self._is_enrolled(self._name(request)),
        )

    def _objection(self, request: _Request, now: Seconds) -> tuple[EnrolReason, str] | None:
        said, offer, name = request.said, self._offer, self._name(request)
        if now >= offer.invitation.expires:
            return EnrolReason.EXPIRED, "the invitation has expired"
        if said.algorithm != keys.type_of(request.key):
            detail = f"the key is of type {keys.type_of(request.key)}, and not {said.algorithm!r}"
            return EnrolReason.WRONG_ALGORITHM, detail
        if said.name not in ("", name):
            return EnrolReason.BAD_NAME, f"the invitation is for {name}, not for {said.name!r}"
        if not certificates.may_be_called(offer.role, name):
            return EnrolReason.BAD_NAME, f"no {offer.role} can be called {name!r}"
        if self._is_enrolled(name) and not offer.may_replace:
            return EnrolReason.NAME_TAKEN, f"{name} is enrolled already"
        return None

    def _name(self, request: _Request) -> str:
        return self._offer.name or request.said.name

    # --- what becomes of the first ----------------------------------------------------------------

    def _issue(self) -> Effects:
        assert self._taken
        self._move(Phase.ISSUING)
        yield Issue(self._offer.role, self._name(self._taken), self._taken.key)

    def _certify(self, certificate: bytes, now: Seconds) -> Effects:
        assert self._taken
        if self._left:
            yield from self._end(self._left, self._in_vain())
            return
        self._move(Phase.ANSWERING)
        self._linger(now)
        brokers = list(self._offer.brokers)
        answer = EnrolCertificate(request=self._taken.digest, certificate=certificate, brokers=brokers)
        yield from self._answer(self._taken, answer)

    def _give_up(self, detail: str) -> Effects:
        """Tell the newcomer no more than it can use: the detail is about this machine."""
        assert self._taken
        yield from self._refuse(self._taken, EnrolReason.NOT_ISSUED, "the certificate could not be made")
        yield from self._end(EnrolReason.NOT_ISSUED, detail)

    def _cancel(self, reason: EnrolReason) -> Effects:
        match self.phase:
            case Phase.ISSUING:  # what is being made cannot be stopped
                self._left = reason
            case Phase.ANSWERING:
                yield from self._end(reason, self._in_vain())
            case _:
                yield from self._end(reason, "the newcomer ended it")

    def _in_vain(self) -> str:
        assert self._taken
        return f"the newcomer ended it; {self._name(self._taken)} has a certificate now that nobody uses"

    def _withdraw(self) -> Effects:
        match self.phase:
            case Phase.CONFIRMING | Phase.ISSUING:
                assert self._taken
                is_made = self.phase is Phase.ISSUING  # what is being made cannot be stopped
                unused = f"{self._name(self._taken)} may have a certificate now that nobody uses"
                yield from self._refuse(self._taken, EnrolReason.GIVEN_UP, "the operator ended the pairing")
                yield from self._end(EnrolReason.GIVEN_UP, unused if is_made else "")
            case Phase.ANSWERING:  # it was heard, or will not be
                yield from self._end(None)
            case Phase.WAITING:
                yield from self._end(EnrolReason.GIVEN_UP)
            case Phase.ENDED:
                pass

    def _linger(self, now: Seconds) -> None:
        """Stay a little longer, but not as long as somebody pleases who repeats what a newcomer said."""
        latest = self._offer.invitation.expires + limits.PAIRING_LINGER_S
        self._quiet_at = min(now + limits.PAIRING_LINGER_S, latest)

    def _refuse_taken(self, reason: EnrolReason, detail: str) -> Effects:
        assert self._taken
        yield from self._refuse(self._taken, reason, detail)
        yield from self._end(reason, detail)

    def _refuse(self, request: _Request, reason: EnrolReason, detail: str) -> Effects:
        refused = EnrolRefused(request=request.digest, root=self._root, reason=reason, detail=detail)
        yield from self._answer(request, refused)

    def _answer(self, request: _Request, message: Message) -> Effects:
        invitation = self._offer.invitation
        sealed = pairing.seal(self._key, pairing.answer_topic(invitation), _ROOT, invitation, message)
        self._answers.setdefault(request.identity, []).append(sealed)
        yield Answer(sealed)

    def _end(self, reason: EnrolReason | None, detail: str = "") -> Effects:
        self._move(Phase.ENDED)
        self._quiet_at = None
        yield Ended(reason, detail)

    def _move(self, to: Phase) -> None:
        if to not in MOVES[self.phase]:
            raise TransitionError(f"an inviter cannot go from {self.phase} to {to}")
        self.phase = to

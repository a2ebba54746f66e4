"""The one way in: every message from the bus passes these stages, in this order, or is refused with a Reason.

    topic of ours -> size -> shape -> known key -> signature -> may this role say this here -> epoch -> replay ->
    strict decode

No stage runs before the one ahead of it has passed. Lines skip the replay: retained ones are meant to be heard
again, and `common.presence` tells old starts from new ones. Chunk frames carry no signature: their hashes stand in a
signed manifest, so they leave after the first two stages as `Frame`.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass

from common import codec, envelope, limits, lines, topics
from common.errors import DecodeError, SignatureError
from common.identity import Peer, Role, TrustStore
from common.ids import ClientId, FederationId
from common.messages import (
    BY_CONTROL,
    BY_REPLY,
    BY_TASK,
    Answer,
    ClientMetrics,
    ConfigLine,
    Heartbeat,
    Info,
    Message,
    Metrics,
    ModelLine,
    Presence,
    Reason,
    RoundState,
    Start,
    Status,
    Stop,
    Summary,
)
from common.topics import Kind, Place

_SAID_ON = {Kind.TASK: BY_TASK, Kind.REPLY: BY_REPLY, Kind.CONTROL: BY_CONTROL}
_LINE_ON: dict[Kind, tuple[type[Message], ...]] = {
    Kind.COORDINATOR_STATUS: (Status,),
    Kind.COORDINATOR_ROUND: (RoundState,),
    Kind.COORDINATOR_MODEL: (ModelLine,),
    Kind.COORDINATOR_METRICS: (Metrics, Answer),
    Kind.COORDINATOR_CONFIG: (ConfigLine,),
    Kind.STATUS: (Status,),
    Kind.INFO: (Info,),
    Kind.HEARTBEAT: (Heartbeat,),
    Kind.METRICS: (ClientMetrics,),
    Kind.SUMMARY: (Summary,),
}
_INTRODUCING = frozenset({Kind.STATUS, Kind.INFO, Kind.COORDINATOR_STATUS})
REPLAY_WINDOW = 1024  # sequence numbers behind the highest that may still come
BOOTS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Said:
    """A message that is proved to come from its sender."""

    place: Place
    sender: Peer
    message: Message
    data: bytes  # the envelope or line as it came


@dataclass(frozen=True, slots=True)
class Frame:
    """A chunk, to be checked against the manifest it belongs to."""

    place: Place
    data: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """What was not let in."""

    topic: str
    reason: Reason
    detail: str
    count: int  # of this reason so far

    @property
    def is_news(self) -> bool:
        """Tell whether to say so: of each reason the 1st, 2nd, 4th, 8th ..., for a flood must not fill the log."""
        return self.count & (self.count - 1) == 0


class Ingress:
    """Lets in what one federation's participants may say. Counts what it refuses."""

    def __init__(self, federation: FederationId, trust: TrustStore, epoch: int = 0) -> None:
        self.federation = federation
        self.trust = trust
        self.epoch = epoch  # the highest of a coordinator so far: what one with a lower one says is refused
        self.refusals: Counter[Reason] = Counter()
        self._seen: OrderedDict[tuple[bytes, str], tuple[int, int]] = OrderedDict()  # -> highest, window bits

    def admit(self, topic: str, data: bytes) -> Said | Frame | Refused | None:
        """Judge one message; None for an emptied retained topic, which says nothing."""
        if not data:
            return None
        try:
            return self._admit(topic, data)
        except _Refusal as refusal:
            self.refusals[refusal.reason] += 1
            count = self.refusals[refusal.reason]
            return Refused(topic[: limits.TOPIC_BYTES_MAX], refusal.reason, refusal.detail, count)

    def _admit(self, topic: str, data: bytes) -> Said | Frame:
        place = topics.parse(topic)
        if place is None or place.federation != self.federation:
            raise _Refusal(Reason.UNKNOWN_TOPIC, "not a topic of this federation")
        if len(data) > _bytes_max(place.kind):
            raise _Refusal(Reason.OVERSIZE, f"{len(data)} bytes; the limit here is {_bytes_max(place.kind)}")
        if place.kind in topics.CHUNKS:
            return Frame(place, data)
        if place.kind in topics.ENVELOPES:
            return self._envelope(topic, place, data)
        return self._line(topic, place, data)

    def _envelope(self, topic: str, place: Place, data: bytes) -> Said:
        try:
            parts = envelope.read(data)
        except DecodeError as error:
            raise _Refusal(Reason.MALFORMED, str(error)) from None
        peer = self._commanding(parts, place) or self._peer(parts.kid)
        if not parts.is_signed_by(peer, topic):
            raise _Refusal(Reason.BAD_SIGNATURE, f"not signed by {peer.name}")
        _require_right(peer, place)
        try:
            header = codec.decode(parts.header, envelope.Header, bytes_max=limits.HEADER_BYTES_MAX)
            if header.federation != self.federation or header.sender != peer.name:
                raise _Refusal(Reason.NOT_ALLOWED, "header and key name different senders")
            if peer.role is Role.COORDINATOR:
                self._fence(header.epoch)
            self._require_new(peer, header)
            message: Message = codec.decode(parts.payload, _SAID_ON[place.kind])
        except DecodeError as error:
            raise _Refusal(Reason.MALFORMED, str(error)) from None
        if message.__struct_config__.tag != parts.type:
            raise _Refusal(Reason.MALFORMED, "the envelope names another type than its payload")
        return Said(place, peer, message, data)

    def _line(self, topic: str, place: Place, data: bytes) -> Said:
        try:
            line = lines.read(data)
            peer = self._introduced(line, place) or self._peer(line.kid)
            if not line.is_signed_by(peer, topic):
                raise _Refusal(Reason.BAD_SIGNATURE, f"not signed by {peer.name}")
            _require_right(peer, place)
            message = line.message()
        except DecodeError as error:
            raise _Refusal(Reason.MALFORMED, str(error)) from None
        if not isinstance(message, _LINE_ON[place.kind]):
            raise _Refusal(Reason.NOT_ALLOWED, f"{type(message).__name__} does not belong on {place.kind}")
        if isinstance(message, Status) and message.state is Presence.ONLINE and peer.role is Role.COORDINATOR:
            self.epoch = max(self.epoch, message.epoch)
        return Said(place, peer, message, data)

    def _introduced(self, line: lines.Line, place: Place) -> Peer | None:
        """Admit a sender that brings its certificate along in a line."""
        if place.kind not in _INTRODUCING:
            return None
        certificate = line.certificate()
        if place.kind is Kind.INFO and not certificate:  # it is kept as a proof of who made an update
            raise _Refusal(Reason.MALFORMED, "an introduction without a certificate")
        return self._newcomer(line.kid, certificate) if certificate else None

    def _commanding(self, parts: envelope.Envelope, place: Place) -> Peer | None:
        """Admit an operator that brings its certificate along in a command: it says nothing before."""
        if place.kind is not Kind.CONTROL or self.trust.by_kid(parts.kid) is not None:
            return None
        try:
            command: Start | Stop = codec.decode(parts.payload, BY_CONTROL, bytes_max=limits.LINE_BYTES_MAX)
        except DecodeError:
            return None
        return self._newcomer(parts.kid, command.certificate) if command.certificate else None

    def _newcomer(self, kid: bytes, certificate: bytes) -> Peer:
        try:
            peer = self.trust.admit(certificate)
        except SignatureError as error:
            raise _Refusal(Reason.UNKNOWN_KEY, str(error)) from None
        if peer.kid != kid:
            raise _Refusal(Reason.UNKNOWN_KEY, "the message is signed by another key than it introduces")
        return peer

    def _peer(self, kid: bytes) -> Peer:
        peer = self.trust.by_kid(kid)
        if peer is None:
            raise _Refusal(Reason.UNKNOWN_KEY, f"no participant with the key {kid.hex()} was introduced")
        return peer

    def _fence(self, epoch: int) -> None:
        """Refuse a coordinator that a later start has replaced."""
        if epoch < self.epoch:
            raise _Refusal(Reason.FENCED, f"epoch {epoch}; another coordinator has begun epoch {self.epoch}")
        self.epoch = epoch

    def _require_new(self, peer: Peer, header: envelope.Header) -> None:
        """Refuse a sequence number that this start of the sender has used before (RFC 4303, A.2)."""
        who = (peer.kid, header.boot)
        highest, window = self._seen.pop(who, (-1, 0))
        ahead = header.sequence - highest
        if ahead > 0:
            seen = (
                header.sequence,
                ((window << ahead) | 1) & ((1 << REPLAY_WINDOW) - 1) if ahead < REPLAY_WINDOW else 1,
            )
        else:
            seen = (highest, window | (1 << -ahead) if -ahead < REPLAY_WINDOW else window)
        self._seen[who] = seen
        while len(self._seen) > BOOTS_REMEMBERED:
            self._seen.popitem(last=False)
        if ahead <= 0 and (-ahead >= REPLAY_WINDOW or window >> -ahead & 1):
            raise _Refusal(Reason.REPLAYED, f"number {header.sequence} came before")


class _Refusal(Exception):  # noqa: N818 - not an error: it ends in a Reason
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def _bytes_max(kind: Kind) -> int:
    if kind in topics.CHUNKS:
        return limits.CHUNK_BYTES_MAX + limits.CHUNK_FRAME_BYTES
    if kind in topics.ENVELOPES:
        return limits.ENVELOPE_BYTES_MAX
    return limits.MANIFEST_LINE_BYTES_MAX if kind is Kind.COORDINATOR_MODEL else limits.LINE_BYTES_MAX


def _require_right(peer: Peer, place: Place) -> None:
    """Let a client speak in its own branch, an operator command, and the coordinator do the rest."""
    if place.kind in topics.BY_CLIENT:
        allowed = peer.role is Role.CLIENT and place.client == ClientId(peer.name)
    elif place.kind is Kind.CONTROL:
        allowed = peer.role is Role.OPERATOR
    else:
        allowed = peer.role is Role.COORDINATOR
    if not allowed:
        raise _Refusal(Reason.NOT_ALLOWED, f"{peer.role} {peer.name} may not speak on {place.kind}")

"""Every topic: built and parsed, and nowhere else spelled out.

    fedmq/<federation>/coordinator/{status,round,model,metrics,config}
    fedmq/<federation>/control
    fedmq/<federation>/revoked
    fedmq/<federation>/model/<digest>
    fedmq/<federation>/client/<id>/{status,info,heartbeat,metrics,task,reply}
    fedmq/<federation>/client/<id>/{up,down}/<digest>
    fedmq/<federation>/round/<number>/summary
    fedmq/<federation>/enrol/<token-id>/{request,answer}

`<digest>` is the first 32 hex digits of a blob's SHA-256, `<token-id>` the 16 hex digits of an invitation. Who may
write and read which topic stands in `broker.rules`; what may be said on it in `common.messages`.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from common.ids import INVITATION, NAME, ClientId, Digest, FederationId

ROOT = "fedmq"
DIGEST_DIGITS = 32
TOKEN_ID_BYTES = 8  # of an invitation


class Kind(StrEnum):
    """What a topic is for."""

    COORDINATOR_STATUS = "coordinator/status"
    COORDINATOR_ROUND = "coordinator/round"
    COORDINATOR_MODEL = "coordinator/model"
    COORDINATOR_METRICS = "coordinator/metrics"
    COORDINATOR_CONFIG = "coordinator/config"
    CONTROL = "control"
    REVOKED = "revoked"
    MODEL = "model"
    STATUS = "status"
    INFO = "info"
    HEARTBEAT = "heartbeat"
    METRICS = "metrics"
    TASK = "task"
    REPLY = "reply"
    UP = "up"
    DOWN = "down"
    SUMMARY = "summary"
    ENROL_REQUEST = "enrol/request"
    ENROL_ANSWER = "enrol/answer"


CHUNKS = frozenset({Kind.MODEL, Kind.UP, Kind.DOWN})
PAIRING = frozenset({Kind.ENROL_REQUEST, Kind.ENROL_ANSWER})  # not for participants: see `common.pairing`
ENVELOPES = frozenset({Kind.CONTROL, Kind.TASK, Kind.REPLY}) | PAIRING
LINES = frozenset(Kind) - CHUNKS - ENVELOPES - {Kind.REVOKED}
BY_CLIENT = frozenset({Kind.STATUS, Kind.INFO, Kind.HEARTBEAT, Kind.METRICS, Kind.REPLY, Kind.UP})
COORDINATOR_KINDS = tuple(kind for kind in Kind if kind.startswith("coordinator/"))


@dataclass(frozen=True, slots=True)
class Place:
    """A parsed topic."""

    federation: FederationId
    kind: Kind
    client: ClientId | None = None  # the client whose branch it is
    digest: str | None = None  # 32 hex digits
    number: int | None = None  # of a round
    token: str | None = None  # of an invitation, 16 hex digits


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one federation."""

    federation: FederationId

    def coordinator(self, kind: Kind) -> str:
        assert kind in COORDINATOR_KINDS, kind
        return f"{ROOT}/{self.federation}/{kind}"

    @property
    def control(self) -> str:
        return f"{ROOT}/{self.federation}/control"

    @property
    def revoked(self) -> str:
        return f"{ROOT}/{self.federation}/revoked"

    def model(self, digest: Digest) -> str:
        return f"{ROOT}/{self.federation}/model/{digest[:DIGEST_DIGITS]}"

    def client(self, client: ClientId | str, kind: Kind) -> str:
        """Build a topic of one client; `client` may be "+" in a filter."""
        return f"{ROOT}/{self.federation}/client/{client}/{kind}"

    def up(self, client: ClientId, digest: Digest) -> str:
        return f"{ROOT}/{self.federation}/client/{client}/up/{digest[:DIGEST_DIGITS]}"

    def down(self, client: ClientId, digest: Digest) -> str:
        return f"{ROOT}/{self.federation}/client/{client}/down/{digest[:DIGEST_DIGITS]}"

    def all_up(self, client: ClientId | str = "+") -> str:
        """Build the filter for all upload chunks of a client, or of all clients."""
        return f"{ROOT}/{self.federation}/client/{client}/up/+"

    def all_down(self, client: ClientId) -> str:
        """Build the filter for all chunks that are sent to one client."""
        return f"{ROOT}/{self.federation}/client/{client}/down/+"

    def summary(self, number: int | str) -> str:
        """Build the topic of a round's summary; `number` may be "+" in a filter."""
        return f"{ROOT}/{self.federation}/round/{number}/summary"

    def enrol_request(self, token: str) -> str:
        """Build the topic where a newcomer asks; `token` is the id of an invitation, or "+" in a filter."""
        return f"{ROOT}/{self.federation}/enrol/{token}/request"

    def enrol_answer(self, token: str) -> str:
        """Build the topic where a newcomer is answered."""
        return f"{ROOT}/{self.federation}/enrol/{token}/answer"


_HEX = f"[0-9a-f]{{{DIGEST_DIGITS}}}"
_SHAPE = re.compile(
    f"{ROOT}/(?P<federation>{NAME})/(?:"
    r"(?P<coordinator>coordinator/(?:status|round|model|metrics|config))"
    r"|(?P<control>control|revoked)"
    f"|model/(?P<model>{_HEX})"
    f"|client/(?P<client>{NAME})/(?:"
    r"(?P<plain>status|info|heartbeat|metrics|task|reply)"
    f"|(?P<way>up|down)/(?P<digest>{_HEX}))"
    r"|round/(?P<number>0|[1-9][0-9]{0,9})/summary"
    f"|enrol/(?P<token>{INVITATION})/(?P<part>request|answer))"
)


def parse(topic: str) -> Place | None:
    """Read a topic; None where it is none of ours."""
    found = _SHAPE.fullmatch(topic)
    if found is None:
        return None
    part = found.groupdict()
    federation = FederationId(part["federation"])
    if part["client"]:
        kind = Kind(part["plain"] or part["way"])
        return Place(federation, kind, client=ClientId(part["client"]), digest=part["digest"])
    if part["number"]:
        return Place(federation, Kind.SUMMARY, number=int(part["number"]))
    if part["token"]:
        return Place(federation, Kind(f"enrol/{part['part']}"), token=part["token"])
    if part["model"]:
        return Place(federation, Kind.MODEL, digest=part["model"])
    return Place(federation, Kind(part["coordinator"] or part["control"]))

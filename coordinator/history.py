"""What the lines of a transcript say together: a pure fold that believes nothing and collects what is wrong.

Laws: 1. What a line says is wrong with a finding, never with an exception. 2. A certificate counts for what was
signed with it, also when it has expired since: that is noted.
Not here: files and blobs (`audit`), whether the updates make the models (`replay`).
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from common import certificates, codec, envelope, limits
from common.certificates import Peer, Role, Root
from common.errors import DecodeError, SignatureError, WireError
from common.ids import Digest
from common.messages import Update
from common.tensors import Schema
from common.topics import Kind, Topics
from coordinator import transcript
from coordinator.transcript import (
    ZEROS,
    AnyFact,
    Closed,
    Concluded,
    Line,
    MergedUpdate,
    Opened,
    Outcome,
    Refusal,
    Resumed,
)

FILE = "transcript.jsonl"
_UPDATE = str(Update.__struct_config__.tag)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong."""

    file: str  # in the run's folder
    what: str
    line: int | None = None


class History:
    """All that was said so far."""

    def __init__(self, root: Root, now: datetime) -> None:
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.lines = 0
        self.rounds = 0  # committed
        self.updates = 0  # merged
        self.opened: Opened | None = None
        self.is_vouched_for = (
            True  # where the root does not vouch for the coordinator, nothing can be believed
        )
        self.closed: Closed | None = None
        self.schema: Schema | None = None
        self.model = ZEROS  # of now
        self.models: dict[int, str] = {}  # by the number of the round that made it
        self.metrics: dict[str, int] = {}  # SHA-256 of lines in metrics.jsonl -> the line here that names it
        self.proven: list[tuple[MergedUpdate, Update]] = []  # of the last line
        self.first_round: int | None = None
        self.last_round = 0
        self._root, self._now = root, now
        self._previous, self._epoch = ZEROS, -1
        self._coordinator: Peer | None = None
        self._clients: dict[str, Peer] = {}  # by kid in hex
        self._versions: dict[str, list[int]] = defaultdict(list)  # of a model: how many committed before it
        self._merged: dict[tuple[str, str], int] = {}  # (client, base) -> line
        self._deltas: dict[tuple[str, str], dict[str, int]] = defaultdict(
            dict
        )  # (client, delta) -> base -> line
        self._refused: list[tuple[Refusal, int]] = []

    def take(self, data: bytes) -> AnyFact | None:
        """Take the next line in, without its newline; None where it says nothing at all."""
        self.lines += 1
        self.proven = []
        previous, self._previous = self._previous, transcript.digest_of(data)
        try:
            line = transcript.read(data)
        except DecodeError as error:
            self.find(f"it cannot be read: {error}")
            return None
        if line.fact.previous != previous:
            self.find("it does not follow from the line before it: one is missing, added, moved or changed")
        self._take(line)
        return line.fact

    def finish(self) -> None:
        """Say what shows only when all is told."""
        if self.lines == 0:
            self.findings.append(Finding(FILE, "it is empty"))
        if self.opened is not None and self.closed is None:
            self.notes.append("the run is not over: the transcript has no closing line")
        for refusal, line in self._refused:
            for base, merged_in in self._deltas.get((refusal.client, refusal.delta), {}).items():
                if refusal.base in {None, base}:
                    self.find(
                        f"the update {refusal.delta[:12]} of {refusal.client} is refused here "
                        f"({refusal.reason}) and merged in line {merged_in}",
                        line,
                    )

    def find(self, what: str, line: int | None = None) -> None:
        """Note what is wrong with a line, the last one unless told otherwise."""
        self.findings.append(Finding(FILE, what, line or self.lines))

    # --- one line ---------------------------------------------------------------------------------

    def _take(self, line: Line) -> None:
        fact = line.fact
        if isinstance(fact, Opened) != (self.lines == 1):
            self.find("a run is opened by its first line, and by no other")
        if isinstance(fact, Opened) and self.opened is None:
            self._open(fact)
        if self.opened is None:
            return
        if self._coordinator is not None and not line.is_signed_by(self._coordinator):
            self.find("it is not signed by the coordinator whose certificate the first line carries")
        if self.closed is not None:
            self.find("it comes after the line that closes the run")
        match fact:
            case Opened():
                pass
            case Resumed():
                self._resume(fact)
            case Concluded():
                self._conclude(fact)
            case Closed():
                self._close(fact)

    def _open(self, fact: Opened) -> None:
        self.opened, self.model = fact, Digest(fact.model)
        self._versions[fact.model].append(0)
        try:
            self._coordinator = self._vouched(fact.coordinator, Role.COORDINATOR)
        except SignatureError as error:
            self.is_vouched_for = False
            self.find(f"this root does not vouch for the coordinator, so no line can be believed: {error}")
            return
        if fact.federation != self._root.federation:
            self.find(f"the run is of the federation {fact.federation}, the root of {self._root.federation}")
        try:
            self.schema = Schema.from_wire(fact.tensors)
        except DecodeError as error:
            self.find(f"the tensors are none of a model: {error}")
        else:
            if self.schema.digest != fact.schema:
                self.find("the tensors are not those of the schema")

    def _resume(self, fact: Resumed) -> None:
        if fact.epoch <= self._epoch:
            self.find(f"the coordinator's epoch {fact.epoch} is not above the one before, {self._epoch}")
        self._epoch = fact.epoch

    def _conclude(self, fact: Concluded) -> None:
        if fact.round <= self.last_round:
            self.find(f"round {fact.round} comes after round {self.last_round}")
        if fact.base != self.model:
            self.find(
                f"round {fact.round} starts from {fact.base[:12]}, not from the model {self.model[:12]}"
            )
        self.first_round = self.first_round if self.first_round is not None else fact.round
        self.last_round = fact.round
        self.metrics[fact.metrics] = self.lines
        self._refused += [(refusal, self.lines) for refusal in fact.refusals]
        for kid, certificate in fact.certificates.items():
            self._introduce(kid, certificate)
        for update in fact.updates:
            self._merge(fact, update)
        if fact.outcome is Outcome.COMMITTED:
            self.rounds += 1
            self.models[fact.round] = fact.model
            self._versions[fact.model].append(self.rounds)
        elif fact.model != fact.base or fact.updates:
            self.find(f"round {fact.round} was abandoned, and yet it merged updates or made a model")
        self.model = Digest(fact.model)

    def _close(self, fact: Closed) -> None:
        self.closed = fact
        self.metrics[fact.metrics] = self.lines
        self._refused += [(refusal, self.lines) for refusal in fact.refusals]
        if fact.rounds != self.rounds:
            self.find(f"it says that {fact.rounds} rounds committed; the lines before it say {self.rounds}")
        if fact.model != self.model:
            self.find(
                f"it says that the model is {fact.model[:12]}; the lines before it say {self.model[:12]}"
            )

    # --- updates ----------------------------------------------------------------------------------

    def _merge(self, fact: Concluded, merged: MergedUpdate) -> None:
        self.updates += 1
        who, key = f"the update of {merged.client}", (merged.client, merged.base)
        if key in self._merged:
            self.find(f"{who} from {merged.base[:12]} is merged in line {self._merged[key]} already")
        self._merged.setdefault(key, self.lines)
        self._deltas[merged.client, merged.delta].setdefault(merged.base, self.lines)
        if merged.round > fact.round:
            self.find(f"{who} is for the round {merged.round}, which was yet to come")
        made_since = {self.rounds - version for version in self._versions.get(merged.base, ())}
        if not made_since:
            self.find(f"{who} starts from {merged.base[:12]}, which is no model of this run")
        elif merged.staleness not in made_since:
            self.find(f"{who} has the staleness {merged.staleness}; it should be {min(made_since)}")
        try:
            self.proven.append((merged, self._signed(merged)))
        except WireError as error:
            self.find(f"{who} is not proven: {error}")

    def _signed(self, merged: MergedUpdate) -> Update:
        """Take what the client signed out of its envelope. Raises: DecodeError, SignatureError."""
        client = self._clients.get(merged.kid)
        if client is None:
            raise SignatureError(f"no certificate of the key {merged.kid} stands in the transcript")
        if client.name != merged.client:
            raise SignatureError(f"the key {merged.kid} is that of {client.name}")
        sealed = envelope.read(merged.envelope)
        topic = Topics(self._root.federation).client(client.name, Kind.REPLY)
        if sealed.kid != client.kid or not sealed.is_signed_by(client, topic):
            raise SignatureError(f"its envelope is not signed by {client.name}")
        header = codec.decode(sealed.header, envelope.Header, bytes_max=limits.HEADER_BYTES_MAX)
        if (header.federation, header.sender, sealed.type) != (self._root.federation, client.name, _UPDATE):
            raise DecodeError("its envelope is of another sender, federation or kind")
        update = codec.decode(sealed.payload, Update)
        self._compare(merged, update)
        return update

    def _compare(self, merged: MergedUpdate, update: Update) -> None:
        """Hold what the coordinator wrote against what the client signed. Raises: DecodeError."""
        assert self.opened is not None
        pairs = {
            "run": (self.opened.run, update.run),
            "client": (merged.client, update.client),
            "round": (merged.round, update.round),
            "base": (merged.base, update.base),
            "delta": (merged.delta, update.delta.digest),
            "schema": (self.opened.schema, update.delta.schema),
            "codec": (self.opened.codec, update.delta.codec),
        }
        for name, (written, signed) in pairs.items():
            if written != signed:
                raise DecodeError(f"the transcript says {name} {written}, the client signed {signed}")

    # --- keys -------------------------------------------------------------------------------------

    def _introduce(self, kid: str, certificate: bytes) -> None:
        try:
            peer = self._vouched(certificate, Role.CLIENT)
        except SignatureError as error:
            self.find(f"the certificate of the key {kid} is not valid: {error}")
            return
        if peer.kid.hex() != kid:
            self.find(f"the certificate beside the key {kid} is of the key {peer.kid.hex()}")
        self._clients[peer.kid.hex()] = peer

    def _vouched(self, certificate_der: bytes, role: Role) -> Peer:
        """Check a certificate as of a day when it was valid. Raises: SignatureError."""
        certificate = certificates.read(certificate_der)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        peer = certificates.check(self._root, certificate_der, min(max(self._now, start), end))
        if peer.role is not role:
            raise SignatureError(f"{peer.name} is {peer.role.with_article} and no {role}")
        if not start <= self._now <= end:
            self.notes.append(
                f"the certificate of {peer.name} is valid from {start:%Y-%m-%d} to {end:%Y-%m-%d} only"
            )
        return peer

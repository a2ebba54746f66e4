"""Is the newest model still the newest, sans I/O: a client's watch over what the coordinator says is the global one.

Models are numbered over all runs and restarts of a coordinator. Whoever stands between it and us cannot forge a number,
but can bring out an older line, or keep newer ones back; neither changes what we train, for no task can be replayed.
Source: the attacks are those of The Update Framework (rollback, freeze, equivocation).
"""

from dataclasses import dataclass

from common import limits
from common.machine import Seconds
from common.messages import ModelLine

ROLLED_BACK = "rolled-back"  # an older model than one that was heard before
FORKED = "forked"  # two models with one number
FROZEN = "frozen"  # nothing was heard for too long, though the link stands


@dataclass(slots=True)
class Lineage:
    """What was heard so far."""

    epoch: int = 0
    version: int = 0
    digest: str = ""
    heard_at: Seconds | None = None  # since the link stands; None: it does not
    is_frozen: bool = False

    @classmethod
    def read(cls, text: str | None) -> "Lineage":
        """Go on with what an earlier start wrote down."""
        epoch, version, digest = (text or "0 0 ").split(" ")
        return cls(int(epoch), int(version), digest)

    def __str__(self) -> str:
        """Spell what is to be remembered."""
        return f"{self.epoch} {self.version} {self.digest}"

    def take(self, line: ModelLine, now: Seconds) -> str | None:
        """Take in a line; says what is wrong with it, and forgets it then.

        But a later coordinator that goes back, as one that has lost its disk, is doubted once and then believed:
        nobody but itself can say so.
        """
        problem = None
        if line.version < self.version or line.epoch < self.epoch:
            problem = ROLLED_BACK
        elif line.version == self.version and line.digest != self.digest:
            problem = FORKED
        if problem is not None and line.epoch <= self.epoch:
            return problem
        self.epoch, self.version, self.digest = line.epoch, line.version, line.digest
        self.heard(now)
        return problem

    def heard(self, now: Seconds) -> None:
        """Hear anything new of the coordinator, or that the link stands."""
        self.heard_at, self.is_frozen = now, False

    def link_down(self) -> None:
        """Expect nothing."""
        self.heard_at = None

    def check(self, now: Seconds) -> str | None:
        """Say once that nothing was heard for too long."""
        if self.heard_at is None or self.is_frozen or now - self.heard_at < limits.MODEL_STALE_S:
            return None
        self.is_frozen = True
        return FROZEN

"""One coordinator a federation: a new one first listens whether another is here.

    linked --another is said to be online--> knock --it answers--> AlreadyRunningError
       \\--nobody, or no answer, or it was we before a restart--> the next epoch is ours

Each start takes a higher epoch, which is in all that it says: what an older coordinator says is refused by
whoever has heard the newer one. Where two begin at once, the one with the lower epoch ends.
"""

import asyncio
import time
from contextlib import suppress

from common import limits
from common.durably import Durably
from common.errors import RivalError
from common.messages import Presence, Status
from common.voice import Voice
from coordinator.ledger import Ledger
from coordinator.notices import Notices


class Claim:
    """A coordinator's claim to its federation."""

    def __init__(self, notices: Notices, voice: Voice, ledger: Ledger, durably: Durably) -> None:
        self.is_made = False
        self._notices, self._voice, self._ledger, self._durably = notices, voice, ledger, durably
        self._linked = asyncio.Event()
        self._other: asyncio.Queue[Status] = asyncio.Queue()
        self._seen = 0  # the highest epoch of another coordinator

    def linked(self) -> None:
        """Hear that the link stands, and all that is retained is on its way."""
        self._linked.set()

    def heard(self, status: Status) -> None:
        """Hear of another coordinator while the claim is being made."""
        self._seen = max(self._seen, status.epoch)
        self._other.put_nowait(status)

    def is_lost_to(self, status: Status) -> bool:
        """Tell whether another coordinator has taken over."""
        theirs, ours = (status.epoch, status.boot), (self._voice.epoch, self._voice.boot)
        return self.is_made and status.state is Presence.ONLINE and theirs > ours

    async def make(self) -> None:
        """Take the federation's next epoch. Raises: RivalError."""
        predecessor = await self._durably(self._ledger.take_over, self._voice.boot)
        await self._linked.wait()
        other = await self._retained()
        if other is not None and other.state is Presence.ONLINE and other.boot != predecessor:
            await self._require_silence(other)
        at_least = max(self._seen + 1, int(time.time()))
        self._voice.epoch = await self._durably(self._ledger.raise_epoch, at_least)
        self.is_made = True

    async def _retained(self) -> Status | None:
        """Hear what another one last said, if there was one; one without an epoch is a will, or only asks."""
        until = time.monotonic() + limits.CLAIM_QUIET_S
        while (left := until - time.monotonic()) > 0:
            status = await self._next(left)
            if status is not None and status.epoch > 0:
                return status
        return None

    async def _require_silence(self, other: Status) -> None:
        """Ask whether the other one is still here."""
        knock_at = time.monotonic()
        until = knock_at + limits.CLAIM_S
        while (now := time.monotonic()) < until:
            if now >= knock_at:  # more than once: the link may break
                await self._notices.knock()
                knock_at = now + limits.CLAIM_KNOCK_S
            status = await self._next(min(knock_at, until) - now)
            if status is not None and status.answers == self._voice.boot:
                raise RivalError(f"a coordinator of {self._voice.topics.federation} is running already")

    async def _next(self, seconds: float) -> Status | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._other.get()
        return None

"""Who is here, sans I/O: births, wills, heartbeats and leases.

    away --online, or a heartbeat of the boot that was lost--> here --offline | lost | lease over--> away

Every online is passed on as `Came`, also of one who is here: it says so after each break of its link, and
what was sent to it before may be lost.
Laws: 1. A will or farewell of another boot than the last online one changes nothing: a late will cannot kill
a newer start. 2. A heartbeat overrides a `lost` of the same boot, never an `offline`. 3. Nobody is away
before the lease is over, unless it or the broker says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from common import limits
from common.ids import Boot, ClientId
from common.machine import Seconds, Tick
from common.messages import Presence

LEASE_S = limits.HEARTBEAT_S * limits.HEARTBEATS_MISSED


@dataclass(frozen=True, slots=True)
class Declared:
    """A status line came."""

    client: ClientId
    state: Presence
    boot: Boot


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat came."""

    client: ClientId
    boot: Boot


@dataclass(frozen=True, slots=True)
class Came:
    """A client is here, or here anew: what was sent to it before may be lost."""

    client: ClientId
    boot: Boot


@dataclass(frozen=True, slots=True)
class Left:
    """A client is away."""

    client: ClientId
    why: str  # "offline", "lost" or "silent"
    boot: Boot


@dataclass(slots=True)
class _Lease:
    boot: Boot
    until: Seconds | None  # None: away
    farewell: bool = False  # it said offline itself


class Attendance:
    """Keeps one lease per client."""

    def __init__(self) -> None:
        self._leases: dict[ClientId, _Lease] = {}

    def handle(self, event: Declared | Beat | Tick, now: Seconds) -> tuple[Came | Left, ...]:
        """Take in what was heard of a client."""
        match event:
            case Declared(client, Presence.ONLINE, boot):
                return tuple(self._online(client, boot, now))
            case Declared(client, state, boot):
                return tuple(self._gone(client, boot, state))
            case Beat(client, boot):
                return tuple(self._beat(client, boot, now))
            case Tick():
                return tuple(self._expire(now))

    def resume(self, client: ClientId, boot: Boot, now: Seconds) -> None:
        """Take a client for here that was here before a restart of ours: it has a lease to say so again."""
        self._leases[client] = _Lease(boot, now + LEASE_S)

    def wake_at(self) -> Seconds | None:
        """Say when the first lease is over."""
        return min((lease.until for lease in self._leases.values() if lease.until is not None), default=None)

    def here(self) -> tuple[ClientId, ...]:
        """List who is here, sorted."""
        return tuple(sorted(client for client, lease in self._leases.items() if lease.until is not None))

    def _online(self, client: ClientId, boot: Boot, now: Seconds) -> Iterator[Came | Left]:
        self._leases[client] = _Lease(boot, now + LEASE_S)
        yield Came(client, boot)

    def _gone(self, client: ClientId, boot: Boot, state: Presence) -> Iterator[Came | Left]:
        known = self._leases.get(client)
        if known is None or known.boot != boot:
            return
        was_here = known.until is not None
        known.until = None
        known.farewell = known.farewell or state is Presence.OFFLINE
        if was_here:
            yield Left(client, str(state), boot)

    def _beat(self, client: ClientId, boot: Boot, now: Seconds) -> Iterator[Came | Left]:
        known = self._leases.get(client)
        if known is None or known.boot != boot or known.farewell:
            return
        was_here = known.until is not None
        known.until = now + LEASE_S
        if not was_here:
            yield Came(client, boot)

    def _expire(self, now: Seconds) -> Iterator[Came | Left]:
        for client, lease in sorted(self._leases.items()):
            if lease.until is not None and lease.until <= now:
                lease.until = None
                yield Left(client, "silent", lease.boot)

"""Who is here, sans I/O: births, wills, heartbeats and leases.

    away --online, or a heartbeat of the boot that was lost--> here --offline | lease over--> away

Every online is passed on as `Came`, also of one who is here: it says so after each break of its link, and
what was sent to it before may be lost.
Laws: 1. A will or farewell of another boot than the last online one changes nothing: a late will cannot kill
a newer start. 2. A heartbeat overrides a `lost` of the same boot, never an `offline`. 3. Nobody is away
before the lease is over, unless it says so; a will cuts the lease short, for most links that break are back at once,
and a broker that is restarted may send everybody's will. 4. While our own link is down, no lease ends: they
begin anew with the link.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from common import limits
from common.bus import LinkDown, LinkUp
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


AttendanceEvent = Declared | Beat | LinkDown | LinkUp | Tick


@dataclass(slots=True)
class _Lease:
    boot: Boot
    until: Seconds | None  # None: away
    is_lost: bool = False  # its will came; it may be back in a moment
    farewell: bool = False  # it said offline itself


class Attendance:
    """Keeps one lease per client."""

    def __init__(self) -> None:
        self._leases: dict[ClientId, _Lease] = {}
        self._is_cut_off = False

    def handle(self, event: AttendanceEvent, now: Seconds) -> tuple[Came | Left, ...]:
        """Take in what was heard of a client."""
        match event:
            case Declared(client, Presence.ONLINE, boot):
                return tuple(self._online(client, boot, now))
            case Declared(client, Presence.LOST, boot):
                self._lost(client, boot, now)
            case Declared(client, _, boot):
                return tuple(self._gone(client, boot))
            case Beat(client, boot):
                return tuple(self._beat(client, boot, now))
            case LinkDown():
                self._is_cut_off = True
            case LinkUp():
                self._linked(now)
            case Tick():
                return tuple(self._expire(now))
        return ()

    def resume(self, client: ClientId, boot: Boot, now: Seconds) -> None:
        """Take a client for here that was here before a restart of ours: it has a lease to say so again."""
        self._leases[client] = _Lease(boot, now + LEASE_S)

    def wake_at(self) -> Seconds | None:
        """Say when the first lease is over."""
        if self._is_cut_off:
            return None
        return min((lease.until for lease in self._leases.values() if lease.until is not None), default=None)

    def here(self) -> tuple[ClientId, ...]:
        """List who is here, sorted."""
        return tuple(sorted(client for client, lease in self._leases.items() if lease.until is not None))

    def _online(self, client: ClientId, boot: Boot, now: Seconds) -> Iterator[Came | Left]:
        self._leases[client] = _Lease(boot, now + LEASE_S)
        yield Came(client, boot)

    def _lost(self, client: ClientId, boot: Boot, now: Seconds) -> None:
        known = self._leases.get(client)
        if known is not None and known.boot == boot and known.until is not None:
            known.until, known.is_lost = min(known.until, now + limits.LOST_GRACE_S), True

    def _gone(self, client: ClientId, boot: Boot) -> Iterator[Came | Left]:
        known = self._leases.get(client)
        if known is None or known.boot != boot:
            return
        was_here = known.until is not None
        known.until, known.farewell = None, True
        if was_here:
            yield Left(client, "offline", boot)

    def _beat(self, client: ClientId, boot: Boot, now: Seconds) -> Iterator[Came | Left]:
        known = self._leases.get(client)
        if known is None or known.boot != boot or known.farewell:
            return
        was_here = known.until is not None
        known.until, known.is_lost = now + LEASE_S, False
        if not was_here:
            yield Came(client, boot)

    def _linked(self, now: Seconds) -> None:
        self._is_cut_off = False
        for lease in self._leases.values():
            if lease.until is not None:
                lease.until = now + (limits.LOST_GRACE_S if lease.is_lost else LEASE_S)

    def _expire(self, now: Seconds) -> Iterator[Came | Left]:
        if self._is_cut_off:
            return
        for client, lease in sorted(self._leases.items()):
            if lease.until is not None and lease.until <= now:
                lease.until = None
                yield Left(client, "lost" if lease.is_lost else "silent", lease.boot)

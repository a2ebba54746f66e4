"""Which messages came before, sans I/O: a window over the numbers of each start of each key (RFC 4303, A.2).

A participant numbers what it says in envelopes; its numbers go on rising over its restarts (`common.voice`). Of one key
the last `STARTS_REMEMBERED` starts have a window each, so that two processes of one operator do not disturb each other.

Law: what is forgotten is refused: the numbers of a start that has no window any more are not above the highest that a
forgotten window had.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from common import limits
from common.ids import Boot


@dataclass(slots=True)
class _Start:
    highest: int
    floor: int  # nothing up to it is new: another window of this start may have been forgotten
    seen: int = 1  # bit n: the number n below the highest came


@dataclass(slots=True)
class _Key:
    starts: "OrderedDict[Boot, _Start]" = field(default_factory=OrderedDict)
    floor: int = -1  # a new start begins above


class Replays:
    """What has come from each key. Bounded by how many keys are known."""

    def __init__(self) -> None:
        self._keys: dict[bytes, _Key] = {}

    def is_new(self, kid: bytes, boot: Boot, sequence: int) -> bool:
        """Take a number in; tells whether it came for the first time."""
        key = self._keys.setdefault(kid, _Key())
        start = key.starts.get(boot)
        if start is None:
            return _begin(key, boot, sequence)
        key.starts.move_to_end(boot)
        ahead = sequence - start.highest
        if ahead > 0:
            start.highest = sequence
            kept = start.seen & ((1 << max(0, limits.REPLAY_WINDOW - ahead)) - 1)
            start.seen = kept << ahead | 1
            return True
        if sequence <= start.floor or -ahead >= limits.REPLAY_WINDOW or start.seen >> -ahead & 1:
            return False
        start.seen |= 1 << -ahead
        return True


def _begin(key: _Key, boot: Boot, sequence: int) -> bool:
    if sequence <= key.floor:
        return False
    key.starts[boot] = _Start(sequence, key.floor)
    if len(key.starts) > limits.STARTS_REMEMBERED:
        _, forgotten = key.starts.popitem(last=False)
        key.floor = max(key.floor, forgotten.highest)
    return True

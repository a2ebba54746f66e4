"""How often somebody may do something, sans I/O: a token bucket for each name."""

from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float  # seconds


class Rates:
    """At most `per_s` a second in the long run, and `burst` at once. Full buckets are forgotten when many are kept."""

    def __init__(self, per_s: float, burst: float, names_max: int = 65_536) -> None:
        self.per_s, self._burst, self._names_max = per_s, burst, names_max
        self._buckets: dict[str, _Bucket] = {}

    def allow(self, name: str, now: float) -> bool:
        """Take a token, if one is there."""
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self._names_max:
                self._forget_full(now)
            bucket = self._buckets[name] = _Bucket(self._burst, now)
        bucket.tokens = self._now(bucket, now)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _now(self, bucket: _Bucket, now: float) -> float:
        return min(self._burst, bucket.tokens + (now - bucket.at) * self.per_s)

    def _forget_full(self, now: float) -> None:
        self._buckets = {
            name: bucket for name, bucket in self._buckets.items() if self._now(bucket, now) < self._burst
        }

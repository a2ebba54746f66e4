"""What one broker bears: the limits of `common.limits`, as a value that tests may make smaller."""

from dataclasses import dataclass

from common import limits


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a broker; see `common.limits` for what each one means."""

    packet_bytes_max: int = limits.PACKET_BYTES_MAX
    packet_bytes_max_unknown: int = limits.PACKET_BYTES_MAX_UNKNOWN
    connect_s: float = limits.CONNECT_S
    handshake_s: float = limits.HANDSHAKE_S
    idle_s_max: float = limits.IDLE_S_MAX
    takeover_s: float = limits.TAKEOVER_S
    connections_max: int = limits.CONNECTIONS_MAX
    strangers_max: int = limits.STRANGERS_MAX
    sessions_max: int = limits.SESSIONS_MAX
    sessions_by_one_max: int = limits.SESSIONS_BY_ONE_MAX
    inbox_packets_max: int = limits.INBOX_PACKETS_MAX
    inbox_bytes_max: int = limits.INBOX_BYTES_MAX
    publishes_per_s_max: int = limits.PUBLISHES_PER_S_MAX
    published_bytes_per_s_max: int = limits.PUBLISHED_BYTES_PER_S_MAX
    outstanding_bytes_max: int = limits.OUTSTANDING_BYTES_MAX
    crowded_bytes: int = limits.CROWDED_BYTES
    crowded_s: float = limits.CROWDED_S
    subscriptions_max: int = limits.SUBSCRIPTIONS_MAX
    retained_messages_max: int = limits.RETAINED_MESSAGES_MAX
    retained_bytes_max: int = limits.RETAINED_BYTES_MAX
    retained_by_one_max: int = limits.RETAINED_BY_ONE_MAX
    retained_by_one_bytes_max: int = limits.RETAINED_BY_ONE_BYTES_MAX
    offline_messages_max: int = limits.OFFLINE_MESSAGES_MAX
    offline_bytes_max: int = limits.OFFLINE_BYTES_MAX
    session_expiry_s: int = limits.SESSION_EXPIRY_S


DEFAULT = Bounds()

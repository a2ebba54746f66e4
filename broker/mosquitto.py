"""Mosquitto's configuration and its ACL file, as text: the same rules that the embedded broker asks.

Mosquitto judges by user name. Patterns apply to every user, and those without `%u` to anonymous ones too; so
every role that is not a client denies what the clients' patterns would let it read, unless it writes there:
`deny` forbids both.
"""

from dataclasses import dataclass

from broker.rules import RULES, SELF, Role, covers
from common import limits


@dataclass(frozen=True, slots=True)
class Setup:
    """What the configuration depends on."""

    host: str
    port: int
    directory: str  # holds the ACL file, and the retained messages if they are to outlive the broker
    user: str | None = None  # to run as, where root starts it; it would change to another else
    ws_port: int | None = None
    persistent: bool = False
    observers: bool = True  # clients without a user name may read the JSON topics

    @property
    def acl_file(self) -> str:
        """Where `acl_text` belongs."""
        return f"{self.directory}/mosquitto.acl"


def conf_text(setup: Setup) -> str:
    """Write mosquitto.conf."""
    lines = [
        *([f"user {setup.user}"] if setup.user else []),
        f"acl_file {setup.acl_file}",
        "allow_zero_length_clientid true",
        "auto_id_prefix observer-",
        f"max_packet_size {limits.PACKET_BYTES_MAX}",
        f"max_inflight_messages {limits.BROKER_INFLIGHT_MAX}",
        f"max_queued_messages {limits.BROKER_QUEUED_MAX}",
        f"max_queued_bytes {limits.OUTSTANDING_BYTES_MAX}",
        f"persistent_client_expiration {limits.SESSION_EXPIRY_S // 3600}h",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        f"persistence {'true' if setup.persistent else 'false'}",
    ]
    if setup.persistent:
        lines += [f"persistence_location {setup.directory}/", f"autosave_interval {limits.BROKER_SAVE_S}"]
    lines += _listener(setup.host, setup.port)
    if setup.ws_port is not None:
        lines += [*_listener(setup.host, setup.ws_port), "protocol websockets"]
    return "\n".join(lines) + "\n"


def _listener(host: str, port: int) -> list[str]:
    return [f"listener {port} {host}", f"max_connections {limits.CONNECTIONS_MAX}", "allow_anonymous true"]


def acl_text(*, observers: bool = True) -> str:
    """Write the ACL file; its first section is for clients without a user name."""
    blocks = [_section(Role.OBSERVER, readable=observers)]
    blocks += [
        [f"user {role}", *_section(role)] for role in (Role.COORDINATOR, Role.OPERATOR, Role.DASHBOARD)
    ]
    rule = RULES[Role.CLIENT]
    blocks.append(
        [f"pattern write {row.replace(SELF, '%u')}" for row in rule.publish]
        + [f"pattern read {row.replace(SELF, '%u')}" for row in rule.read]
    )
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _section(role: Role, *, readable: bool = True) -> list[str]:
    rule = RULES[role]
    read = rule.read if readable else ()
    shared = [row for row in RULES[Role.CLIENT].read if SELF not in row]
    denied = [row for row in shared if not any(covers(allowed, row) for allowed in (*read, *rule.publish))]
    return (
        [f"topic write {row}" for row in rule.publish]
        + [f"topic read {row}" for row in read]
        + [f"topic deny {row}" for row in denied]
    )

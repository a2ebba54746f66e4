"""Mosquitto's configuration and its ACL file, as text: the same rules that the embedded broker asks.

Mosquitto judges by user name, which over TLS is the name in the certificate. Patterns apply to every user, and those
without `%u` to anonymous ones too; so every role that is not a client denies what the clients' patterns would let it
read, unless it writes there: `deny` forbids both.
"""

from dataclasses import dataclass

from broker.rules import RULES, SELF, Role, covers  # SELF is Mosquitto's own sign for the user
from common import limits


@dataclass(frozen=True, slots=True)
class Private:
    """What mutual TLS depends on: paths, and the port for newcomers."""

    root: str
    certificate: str
    key: str
    revoked: str | None = None  # the root's list, once there is one
    pairing_port: int | None = None


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
    private: Private | None = None

    @property
    def acl_file(self) -> str:
        """Where `acl_text` belongs."""
        return f"{self.directory}/mosquitto.acl"

    @property
    def pairing_acl_file(self) -> str:
        """Where `pairing_acl_text` belongs."""
        return f"{self.directory}/pairing.acl"


def conf_text(setup: Setup) -> str:
    """Write mosquitto.conf."""
    lines = [
        *([f"user {setup.user}"] if setup.user else []),
        "per_listener_settings true",  # newcomers have rules of their own
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
    lines += _listener(setup, setup.port)
    if setup.ws_port is not None:
        lines += [*_listener(setup, setup.ws_port), "protocol websockets"]
    if setup.private is not None and setup.private.pairing_port is not None:
        lines += _pairing_listener(setup, setup.private, setup.private.pairing_port)
    return "\n".join(lines) + "\n"


def _listener(setup: Setup, port: int) -> list[str]:
    lines = [
        f"listener {port} {setup.host}",
        f"max_connections {limits.CONNECTIONS_MAX}",
        f"acl_file {setup.acl_file}",
    ]
    if setup.private is None:
        return [
            *lines,
            "allow_anonymous true",
            "allow_zero_length_clientid true",
            "auto_id_prefix observer-",
        ]
    return [
        *lines,
        "allow_anonymous false",
        *_tls(setup.private),
        "require_certificate true",
        "use_identity_as_username true",
        *([f"crlfile {setup.private.revoked}"] if setup.private.revoked else []),
    ]


def _pairing_listener(setup: Setup, private: Private, port: int) -> list[str]:
    return [
        f"listener {port} {setup.host}",
        f"max_connections {limits.STRANGERS_MAX}",
        f"acl_file {setup.pairing_acl_file}",
        "allow_anonymous true",
        *_tls(private),
        "require_certificate false",
    ]


def _tls(private: Private) -> list[str]:
    return [
        f"cafile {private.root}",
        f"certfile {private.certificate}",
        f"keyfile {private.key}",
        "tls_version tlsv1.3",
    ]


def acl_text(*, observers: bool = True, newcomers: bool = True) -> str:
    """Write the ACL file; its first section is for clients without a user name.

    `newcomers`: who is being paired comes in by the same listener: there is no TLS.
    """
    blocks = [_section(Role.OBSERVER, readable=observers)]
    blocks += [
        [f"user {role}", *_section(role)]
        for role in (Role.COORDINATOR, Role.OPERATOR, Role.DASHBOARD, Role.BROKER)
    ]
    blocks += [_patterns(Role.CLIENT), _patterns(Role.NEWCOMER) if newcomers else []]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def pairing_acl_text() -> str:
    """Write the ACL file of the listener for newcomers."""
    return "\n".join(_patterns(Role.NEWCOMER)) + "\n"


def _patterns(role: Role) -> list[str]:
    rule = RULES[role]
    return [f"pattern write {row}" for row in rule.publish] + [f"pattern read {row}" for row in rule.read]


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

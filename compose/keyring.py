"""What `fedmq keys` and `fedmq clients` do: the federation's root, its certificates, and what it takes back."""

import getpass
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common import identity, keyfiles, keys, parts
from common.certificates import Peer, Role, Root
from common.errors import ConfigError, FedmqError, NotFoundError, UsageError
from common.identity import KeyType
from common.register import Issued, Register
from common.settings import Settings
from compose import operate


def role_of(text: str) -> Role:
    """Read a role as it is given on the command line. Raises: UsageError."""
    try:
        return Role(text)
    except ValueError:
        raise UsageError(f"no role is called {text!r}; there are: {', '.join(Role)}") from None


def passphrase(settings: Settings) -> bytes | None:
    """Get what opens the root's key: from its file, or from whoever sits at the terminal. Raises: ConfigError."""
    parts.require_keys(settings)
    given = parts.passphrase(settings)
    if given is None and identity.is_root_locked(parts.keys_dir(settings)) and sys.stdin.isatty():
        return getpass.getpass("passphrase of the root's key: ").encode()
    return given


def new_passphrase() -> bytes:
    """Have a passphrase chosen at the terminal. Raises: ConfigError."""
    if not sys.stdin.isatty():
        raise ConfigError(
            "there is no terminal to ask for a passphrase at",
            advice="Put it into a file, and name that with --passphrase-file.",
        )
    chosen = getpass.getpass("new passphrase: ").encode()
    if not chosen or chosen != getpass.getpass("once more: ").encode():
        raise ConfigError("the two are not the same, or empty", advice="Run the command again.")
    return chosen


def init(settings: Settings, secret: bytes | None) -> tuple[Root, bool]:
    """Make the root; tells whether it is new. Raises: ConfigError."""
    directory = parts.keys_dir(settings)
    is_new = not (directory / "root.pem").exists()
    root = identity.create_root(directory, settings.federation, KeyType(settings.key_type), secret)
    return root, is_new


def shown(settings: Settings, now: datetime) -> Iterator[dict[str, Any]]:
    """Tell what lies among the keys, and what the root has signed, by role and name. Raises: ConfigError."""
    parts.require_keys(settings)
    directory = parts.keys_dir(settings)
    root = identity.read_root(directory)
    revoked = identity.read_revocations(directory)
    yield {
        "event": "root",
        "federation": root.federation,
        "fingerprint": root.fingerprint,
        "key_type": keys.type_of(keys.usable(root.certificate.public_key())),
        "not_after": root.certificate.not_valid_after_utc.isoformat(),
        "state": "valid" if now <= root.certificate.not_valid_after_utc else "expired",
        "private_key": _private_key(directory, "root"),
        "revocations": revoked.number if revoked else 0,
        "directory": str(directory),
    }
    here = [identity.peer(directory, role, name) for role, name in identity.found(directory)]
    rows = {one.serial: _issued(one, here) for one in Register(directory).all()}
    for one in here:
        ends = rows[one.serial].ends if one.serial in rows else None
        private_key = _private_key(directory, f"{one.role}-{one.name}")
        rows[one.serial] = _Row(one.role, one.name, one.kid.hex(), one.not_after, private_key, ends)
    for serial, row in sorted(rows.items(), key=lambda item: (item[1].role, item[1].name)):
        is_revoked = revoked is not None and serial in revoked
        yield {
            "event": "certificate",
            "role": row.role,
            "name": row.name,
            "kid": row.kid,
            "not_after": row.not_after.isoformat(),
            "private_key": row.private_key,
            "ends": row.ends.isoformat() if row.ends else None,
            "state": "revoked" if is_revoked else _state(row, now),
        }


@dataclass(frozen=True, slots=True)
class _Row:
    """A certificate, as it is shown."""

    role: str
    name: str
    kid: str  # hex
    not_after: datetime
    private_key: str
    ends: datetime | None


def _issued(one: Issued, here: list[Peer]) -> _Row:
    """Put a certificate of the register into a row: its key is elsewhere, or a rotation here has replaced it."""
    is_replaced = one.ends is not None and (one.role, one.name) in [(peer.role, peer.name) for peer in here]
    return _Row(one.role, one.name, one.kid, one.not_after, "gone" if is_replaced else "elsewhere", one.ends)


def _state(row: _Row, now: datetime) -> str:
    if row.not_after < now:
        return "expired"
    return f"to be revoked on {row.ends:%Y-%m-%d}" if row.ends else "valid"


def _private_key(directory: Path, stem: str) -> str:
    path = directory / f"{stem}.key"
    if not path.exists():
        return "elsewhere"
    return "here, locked" if keyfiles.is_locked(path) else "here"


def lines(facts: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Put what was found into lines for people."""
    root = next(facts)
    yield f"federation {root['federation']}, {root['directory']}"
    yield f"root {root['fingerprint']}"
    yield f"     {root['key_type']}, private key {root['private_key']}, {_until(root)}"
    for one in facts:
        yield (
            f"{one['role']} {one['name']}: {one['state']}, private key {one['private_key']}, {_until(one)}, "
            f"kid {one['kid']}"
        )


def _until(facts: dict[str, Any]) -> str:
    return f"{'was valid' if facts['state'] == 'expired' else 'valid'} to {facts['not_after'][:10]}"


def export(settings: Settings, to: Path, role: Role | None, name: str) -> tuple[Path, ...]:
    """Copy the root's certificate, or all that a participant needs on its machine; returns what was written.

    Raises: ConfigError; NotFoundError where the participant's key is not here.
    """
    if role is None:
        parts.require_keys(settings)
    else:
        _require_key(settings, role, name)
    return identity.export(parts.keys_dir(settings), to, role, name)


def _require_key(settings: Settings, role: Role, name: str) -> None:
    """Make sure that a participant's key is here. Raises: ConfigError; NotFoundError, which tells what to do."""
    parts.require_keys(settings)
    directory = parts.keys_dir(settings)
    if identity.holds_key(directory, role, name):
        return
    advice = "Run this where it is; `fedmq keys show` lists what is here."
    is_known = any((one.role, one.name) == (role, name) for one in Register(directory).all())
    if is_known and role not in {Role.COORDINATOR, Role.BROKER}:  # those nobody can invite
        advice = (
            "It was made on another machine, and never leaves that. For a new key run "
            f"`fedmq pair invite --replace --role {role} --name {name}` here, and `fedmq pair join CODE` there."
        )
    raise NotFoundError(f"the private key of {role} {name} is not in {directory}", advice=advice)


def rotate(
    settings: Settings, role: Role, name: str, overlap_days: float, kind: str | None = None
) -> datetime:
    """Give a participant whose keys are here a new one; returns when the old one ends.

    `kind`: of the new key; None: that of the old one. Raises: FedmqError.
    """
    _require_key(settings, role, name)
    directory, overlap = parts.keys_dir(settings), timedelta(days=overlap_days)
    identity.rotate(
        directory,
        role,
        name,
        KeyType(kind) if kind else keys.type_of(identity.peer(directory, role, name).key),
        overlap,
        passphrase=parts.passphrase(settings),
        root_passphrase=passphrase(settings),
    )
    return datetime.now(UTC) + overlap


async def revoke(settings: Settings, role: Role, name: str, secret: bytes | None) -> str:
    """Take a participant's certificates back, and tell the federation; returns why it could not be told, if so.

    Raises: FedmqError where nothing was revoked.
    """
    directory = parts.keys_dir(settings)
    try:
        heard = await operate.revocations(settings)
    except FedmqError as error:
        identity.revoke(directory, role, name, secret)
        return str(error)
    made = identity.revoke(directory, role, name, secret, heard)
    await operate.publish_revocations(settings, made.pem)
    return ""

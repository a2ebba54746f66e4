"""What `fedmq keys` and `fedmq clients` do: the federation's root, its certificates, and what it takes back."""

import getpass
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from common import identity, keyfiles, keys, parts
from common.certificates import Role, Root
from common.errors import ConfigError, FedmqError, UsageError
from common.identity import KeyType
from common.register import Register
from common.revocations import Revocations
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


def shown(settings: Settings) -> Iterator[dict[str, object]]:
    """Tell what lies among the keys, and what the root has signed. Raises: ConfigError."""
    directory = parts.keys_dir(settings)
    root = identity.read_root(directory)
    revoked = identity.read_revocations(directory)
    yield {
        "event": "root",
        "federation": root.federation,
        "fingerprint": root.fingerprint,
        "key_type": keys.type_of(keys.usable(root.certificate.public_key())),
        "not_after": root.certificate.not_valid_after_utc.isoformat(),
        "private_key": _private_key(directory, "root"),
        "revocations": revoked.number if revoked else 0,
        "directory": str(directory),
    }
    here = {}
    for role, name in identity.found(directory):
        peer = identity.peer(directory, role, name)
        here[peer.serial] = {
            "role": role,
            "name": name,
            "kid": peer.kid.hex(),
            "not_after": peer.not_after.isoformat(),
            "private_key": _private_key(directory, f"{role}-{name}"),
        }
    issued = {
        one.serial: {
            "role": one.role,
            "name": one.name,
            "kid": one.kid,
            "not_after": one.not_after.isoformat(),
            "private_key": "elsewhere",
            "ends": one.ends.isoformat() if one.ends else None,
        }
        for one in Register(directory).all()
    }
    for serial in {**issued, **here}:
        state = _state(serial, revoked, issued.get(serial, {}).get("ends"))
        yield {"event": "certificate", **issued.get(serial, {}), **here.get(serial, {}), "state": state}


def _private_key(directory: Path, stem: str) -> str:
    path = directory / f"{stem}.key"
    if not path.exists():
        return "elsewhere"
    return "here, locked" if keyfiles.is_locked(path) else "here"


def _state(serial: int, revoked: Revocations | None, ends: object) -> str:
    if revoked is not None and serial in revoked:
        return "revoked"
    return f"to be revoked on {str(ends)[:10]}" if ends else "valid"


def lines(facts: Iterator[dict[str, object]]) -> Iterator[str]:
    """Put what was found into lines for people."""
    root = next(facts)
    yield f"federation {root['federation']}, {root['directory']}"
    yield f"root {root['fingerprint']}"
    yield f"     {root['key_type']}, private key {root['private_key']}, valid to {str(root['not_after'])[:10]}"
    for one in facts:
        yield (
            f"{one['role']} {one['name']}: {one['state']}, private key {one['private_key']}, "
            f"valid to {str(one['not_after'])[:10]}, kid {one['kid']}"
        )


def rotate(
    settings: Settings, role: Role, name: str, overlap_days: float, kind: str | None = None
) -> datetime:
    """Give a participant whose keys are here a new one; returns when the old one ends.

    `kind`: of the new key; None: that of the old one. Raises: FedmqError.
    """
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
    """Take a participant's certificates back, and tell the federation; returns what came of that.

    Raises: FedmqError where nothing was revoked.
    """
    directory = parts.keys_dir(settings)
    try:
        heard = await operate.revocations(settings)
    except FedmqError as error:
        identity.revoke(directory, role, name, secret)
        return f"not told yet ({error}): run this again when the broker can be reached, or restart the coordinator"
    made = identity.revoke(directory, role, name, secret, heard)
    await operate.publish_revocations(settings, made.pem)
    return "told to the federation"

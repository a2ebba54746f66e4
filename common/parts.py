"""What the coordinator and every client are put together from: identity, voice, link, store, data."""

import difflib
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from common import identity, tls
from common.blobs import BlobStore
from common.datasets import DataSpec
from common.errors import ConfigError, KeysMissingError
from common.identity import Identity, KeyType, Role
from common.ids import Boot, federation_id
from common.ingress import Ingress
from common.limits import BLOB_STORE_BYTES_MAX
from common.messages import Presence
from common.mqtt import Address, MqttLink, Will
from common.settings import Settings, default_keys, default_state, values
from common.tls import Files, Tls
from common.topics import Kind, Topics
from common.trust import TrustStore
from common.voice import Voice

BROKER_AT = "127.0.0.1:1883"  # where nothing else is known
BROKERS_FILE = "brokers.json"  # among the keys: what the pairing told


@dataclass(frozen=True, slots=True)
class Parts:
    """One participant's ways in and out, nothing connected yet."""

    state_dir: Path
    link: MqttLink
    voice: Voice
    ingress: Ingress
    store: BlobStore


def state_dir(settings: Settings, role: Role, name: str) -> Path:
    """Say where a participant keeps its state."""
    return settings.state_dir or default_state(settings.federation, role, name)


def keys_dir(settings: Settings) -> Path:
    """Say where the federation's keys are on this machine."""
    return settings.keys_dir or default_keys(settings.federation)


def require_keys(settings: Settings) -> None:
    """Make sure that this machine belongs to the federation. Raises: KeysMissingError, which tells of others."""
    directory = keys_dir(settings)
    if not (directory / "root.pem").exists():
        others = other_federations(settings)
        raise KeysMissingError(
            f"{directory} holds no root.pem: this machine has no keys of federation {settings.federation!r}"
            f"{'. ' if others else ''}{others}"
        )


def other_federations(settings: Settings) -> str:
    """Say which other federations this machine has keys of, and which may be meant; empty: there are none."""
    if settings.keys_dir is not None:
        return ""
    home = default_keys(settings.federation).parents[1]
    found = {path.parents[1].name for path in home.glob("*/keys/root.pem")} - {settings.federation}
    close = difflib.get_close_matches(settings.federation, sorted(found), 1)
    meant = f" Did you mean --federation {close[0]}?" if close else ""
    return f"There are keys of: {', '.join(sorted(found))}.{meant}" if found else ""


def passphrase(settings: Settings) -> bytes | None:
    """Read what opens private keys, if they are locked. Raises: ConfigError."""
    path = settings.passphrase_file
    if path is None:
        return None
    try:
        found = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if not found:
        raise ConfigError(f"{path} is empty: it is to hold the passphrase of private keys")
    return found


def member(settings: Settings, role: Role, name: str) -> Identity:
    """Read who we are in this federation. Raises: ConfigError, also for keys of another federation."""
    require_keys(settings)
    directory = keys_dir(settings)
    us = identity.load(directory, role, name, KeyType(settings.key_type), passphrase=passphrase(settings))
    if us.federation != settings.federation:
        raise ConfigError(
            f"{directory} holds keys of federation {us.federation!r}, not of {settings.federation!r}: "
            "pass --federation or --keys-dir"
        )
    return us


def trust(settings: Settings, us: Identity, state: Path | None = None) -> TrustStore:
    """Make the store of those whom we believe; it heeds the newest revocation list that is here."""
    lists = [
        found
        for directory in (keys_dir(settings), state)
        if directory is not None and (found := identity.read_revocations(directory, us.root)) is not None
    ]
    return TrustStore(us.root, revoked=max(lists, key=lambda one: one.number, default=None))


def pairing_port(port: int) -> int:
    """Say where newcomers come in if nothing else was said: the port after the one for everybody else; 0: any."""
    return port + 1 if port else 0


def addresses(settings: Settings) -> list[Address]:
    """Say where our broker is: as it was set, or as we were told when we were enrolled. Raises: ConfigError."""
    path = keys_dir(settings) / BROKERS_FILE
    told: list[str] = [BROKER_AT]
    try:
        if settings.link.brokers is None and path.exists():
            told = [str(one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", advice="Say with --broker where it is.") from error
    return [Address.parse(text) for text in settings.link.brokers or told]


def link(
    settings: Settings, us: Identity, trust: TrustStore, name: str, will: Will | None = None
) -> MqttLink:
    """Make a link for one of our names to our broker. Raises: ConfigError."""
    found = addresses(settings)
    directory = keys_dir(settings)
    ours: Tls | None = None
    if any(address.tls for address in found):
        pair = Files.of(directory, us.role, us.name)
        ours = tls.to_broker(pair, directory / "root.pem", trust, passphrase(settings))
    client_id = f"{name}-{secrets.token_hex(16)}"  # nobody can guess it, and so take the connection over
    return MqttLink(found, client_id, will=will, username=name, tls=ours)


def assemble(settings: Settings, role: Role, name: str, *, epoch: int = 0, first: int | None = None) -> Parts:
    """Make a participant of its keys and settings. Raises: ConfigError, RevokedError.

    It heeds no coordinator below `epoch`, and numbers what it says from `first` on.
    """
    federation = federation_id(settings.federation)
    directory, topics = state_dir(settings, role, name), Topics(federation)
    us = member(settings, role, name)
    known = trust(settings, us, directory)
    known.admit(us.certificate_der)  # nobody would hear us, were it revoked
    voice = Voice(us, topics, Boot(secrets.token_hex(8)), first=first)
    status = (
        topics.coordinator(Kind.COORDINATOR_STATUS)
        if role is Role.COORDINATOR
        else topics.client(name, Kind.STATUS)
    )
    will = Will(status, voice.line(status, voice.status(Presence.LOST)))
    return Parts(
        directory,
        link(settings, us, known, name, will),
        voice,
        Ingress(federation, known, epoch, boot=voice.boot, clock=time.monotonic),
        BlobStore(directory, BLOB_STORE_BYTES_MAX),
    )


def data_spec(settings: Settings) -> DataSpec:
    """Say which examples there are, and who holds them."""
    data = settings.data
    return DataSpec(
        name=data.dataset,
        data_dir=data.data_dir,
        scheme=data.effective_partition,
        seed=settings.seed,
        test_share=data.test_share,
        max_examples=data.max_examples,
        options=data.options,
    )


def shown(settings: Settings) -> dict[str, str | int | float | bool | None]:
    """List the settings for everybody to see, by dotted names; what is no scalar as JSON."""
    return {
        name: json.dumps(value) if isinstance(value, dict | list) else value
        for name, value in values(settings).items()
    }

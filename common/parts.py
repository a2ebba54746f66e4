"""What the coordinator and every client are put together from: identity, voice, link, store, data."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from common import identity
from common.blobs import BlobStore
from common.datasets import DataSpec
from common.errors import ConfigError
from common.identity import Identity, Role, TrustStore
from common.ids import Boot, federation_id
from common.ingress import Ingress
from common.limits import BLOB_STORE_BYTES_MAX
from common.messages import Presence
from common.mqtt import Address, MqttLink, Will
from common.settings import Settings, default_keys, default_state, values
from common.topics import Kind, Topics
from common.voice import Voice


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


def member(settings: Settings, role: Role, name: str) -> Identity:
    """Read who we are in this federation. Raises: ConfigError, also for keys of another federation."""
    directory = keys_dir(settings)
    us = identity.load(directory, role, name)
    if us.federation != settings.federation:
        raise ConfigError(
            f"{directory} holds keys of federation {us.federation!r}, not of {settings.federation!r}: "
            "pass --federation or --keys-dir"
        )
    return us


def assemble(settings: Settings, role: Role, name: str, *, epoch: int = 0) -> Parts:
    """Make a participant of its keys and settings; it heeds no coordinator below `epoch`. Raises: ConfigError."""
    federation = federation_id(settings.federation)
    directory, topics = state_dir(settings, role, name), Topics(federation)
    us = member(settings, role, name)
    voice = Voice(us, topics, Boot(secrets.token_hex(8)))
    status = (
        topics.coordinator(Kind.COORDINATOR_STATUS)
        if role is Role.COORDINATOR
        else topics.client(name, Kind.STATUS)
    )
    will = Will(status, voice.line(status, voice.status(Presence.LOST)))
    brokers = [Address.parse(text) for text in settings.link.brokers]
    return Parts(
        directory,
        MqttLink(brokers, _client_id(role, name, voice.boot), will=will, username=name),
        voice,
        Ingress(federation, TrustStore(us.root), epoch),
        BlobStore(directory, BLOB_STORE_BYTES_MAX),
    )


def _client_id(role: Role, name: str, boot: Boot) -> str:
    """Name the connection: a second coordinator must come in, to hear of the first, and not cut it off."""
    return f"{name}-{boot}" if role is Role.COORDINATOR else name


def data_spec(settings: Settings) -> DataSpec:
    """Say which examples there are, and who holds them."""
    data = settings.data
    return DataSpec(
        name=data.dataset,
        data_dir=data.data_dir,
        scheme=data.partition,
        alpha=data.alpha,
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

"""Puts a broker together from settings: which engine, where, and with whose certificate."""

import socket

from broker.engine import BrokerPolicy, Private
from common import identity, parts
from common.errors import ConfigError
from common.identity import KeyType, Role
from common.ids import BROKER
from common.mqtt import is_loopback
from common.settings import Settings, default_state
from common.tls import Files


def policy_of(settings: Settings) -> BrokerPolicy:
    """Say which broker to run. Raises: ConfigError, also for one that anybody in reach could use."""
    chosen = settings.broker
    directory = settings.state_dir or default_state(settings.federation, "broker", chosen.engine)
    tls = not is_loopback(chosen.host) and not chosen.insecure if chosen.tls is None else chosen.tls
    if chosen.tls and chosen.insecure:
        raise ConfigError("--tls and --insecure exclude each other")
    if not tls and not is_loopback(chosen.host) and not chosen.insecure:
        raise ConfigError(
            f"without TLS anybody who can reach {chosen.host} could read and disturb all that passes",
            advice="Leave out --no-tls; or say --insecure, in a network that you trust.",
        )
    return BrokerPolicy(
        chosen.engine,
        chosen.host,
        chosen.port,
        chosen.ws_port,
        directory,
        _private(settings) if tls else None,
    )


def _private(settings: Settings) -> Private:
    """Take the broker's certificate, or make it where the root's key is."""
    parts.require_keys(settings)
    chosen, directory = settings.broker, parts.keys_dir(settings)
    passphrase = parts.passphrase(settings)
    us = identity.load(
        directory,
        Role.BROKER,
        BROKER,
        KeyType(settings.key_type),
        hosts=chosen.hosts or _hosts(chosen.host),
        passphrase=passphrase,
    )
    state = settings.state_dir or default_state(settings.federation, "broker", chosen.engine)
    return Private(
        us,
        Files.of(directory, Role.BROKER, BROKER),
        directory / "root.pem",
        parts.trust(settings, us, state),
        passphrase,
        state,
        pairing_port_of(settings) if chosen.pairing else None,
    )


def pairing_port_of(settings: Settings) -> int:
    """Say where newcomers come in: the port after the one for everybody else, unless another was chosen."""
    chosen = settings.broker
    return parts.pairing_port(chosen.port) if chosen.pairing_port is None else chosen.pairing_port


def _hosts(host: str) -> tuple[str, ...]:
    """Guess by which names this machine is reached: `mosquitto_sub --cafile root.pem` compares them."""
    here = [host] if host not in {"0.0.0.0", "::"} else [socket.gethostname()]  # noqa: S104 - compared, not bound
    return tuple(dict.fromkeys((*here, "localhost", "127.0.0.1", "::1")))

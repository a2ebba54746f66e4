"""Mutual TLS between participants and their broker: both show a certificate of the federation's root.

TLS 1.3 only: certificates do not travel in the clear. The broker's name is not compared with its host's, for that may
change: its certificate has the role broker, which the root gives to nobody else.
"""

import hashlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm

from common import certificates, keyfiles, keys
from common.certificates import Role
from common.errors import ConfigError, SignatureError
from common.trust import TrustStore

Check = Callable[[bytes], None]  # takes the broker's certificate, DER; raises SignatureError


@dataclass(frozen=True, slots=True)
class Tls:
    """What a link needs to speak to its broker in private."""

    context: ssl.SSLContext
    check: Check


@dataclass(frozen=True, slots=True)
class Files:
    """A key pair on disk."""

    certificate: Path
    key: Path

    @classmethod
    def of(cls, directory: Path, role: Role, name: str) -> "Files":
        """Say where a participant's pair is among the keys."""
        return cls(directory / f"{role}-{name}.pem", directory / f"{role}-{name}.key")


def to_broker(ours: Files, root: Path, trust: TrustStore, passphrase: bytes | None = None) -> Tls:
    """Show our certificate, and take none but a broker's. Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    _load(context, ours, root, passphrase)

    def check(certificate_der: bytes) -> None:
        peer = trust.admit(certificate_der)
        if peer.role is not Role.BROKER:
            raise SignatureError(f"{peer.role} {peer.name} poses as the broker")

    return Tls(context, check)


def pinned(spki: bytes) -> Tls:
    """Show nothing, and take the broker whose key has this SHA-256: so a newcomer comes to be enrolled."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # instead of a chain, the key itself

    def check(certificate_der: bytes) -> None:
        if spki_hash(certificate_der) != spki:
            raise SignatureError("the broker's key is not the one that the invitation names")

    return Tls(context, check)


def of_broker(
    ours: Files, root: Path, passphrase: bytes | None = None, *, mutual: bool = True
) -> ssl.SSLContext:
    """Listen with the broker's certificate; `mutual`: to those only who show one. Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # each connection shows its certificate anew: it may have been revoked
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    _load(context, ours, root, passphrase)
    return context


def spki_hash(certificate_der: bytes) -> bytes:
    """Name the key of a certificate by its SHA-256. Raises: SignatureError."""
    try:
        public = keys.usable(certificates.read(certificate_der).public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError("the broker's certificate is malformed") from error
    return hashlib.sha256(keys.spki_of(public)).digest()


def _load(context: ssl.SSLContext, ours: Files, root: Path, passphrase: bytes | None) -> None:
    try:
        password = keyfiles.password_of(ours.key, ours.key.read_bytes(), passphrase)
        context.load_cert_chain(ours.certificate, ours.key, password or _ask_nobody)
        context.load_verify_locations(root)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{ours.certificate} with {ours.key.name} cannot be used for TLS: {error}"
        ) from error


def _ask_nobody() -> str:
    """Keep OpenSSL from asking on the terminal."""
    return ""

"""Who we are, and whom we know: keys and certificates on disk, and the peers that the root vouches for.

    <keys>/root.key           the root's private key, where it lives on this machine
    <keys>/root.pem           the root's certificate
    <keys>/<role>-<id>.key    a participant's private key
    <keys>/<role>-<id>.pem    its certificate

Laws: 1. What is here is readable by its owner only. 2. A key is on disk before its certificate, so that a
certificate means a usable pair, after a crash too. 3. Who makes files here holds the lock: processes that
start together agree on one root, and on one key each.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from common import certificates, files, ids, keys, limits
from common.certificates import Peer, Role, Root
from common.errors import ConfigError, KeysMissingError, SignatureError
from common.ids import FederationId
from common.keys import KeyType, PrivateKey

__all__ = [
    "Identity",
    "KeyType",
    "Peer",
    "Role",
    "Root",
    "TrustStore",
    "create_root",
    "issue",
    "load",
    "read_root",
    "read_root_file",
]

_ROOT = "root"


@dataclass(frozen=True, slots=True)
class Identity:
    """Ourselves: what we sign with, and the certificate that lets others check it."""

    name: str
    role: Role
    federation: FederationId
    kid: bytes
    certificate_der: bytes
    root: Root
    key: PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Sign bytes under our kid."""
        return keys.sign(self.key, data)


class TrustStore:
    """The peers of one federation: admitted by certificate, then known by kid."""

    def __init__(self, root: Root, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.root = root
        self._clock = clock
        self._peers: dict[bytes, Peer] = {}

    def admit(self, certificate_der: bytes) -> Peer:
        """Check a certificate against the root and remember whose it is; again is normal.

        Raises: SignatureError naming what is wrong with it.
        """
        peer = certificates.check(self.root, certificate_der, self._clock())
        known = self._peers.get(peer.kid)
        if known is None and len(self._peers) >= limits.PEERS_MAX:
            raise SignatureError(f"no room for {peer.name}: {limits.PEERS_MAX} peers are known already")
        if known is not None and (known.role, known.name) != (peer.role, peer.name):
            raise SignatureError(f"the key of {peer.role} {peer.name} is that of {known.role} {known.name}")
        self._peers[peer.kid] = peer
        return peer

    def by_kid(self, kid: bytes) -> Peer | None:
        """Find an admitted peer whose certificate is still in date."""
        peer = self._peers.get(kid)
        return peer if peer is not None and self._clock() <= peer.not_after else None


def create_root(directory: Path, federation: str, kind: KeyType = KeyType.RSA) -> Root:
    """Make the federation's root, or return the one that is there. Raises: ConfigError."""
    named = ids.federation_id(federation)
    with _locked(directory):
        if not _pem(directory, _ROOT).exists():
            key = keys.generate(kind)
            _write_pair(directory, _ROOT, key, certificates.make_root(key, named, datetime.now(UTC)))
        root = read_root(directory)
    if root.federation != named:
        raise ConfigError(
            f"{directory} holds the root of federation {root.federation!r}, not of {federation!r}"
        )
    return root


def read_root(directory: Path) -> Root:
    """Read the root's certificate. Raises: ConfigError."""
    return read_root_file(_pem(directory, _ROOT))


def read_root_file(path: Path) -> Root:
    """Read a root's certificate, wherever it was copied to. Raises: ConfigError."""
    try:
        return certificates.read_root(_read_certificate(path))
    except SignatureError as error:
        raise ConfigError(f"{path}: {error}") from error


def issue(directory: Path, role: Role, name: str, kind: KeyType = KeyType.RSA) -> Identity:
    """Make a participant's key and certificate, or return those that are there. Raises: ConfigError."""
    if not certificates.may_be_called(role, name):
        raise ConfigError(f"a {role} cannot be called {name!r}")
    with _locked(directory):
        root = read_root(directory)
        if not _pem(directory, f"{role}-{name}").exists():
            root_key = _read_key(_key(directory, _ROOT))
            key = keys.generate(kind)
            made = certificates.make(
                root, root_key, key.public_key(), role=role, name=name, now=datetime.now(UTC)
            )
            _write_pair(directory, f"{role}-{name}", key, made)
        return _read_identity(directory, root, role, name)


def load(directory: Path, role: Role, name: str, kind: KeyType = KeyType.RSA) -> Identity:
    """Read who we are; where the root's key is at hand, make it first. Raises: ConfigError."""
    stem = f"{role}-{name}"
    if _pem(directory, stem).exists():
        return _read_identity(directory, read_root(directory), role, name)
    if _key(directory, _ROOT).exists():
        return issue(directory, role, name, kind)
    raise KeysMissingError(
        f"{directory} holds no key of {role} {name}: copy {stem}.key, {stem}.pem and root.pem there, "
        f"as made by `fedmq keys issue {role} {name}` where the federation's root lives"
    )


def _read_identity(directory: Path, root: Root, role: Role, name: str) -> Identity:
    path = _pem(directory, f"{role}-{name}")
    certificate_der = certificates.der(_read_certificate(path))
    key = _read_key(_key(directory, f"{role}-{name}"))
    try:
        peer = certificates.check(root, certificate_der, datetime.now(UTC))
    except SignatureError as error:
        raise ConfigError(f"{path}: {error}") from error
    if (peer.role, peer.name) != (role, name):
        raise ConfigError(f"{path} is the certificate of {peer.role} {peer.name}")
    if peer.kid != keys.kid_of(key.public_key()):
        raise ConfigError(f"{path} does not belong to the key beside it")
    return Identity(name, role, root.federation, peer.kid, certificate_der, root, key)


# --- files ----------------------------------------------------------------------------------------


def _key(directory: Path, stem: str) -> Path:
    return directory / f"{stem}.key"


def _pem(directory: Path, stem: str) -> Path:
    return directory / f"{stem}.pem"


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, which the system drops with the process. Raises: ConfigError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ConfigError(f"cannot keep keys in {directory}: {error.strerror}") from error


def _write_pair(directory: Path, stem: str, key: PrivateKey, certificate: x509.Certificate) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files.replace(_key(directory, stem), secret)
    files.replace(_pem(directory, stem), certificate.public_bytes(serialization.Encoding.PEM))


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no certificate") from error


def _read_key(path: Path) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        keys.usable(key.public_key())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, SignatureError) as error:
        raise ConfigError(f"{path} is no private key of ours") from error
    assert isinstance(key, PrivateKey)  # the public half is usable
    return key

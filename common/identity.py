"""Who we are: keys and certificates on disk, and what the root's key signs for others.

    <keys>/root.key           the root's private key, where it lives on this machine
    <keys>/root.pem           the root's certificate
    <keys>/issued.jsonl       what the root has signed, beside its key
    <keys>/crl.pem            what it has taken back
    <keys>/<role>-<id>.key    a participant's private key
    <keys>/<role>-<id>.pem    its certificate

Laws: 1. What is here is readable by its owner only. 2. A key is on disk before its certificate, so that a
certificate means a usable pair, after a crash too. 3. Who makes files here holds the lock: processes that
start together agree on one root, and on one key each.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from common import certificates, files, ids, keyfiles, keys, revocations
from common.certificates import Peer, Role, Root
from common.errors import ConfigError, KeysMissingError, NotFoundError, SignatureError
from common.ids import FederationId
from common.keys import KeyType, PrivateKey, PublicKey
from common.register import Register
from common.revocations import Revocations

__all__ = ["Identity", "KeyType", "Peer", "Role", "Root"]

_ROOT = "root"
CRL_FILE = "crl.pem"


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


# --- the root -------------------------------------------------------------------------------------


def create_root(
    directory: Path, federation: str, kind: KeyType = KeyType.RSA, passphrase: bytes | None = None
) -> Root:
    """Make the federation's root, or return the one that is there. Raises: ConfigError."""
    named = ids.federation_id(federation)
    with _locked(directory):
        if not _pem(directory, _ROOT).exists():
            key = keys.generate(kind)
            keyfiles.write_key(_key(directory, _ROOT), key, passphrase)
            keyfiles.write_certificate(
                _pem(directory, _ROOT), certificates.make_root(key, named, datetime.now(UTC))
            )
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
        return certificates.read_root(keyfiles.read_certificate(path))
    except SignatureError as error:
        raise ConfigError(f"{path}: {error}") from error


def holds_root_key(directory: Path) -> bool:
    """Tell whether certificates can be signed here."""
    return _key(directory, _ROOT).exists()


def root_identity(directory: Path, passphrase: bytes | None = None) -> Identity:
    """Read the root as one who signs messages: an invitation is answered in its name. Raises: ConfigError."""
    root, key = read_root(directory), _root_key(directory, passphrase)
    der = certificates.der(root.certificate)
    return Identity(_ROOT, Role.OPERATOR, root.federation, keys.kid_of(key.public_key()), der, root, key)


def is_root_locked(directory: Path) -> bool:
    """Tell whether the root's key needs a passphrase."""
    return keyfiles.is_locked(_key(directory, _ROOT))


# --- participants ---------------------------------------------------------------------------------


def issue(
    directory: Path,
    role: Role,
    name: str,
    kind: KeyType = KeyType.RSA,
    *,
    hosts: Sequence[str] = (),
    passphrase: bytes | None = None,
    root_passphrase: bytes | None = None,
) -> Identity:
    """Make a participant's key and certificate, or return those that are there. Raises: ConfigError.

    `passphrase` locks the new key, and opens the root's unless that has one of its own.
    """
    with _locked(directory):
        _take_up(directory, f"{role}-{name}")
        if not _pem(directory, f"{role}-{name}").exists():
            key = keys.generate(kind)
            made = _vouch(directory, role, name, key.public_key(), root_passphrase or passphrase, hosts)
            keyfiles.write_key(_key(directory, f"{role}-{name}"), key, passphrase)
            keyfiles.write_certificate(_pem(directory, f"{role}-{name}"), made)
        return _read_identity(directory, read_root(directory), role, name, passphrase)


def vouch(
    directory: Path,
    role: Role,
    name: str,
    public: PublicKey,
    passphrase: bytes | None = None,
    *,
    overlap: timedelta | None = None,
) -> x509.Certificate:
    """Sign a certificate for somebody else's key.

    `overlap`: how long certificates that this name has already count beside it; None: it may have none, unless those of
    its role share a name.
    Raises: ConfigError.
    """
    with _locked(directory):
        if overlap is None and not role.is_shared and Register(directory).of(role, name, datetime.now(UTC)):
            raise ConfigError(f"{role} {name} has a certificate already")
        made = _vouch(directory, role, name, public, passphrase)
        if overlap is not None:
            _supersede(directory, made, role, name, overlap)
        return made


def require_room(directory: Path) -> None:
    """Make sure that keys can be kept here, before anybody is asked for a certificate. Raises: ConfigError."""
    with _locked(directory):
        pass


def install(
    directory: Path,
    root: x509.Certificate,
    certificate: x509.Certificate,
    key: PrivateKey,
    passphrase: bytes | None = None,
) -> Identity:
    """Keep a key of ours with the certificate that it was given. Raises: ConfigError, also for another root's."""
    try:
        found = certificates.read_root(root)
        peer = certificates.check(found, certificates.der(certificate), datetime.now(UTC))
    except SignatureError as error:
        raise ConfigError(f"the certificate cannot be used: {error}") from error
    with _locked(directory):
        there = _pem(directory, _ROOT)
        if there.exists() and read_root(directory).certificate != root:
            raise ConfigError(
                f"{there} is another root than the one that enrolled us",
                advice="A federation's root never changes. Use another --keys-dir, or ask who runs the federation.",
            )
        keyfiles.write_certificate(there, root)
        _write_pair(directory, f"{peer.role}-{peer.name}", key, certificate, passphrase)
        return _read_identity(directory, found, peer.role, peer.name, passphrase)


def load(
    directory: Path,
    role: Role,
    name: str,
    kind: KeyType = KeyType.RSA,
    *,
    hosts: Sequence[str] = (),
    passphrase: bytes | None = None,
    root_passphrase: bytes | None = None,
) -> Identity:
    """Read who we are; where the root's key is at hand, make it first. Raises: ConfigError."""
    stem = f"{role}-{name}"
    _mend(directory, stem)
    if _pem(directory, stem).exists():
        return _read_identity(directory, read_root(directory), role, name, passphrase)
    if holds_root_key(directory):
        return issue(
            directory,
            role,
            name,
            kind,
            hosts=hosts,
            passphrase=passphrase,
            root_passphrase=root_passphrase,
        )
    raise KeysMissingError(f"{directory} holds no key of {role} {name}")


def found(directory: Path) -> tuple[tuple[Role, str], ...]:
    """List whose keys are here, sorted."""
    stems = (path.stem.partition("-") for path in sorted(directory.glob("*-*.pem")))
    return tuple(
        (Role(role), name)
        for role, _, name in stems
        if role in list(Role)
        and certificates.may_be_called(Role(role), name)  # else it is half of a rotation
        and _key(directory, f"{role}-{name}").exists()
    )


def holds_key(directory: Path, role: Role, name: str) -> bool:
    """Tell whether a participant's private key and certificate are here. Raises: ConfigError."""
    _mend(directory, f"{role}-{name}")
    return all(path(directory, f"{role}-{name}").exists() for path in (_key, _pem))


def peer(directory: Path, role: Role, name: str) -> Peer:
    """Read what a participant's certificate here says. Raises: ConfigError."""
    path = _pem(directory, f"{role}-{name}")
    certificate = keyfiles.read_certificate(path)
    try:
        return certificates.check(
            read_root(directory), certificates.der(certificate), certificate.not_valid_before_utc
        )
    except SignatureError as error:
        raise ConfigError(f"{path}: {error}") from error


def export(directory: Path, target: Path, role: Role | None = None, name: str = "") -> tuple[Path, ...]:
    """Copy the root's certificate, or all that a participant needs on its machine; returns what was written.

    Raises: ConfigError.
    """
    names = [f"{_ROOT}.pem"]
    if role is not None:
        _mend(directory, f"{role}-{name}")
        names = [f"{role}-{name}.key", f"{role}-{name}.pem", *names]
    if (directory / CRL_FILE).exists():
        names.append(CRL_FILE)
    try:
        data = [(directory / one).read_bytes() for one in names]
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for one, content in zip(names, data, strict=True):
            files.replace(target / one, content)
    except OSError as error:
        raise ConfigError(f"cannot copy {error.filename}: {error.strerror}") from error
    return tuple(target / one for one in names)


def rotate(
    directory: Path,
    role: Role,
    name: str,
    kind: KeyType,
    overlap: timedelta,
    *,
    passphrase: bytes | None = None,
    root_passphrase: bytes | None = None,
) -> Identity:
    """Give a participant a new key; the certificates it had are revoked when the overlap is over.

    Raises: ConfigError; NotFoundError where there is nothing to be replaced.
    """
    stem = f"{role}-{name}"
    with _locked(directory):
        _take_up(directory, stem)
        if not _pem(directory, stem).exists():
            raise NotFoundError(
                f"{directory} holds no certificate of {role} {name}",
                advice="Run this where its keys are; `fedmq keys show` lists what is here.",
            )
        hosts = certificates.hosts_of(keyfiles.read_certificate(_pem(directory, stem)))
        key = keys.generate(kind)
        made = _vouch(directory, role, name, key.public_key(), root_passphrase or passphrase, hosts)
        _write_pair(directory, stem, key, made, passphrase)
        _supersede(directory, made, role, name, overlap)
        return _read_identity(directory, read_root(directory), role, name, passphrase)


def _supersede(
    directory: Path, certificate: x509.Certificate, role: Role, name: str, overlap: timedelta
) -> None:
    register, now = Register(directory), datetime.now(UTC)
    for one in register.of(role, name, now):
        if one.serial != certificate.serial_number:
            register.end(one.serial, now + overlap)


# --- revocation -----------------------------------------------------------------------------------


def revoke(
    directory: Path,
    role: Role,
    name: str,
    passphrase: bytes | None = None,
    heard: Revocations | None = None,
) -> Revocations:
    """Take back all certificates of a participant.

    `heard`: the list that the federation has now; another copy of the root's key may have signed it.
    Raises: ConfigError; NotFoundError where it has none. Nothing is revoked then.
    """
    with _locked(directory):
        _root_key(directory, passphrase)  # first of all: whoever cannot open it revokes nothing
        register, now = Register(directory), datetime.now(UTC)
        known = [one for one in register.all() if (one.role, one.name) == (role, name)]
        if not known:
            raise NotFoundError(
                f"the root in {directory} has signed no certificate of {role} {name}",
                advice="`fedmq keys show` lists those that it has.",
            )
        for one in known:
            if one.ends is None or one.ends > now:
                register.end(one.serial, now)
        return _sign_revocations(directory, passphrase, heard)


def refresh_revocations(directory: Path, passphrase: bytes | None = None) -> Revocations | None:
    """Sign a new list where certificates have come to their end since the last; returns the one in force.

    Raises: ConfigError.
    """
    known = read_revocations(directory)
    if not holds_root_key(directory) or _is_all_told(directory, known):
        return known
    with _locked(directory):
        return _sign_revocations(directory, passphrase)


def _is_all_told(directory: Path, known: Revocations | None) -> bool:
    due = Register(directory).ended(datetime.now(UTC))
    return due.keys() <= (known.at if known else {}).keys()


def read_revocations(directory: Path, root: Root | None = None) -> Revocations | None:
    """Read the revocation list that lies there, if one does. Raises: ConfigError."""
    path = directory / CRL_FILE
    try:
        return revocations.read(root or read_root(directory), path.read_bytes()) if path.exists() else None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except SignatureError as error:
        raise ConfigError(f"{path}: {error}") from error


def keep_revocations(directory: Path, pem: bytes) -> None:
    """Keep a list that was heard, so that no older one is heeded after a restart. Raises: StorageError."""
    path = directory / CRL_FILE
    with files.said_plainly():
        if path.exists() and revocations.number_of(path.read_bytes()) >= revocations.number_of(pem):
            return  # two came at once, and the newer one was faster
        files.replace(path, pem)


def _sign_revocations(
    directory: Path, passphrase: bytes | None, heard: Revocations | None = None
) -> Revocations:
    """Sign a list of all that any list before it says, and of what has come to its end since."""
    before = [one for one in (read_revocations(directory), heard) if one is not None]
    now = datetime.now(UTC)
    at: dict[int, datetime] = {}
    for one in before:
        at |= one.at
    made = revocations.make(
        read_root(directory),
        _root_key(directory, passphrase),
        max((one.number for one in before), default=0) + 1,
        {**at, **Register(directory).ended(now)},
        now,
    )
    files.replace(directory / CRL_FILE, made.pem)
    return made


# --- files ----------------------------------------------------------------------------------------


def _vouch(  # noqa: PLR0917 - all of a certificate
    directory: Path,
    role: Role,
    name: str,
    public: PublicKey,
    passphrase: bytes | None,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    if not certificates.may_be_called(role, name):
        raise ConfigError(f"no {role} can be called {name!r}")
    if hosts and role is not Role.BROKER:
        raise ConfigError(f"only a broker's certificate names hosts, not that of {role.with_article}")
    root, key = read_root(directory), _root_key(directory, passphrase)
    made = certificates.make(root, key, public, role=role, name=name, now=datetime.now(UTC), hosts=hosts)
    Register(directory).add(root, made)  # before anybody has it, so that it can be revoked
    return made


def _root_key(directory: Path, passphrase: bytes | None) -> PrivateKey:
    path = _key(directory, _ROOT)
    if not path.exists():
        raise ConfigError(
            f"{directory} does not hold the root's private key",
            advice="Run this where the federation's root lives, or say with --keys-dir where it is.",
        )
    return keyfiles.read_key(path, passphrase)


def _read_identity(directory: Path, root: Root, role: Role, name: str, passphrase: bytes | None) -> Identity:
    stem = f"{role}-{name}"
    path = _pem(directory, stem)
    certificate_der = certificates.der(keyfiles.read_certificate(path))
    key = keyfiles.read_key(_key(directory, stem), passphrase)
    try:
        peer = certificates.check(root, certificate_der, datetime.now(UTC))
    except SignatureError as error:
        raise ConfigError(f"{path}: {error}", advice=error.advice) from error
    if (peer.role, peer.name) != (role, name):
        raise ConfigError(f"{path} is the certificate of {peer.role} {peer.name}")
    if peer.kid != keys.kid_of(key.public_key()):
        raise ConfigError(f"{path} does not belong to the key beside it")
    return Identity(name, role, root.federation, peer.kid, certificate_der, root, key)


def _write_pair(
    directory: Path, stem: str, key: PrivateKey, certificate: x509.Certificate, passphrase: bytes | None
) -> None:
    """Write a key and its certificate over those that may be there."""
    _take_up(directory, stem)
    keyfiles.write_key(_key(directory, f"{stem}.new"), key, passphrase)
    # From here on a crash leaves either pair whole, once what was left is taken up.
    keyfiles.write_certificate(_pem(directory, f"{stem}.new"), certificate)
    _take_up(directory, stem)


def _mend(directory: Path, stem: str) -> None:
    """Take up what a crash has left of a new pair. Raises: ConfigError."""
    if _pem(directory, f"{stem}.new").exists():
        with _locked(directory):
            _take_up(directory, stem)


def _take_up(directory: Path, stem: str) -> None:
    """Let a new pair replace the old one: its certificate goes last, and until it has gone this is done again."""
    new = _pem(directory, f"{stem}.new")
    if new.exists():
        data = _key(directory, f"{stem}.new")
        if data.exists():
            data.replace(_key(directory, stem))
        new.replace(_pem(directory, stem))
        files.sync_directory(directory)


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

"""Certificates: what the federation's root says about a participant, written and checked.

An X.509 certificate holds the id as CN and the SAN URI fedmq://<federation>/<role>/<id>; the root's own holds
fedmq://<federation>. The same certificate serves mutual TLS and signed messages. What the root has taken back stands
in `revocations`.

Laws: 1. Nothing in a certificate is believed before the root's signature on it holds. 2. What a participant
may be called follows from its role: the access rules at the broker go by the name alone. 3. Only a broker's
certificate is one of a TLS server: no other participant can pose as the broker.
"""

import ipaddress
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common import ids, keys, limits
from common.errors import OutOfDateError, SignatureError
from common.ids import FederationId
from common.keys import PrivateKey, PublicKey

_SCHEME = "fedmq"
_CLOCK_SKEW = timedelta(days=1)
# A certificate that the library merely complains of, as one with a negative serial number, is malformed to us
warnings.filterwarnings("error", category=CryptographyDeprecationWarning, module=__name__.replace(".", r"\."))

_COMMON_NAME_MAX = 64  # characters, RFC 5280 appendix A


class Role(StrEnum):
    """What a participant is in the federation; its certificate says so."""

    COORDINATOR = "coordinator"
    CLIENT = "client"
    OPERATOR = "operator"
    DASHBOARD = "dashboard"
    BRIDGE = "bridge"
    BROKER = "broker"

    @property
    def is_shared(self) -> bool:
        """Tell whether all of this role share one name, each with a key of its own."""
        return self in {Role.OPERATOR, Role.DASHBOARD}

    @property
    def with_article(self) -> str:
        """Say a client, an operator."""
        return f"{'an' if self is Role.OPERATOR else 'a'} {self}"


@dataclass(frozen=True, slots=True)
class Root:
    """The federation's certificate authority, as everybody knows it."""

    federation: FederationId
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        """Name the root for people to compare, in readable groups with check digits."""
        return keys.fingerprint(der(self.certificate))


@dataclass(frozen=True, slots=True)
class Peer:
    """A participant, as vouched for by the root."""

    name: str
    role: Role
    kid: bytes
    serial: int
    not_after: datetime
    key: PublicKey = field(repr=False)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Tell whether this peer signed these bytes."""
        return keys.verify(self.key, signature, data)


def may_be_called(role: Role, name: str) -> bool:
    """Tell whether this role may have this name."""
    if not ids.is_name(name):
        return False
    match role:
        case Role.COORDINATOR:
            return name == ids.COORDINATOR
        case Role.OPERATOR:
            return name == ids.OPERATOR
        case Role.CLIENT:
            return ids.is_client_name(name)
        case Role.DASHBOARD:
            return name == ids.DASHBOARD
        case Role.BRIDGE:
            return name.startswith("bridge-")
        case Role.BROKER:
            return name == ids.BROKER or name.startswith(f"{ids.BROKER}-")


def der(certificate: x509.Certificate) -> bytes:
    """Write a certificate as bytes."""
    return certificate.public_bytes(serialization.Encoding.DER)


def read(certificate_der: bytes) -> x509.Certificate:
    """Read a certificate, whoever signed it. Raises: SignatureError."""
    try:
        return x509.load_der_x509_certificate(certificate_der)
    except (ValueError, x509.InvalidVersion, CryptographyDeprecationWarning) as error:
        raise SignatureError(f"the certificate is malformed: {error}") from error


def make_root(key: PrivateKey, federation: FederationId, now: datetime) -> x509.Certificate:
    """Sign the federation's own certificate."""
    name = _common_name(f"fedmq root of {federation}"[:_COMMON_NAME_MAX])
    return (
        _builder(name, key.public_key(), f"{_SCHEME}://{federation}", now, limits.ROOT_DAYS)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(key, hash_for(key))
    )


def read_root(certificate: x509.Certificate) -> Root:
    """Read whose root this is. Raises: SignatureError."""
    federation = (_uri(certificate) or "").removeprefix(f"{_SCHEME}://")
    if not ids.is_name(federation):
        raise SignatureError("this is not the certificate of a federation's root")
    return Root(FederationId(federation), certificate)


def make(
    root: Root,
    root_key: PrivateKey,
    key: PublicKey,
    *,
    role: Role,
    name: str,
    now: datetime,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Sign a participant's certificate with the root's key; `hosts`: where a broker is reached."""
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role is Role.BROKER:
        usage.append(ExtendedKeyUsageOID.SERVER_AUTH)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    uri = f"{_SCHEME}://{root.federation}/{role}/{name}"
    return (
        _builder(_common_name(name), key, uri, now, limits.CERTIFICATE_DAYS, hosts=hosts)
        .issuer_name(root.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(issuer, critical=False)
        .sign(root_key, hash_for(root_key))
    )


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """List the hosts that a broker's certificate names."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *map(str, addresses))


def check(root: Root, certificate_der: bytes, now: datetime) -> Peer:
    """Check all that a participant's certificate claims. Raises: SignatureError naming what is wrong."""
    certificate = read(certificate_der)
    try:
        certificate.verify_directly_issued_by(root.certificate)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = keys.usable(certificate.public_key())
    except InvalidSignature as error:
        raise SignatureError("the certificate is not signed by this federation's root") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"the certificate is malformed, or of another root: {error}") from error
    name = str(names[0].value) if len(names) == 1 else ""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= now <= end:
        raise OutOfDateError(
            f"the certificate of {name!r} is valid {start:%Y-%m-%d} to {end:%Y-%m-%d}, not on {now:%Y-%m-%d}"
        )
    uri = _uri(certificate)
    for role in Role:
        if uri == f"{_SCHEME}://{root.federation}/{role}/{name}" and may_be_called(role, name):
            return Peer(name, role, keys.kid_of(key), certificate.serial_number, end, key)
    raise SignatureError(
        f"the certificate of {name!r} is for {uri!r}, nobody in federation {root.federation!r}"
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    name: x509.Name, public: PublicKey, uri: str, now: datetime, days: int, *, hosts: Sequence[str] = ()
) -> x509.CertificateBuilder:
    names = [x509.UniformResourceIdentifier(uri), *map(_host, hosts)]
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def hash_for(key: PrivateKey) -> SHA256 | None:
    """Choose the hash that X.509 signs with: Ed25519 has its own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()


def _uri(certificate: x509.Certificate) -> str | None:
    """Read the only URI among the subject alternative names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 else None

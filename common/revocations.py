"""What the federation's root has taken back: an X.509 CRL (RFC 5280 §5), as PEM text on a retained topic and on disk.

Laws: 1. Nothing is believed before the root's signature on it holds. 2. Each list has a higher number than the one
before; whoever has seen one takes no older one. 3. A list is whole: what a newer one leaves out is valid again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from common import limits
from common.certificates import Root, hash_for
from common.errors import SignatureError
from common.keys import PrivateKey

_SKEW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Revocations:
    """One list."""

    number: int
    at: Mapping[int, datetime]  # serial number -> since when
    pem: bytes

    def __contains__(self, serial: int) -> bool:
        """Tell whether a certificate was taken back."""
        return serial in self.at


def make(
    root: Root, root_key: PrivateKey, number: int, at: Mapping[int, datetime], now: datetime
) -> Revocations:
    """Sign a list with the root's key."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.certificate.subject)
        .last_update(now - _SKEW)  # the clocks of those who read it may be slow
        .next_update(now + timedelta(days=limits.ROOT_DAYS))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False
        )
    )
    for serial, since in sorted(at.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        builder = builder.add_revoked_certificate(entry)
    signed = builder.sign(root_key, hash_for(root_key))
    return Revocations(number, dict(at), signed.public_bytes(serialization.Encoding.PEM))


def read(root: Root, pem: bytes) -> Revocations:
    """Read a list that this root signed. Raises: SignatureError."""
    if len(pem) > limits.REVOCATIONS_BYTES_MAX:
        raise SignatureError(
            f"a revocation list of {len(pem)} bytes exceeds the limit of {limits.REVOCATIONS_BYTES_MAX}"
        )
    try:
        found = x509.load_pem_x509_crl(pem)
        _require_signed(root, found)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        at = {entry.serial_number: entry.revocation_date_utc for entry in found}
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.ExtensionNotFound,
    ) as error:
        raise SignatureError(f"no revocation list: {error}") from error
    return Revocations(number, at, pem)


def number_of(pem: bytes) -> int:
    """Read the number of a list that was checked before; 0 where it is none any more."""
    try:
        found = x509.load_pem_x509_crl(pem)
        return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound):
        return 0


def _require_signed(root: Root, found: x509.CertificateRevocationList) -> None:
    signed = found.is_signature_valid(root.certificate.public_key())  # type: ignore[arg-type]  # what it is, `keys` says
    if not signed or found.issuer != root.certificate.subject:
        raise SignatureError("the revocation list is not signed by this federation's root")

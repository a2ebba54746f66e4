"""Revocation lists: written and read again, believed from the root alone, and heeded in their order."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from common import certificates, keys, limits, revocations
from common.certificates import Role
from common.errors import ForkedError, OutOfDateError, RevokedError, SignatureError
from common.ids import FederationId
from common.keys import KeyType
from common.trust import TrustStore

NOW = datetime.now(UTC).replace(microsecond=0)


def authority():
    """A root that lives in memory: its key, and what everybody knows of it."""
    key = keys.generate(KeyType.ED25519)
    return key, certificates.read_root(certificates.make_root(key, FederationId("lab"), NOW))


ROOT_KEY, ROOT = authority()


def listed(number: int, *serials: int, root=ROOT, key=ROOT_KEY) -> bytes:
    return revocations.make(root, key, number, dict.fromkeys(serials, NOW), NOW).pem


def certified(name: str = "c1", role: Role = Role.CLIENT) -> bytes:
    public = keys.generate(KeyType.ED25519).public_key()
    return certificates.der(certificates.make(ROOT, ROOT_KEY, public, role=role, name=name, now=NOW))


def serial_of(certificate: bytes) -> int:
    return x509.load_der_x509_certificate(certificate).serial_number


# --- one list -------------------------------------------------------------------------------------

moments = st.integers(0, 10**8).map(lambda seconds: NOW - timedelta(seconds=seconds))


@given(st.integers(0, 2**63), st.dictionaries(st.integers(1, 2**159 - 1), moments, max_size=5))
def test_what_was_written_is_read_again(number, at):
    made = revocations.make(ROOT, ROOT_KEY, number, at, NOW)
    read = revocations.read(ROOT, made.pem)
    assert (read.number, read.at, read.pem) == (number, at, made.pem)
    assert all(serial in read for serial in at)
    assert 2**159 not in read


def test_a_list_is_an_ordinary_crl_that_is_valid_for_those_whose_clock_is_slow():
    found = x509.load_pem_x509_crl(listed(3, 7))
    assert found.issuer == ROOT.certificate.subject
    assert found.last_update_utc < NOW < found.next_update_utc
    named = found.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert named == x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT_KEY.public_key())


def test_a_list_of_another_root_is_nothing_though_it_has_the_same_name():
    key, other = authority()
    assert other.certificate.subject == ROOT.certificate.subject
    with pytest.raises(SignatureError, match="not signed by this federation's root"):
        revocations.read(ROOT, listed(1, 7, root=other, key=key))


def test_a_list_that_the_root_signed_for_another_issuer_is_nothing():
    _, other = authority()
    foreign = certificates.read_root(
        certificates.make_root(keys.generate(KeyType.ED25519), FederationId("other"), NOW)
    )
    assert revocations.read(ROOT, listed(1, root=other)).number == 1  # the name and the key are what counts
    with pytest.raises(SignatureError, match="not signed by this federation's root"):
        revocations.read(ROOT, listed(1, root=foreign))


def test_a_list_without_a_number_is_nothing():
    unnumbered = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ROOT.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + timedelta(days=1))
        .sign(ROOT_KEY, None)
    )
    with pytest.raises(SignatureError, match="no revocation list"):
        revocations.read(ROOT, unnumbered.public_bytes(serialization.Encoding.PEM))


def test_a_list_beyond_the_limit_is_not_looked_at(monkeypatch):
    pem = listed(1, 7)
    monkeypatch.setattr(limits, "REVOCATIONS_BYTES_MAX", len(pem) - 1)
    with pytest.raises(SignatureError, match=f"{len(pem)} bytes exceeds the limit"):
        revocations.read(ROOT, pem)
    monkeypatch.setattr(limits, "REVOCATIONS_BYTES_MAX", len(pem))
    assert revocations.read(ROOT, pem).number == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_a_signature_error(data):
    for pem in (data, b"-----BEGIN X509 CRL-----\n%s-----END X509 CRL-----\n" % base64.encodebytes(data)):
        with pytest.raises(SignatureError):
            revocations.read(ROOT, pem)


DER = x509.load_pem_x509_crl(listed(3, 7, 77)).public_bytes(serialization.Encoding.DER)
COVERED = (
    DER.index(b"\x03\x41\x00") + 3
)  # what stands before the signature is all signed, but for its own form


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.integers(0, len(DER) - 1), st.integers(1, 255))
def test_a_list_with_a_flipped_byte_is_refused_whatever_has_become_of_it(at, flip):
    """Also one with two numbers, or of a version that there is not: anybody can send it."""
    spoilt = bytearray(DER)
    spoilt[at] ^= flip
    pem = b"-----BEGIN X509 CRL-----\n%s-----END X509 CRL-----\n" % base64.encodebytes(spoilt)
    if at == COVERED - 1:  # how many bits of the signature's last byte count
        return
    with pytest.raises(SignatureError):
        revocations.read(ROOT, pem)


@pytest.mark.parametrize(
    ("found", "becomes"),
    [
        (b"\x02\x01\x01\x30\x05", b"\x02\x01\x7f\x30\x05"),  # version 128
        (b"\x06\x03\x55\x1d\x23", b"\x06\x03\x55\x1d\x14"),  # two numbers
    ],
    ids=["version", "numbers"],
)
def test_a_list_that_no_reader_expects_is_refused_and_raises_nothing_else(found, becomes):
    assert DER.count(found) == 1
    odd = base64.encodebytes(DER.replace(found, becomes))
    with pytest.raises(SignatureError):
        revocations.read(ROOT, b"-----BEGIN X509 CRL-----\n%s-----END X509 CRL-----\n" % odd)


# --- who is believed ------------------------------------------------------------------------------


def test_who_is_on_the_list_is_not_admitted_and_not_found():
    mine, other = certified("c1"), certified("c2")
    store = TrustStore(ROOT)
    kid, other_kid = store.admit(mine).kid, store.admit(other).kid
    assert store.revoke(listed(1, serial_of(mine)))
    for ask in (lambda: store.find(kid), lambda: store.admit(mine)):
        with pytest.raises(RevokedError, match=f"client c1 was revoked on {NOW:%Y-%m-%d}"):
            ask()
    assert store.find(other_kid).name == "c2"
    assert store.is_revoked(kid)
    assert not store.is_revoked(other_kid)
    assert not store.is_revoked(b"nobody")


def test_a_list_that_was_there_at_the_start_counts_from_the_start():
    mine = certified()
    known = revocations.read(ROOT, listed(4, serial_of(mine)))
    store = TrustStore(ROOT, revoked=known)
    with pytest.raises(RevokedError):
        store.admit(mine)
    with pytest.raises(OutOfDateError):
        store.revoke(listed(3))


def test_an_older_list_is_refused_the_same_is_no_news_and_a_newer_one_replaces_it():
    mine = certified()
    store = TrustStore(ROOT)
    kid = store.admit(mine).kid
    assert store.revoke(listed(0))  # the first one, whatever its number
    assert store.revoke(listed(5, serial_of(mine)))
    assert not store.revoke(listed(5, serial_of(mine)))
    with pytest.raises(ForkedError, match="two revocation lists 5"):
        store.revoke(listed(5))
    assert store.is_revoked(kid)
    with pytest.raises(OutOfDateError, match="list 4 is older than the known one, 5"):
        store.revoke(listed(4))
    assert store.is_revoked(kid)
    assert store.revoke(listed(6))
    assert store.find(kid).name == "c1"  # a list is whole: what it leaves out is valid again


def test_a_foreign_list_changes_nothing():
    key, other = authority()
    mine = certified()
    store = TrustStore(ROOT)
    kid = store.admit(mine).kid
    with pytest.raises(SignatureError):
        store.revoke(listed(9, serial_of(mine), root=other, key=key))
    assert store.revoked is None
    assert store.find(kid).name == "c1"


def test_one_of_two_certificates_of_a_client_can_be_revoked():
    first, second = certified("c1"), certified("c1")
    store = TrustStore(ROOT)
    kids = [store.admit(one).kid for one in (first, second)]
    assert not store.has_revoked("c1")
    store.revoke(listed(1, serial_of(first)))
    assert [store.is_revoked(kid) for kid in kids] == [True, False]
    assert store.has_revoked("c1")
    assert not store.has_revoked("c2")
    assert [store.revokes(one) for one in (first, second)] == [True, False]


def test_whether_a_certificate_is_revoked_is_known_of_those_that_were_never_introduced():
    mine = certified()
    store = TrustStore(ROOT)
    assert not store.revokes(mine)
    store.revoke(listed(1, serial_of(mine)))
    assert store.revokes(mine)
    assert not store.has_revoked("c1")
    assert not store.knows(b"anybody")


# --- what is no certificate -----------------------------------------------------------------------

CERTIFICATE = certified()


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.integers(0, len(CERTIFICATE) - 1), st.integers(1, 255))
def test_a_certificate_with_a_flipped_byte_is_refused_whatever_has_become_of_it(at, flip):
    spoilt = bytearray(CERTIFICATE)
    spoilt[at] ^= flip
    if at == CERTIFICATE.rindex(b"\x03\x41\x00") + 2:  # likewise
        return
    with pytest.raises(SignatureError):
        certificates.check(ROOT, bytes(spoilt), NOW)


def test_a_certificate_of_a_version_that_there_is_not_is_malformed():
    odd = CERTIFICATE.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x7f")
    assert odd != CERTIFICATE
    for read in (lambda: certificates.read(odd), lambda: certificates.check(ROOT, odd, NOW)):
        with pytest.raises(SignatureError, match="malformed"):
            read()

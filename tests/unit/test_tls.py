"""Who shakes hands with whom, in memory: two contexts, and what each knows of the other afterwards."""

import hashlib
import ssl

import pytest
from cryptography.hazmat.primitives import serialization

from common import certificates, identity, keyfiles, keys, tls
from common.errors import ConfigError, RevokedError, SignatureError
from common.identity import KeyType, Role
from common.tls import Files
from common.trust import TrustStore
from support.federation import member, root

WORDS = b"open sesame"


@pytest.fixture
def home(tmp_path):
    """Where the keys of the federation "lab" are."""
    member(tmp_path, Role.BROKER, "broker")
    member(tmp_path, Role.CLIENT, "c1")
    return tmp_path


def files(home, role=Role.CLIENT, name="c1"):
    return Files.of(home, role, name)


def of_broker(home, role=Role.BROKER, name="broker", **about):
    return tls.of_broker(files(home, role, name), home / "root.pem", **about)


def to_broker(home, trust=None):
    return tls.to_broker(files(home), home / "root.pem", trust or TrustStore(root(home)))


def shake(ours: ssl.SSLContext, theirs: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let a client's context and a broker's shake hands. Raises: ssl.SSLError for either of them."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, broker = ours.wrap_bio(down, up), theirs.wrap_bio(up, down, server_side=True)
    waiting = [client, broker]
    for _ in range(10):
        for one in tuple(waiting):
            try:
                one.do_handshake()
                waiting.remove(one)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    return client, broker


def shown(one: ssl.SSLObject) -> bytes | None:
    return one.getpeercert(binary_form=True)


def test_both_show_their_certificates_and_speak_tls_1_3(home):
    link = to_broker(home)
    client, broker = shake(link.context, of_broker(home))
    assert client.version() == broker.version() == "TLSv1.3"
    assert shown(broker) == member(home, Role.CLIENT, "c1").certificate_der
    assert shown(client) == member(home, Role.BROKER, "broker").certificate_der
    link.check(shown(client))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_nobody_speaks_an_older_version(home, version):
    for ours, theirs in (
        (to_broker(home).context, of_broker(home)),
        (tls.pinned(b"").context, of_broker(home, mutual=False)),
    ):
        for one in (ours, theirs):
            assert one.minimum_version is ssl.TLSVersion.TLSv1_3
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = version
        with pytest.raises(ssl.SSLError):
            shake(old, theirs)


def test_a_client_cannot_pose_as_the_broker(home):
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(to_broker(home).context, of_broker(home, Role.CLIENT, "c1"))


def test_whoever_is_no_broker_is_found_out_by_its_role_too(home):
    for role, name in ((Role.CLIENT, "c1"), (Role.COORDINATOR, "coordinator")):
        with pytest.raises(SignatureError, match=f"{role} {name} poses as the broker"):
            to_broker(home).check(member(home, role, name).certificate_der)


def test_a_broker_of_another_root_is_not_spoken_to(home, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    theirs = member(elsewhere, Role.BROKER, "broker")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(to_broker(home).context, of_broker(elsewhere))
    with pytest.raises(SignatureError, match="not signed by this federation's root"):
        to_broker(home).check(theirs.certificate_der)


def test_a_broker_that_was_revoked_is_not_spoken_to(home):
    made = identity.revoke(home, Role.BROKER, "broker")
    link = to_broker(home, TrustStore(root(home), revoked=made))
    with pytest.raises(RevokedError):
        link.check(keyed(home))


def keyed(home) -> bytes:
    return certificates.der(keyfiles.read_certificate(home / "broker-broker.pem"))


def test_a_broker_lets_nobody_in_who_shows_nothing_or_what_another_root_signed(home, tmp_path_factory):
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        shake(nobody, of_broker(home))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    member(elsewhere, Role.CLIENT, "c1")
    stranger = to_broker(elsewhere).context
    stranger.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        shake(stranger, of_broker(home))


def test_a_newcomer_shows_nothing_and_takes_the_key_that_it_was_told_of(home):
    us = member(home, Role.BROKER, "broker")
    spki = us.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    link = tls.pinned(hashlib.sha256(spki).digest())
    client, broker = shake(link.context, of_broker(home, mutual=False))
    assert shown(broker) is None
    link.check(shown(client))
    assert tls.spki_hash(shown(client)) == hashlib.sha256(spki).digest()
    with pytest.raises(SignatureError, match="not the one that the invitation names"):
        link.check(member(home, Role.CLIENT, "c1").certificate_der)


@pytest.mark.parametrize("der", [b"", b"nonsense"])
def test_what_is_no_certificate_has_no_key(der):
    with pytest.raises(SignatureError, match="malformed"):
        tls.spki_hash(der)


def test_a_certificate_with_a_key_or_a_version_that_nobody_knows_has_no_key(home):
    der = member(home, Role.BROKER, "broker").certificate_der
    version, algorithm = b"\xa0\x03\x02\x01", b"\x30\x2a\x30\x05\x06\x03\x2b\x65"
    assert der.count(version) == der.count(algorithm) == 1
    for odd in (
        der.replace(version + b"\x02", version + b"\x7f"),
        der.replace(algorithm, algorithm[:-1] + b"\x64"),
    ):
        with pytest.raises(SignatureError):
            tls.spki_hash(odd)


def test_no_connection_is_taken_up_without_showing_a_certificate_anew(home):
    assert of_broker(home).num_tickets == 0


def test_a_locked_key_is_opened_by_its_passphrase_and_nobody_is_asked_for_it(tmp_path):
    identity.create_root(tmp_path, "lab", KeyType.ED25519, WORDS)
    identity.issue(tmp_path, Role.CLIENT, "c1", KeyType.ED25519, passphrase=WORDS)
    trust = TrustStore(identity.read_root(tmp_path))
    tls.to_broker(files(tmp_path), tmp_path / "root.pem", trust, WORDS)
    for passphrase in (None, b"wrong"):
        with pytest.raises(ConfigError):
            tls.to_broker(files(tmp_path), tmp_path / "root.pem", trust, passphrase)
    by_openssl = keys.generate(KeyType.ED25519).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(WORDS),
    )
    files(tmp_path).key.write_bytes(by_openssl)
    with pytest.raises(ConfigError, match="cannot be used for TLS"):
        tls.to_broker(files(tmp_path), tmp_path / "root.pem", trust)


@pytest.mark.parametrize("missing", ["client-c1.key", "client-c1.pem", "root.pem"])
def test_a_file_that_is_missing_is_a_configuration_error(home, missing):
    trust = TrustStore(root(home))
    (home / missing).unlink()
    with pytest.raises(ConfigError, match="cannot be used for TLS"):
        to_broker(home, trust)


def test_a_key_that_is_not_the_certificates_is_refused(home):
    member(home, Role.CLIENT, "c2")
    (home / "client-c1.key").write_bytes((home / "client-c2.key").read_bytes())
    with pytest.raises(ConfigError, match=r"client-c1\.pem with client-c1\.key cannot be used"):
        to_broker(home)

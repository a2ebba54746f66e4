"""Keys and certificates on disk, and whom the trust store lets in."""

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from common import certificates, identity, keys, limits
from common.errors import ConfigError, KeysMissingError, OutOfDateError, SignatureError
from common.identity import KeyType, Role
from common.ids import FederationId
from common.trust import TrustStore

NOW = datetime.now(UTC)
DEMO = FederationId("demo")


@pytest.fixture(scope="session")
def rsa_key():
    return keys.generate(KeyType.RSA)


@pytest.fixture
def home(tmp_path):
    """A directory with the root of the federation "demo"."""
    identity.create_root(tmp_path, "demo", KeyType.ED25519)
    return tmp_path


def issued(directory, role=Role.CLIENT, name="client-1"):
    return identity.issue(directory, role, name, KeyType.ED25519)


def authority(federation=DEMO):
    """A root that lives in memory: its key, and what everybody knows of it."""
    key = keys.generate(KeyType.ED25519)
    return key, certificates.read_root(certificates.make_root(key, federation, NOW))


def vouched(root, root_key, public, *, role=Role.CLIENT, name="client-1", now=NOW):
    return certificates.der(certificates.make(root, root_key, public, role=role, name=name, now=now))


@pytest.mark.parametrize("role", Role)
def test_what_an_identity_signs_its_admitted_peer_verifies(home, role):
    name = {"client": "client-1", "bridge": "bridge-1"}.get(role, str(role))
    mine = issued(home, role, name)
    store = TrustStore(identity.read_root(home))
    peer = store.admit(mine.certificate_der)
    assert (peer.name, peer.role, peer.kid) == (name, role, mine.kid)
    assert mine.federation == "demo"
    assert store.find(mine.kid) is peer
    assert peer.verify(mine.sign(b"words"), b"words")
    assert not peer.verify(mine.sign(b"words"), b"other words")


def test_rsa_is_the_default_and_works_end_to_end(tmp_path):
    root = identity.create_root(tmp_path, "demo")
    mine = identity.issue(tmp_path, Role.CLIENT, "client-1")
    assert isinstance(mine.key, rsa.RSAPrivateKey)
    assert mine.key.key_size == 2048
    signature = mine.sign(b"words")
    assert len(signature) == 256
    assert TrustStore(root).admit(mine.certificate_der).verify(signature, b"words")


def test_kid_is_the_start_of_the_digest_of_the_public_key_info():
    key = keys.generate(KeyType.ED25519).public_key()
    prefix = bytes.fromhex("302a300506032b6570032100")  # RFC 8410, section 4
    assert keys.kid_of(key) == hashlib.sha256(prefix + key.public_bytes_raw()).digest()[:16]


def test_a_public_key_is_read_from_its_one_spelling(rsa_key):
    for key in (rsa_key, keys.generate(KeyType.ED25519)):
        public = key.public_key()
        assert keys.read_spki(keys.spki_of(public)) == public
        assert type(keys.generate(keys.type_of(public))) is type(key)
    named = keys.spki_of(rsa_key.public_key())
    with_null, without = (
        bytes.fromhex("300d06092a864886f70d0101010500"),
        bytes.fromhex("300b06092a864886f70d010101"),
    )
    other = b"\x30\x82" + (len(named) - 6).to_bytes(2, "big") + named[4:].replace(with_null, without)
    for spki in (other, named + b"\0", named[:-1], b""):
        with pytest.raises(SignatureError, match=r"form that it has in DER|no public key"):
            keys.read_spki(spki)
    with pytest.raises(SignatureError, match="neither RSA nor Ed25519"):
        keys.read_spki(keys.spki_of(ec.generate_private_key(ec.SECP256R1()).public_key()))


def test_only_pss_with_a_salt_of_32_bytes_verifies(rsa_key):
    public = rsa_key.public_key()
    mgf = padding.MGF1(SHA256())
    assert keys.verify(public, keys.sign(rsa_key, b"x"), b"x")
    for other in (padding.PSS(mgf, 20), padding.PSS(mgf, padding.PSS.MAX_LENGTH), padding.PKCS1v15()):
        assert not keys.verify(public, rsa_key.sign(b"x", other, SHA256()), b"x")
    for garbage in (b"", b"\0" * 256, b"\xff" * 300, keys.sign(keys.generate(KeyType.ED25519), b"x")):
        assert not keys.verify(public, garbage, b"x")


def test_an_rsa_signature_means_nothing_to_an_ed25519_key(rsa_key):
    public = keys.generate(KeyType.ED25519).public_key()
    assert not keys.verify(public, keys.sign(rsa_key, b"x"), b"x")
    assert not keys.verify(public, b"", b"x")


def test_short_odd_and_foreign_keys_are_refused():
    short = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    for key in (short, rsa.generate_private_key(3, 2048)):
        with pytest.raises(SignatureError, match="RSA key"):
            keys.usable(key.public_key())
    with pytest.raises(SignatureError, match="neither RSA nor Ed25519"):
        keys.usable(ec.generate_private_key(ec.SECP256R1()).public_key())


def test_issue_twice_gives_the_same_key_and_load_finds_it(home):
    first = issued(home)
    assert issued(home).certificate_der == first.certificate_der
    assert identity.load(home, Role.CLIENT, "client-1").certificate_der == first.certificate_der


def test_private_keys_are_for_their_owner_only(tmp_path):
    directory = tmp_path / "keys"
    identity.create_root(directory, "demo", KeyType.ED25519)
    issued(directory)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.glob("*.key")}
    assert modes == {"root.key": 0o600, "client-client-1.key": 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_processes_that_start_together_agree_on_one_root_and_one_key(tmp_path):
    def start(_):
        root = identity.create_root(tmp_path, "demo", KeyType.ED25519)
        return root.fingerprint, issued(tmp_path).kid

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(start, range(8)))) == 1


def test_a_crash_between_key_and_certificate_is_mended(home):
    before = issued(home)
    (home / "client-client-1.pem").unlink()
    after = identity.load(home, Role.CLIENT, "client-1")
    assert after.kid != before.kid
    assert TrustStore(after.root).admit(after.certificate_der).verify(after.sign(b"x"), b"x")


def test_load_issues_where_the_root_key_is_and_else_says_what_to_copy(home):
    assert identity.load(home, Role.CLIENT, "client-2").name == "client-2"
    (home / "root.key").unlink()
    assert identity.load(home, Role.CLIENT, "client-2").name == "client-2"
    with pytest.raises(KeysMissingError, match="no key of client client-3") as missing:
        identity.load(home, Role.CLIENT, "client-3")
    assert "fedmq pair invite" in missing.value.advice


def test_a_directory_belongs_to_one_federation(home):
    with pytest.raises(ConfigError, match="of federation 'demo', not of 'other'"):
        identity.create_root(home, "other")


def test_spoilt_or_mixed_up_files_are_named(home):
    issued(home)
    issued(home, name="client-2")
    (home / "client-client-1.key").write_bytes((home / "client-client-2.key").read_bytes())
    with pytest.raises(ConfigError, match="does not belong to the key beside it"):
        identity.load(home, Role.CLIENT, "client-1")
    (home / "client-client-1.key").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"client-client-1\.key is no private key"):
        identity.load(home, Role.CLIENT, "client-1")
    (home / "client-client-1.pem").write_bytes((home / "client-client-2.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"client-client-1\.key is no private key"):
        identity.load(home, Role.CLIENT, "client-1")
    (home / "client-client-1.key").write_bytes((home / "client-client-2.key").read_bytes())
    with pytest.raises(ConfigError, match="is the certificate of client client-2"):
        identity.load(home, Role.CLIENT, "client-1")
    (home / "client-client-1.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"client-client-1\.pem is no certificate"):
        identity.load(home, Role.CLIENT, "client-1")
    (home / "root.pem").write_bytes((home / "client-client-2.pem").read_bytes())
    with pytest.raises(ConfigError, match="not the certificate of a federation's root"):
        identity.read_root(home)


@pytest.mark.parametrize(
    ("role", "name"),
    [
        (Role.CLIENT, "coordinator"),
        (Role.CLIENT, "dashboard-1"),
        (Role.CLIENT, "Client"),
        (Role.COORDINATOR, "client-1"),
        (Role.OPERATOR, "client-1"),
        (Role.BRIDGE, "client-1"),
        (Role.DASHBOARD, "client-1"),
    ],
)
def test_a_role_and_a_name_must_fit(home, role, name):
    with pytest.raises(ConfigError, match="can be called"):
        issued(home, role, name)
    root_key, root = authority()
    forged = vouched(root, root_key, keys.generate(KeyType.ED25519).public_key(), role=role, name=name)
    with pytest.raises(SignatureError, match="nobody in federation 'demo'"):
        TrustStore(root).admit(forged)


def test_an_operator_is_an_operator(home):
    with pytest.raises(ConfigError, match=r"no operator can be called 'op'"):
        issued(home, Role.OPERATOR, "op")
    assert {role.with_article for role in Role} == {
        "a coordinator",
        "a client",
        "an operator",
        "a dashboard",
        "a bridge",
        "a broker",
    }


def test_a_certificate_of_another_root_or_federation_is_refused():
    root_key, root = authority()
    public = keys.generate(KeyType.ED25519).public_key()
    stranger_key, stranger = authority()
    with pytest.raises(SignatureError, match="not signed by this federation's root"):
        TrustStore(root).admit(vouched(stranger, stranger_key, public))
    foreign = certificates.Root(FederationId("other"), root.certificate)
    with pytest.raises(SignatureError, match="nobody in federation 'demo'"):
        TrustStore(root).admit(vouched(foreign, root_key, public))
    with pytest.raises(SignatureError, match="nobody in federation 'demo'"):
        TrustStore(root).admit(certificates.der(root.certificate))


def test_tampered_and_malformed_certificates_are_refused():
    root_key, root = authority()
    good = vouched(root, root_key, keys.generate(KeyType.ED25519).public_key())
    store = TrustStore(root)
    with pytest.raises(SignatureError):
        store.admit(good.replace(b"client-1", b"client-2"))
    number = certificates.read(good).serial_number
    serial = number.to_bytes(number.bit_length() // 8 + 1)
    negative = good.replace(serial, bytes([serial[0] | 0x80]) + serial[1:])
    for spoilt in (b"", b"nonsense", good[:-1], good + b"\0", negative):
        with pytest.raises(SignatureError, match="malformed"):
            store.admit(spoilt)


def test_a_certificate_counts_from_its_first_to_its_last_day():
    root_key, root = authority()
    mine = vouched(root, root_key, keys.generate(KeyType.ED25519).public_key())
    clock = [NOW]
    store = TrustStore(root, lambda: clock[0])
    kid = store.admit(mine).kid
    clock[0] = NOW + timedelta(days=limits.CERTIFICATE_DAYS, seconds=1)
    with pytest.raises(OutOfDateError, match="ended on"):
        store.find(kid)
    with pytest.raises(SignatureError, match="is valid"):
        store.admit(mine)
    clock[0] = NOW - timedelta(days=2)
    with pytest.raises(SignatureError, match="is valid"):
        store.admit(mine)


def test_one_key_has_one_owner_but_an_owner_may_have_two_keys():
    root_key, root = authority()
    public, other = (keys.generate(KeyType.ED25519).public_key() for _ in range(2))
    store = TrustStore(root)
    first = store.admit(vouched(root, root_key, public))
    assert store.admit(vouched(root, root_key, public)).kid == first.kid
    with pytest.raises(SignatureError, match="is that of client client-1"):
        store.admit(vouched(root, root_key, public, name="client-2"))
    second = store.admit(vouched(root, root_key, other))
    assert store.find(first.kid).name == store.find(second.kid).name == "client-1"


def test_the_store_knows_a_bounded_number_of_peers(monkeypatch):
    monkeypatch.setattr(limits, "PEERS_MAX", 1)
    root_key, root = authority()
    store = TrustStore(root)
    mine = vouched(root, root_key, keys.generate(KeyType.ED25519).public_key())
    store.admit(mine)
    store.admit(mine)
    with pytest.raises(SignatureError, match="no room for client-2"):
        store.admit(vouched(root, root_key, keys.generate(KeyType.ED25519).public_key(), name="client-2"))


def test_a_key_is_never_printed(home):
    assert "key" not in repr(issued(home)).replace("kid", "")


def test_fingerprints_have_the_form_of_syncthing_device_ids(home):
    for part, digit in (
        ("P56IOI7MZJNU2", "Y"),
        ("IQGDREYDM2MGT", "I"),
        ("MGL3BXNPQ6W5B", "M"),
        ("TBBZ4TJXZWICQ", "2"),
    ):
        assert (
            keys.check_digit(part) == digit
        )  # P56IOI7-MZJNU2Y-IQGDREY-DM2MGTI-…, from Syncthing's own tests
    groups = identity.read_root(home).fingerprint.split("-")
    assert [len(group) for group in groups] == [7] * 8

"""What was said once, elsewhere, by somebody else or with another algorithm: it does not count again."""

import base64
import hmac
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common import codec, envelope, identity, keys, lines
from common.identity import KeyType, Role
from common.ids import Boot, ClientId, FederationId
from common.ingress import Refused, Said
from common.messages import Declined, Done, Heartbeat, Info, Presence, Reason, Status
from common.topics import Kind, Topics
from support import federation, hostile
from support.federation import ingress, member
from support.updates import update

TOPICS = Topics(federation.NAME)
REPLY, TASK = (TOPICS.client(ClientId("a"), kind) for kind in (Kind.REPLY, Kind.TASK))
HEARTBEAT = TOPICS.client(ClientId("a"), Kind.HEARTBEAT)
SAID = [Done(digest="d" * 64), update("a"), Declined(run="r", round=1, reason=Reason.DIVERGED)]


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def alice(keys_dir):
    return member(keys_dir, Role.CLIENT, "a")


@pytest.fixture(scope="module")
def bob(keys_dir):
    return member(keys_dir, Role.CLIENT, "b")


@pytest.fixture(scope="module")
def rosa(keys_dir):
    federation.root(keys_dir)
    return identity.issue(keys_dir, Role.CLIENT, "r", KeyType.RSA)


@pytest.fixture
def door(keys_dir, alice, bob, rosa):
    return ingress(keys_dir, alice, bob, rosa)


def reason(admitted) -> Reason:
    assert isinstance(admitted, Refused), admitted
    return admitted.reason


@pytest.mark.parametrize("message", SAID)
def test_what_was_said_once_is_said_once(door, alice, message):
    data = hostile.sealed(alice, REPLY, codec.encode(message), kind=message.__struct_config__.tag)
    assert isinstance(door.admit(REPLY, data), Said)
    assert [reason(door.admit(REPLY, data)) for _ in range(3)] == [Reason.REPLAYED] * 3
    assert door.refusals == {Reason.REPLAYED: 3}


@pytest.mark.parametrize("message", SAID)
def test_a_message_counts_on_no_other_topic_of_any_kind(keys_dir, alice, bob, message):
    data = hostile.sealed(alice, REPLY, codec.encode(message), kind=message.__struct_config__.tag)
    for topic in (TASK, TOPICS.control, TOPICS.client(ClientId("b"), Kind.REPLY)):
        assert reason(ingress(keys_dir, alice, bob).admit(topic, data)) is Reason.BAD_SIGNATURE
    for topic in (HEARTBEAT, TOPICS.coordinator(Kind.COORDINATOR_STATUS)):  # where lines are said
        assert reason(ingress(keys_dir, alice).admit(topic, data)) is Reason.MALFORMED


@pytest.mark.parametrize(("is_", "would_be"), list(itertools.permutations(["done", "update", "declined"], 2)))
def test_a_message_counts_as_no_other_type(door, alice, is_, would_be):
    message = next(one for one in SAID if one.__struct_config__.tag == is_)
    data = hostile.sealed(alice, REPLY, codec.encode(message), kind=is_)
    parts = envelope.read(data)
    retyped = codec.pack(
        [envelope.VERSION, would_be, parts.kid, parts.header, bytes(parts.payload), parts.signature]
    )
    assert reason(door.admit(REPLY, retyped)) is Reason.BAD_SIGNATURE


def test_a_message_counts_in_no_other_federation(door, alice, tmp_path):
    other = Topics(FederationId("other")).client(ClientId("a"), Kind.REPLY)
    elsewhere = hostile.sealed(alice, other)
    assert reason(door.admit(other, elsewhere)) is Reason.UNKNOWN_TOPIC
    assert reason(door.admit(REPLY, elsewhere)) is Reason.BAD_SIGNATURE
    theirs = member(tmp_path / "theirs", Role.CLIENT, "a")  # the same name, of another root
    assert reason(door.admit(REPLY, hostile.sealed(theirs, REPLY))) is Reason.UNKNOWN_KEY


def test_a_start_that_was_replayed_does_not_come_back(door, alice):
    """A new boot counts anew, an old one goes on where it was: no order of the two lets anything pass twice."""
    old, new = (
        [
            hostile.sealed(alice, REPLY, head=codec.encode(hostile.header(alice, n, boot=Boot(boot))))
            for n in (1, 2)
        ]
        for boot in ("0a" * 8, "0b" * 8)
    )
    assert all(isinstance(door.admit(REPLY, one), Said) for one in old + new)
    assert {reason(door.admit(REPLY, one)) for one in new + old} == {Reason.REPLAYED}


def test_a_number_that_goes_back_beyond_the_window_is_refused(door, alice):
    assert isinstance(door.admit(REPLY, hostile.sealed(alice, REPLY, sequence=5000)), Said)
    assert reason(door.admit(REPLY, hostile.sealed(alice, REPLY, sequence=1))) is Reason.REPLAYED


def test_a_line_counts_on_its_own_topic_only(door, alice, bob):
    line = lines.seal(alice, HEARTBEAT, Heartbeat(boot=hostile.BOOT, sequence=1))
    for topic in (
        TOPICS.client(ClientId("b"), Kind.HEARTBEAT),
        TOPICS.client(ClientId("a"), Kind.STATUS),
        TOPICS.client(ClientId("a"), Kind.METRICS),
        TOPICS.coordinator(Kind.COORDINATOR_METRICS),
    ):
        assert reason(door.admit(topic, line)) is Reason.BAD_SIGNATURE


def test_neither_a_line_nor_an_envelope_is_the_other(door, alice):
    line = lines.seal(alice, REPLY, Heartbeat(boot=hostile.BOOT, sequence=1))
    assert reason(door.admit(REPLY, line)) is Reason.MALFORMED
    assert reason(door.admit(HEARTBEAT, hostile.sealed(alice, HEARTBEAT))) is Reason.MALFORMED


# --- who says it ----------------------------------------------------------------------------------


def test_the_topic_the_header_and_the_key_name_one_client(door, alice, bob):
    theirs = TOPICS.client(ClientId("b"), Kind.REPLY)
    assert reason(door.admit(theirs, hostile.sealed(alice, theirs))) is Reason.NOT_ALLOWED
    for changed in ({"sender": "b"}, {"sender": "a\n"}, {"federation": "other"}, {"sender": "coordinator"}):
        head = codec.encode(hostile.header(alice, 1, **changed))
        refused = reason(door.admit(REPLY, hostile.sealed(alice, REPLY, head=head)))
        assert refused in {Reason.NOT_ALLOWED, Reason.MALFORMED}
    stolen = envelope.read(hostile.sealed(alice, REPLY))
    under_bobs = codec.pack([1, "done", bob.kid, stolen.header, bytes(stolen.payload), stolen.signature])
    assert reason(door.admit(REPLY, under_bobs)) is Reason.BAD_SIGNATURE


def test_a_field_that_no_header_has_is_refused(door, alice):
    tree = codec.unpack(codec.encode(hostile.header(alice)), bytes_max=2**16)
    for name in ("alg", "zone"):
        head = codec.pack(dict(sorted({**tree, name: "none"}.items())))
        assert reason(door.admit(REPLY, hostile.sealed(alice, REPLY, head=head))) is Reason.MALFORMED


def test_a_certificate_that_is_replayed_by_another_key_introduces_nobody(keys_dir, alice, bob):
    topic = TOPICS.client(ClientId("a"), Kind.INFO)
    certificate = base64.b64encode(alice.certificate_der).decode()
    info = Info(boot=hostile.BOOT, version="1", certificate=certificate, examples=1, schema="0" * 64)
    assert reason(ingress(keys_dir).admit(topic, lines.seal(bob, topic, info))) is Reason.UNKNOWN_KEY
    status = TOPICS.client(ClientId("a"), Kind.STATUS)
    line = Status(state=Presence.ONLINE, boot=hostile.BOOT, certificate=certificate)
    assert reason(ingress(keys_dir).admit(status, lines.seal(bob, status, line))) is Reason.UNKNOWN_KEY


# --- with which algorithm -------------------------------------------------------------------------

ROSAS = TOPICS.client(ClientId("r"), Kind.REPLY)


def under(who, sign):
    """Seal a message with a signature of one's own making."""
    head, payload = codec.encode(hostile.header(who)), codec.encode(SAID[0])
    signature = sign(envelope._signed_bytes(ROSAS, "done", head, payload))
    return codec.pack([envelope.VERSION, "done", who.kid, head, payload, signature])


def test_only_the_signature_that_goes_with_the_key_counts(door, rosa, alice):
    mgf = padding.MGF1(SHA256())
    public = rosa.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    wrong = [
        lambda data: rosa.key.sign(data, padding.PKCS1v15(), SHA256()),
        lambda data: rosa.key.sign(data, padding.PSS(mgf, 0), SHA256()),
        lambda data: rosa.key.sign(data, padding.PSS(mgf, 20), SHA256()),
        lambda data: rosa.key.sign(data, padding.PSS(mgf, padding.PSS.MAX_LENGTH), SHA256()),
        lambda data: rosa.key.sign(data, padding.PSS(padding.MGF1(SHA1()), 32), SHA256()),  # noqa: S303
        lambda data: rosa.key.sign(data, padding.PSS(mgf, 32), SHA1()),  # noqa: S303 - to be refused
        alice.sign,  # Ed25519 under the kid of an RSA key
        lambda data: hmac.digest(public, data, "sha256"),  # RS256 taken for HS256
        lambda _data: b"",
        lambda _data: bytes(256),
        lambda _data: b"\xff" * 512,
    ]
    for sign in wrong:
        assert reason(door.admit(ROSAS, under(rosa, sign))) is Reason.BAD_SIGNATURE
    assert isinstance(door.admit(ROSAS, under(rosa, rosa.sign)), Said)  # and the right one does


def test_an_rsa_signature_under_the_kid_of_an_ed25519_key_does_not_count(door, rosa, alice):
    head, payload = codec.encode(hostile.header(alice)), codec.encode(SAID[0])
    signature = rosa.sign(envelope._signed_bytes(REPLY, "done", head, payload))
    data = codec.pack([envelope.VERSION, "done", alice.kid, head, payload, signature])
    assert reason(door.admit(REPLY, data)) is Reason.BAD_SIGNATURE


def test_a_signature_longer_than_any_key_makes_is_malformed(door, rosa):
    assert reason(door.admit(ROSAS, under(rosa, lambda _data: bytes(513)))) is Reason.MALFORMED


@pytest.mark.parametrize("bits", [1024, 1536])
def test_a_short_key_is_no_key(bits):
    with pytest.raises(keys.SignatureError):
        keys.usable(rsa.generate_private_key(65537, bits).public_key())

"""The outer frame of an envelope: one shape, one spelling, nothing believed."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import codec, envelope, limits
from common.errors import DecodeError
from common.identity import Role
from common.ids import Boot
from support import federation
from support.federation import member

HEADER = envelope.Header(federation=federation.NAME, sender="a", boot=Boot("0b" * 8), sequence=1)
TOPIC = "fedmq/lab/client/a/reply"


@pytest.fixture(scope="module")
def alice(tmp_path_factory):
    return member(tmp_path_factory.mktemp("keys"), Role.CLIENT, "a")


@pytest.fixture(scope="module")
def peer(alice, tmp_path_factory):
    trust = federation.TrustStore(alice.root)
    return trust.admit(alice.certificate_der)


def frame(kind="done", kid=bytes(16), header=b"h", payload=b"p", signature=b"s") -> bytes:
    return codec.pack([1, kind, kid, header, payload, signature])


def test_what_was_sealed_is_read_and_holds_on_its_topic_only(alice, peer):
    parts = envelope.read(envelope.seal(alice, TOPIC, "done", HEADER, b"payload"))
    assert (parts.type, parts.kid, bytes(parts.payload)) == ("done", alice.kid, b"payload")
    assert parts.is_signed_by(peer, TOPIC)
    assert not parts.is_signed_by(peer, "fedmq/lab/client/a/task")


@pytest.mark.parametrize(
    "changed",
    [
        {"type": "update"},
        {"header": codec.encode(msgspec.structs.replace(HEADER, sequence=2))},
        {"payload": b"x"},
    ],
)
def test_the_signature_covers_type_header_and_payload(alice, peer, changed):
    sealed = envelope.read(envelope.seal(alice, TOPIC, "done", HEADER, b"payload"))
    parts = {name: getattr(sealed, name) for name in ("type", "kid", "header", "payload", "signature")}
    assert envelope.Envelope(**parts).is_signed_by(peer, TOPIC)
    assert not envelope.Envelope(**parts | changed).is_signed_by(peer, TOPIC)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x96",
        b"\x96\x02" + frame()[2:],  # another version
        b"\x95" + frame()[1:],  # another number of parts
        frame() + b"\x00",
        frame(kid=bytes(15)),
        frame(kid=bytes(17)),
        frame(kind="é"),
        frame(kind="x" * 32),  # no fixstr any more
        frame(header=bytes(limits.HEADER_BYTES_MAX + 1)),
        frame(signature=bytes(limits.SIGNATURE_BYTES_MAX + 1)),
        frame(payload=bytes(limits.ENVELOPE_BYTES_MAX)),
        frame(payload="text"),
        frame().replace(b"\xc4\x01p", b"\xc5\x00\x01p"),  # a length that fits one byte, in two
        frame().replace(b"\xc4\x01p", b"\xc6\x00\x00\x00\x01p"),
    ],
)
def test_what_has_not_the_one_shape_is_refused(data):
    with pytest.raises(DecodeError):
        envelope.read(data)


@given(st.integers(0, 40))
def test_an_envelope_that_is_cut_short_is_refused(at):
    whole = frame()
    with pytest.raises(DecodeError):
        envelope.read(whole[: min(at, len(whole) - 1)])


@pytest.mark.parametrize("size", [0, 255, 256, 65535, 65536])
def test_payloads_of_every_width_are_read(size):
    assert bytes(envelope.read(frame(payload=bytes(size))).payload) == bytes(size)

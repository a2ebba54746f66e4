"""Signed lines: what is read, what is refused, what is never parsed too far."""

import json

import msgspec
import pytest

from common import limits, lines
from common.errors import DecodeError
from common.identity import Role
from common.ids import Boot
from common.messages import Heartbeat, Metrics, Presence, Status
from common.trust import TrustStore
from support.federation import member

TOPIC = "fedmq/lab/client/a/heartbeat"
BEAT = Heartbeat(boot=Boot("0b" * 8), sequence=1)


@pytest.fixture(scope="module")
def alice(tmp_path_factory):
    return member(tmp_path_factory.mktemp("keys"), Role.CLIENT, "a")


@pytest.fixture
def sealed(alice):
    return lines.seal(alice, TOPIC, BEAT)


def forged(body: str) -> lines.Line:
    """A line that anybody could have written."""
    return lines.read(body.encode()[:-1] + b',"kid":"' + b"0" * 32 + b'","sig":"AAAA"}')


def status(certificate: str) -> lines.Line:
    said = Status(state=Presence.ONLINE, boot=BEAT.boot, certificate=certificate)
    return forged(msgspec.json.encode(said).decode())


def test_what_was_sealed_is_read_and_holds_on_its_topic_only(alice, sealed):
    line, peer = lines.read(sealed), TrustStore(alice.root).admit(alice.certificate_der)
    assert line.message() == BEAT
    assert line.is_signed_by(peer, TOPIC)
    assert not line.is_signed_by(peer, "fedmq/lab/client/a/metrics")


def test_the_signature_covers_the_kid_too(alice, sealed):
    other = lines.read(sealed.replace(alice.kid.hex().encode(), b"0" * 32))
    assert not other.is_signed_by(TrustStore(alice.root).admit(alice.certificate_der), TOPIC)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line + b" ",
        lambda line: line + b"\n",
        lambda line: line.replace(b",", b",\n", 1),
        lambda line: line[:-2] + b'="}',
        lambda line: line.replace(b'"kid":"', b'"kid":"G'),
        lambda line: b"{" + b" " * limits.MANIFEST_LINE_BYTES_MAX + line[1:],
    ],
)
def test_what_is_not_one_signed_line_is_refused(sealed, spoil):
    with pytest.raises(DecodeError):
        lines.read(spoil(sealed))


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"kind":"heartbeat"}',
        '{"kind":"nonsense","boot":"x","sequence":1}',
        '{"kind":"heartbeat","boot":"x","sequence":1e999}',
        '{"kind":"heartbeat","boot":"\\ud800","sequence":1}',
        '{"kind":"heartbeat","boot":"x","sequence":1,"new":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_a_line_that_says_nothing_is_refused(body):
    with pytest.raises(DecodeError):
        forged(body).message()


def test_a_field_of_a_newer_peer_is_passed_over():
    assert forged('{"kind":"heartbeat","boot":"x","sequence":1,"new":{"a":[1]}}').message() == Heartbeat(
        boot=Boot("x"), sequence=1
    )


@pytest.mark.parametrize("text", ["", "AAA", "no base64", "é", "AAAA\n"])
def test_what_is_no_certificate_introduces_nobody(text):
    assert status(text).certificate() is None


def test_the_certificate_is_taken_out_of_a_status_only():
    assert status("AAAA").certificate() == bytes(3)
    assert forged('{"kind":"heartbeat","boot":"x","sequence":1}').certificate() is None
    assert forged("{}").certificate() is None


def test_numbers_that_json_cannot_say_are_refused_wherever_they_stand(alice):
    class Deep(msgspec.Struct):
        inside: list[dict[str, float]]

    with pytest.raises(ValueError, match="not finite"):
        lines.seal(alice, TOPIC, Deep([{"a": float("inf")}]))
    assert json.loads(lines.seal(alice, TOPIC, Metrics(run="r", round=1, loss=1.5)))["loss"] == 1.5

"""Lines of a transcript: what is written is read, and nothing else is."""

import dataclasses
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import envelope
from common.errors import DecodeError
from common.identity import Role
from common.ids import sha256
from common.messages import Reason
from common.trust import TrustStore
from coordinator import transcript
from coordinator.transcript import (
    ZEROS,
    Closed,
    Concluded,
    Decline,
    MergedUpdate,
    Opened,
    Outcome,
    Refusal,
    Resumed,
)
from support.federation import member

HEX = sha256(b"x")
UPDATE = MergedUpdate(
    client="ann", kid="0b" * 16, round=1, base=HEX, delta=HEX, weight=0.1, staleness=2, envelope=b"\x00\xff"
)
FACTS = [
    Opened(
        run="r",
        federation="lab",
        coordinator=b"der",
        config=HEX,
        schema=HEX,
        tensors=[("fc.weight", "float32", [2, 3])],
        model=HEX,
        strategy="fedavg(lr=0.5)",
        codec="none",
    ),
    Resumed(epoch=3),
    Concluded(
        round=1,
        outcome=Outcome.COMMITTED,
        base=HEX,
        model=HEX,
        updates=[UPDATE],
        refusals=[Refusal(client="bob", delta=HEX, reason=Reason.TOO_LATE)],
        declined=[Decline(client="eve", reason=Reason.DIVERGED)],
        certificates={"0b" * 16: b"der"},
        metrics=HEX,
    ),
    Closed(rounds=1, completed=True, model=HEX, metrics=HEX),
]


@pytest.fixture(scope="module")
def us(tmp_path_factory):
    return member(tmp_path_factory.mktemp("keys"), Role.COORDINATOR, "coordinator")


@pytest.fixture(scope="module")
def peer(us):
    return TrustStore(us.root).admit(us.certificate_der)


@pytest.fixture(scope="module")
def sealed(us):
    return transcript.seal(us, HEX, FACTS[1])


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_what_was_written_is_read_and_is_signed(us, peer, fact):
    data = transcript.seal(us, HEX, fact)
    line = transcript.read(data)
    assert line.fact == msgspec.structs.replace(fact, previous=HEX)
    assert line.is_signed_by(peer)


def test_a_line_is_json_that_names_the_one_before_it_and_ends_in_its_signature(us):
    tree = json.loads(transcript.seal(us, HEX, FACTS[2]))
    assert list(tree)[:2] == ["kind", "previous"]
    assert list(tree)[-2:] == ["kid", "sig"]
    assert (tree["kind"], tree["previous"], tree["kid"]) == ("round", HEX, us.kid.hex())
    assert tree["updates"][0]["envelope"] == "AP8="


def test_the_first_line_follows_zeros(us):
    assert transcript.read(transcript.seal(us, ZEROS, FACTS[0])).fact.previous == "0" * 64


def test_the_signature_is_that_of_the_bytes_before_it_under_a_domain_of_its_own(us, peer, sealed):
    before = sealed[: sealed.index(b',"sig":')]
    line = transcript.read(sealed)
    assert peer.verify(line.signature, envelope.pae(b"fedmq-transcript-v1", before))


def test_a_line_of_another_key_is_not_believed(us, sealed, tmp_path):
    stranger = member(tmp_path, Role.COORDINATOR, "coordinator")
    other = TrustStore(stranger.root).admit(stranger.certificate_der)
    assert not transcript.read(sealed).is_signed_by(other)
    forged = transcript.read(sealed.replace(us.kid.hex().encode(), stranger.kid.hex().encode()))
    assert not forged.is_signed_by(TrustStore(us.root).admit(us.certificate_der))
    assert not forged.is_signed_by(other)


def test_a_line_names_the_key_that_signed_it(us, peer):
    misnamed = transcript.seal(dataclasses.replace(us, kid=bytes(16)), HEX, FACTS[1])
    assert not transcript.read(misnamed).is_signed_by(peer)


def test_a_line_is_named_by_all_of_its_bytes(sealed):
    assert transcript.digest_of(sealed) == sha256(sealed)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_what_no_reader_would_take_is_not_written(us, weight):
    update = MergedUpdate(
        client="ann", kid="0b" * 16, round=1, base=HEX, delta=HEX, weight=weight, staleness=0, envelope=b""
    )
    fact = Concluded(round=1, outcome=Outcome.COMMITTED, base=HEX, model=HEX, updates=[update], metrics=HEX)
    with pytest.raises(ValueError, match="cannot be said"):
        transcript.seal(us, ZEROS, fact)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line + b"\n",
        lambda line: line + b" ",
        lambda line: line.replace(b":", b": ", 1).replace(b"{", b"[", 1),
        lambda line: line.replace(b'"resumed"', b'"nonsense"'),
        lambda line: line.replace(b'"epoch":3', b'"epoch":-3'),
        lambda line: line.replace(b'"epoch":3', b'"epoch":' + b"[" * 100_000 + b"]" * 100_000),
        lambda line: line.replace(b'"kind"', b'"k\xff"'),
        lambda line: line[:-2] + b'="}',
        lambda line: line[:-20],
        lambda line: line.replace(b'"sig":"', b'"sig":"A'),
    ],
)
def test_what_is_no_line_is_refused(sealed, spoil):
    assert spoil(sealed) != sealed
    with pytest.raises(DecodeError):
        transcript.read(spoil(sealed))


def test_a_line_above_the_limit_is_refused(sealed, monkeypatch):
    monkeypatch.setattr(transcript, "LINE_BYTES_MAX", len(sealed) - 1)
    with pytest.raises(DecodeError, match="limit"):
        transcript.read(sealed)


def test_a_signature_has_one_spelling(sealed):
    """Ed25519: 64 bytes leave 4 bits of the last digit unused."""
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = sealed[-5]
    other = digits[digits.index(last) ^ 1]
    with pytest.raises(DecodeError, match="one spelling"):
        transcript.read(sealed[:-5] + bytes([other]) + sealed[-4:])


def test_a_field_of_a_newer_coordinator_is_passed_over_and_yet_signed(us, peer, sealed):
    line = transcript.read(sealed.replace(b'"epoch":3', b'"epoch":3,"new":{"a":[1]}'))
    assert line.fact == transcript.read(sealed).fact
    assert not line.is_signed_by(peer)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_line_or_malformed(data):
    with pytest.raises(DecodeError):
        transcript.read(data)


@given(st.data())
def test_no_byte_of_a_line_can_be_another(us, peer, data):
    line = transcript.seal(us, HEX, FACTS[2])
    at = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != line[at]))
    try:
        spoilt = transcript.read(line[:at] + bytes([byte]) + line[at + 1 :])
    except DecodeError:
        return
    assert not spoilt.is_signed_by(peer)

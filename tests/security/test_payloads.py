"""Bodies that mean harm: what is in them never comes to life, and most of them are never looked into at all."""

import pickle
import sys

import msgpack
import msgspec
import numpy as np
import pytest

from broker.packets import Framer
from common import chunks, codec, lines, settings
from common.compression import CODECS
from common.errors import ConfigError, DecodeError
from common.identity import Role
from common.ids import ClientId
from common.ingress import Frame, Refused, Said
from common.limits import LINE_BYTES_MAX, PACKET_BYTES_MAX_UNKNOWN
from common.messages import BY_REPLY, BY_TASK, Heartbeat, Reason, Start
from common.topics import Kind, Topics
from coordinator.screening import screen
from support import federation, hostile
from support.federation import ingress, member

TOPICS = Topics(federation.NAME)
REPLY = TOPICS.client(ClientId("a"), Kind.REPLY)
TASK = TOPICS.client(ClientId("a"), Kind.TASK)
HEARTBEAT = TOPICS.client(ClientId("a"), Kind.HEARTBEAT)
STATUS = TOPICS.client(ClientId("a"), Kind.STATUS)
EVERYWHERE = (REPLY, TASK, HEARTBEAT, STATUS, TOPICS.control, TOPICS.coordinator(Kind.COORDINATOR_MODEL))
A_MEBIBYTE_COSTS = 96 * 2**20  # at most, for a moment: empty maps are the dearest


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def alice(keys_dir):
    return member(keys_dir, Role.CLIENT, "a")


@pytest.fixture
def door(keys_dir, alice):
    return ingress(keys_dir, alice)


def refused(admitted) -> Reason:
    assert isinstance(admitted, Refused), admitted
    return admitted.reason


# --- pickles --------------------------------------------------------------------------------------


def test_the_pickle_of_these_tests_would_work(tmp_path):
    pickle.loads(hostile.pickle_that_touches(tmp_path / "mark")).close()  # noqa: S301 - that is the point
    assert (tmp_path / "mark").exists()


def test_a_pickle_is_malformed_wherever_it_comes_and_is_never_loaded(door, alice, tmp_path):
    mark = tmp_path / "mark"
    loaded = hostile.pickle_that_touches(mark)
    for topic in EVERYWHERE:
        assert refused(door.admit(topic, loaded)) is Reason.MALFORMED
    assert refused(door.admit(REPLY, hostile.sealed(alice, REPLY, loaded))) is Reason.MALFORMED
    assert refused(door.admit(REPLY, hostile.sealed(alice, REPLY, head=loaded))) is Reason.MALFORMED
    inside = codec.pack({**hostile.DONE, "x": loaded})  # a field of a newer peer: passed over
    assert isinstance(door.admit(REPLY, hostile.sealed(alice, REPLY, inside, sequence=2)), Said)
    chunk = door.admit(TOPICS.up(ClientId("a"), "e" * 64), loaded)
    assert isinstance(chunk, Frame)
    with pytest.raises(DecodeError):
        chunks.parse(chunk.data)
    with pytest.raises(DecodeError):
        Framer(PACKET_BYTES_MAX_UNKNOWN).feed(loaded + b"\xff" * 20)
    for name in CODECS:
        assert screen(loaded, codec=name, elements=len(loaded) // 4 + 9) in {
            Reason.MALFORMED,
            Reason.WRONG_SIZE,
        }
    vector = np.frombuffer(loaded + bytes(-len(loaded) % 4), "<f4")
    screen(vector.tobytes(), codec="none", elements=vector.size)  # as numbers it is what it is
    assert not mark.exists()


# --- names and extensions -------------------------------------------------------------------------


def test_a_name_in_a_message_imports_nothing(door, alice, tmp_path, monkeypatch):
    """NVFlare's FOBS decoded what a type's name in the message pointed to (CVE-2026-24186)."""
    mark = tmp_path / "mark"
    (tmp_path / "fedmq_gadget.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    for key in ("__fobs_type__", "__class__", "__reduce__", "py/object", "type", "kind"):
        tree = {**hostile.DONE, key: "fedmq_gadget.Gadget"}
        payload = codec.pack(dict(sorted(tree.items())))
        admitted = door.admit(REPLY, hostile.sealed(alice, REPLY, payload, sequence=len(key)))
        assert isinstance(admitted, Said | Refused)
    for number, kind in enumerate(("fedmq_gadget.Gadget", "builtins.exec", "os:system"), 90):
        data = hostile.sealed(
            alice, REPLY, codec.pack({**hostile.DONE, "kind": kind}), kind="done", sequence=number
        )
        assert refused(door.admit(REPLY, data)) is Reason.MALFORMED
    assert not mark.exists()
    assert "fedmq_gadget" not in sys.modules


def test_an_extension_of_any_code_and_length_is_refused():
    for data in hostile.extensions().values():
        with pytest.raises(DecodeError):
            codec.decode(data, BY_REPLY)


def test_a_timestamp_is_refused_in_each_of_its_forms():
    for seconds, nanoseconds in ((0, 0), (2**33, 0), (2**35, 5), (-1, 999)):
        stamp = msgpack.packb({**hostile.DONE, "x": msgpack.Timestamp(seconds, nanoseconds)})
        with pytest.raises(DecodeError):
            codec.decode(stamp, BY_REPLY)


# --- bombs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hostile.BOMBS)
def test_a_bomb_is_malformed_and_costs_little(name):
    with hostile.measured() as peak, pytest.raises(DecodeError):
        codec.decode(hostile.BOMBS[name], BY_REPLY | BY_TASK)
    assert peak[0] < A_MEBIBYTE_COSTS


@pytest.mark.parametrize("name", hostile.BOMBS)
def test_a_bomb_that_is_signed_is_refused_as_well(door, alice, name):
    as_payload = hostile.sealed(alice, REPLY, hostile.BOMBS[name])
    assert refused(door.admit(REPLY, as_payload)) in {Reason.MALFORMED, Reason.OVERSIZE}
    as_header = hostile.sealed(alice, REPLY, head=hostile.BOMBS[name][: 2**16])
    assert refused(door.admit(REPLY, as_header)) is Reason.MALFORMED
    assert isinstance(door.admit(REPLY, hostile.sealed(alice, REPLY, sequence=2)), Said)  # and it goes on


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind":"heartbeat","boot":"x","sequence":1,"a":' + b"[" * 7000,
        b'{"kind":"heartbeat","boot":"x","sequence":1,"a":' + b"[" * 3000 + b"]" * 3000,
        b'{"kind":"heartbeat","boot":"x","sequence":' + b"9" * 6000,
        b'{"kind":"heartbeat","boot":"x","sequence":1e400',
        b'{"kind":"heartbeat","boot":"x","sequence":1.5',
        b'{"kind":"heartbeat","boot":"x","sequence":true',
        b'{"kind":"heartbeat","boot":"\xff\xfe","sequence":1',
        b'{"kind":"heartbeat","boot":"\\ud800","sequence":1',
        b'{"kind":"client-metrics","run":"r","round":1,"loss":NaN',
        b'{"kind":"client-metrics","run":"r","round":1,"loss":1e308',
        b'{"kind":"\xff"',
        b"{" * 8000,
    ],
)
def test_a_line_that_is_a_bomb_is_malformed(door, alice, body):
    data = hostile.signed_line(alice, HEARTBEAT, body)
    assert refused(door.admit(HEARTBEAT, data)) is Reason.MALFORMED


# --- order ----------------------------------------------------------------------------------------

DECODERS = (codec.decode, codec.unpack, lines.Line.message)


def spoilt(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


@pytest.mark.parametrize("topic", [REPLY, TASK])
def test_an_unsigned_body_never_reaches_a_decoder(door, alice, keys_dir, tmp_path, topic):
    """FedML deserialised before it authenticated (CVE-2026-5536)."""
    stranger = member(tmp_path / "elsewhere", Role.CLIENT, "a")
    bodies = [*hostile.BOMBS.values(), hostile.pickle_that_touches(tmp_path / "mark")]
    with hostile.counted(*DECODERS) as calls:
        for body in bodies:
            assert isinstance(door.admit(topic, spoilt(hostile.sealed(alice, topic, body))), Refused)
            assert isinstance(door.admit(topic, hostile.sealed(stranger, topic, body)), Refused)
            assert isinstance(door.admit(topic, body or b"\0"), Refused)
    assert not calls


def test_an_unsigned_line_never_reaches_a_decoder_but_on_the_topics_of_introductions(door, alice):
    line = lines.seal(alice, HEARTBEAT, Heartbeat(boot=hostile.BOOT, sequence=1))
    other = line.replace(b'"sequence":1', b'"sequence":2')
    with hostile.counted(*DECODERS) as calls:
        assert refused(door.admit(HEARTBEAT, other)) is Reason.BAD_SIGNATURE
    assert not calls


def test_who_brings_a_certificate_is_read_once_within_the_size_of_a_line(keys_dir, tmp_path):
    """The exceptions to that order, and their bounds: a status, an info or a command of someone unknown."""
    stranger = member(tmp_path / "elsewhere", Role.OPERATOR, "operator")
    start = codec.encode(Start(command="c", certificate=stranger.certificate_der))
    for body, times in ((start, 1), (bytes(LINE_BYTES_MAX + 1), 1)):
        data = hostile.sealed(stranger, TOPICS.control, body, kind="start")
        door = ingress(keys_dir)
        with hostile.counted(*DECODERS) as calls:
            assert refused(door.admit(TOPICS.control, data)) is Reason.UNKNOWN_KEY
        assert calls["decode"] == times
    with hostile.measured() as peak:
        door.admit(
            TOPICS.control, hostile.sealed(stranger, TOPICS.control, hostile.BOMBS["a million empty maps"])
        )
    assert peak[0] < 8 * 2**20  # it was not read


def test_a_signed_body_does_reach_them(door, alice):
    """So that the tests above count at all."""
    with hostile.counted(*DECODERS) as calls:
        assert isinstance(door.admit(REPLY, hostile.sealed(alice, REPLY)), Said)
        line = lines.seal(alice, HEARTBEAT, Heartbeat(boot=hostile.BOOT, sequence=1))
        assert isinstance(door.admit(HEARTBEAT, line), Said)
    assert calls == {"decode": 2, "unpack": 2, "Line.message": 1}


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedmq.toml", "fedmq.yaml", "fedmq.yml"])
def test_an_object_of_yaml_in_a_configuration_file_is_refused(tmp_path, name):
    mark = tmp_path / "mark"
    file = tmp_path / name
    file.write_text(f'seed: !!python/object/apply:builtins.open ["{mark}", "w"]\n')
    with pytest.raises(ConfigError, match="not valid TOML"):
        settings.load(file)
    file.write_text(f'federation = "!!python/object/apply:builtins.open [\\"{mark}\\", \\"w\\"]"\n')
    with pytest.raises(ConfigError, match="federation"):
        settings.load(file)
    assert not mark.exists()


def test_a_setting_that_looks_like_code_stays_text(tmp_path):
    file = tmp_path / "fedmq.toml"
    file.write_text("[data.options]\nx = \"__import__('os').system('false')\"\n")
    assert settings.load(file).data.options == {"x": "__import__('os').system('false')"}


def test_no_decoder_is_given_a_hook():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kind": "fedmq_gadget"}, BY_REPLY)

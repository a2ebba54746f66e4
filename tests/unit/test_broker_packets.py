"""The codec: any bytes, in any slices, give packets or a DecodeError, and never anything else."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.packets import (
    Connect,
    Framer,
    Packet,
    Type,
    Will,
    build_ack,
    build_connack,
    build_pingresp,
    build_publish,
    build_suback,
    is_filter,
    is_topic,
    parse_connect,
    parse_packet_id,
    parse_publish,
    parse_subscribe,
    parse_unsubscribe,
)
from common.errors import DecodeError
from support import raw_mqtt

sizes = st.integers(0, 300) | st.sampled_from([2**14, 2**16 - 4, 2**16, 2**16 + 1, 200_000])


def framed(stream: bytes, slices: list[int], limit: int = 2**20) -> list[Packet]:
    framer = Framer(limit)
    packets = []
    while stream:
        room = framer.buffer()
        assert room
        count = min(slices.pop() if slices else len(room), len(room), len(stream))
        room[:count], stream = stream[:count], stream[count:]
        packets += framer.filled(count)
    return packets


@given(st.lists(sizes, max_size=6), st.lists(st.integers(1, 2**16), max_size=40))
def test_packets_are_the_same_however_they_are_sliced(lengths, slices):
    bodies = [bytes(i % 251 for i in range(length)) for length in lengths]
    stream = b"".join(raw_mqtt.packet(0x32, body) for body in bodies)
    packets = framed(stream, slices)
    assert [bytes(packet.body) for packet in packets] == bodies
    assert {(packet.kind, packet.flags) for packet in packets} <= {(3, 2)}
    assert [bytes(packet.body) for packet in Framer(2**20).feed(stream)] == bodies


def test_a_packet_may_be_as_long_as_the_limit_and_no_longer():
    assert framed(raw_mqtt.packet(0x30, bytes(1000)), [], limit=1000)
    with pytest.raises(DecodeError):
        framed(raw_mqtt.packet(0x30, bytes(1001)), [], limit=1000)


def test_a_length_has_four_bytes_at_most():
    with pytest.raises(DecodeError):
        Framer(2**28).feed(b"\x30\x80\x80\x80\x80\x01")


@given(st.binary(max_size=60))
def test_any_body_is_read_or_refused(body):
    for read in (parse_connect, parse_subscribe, parse_unsubscribe, parse_packet_id):
        with contextlib.suppress(DecodeError):
            read(body)
    for flags in range(16):
        try:
            publish = parse_publish(Packet(3, flags, body))
        except DecodeError:
            continue
        assert is_topic(publish.topic)


def test_a_connect_is_read():
    will = raw_mqtt.Will("fedmq/lab/client/c1/status", b"lost", qos=1, retain=True)
    data = raw_mqtt.connect("c1", clean=False, keepalive_s=7, user="c1", will=will)
    expected = Connect("c1", False, 7, Will(will.topic, b"lost", 1, True), "c1", None)
    assert parse_connect(data[2:]) == expected


@pytest.mark.parametrize("level", [3, 5, 0x84])
def test_another_version_is_not_read_any_further(level):
    assert parse_connect(raw_mqtt.connect("c1", level=level)[2:]) is None
    assert parse_connect(raw_mqtt.text("MQIsdp")) is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(raw_mqtt.text("HTTP") + b"\x04\x02\0\0" + raw_mqtt.text("c1"), id="another protocol"),
        pytest.param(raw_mqtt.text("MQTT") + b"\x04\x03\0\0" + raw_mqtt.text("c1"), id="reserved flag"),
        pytest.param(raw_mqtt.text("MQTT") + b"\x04\x0a\0\0" + raw_mqtt.text("c1"), id="QoS without will"),
        pytest.param(raw_mqtt.text("MQTT") + b"\x04\x1e\0\0" + raw_mqtt.text("c1"), id="will with QoS 3"),
        pytest.param(raw_mqtt.text("MQTT") + b"\x04\x02\0\0\0\x03c1", id="cut off"),
        pytest.param(raw_mqtt.text("MQTT") + b"\x04\x02\0\0" + raw_mqtt.text("c\0"), id="null"),
        pytest.param(raw_mqtt.text("MQTT") + b"\x04\x02\0\0\0\x02\xff\xfe", id="no text"),
    ],
)
def test_a_connect_that_makes_no_sense_is_refused(body):
    with pytest.raises(DecodeError):
        parse_connect(body)


def test_a_publish_is_read_without_copying():
    body = bytearray(raw_mqtt.text("a/b") + struct.pack("!H", 9) + b"payload")
    publish = parse_publish(Packet(3, 0b0011, body))
    assert (publish.topic, publish.qos, publish.retain, publish.packet_id) == ("a/b", 1, True, 9)
    body[-1:] = b"D"
    assert publish.payload == b"payloaD"


@pytest.mark.parametrize(
    ("flags", "body"),
    [
        pytest.param(6, raw_mqtt.text("a") + b"\0\1", id="QoS 3"),
        pytest.param(2, raw_mqtt.text("a") + b"\0\0", id="packet id 0"),
        pytest.param(2, raw_mqtt.text("a"), id="no packet id"),
        pytest.param(0, b"\0", id="no topic"),
        pytest.param(0, raw_mqtt.text(""), id="empty topic"),
        pytest.param(0, raw_mqtt.text("a/+"), id="wildcard"),
        pytest.param(0, raw_mqtt.text("$SYS/a"), id="dollar"),
        pytest.param(0, raw_mqtt.text("x" * 256), id="too long"),
        pytest.param(0, raw_mqtt.text("a/" * 8 + "a"), id="too deep"),
    ],
)
def test_a_publish_that_makes_no_sense_is_refused(flags, body):
    with pytest.raises(DecodeError):
        parse_publish(Packet(3, flags, body))


def test_subscriptions_are_read():
    body = b"\0\5" + raw_mqtt.text("a/#") + b"\1" + raw_mqtt.text("b") + b"\2"
    assert parse_subscribe(body) == (5, [("a/#", 1), ("b", 2)])
    assert parse_unsubscribe(b"\0\6" + raw_mqtt.text("a/#")) == (6, ["a/#"])


@pytest.mark.parametrize(
    "body", [b"\0\1", b"\0\1" + raw_mqtt.text("a"), b"\0\1" + raw_mqtt.text("a") + b"\3"]
)
def test_a_subscribe_that_makes_no_sense_is_refused(body):
    with pytest.raises(DecodeError):
        parse_subscribe(body)


def test_what_is_written():
    assert build_connack(5) == b"\x20\x02\x00\x05"
    assert build_connack(0, session_present=True) == b"\x20\x02\x01\x00"
    assert build_ack(Type.PUBACK, 258) == b"\x40\x02\x01\x02"
    assert build_ack(Type.PUBCOMP, 1) == b"\x70\x02\x00\x01"
    assert build_ack(Type.UNSUBACK, 1) == b"\xb0\x02\x00\x01"
    assert build_suback(7, [0, 1, 128]) == b"\x90\x05\x00\x07\x00\x01\x80"
    assert build_pingresp() == b"\xd0\x00"
    head = build_publish(b"a/b", 200, qos=1, packet_id=3, retain=True, dup=True)
    assert head == b"\x3b\xcf\x01\x00\x03a/b\x00\x03"
    assert build_publish(b"a", 0, qos=0, packet_id=0) == b"\x30\x03\x00\x01a"


def test_filters_have_a_size():
    assert is_filter("#")
    assert is_filter("a/" * 7 + "a")
    assert not is_filter("")
    assert not is_filter("a/" * 8)
    assert not is_filter("é" * 128)

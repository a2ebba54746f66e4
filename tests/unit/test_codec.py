"""Canonical msgpack: one message has one spelling, and nothing else gets in."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import codec, limits
from common.errors import DecodeError
from common.messages import BY_REPLY, BY_TASK, Declined, Done, Reason, Update, Want
from support.updates import RUN, task, update

LIMIT = 1 << 16


def refused(data: bytes) -> bool:
    try:
        codec.decode(data, BY_REPLY)
    except DecodeError:
        return True
    return False


@pytest.mark.parametrize(
    "message",
    [
        update("a"),
        Want(digest="a" * 64, have=[(0, 3), (5, 5)]),
        Done(digest="b" * 64),
        Declined(run=RUN, round=3, reason=Reason.DIVERGED, detail="loss is nan"),
    ],
)
def test_what_is_spelled_can_be_read(message):
    assert codec.decode(codec.encode(message), BY_REPLY) == message


def test_a_task_survives_with_its_nested_parts():
    assert codec.decode(codec.encode(task()), BY_TASK) == task()


def test_a_field_of_a_newer_peer_is_ignored():
    tree = codec.unpack(codec.encode(Done(digest="b" * 64)), bytes_max=LIMIT)
    tree["since"] = 1
    newer = codec.pack(dict(sorted(tree.items())))
    assert codec.decode(newer, BY_REPLY) == Done(digest="b" * 64)


DONE = {"digest": "b" * 64, "kind": "done"}


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("keys out of order", msgpack.packb({"kind": "done", "digest": "b" * 64})),
        ("a key twice", b"\x83\xa4kind\xa4done" + msgpack.packb(DONE)[1:]),
        ("bytes behind the end", msgpack.packb(DONE) + b"\x00"),
        ("a wide length", b"\xde\x00\x02" + msgpack.packb(DONE)[1:]),
        ("an extension", msgpack.packb({**DONE, "x": msgpack.ExtType(5, b"")})),
        ("a timestamp", msgpack.packb({**DONE, "x": msgpack.Timestamp(1)})),
        ("a key of bytes", msgpack.packb({b"kind": "done"})),
        ("a key of a number", msgpack.packb({1: "done"})),
        ("not a number", msgpack.packb({**DONE, "x": float("nan")})),
        ("infinite", msgpack.packb({**DONE, "x": float("inf")})),
        ("too deep", msgpack.packb({**DONE, "x": [[[[[[[[1]]]]]]]]})),
        ("text that is no UTF-8", b"\x81\xa1x\xa1\xff"),
        ("a pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins\x94."),
        ("an unknown kind", msgpack.packb({"kind": "exec"})),
        ("a bool for a number", codec.pack({**DONE, "digest": True})),
        ("a digest of other letters", codec.pack({**DONE, "digest": "Z" * 64})),
        ("a digest with a line feed", codec.pack({**DONE, "digest": "b" * 64 + "\n"})),
        ("an empty message", b""),
        ("a claim of 4 G items", b"\xdd\xff\xff\xff\xff"),
        ("a claim of 4 GiB", b"\xc6\xff\xff\xff\xff"),
    ],
)
def test_what_is_not_canonical_or_not_plain_is_refused(why, data):
    assert refused(data), why


def test_so_many_values_and_levels_are_allowed_and_not_one_more():
    level = [0] * 4095
    most = [*([level] * 15), [0] * (limits.VALUES_MAX - 15 * 4096 - 2)]
    assert codec.unpack(codec.pack(most), bytes_max=LIMIT * 2) == most
    deepest = 0
    for _ in range(limits.NESTING_MAX - 1):
        deepest = [deepest]
    assert codec.unpack(codec.pack(deepest), bytes_max=LIMIT) == deepest
    for more in ([*most, 0], [deepest]):
        with pytest.raises(DecodeError):
            codec.unpack(codec.pack(more), bytes_max=LIMIT * 2)


def test_examples_must_be_a_whole_positive_number():
    tree = codec.unpack(codec.encode(update("a")), bytes_max=LIMIT)
    for wrong in (0, -1, 1.5, True, "10", 2**41):
        assert refused(codec.pack({**tree, "examples": wrong})), wrong


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_decode_error(data):
    try:
        message = codec.decode(data, BY_REPLY)
    except DecodeError:
        return
    assert codec.encode(message)


@given(st.binary(max_size=40), st.integers(0, 200))
def test_a_spoilt_update_is_another_update_or_a_decode_error(noise, at):
    data = bytearray(codec.encode(update("a")))
    data[at : at + len(noise)] = noise
    with suppress(DecodeError):
        assert isinstance(codec.decode(bytes(data), BY_REPLY), Update | Done | Want | Declined)

"""What somebody who means harm sends, and what it costs to look at it."""

import base64
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import msgpack

from common import codec, envelope, keys, lines
from common.envelope import Header
from common.ids import Boot
from common.limits import NESTING_MAX
from common.messages import Done
from support import federation

BOOT = Boot("0b" * 8)
DONE = {"digest": "b" * 64, "kind": "done"}


def header(who, sequence=1, **changed):
    return Header(
        **{"federation": federation.NAME, "sender": who.name, "boot": BOOT, "sequence": sequence} | changed
    )


def sealed(who, topic, payload=None, *, kind="done", sequence=1, head=None):
    """Sign any bytes as a payload or as a header."""
    payload = codec.encode(Done(digest="d" * 64)) if payload is None else payload
    if head is None:
        return envelope.seal(who, topic, kind, header(who, sequence), payload)
    signature = keys.sign(who.key, envelope._signed_bytes(topic, kind, head, payload))
    return codec.pack([envelope.VERSION, kind, who.kid, head, payload, signature])


def signed_line(who, topic, body):
    """Sign any bytes as the body of a line."""
    said = body.removesuffix(b"}")
    signature = who.sign(lines._signed_bytes(topic, said, who.kid))
    return lines._with_kid(said, who.kid) + b',"sig":"' + base64.b64encode(signature) + b'"}'


def pickle_that_touches(path) -> bytes:
    """Make a pickle that opens a file for writing as it is loaded (protocol 0, by hand)."""
    return b"cbuiltins\nopen\n(V" + str(path).encode() + b"\nVw\ntR."


def extensions() -> dict[str, bytes]:
    """Make an extension of every code and of every form, each as a field of a message that is good otherwise."""
    found = {}
    for code in range(256):
        forms = {tag: bytes((tag, code)) + bytes(size) for tag, size in _FIXED.items()}
        forms |= {0xC7: bytes((0xC7, 0, code)), 0xC8: bytes((0xC8, 0, 0, code))}
        forms |= {0x1C7: bytes((0xC7, 12, code)) + bytes(12), 0xC9: bytes((0xC9, 0, 0, 0, 0, code))}
        for form, spelled in forms.items():
            found[f"code {code} form {form:x}"] = b"\x83" + msgpack.packb(DONE)[1:] + b"\xa1x" + spelled
    return found


_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def _field(value: bytes) -> bytes:
    """Put a value into a message that is good otherwise."""
    return b"\x83" + msgpack.packb(DONE)[1:] + b"\xa1x" + value


def _many(empty: bytes) -> bytes:
    """Fill an envelope's worth with arrays of the greatest length that is allowed."""
    inner = b"\xdc\x10\x00" + empty * 4096
    count = (2**20 - 2**12) // len(inner)
    return _field(b"\xdc" + count.to_bytes(2, "big") + inner * count)


BOMBS: dict[str, bytes] = {
    "a claim of 4 G items": _field(b"\xdd\xff\xff\xff\xff"),
    "a claim of 4 G pairs": _field(b"\xdf\xff\xff\xff\xff"),
    "a claim of 4 GiB of text": _field(b"\xdb\xff\xff\xff\xff"),
    "a claim of 4 GiB of bytes": _field(b"\xc6\xff\xff\xff\xff"),
    "a claim of 4 GiB of extension": _field(b"\xc9\xff\xff\xff\xff\x05"),
    "claims within the limits, one in the other": _field(b"\xdc\x10\x00" * 300_000),
    "claims of pairs, one in the other": _field(b"\xde\x01\x00\xa1x" * 200_000),
    "a million empty arrays": _many(b"\x90"),
    "a million empty maps": _many(b"\x80"),
    "a million empty texts": _many(b"\xa0"),
    "half a million empty bytes": _many(b"\xc4\x00"),
    "a million arrays deep": _field(b"\x91" * 1_000_000 + b"\xc0"),
    "a quarter of a million maps deep": _field(b"\x81\xa1x" * 300_000 + b"\xc0"),
    "nine deep": _field(b"\x91" * (NESTING_MAX - 1) + b"\xc0"),
    "a map of keys of bytes": _field(b"\x81\xc4\x01x\xc0"),
    "a map of keys of numbers": _field(b"\x81\x01\xc0"),
    "a map of keys of nothing": _field(b"\x81\xc0\xc0"),
    "a map of keys of arrays": _field(b"\x81\x90\xc0"),
    "text that is no UTF-8": _field(b"\xa2\xff\xfe"),
    "text that is half a surrogate": _field(b"\xa3\xed\xa0\x80"),
    "a key that is no UTF-8": _field(b"\x81\xa1\xff\xc0"),
    "a key twice": b"\x83\xa4kind\xa4done" + msgpack.packb(DONE)[1:],
    "a key twice within": _field(b"\x82\xa1x\x01\xa1x\x02"),
    "keys out of order": msgpack.packb({"kind": "done", "digest": "b" * 64}),
    "a wide number": _field(b"\xcf" + bytes(7) + b"\x01"),
    "a wide negative number": _field(b"\xd3" + b"\xff" * 8),
    "a wide text": _field(b"\xd9\x01x"),
    "a wide array": _field(b"\xdc\x00\x01\xc0"),
    "half a double": _field(b"\xca\x3f\x80\x00\x00"),
    "not a number": _field(b"\xcb\x7f\xf8" + bytes(6)),
    "infinite": _field(b"\xcb\x7f\xf0" + bytes(6)),
    "the byte that msgpack never uses": _field(b"\xc1"),
    "bytes behind the end": msgpack.packb(DONE) + b"\0",
    "a message behind the end": msgpack.packb(DONE) * 2,
    "cut short": msgpack.packb(DONE)[:-1],
    "nothing": b"",
    "more than may come": bytes(2**20 + 1),
}


@contextmanager
def counted(*functions) -> Iterator[Counter[str]]:
    """Count the calls of functions by watching the interpreter: nothing is put in their place."""
    names = {function.__code__: function.__qualname__ for function in functions}
    calls: Counter[str] = Counter()

    def watch(frame, event, _argument):
        if event == "call" and frame.f_code in names:
            calls[names[frame.f_code]] += 1

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@contextmanager
def measured() -> Iterator[list[int]]:
    """Measure the most memory that Python asked for meanwhile, in bytes."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

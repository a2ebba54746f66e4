"""The signed wrapper of everything that is not for people: `[1, type, kid, header, payload, signature]`.

The signature covers PAE(domain, topic, type, header, SHA-256(payload)): bytes, not objects, and not to be
replayed on another topic or as another type. It is checked before anything inside is parsed, and the
algorithm is a property of the enrolled key. A bridge forwards the bytes that it got.
"""

import hashlib
import struct
from dataclasses import dataclass

import msgspec

from common import codec, keys, limits
from common.certificates import Peer
from common.errors import DecodeError
from common.identity import Identity
from common.keys import KID_BYTES, PrivateKey, PublicKey
from common.messages import AnyBoot, Count, Name, Text

VERSION = 1
DOMAIN = b"fedmq-envelope-v1"


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who says it, and the how-manieth thing it is that this start of the sender says."""

    federation: Name
    sender: Name
    boot: AnyBoot
    sequence: Count
    version: Text = ""
    epoch: Count = 0  # of a coordinator, see `Status`; of others 0
    audience: Text = ""  # the start of its receiver that it is meant for


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope's parts, not yet believed."""

    type: str
    kid: bytes
    header: bytes
    payload: memoryview
    signature: bytes

    def is_signed_by(self, peer: Peer, topic: str) -> bool:
        """Tell whether `peer` said this, on this topic."""
        return self.is_signed_with(peer.key, topic)

    def is_signed_with(self, key: PublicKey, topic: str) -> bool:
        """Tell whether this key signed this, for this topic."""
        signed = _signed_bytes(topic, self.type, self.header, self.payload)
        return keys.verify(key, self.signature, signed)


def pae(*parts: bytes) -> bytes:
    """Join parts so that no two lists of parts give the same bytes (PASETO's pre-authentication encoding)."""
    return struct.pack("<Q", len(parts)) + b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def seal(identity: Identity, topic: str, kind: str, header: Header, payload: bytes) -> bytes:
    """Sign a payload for one topic."""
    return seal_with(identity.key, topic, kind, header, payload)


def seal_with(key: PrivateKey, topic: str, kind: str, header: Header, payload: bytes) -> bytes:
    """Sign a payload with a bare key: of who has no certificate yet, or of the root itself."""
    head = codec.encode(header)
    signature = keys.sign(key, _signed_bytes(topic, kind, head, payload))
    return codec.pack([VERSION, kind, keys.kid_of(key.public_key()), head, payload, signature])


def read(data: bytes) -> Envelope:
    """Take an envelope apart without believing it: one fixed shape, no general parser. Raises: DecodeError."""
    if len(data) > limits.ENVELOPE_BYTES_MAX:
        raise DecodeError(
            f"an envelope of {len(data)} bytes exceeds the limit of {limits.ENVELOPE_BYTES_MAX}"
        )
    view = memoryview(data)
    if bytes(view[:2]) != bytes((0x96, VERSION)):
        raise DecodeError("not an envelope of version 1")
    kind, at = _text(view, 2)
    kid, at = _bin(view, at)
    header, at = _bin(view, at)
    payload, at = _bin(view, at)
    signature, at = _bin(view, at)
    if at != len(view):
        raise DecodeError("bytes after the envelope's end")
    if len(kid) != KID_BYTES:
        raise DecodeError(f"a kid has {KID_BYTES} bytes, this has {len(kid)}")
    if len(header) > limits.HEADER_BYTES_MAX or len(signature) > limits.SIGNATURE_BYTES_MAX:
        raise DecodeError("header or signature exceed their limits")
    return Envelope(kind, bytes(kid), bytes(header), payload, bytes(signature))


def _signed_bytes(topic: str, kind: str, header: bytes, payload: bytes | memoryview) -> bytes:
    return pae(DOMAIN, topic.encode(), kind.encode(), header, hashlib.sha256(payload).digest())


def _text(view: memoryview, at: int) -> tuple[str, int]:
    """Read a msgpack fixstr of ASCII."""
    if at >= len(view) or view[at] & 0xE0 != 0xA0:
        raise DecodeError("a type of up to 31 letters was expected")
    end = at + 1 + (view[at] & 0x1F)
    text = bytes(view[at + 1 : end])
    if end > len(view) or not text.isascii():
        raise DecodeError("a type was expected")
    return text.decode("ascii"), end


def _bin(view: memoryview, at: int) -> tuple[memoryview, int]:
    """Read a msgpack bin in its shortest form."""
    head = bytes(view[at : at + 5])
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(head[0] if head else 0)
    if width is None or len(head) < 1 + width:
        raise DecodeError("bytes were expected")
    size = int.from_bytes(head[1 : 1 + width], "big")
    if width > 1 and size < 1 << (4 * width):  # 2 bytes begin at 2^8, 4 bytes at 2^16
        raise DecodeError("a length is not in its shortest form")
    start = at + 1 + width
    if start + size > len(view):
        raise DecodeError("cut short")
    return view[start : start + size], start + size

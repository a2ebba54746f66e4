"""The other form: one signed line of JSON, for people, `mosquitto_sub` and the dashboard.

Valid JSON whose last two keys are `"kid"` and `"sig"`. The signature covers PAE(domain, topic, bytes before
`,"sig":`). Non-finite numbers never appear.
"""

import base64
import binascii
import math
import re
from dataclasses import dataclass

import msgspec

from common import limits
from common.envelope import pae
from common.errors import DecodeError
from common.identity import Identity, Peer
from common.messages import LINE, Info, Message, Status

DOMAIN = b"fedmq-line-v1"

_LINE = re.compile(rb'(\{[^\n]*),"kid":"([0-9a-f]{32})","sig":"([A-Za-z0-9+/]{2,688}={0,2})"\}')
_DECODER = msgspec.json.Decoder(LINE)


@dataclass(frozen=True, slots=True)
class Line:
    """A line's parts, not yet believed."""

    body: bytes  # the object without its kid, its sig and its closing brace
    kid: bytes
    signature: bytes

    def is_signed_by(self, peer: Peer, topic: str) -> bool:
        """Tell whether `peer` said this, on this topic."""
        return peer.verify(self.signature, _signed_bytes(topic, self.body, self.kid))

    def message(self) -> Message:
        """Parse what the line says. Raises: DecodeError."""
        try:
            message: Message = _DECODER.decode(self.body + b"}")
        except (
            msgspec.DecodeError,
            UnicodeDecodeError,
            RecursionError,
        ) as error:  # msgspec's own, or a tag's
            raise DecodeError(str(error)) from None
        return message

    def certificate(self) -> bytes | None:
        """Take the certificate out of a status or birth line, so that its sender can be known at all.

        The one thing that is parsed before the signature holds: a line of bounded size, into a fixed shape.
        """
        try:
            message = self.message()
        except DecodeError:
            return None
        if not isinstance(message, Status | Info) or not message.certificate:
            return None
        try:
            return base64.b64decode(message.certificate, validate=True)
        except ValueError:  # not base64, or not ASCII
            return None


def seal(identity: Identity, topic: str, message: Message) -> bytes:
    """Write a message as a signed line for one topic.

    Raises: ValueError for a number that is not finite: JSON has no word for it.
    """
    _refuse_non_finite(msgspec.to_builtins(message))
    body = msgspec.json.encode(message)[:-1]
    signature = identity.sign(_signed_bytes(topic, body, identity.kid))
    return _with_kid(body, identity.kid) + b',"sig":"' + base64.b64encode(signature) + b'"}'


def read(data: bytes) -> Line:
    """Take a line apart without believing it. Raises: DecodeError."""
    if len(data) > limits.MANIFEST_LINE_BYTES_MAX:
        raise DecodeError(
            f"a line of {len(data)} bytes exceeds the limit of {limits.MANIFEST_LINE_BYTES_MAX}"
        )
    found = _LINE.fullmatch(data)
    if found is None:
        raise DecodeError("not a signed line of JSON")
    try:
        signature = base64.b64decode(found[3], validate=True)
    except binascii.Error:
        raise DecodeError("the signature is not base64") from None
    return Line(found[1], bytes.fromhex(found[2].decode("ascii")), signature)


def _with_kid(body: bytes, kid: bytes) -> bytes:
    return body + b',"kid":"' + kid.hex().encode("ascii") + b'"'


def _signed_bytes(topic: str, body: bytes, kid: bytes) -> bytes:
    return pae(DOMAIN, topic.encode(), _with_kid(body, kid))


def _refuse_non_finite(tree: object) -> None:
    match tree:
        case float() if not math.isfinite(tree):
            raise ValueError("a signed line cannot carry a number that is not finite")
        case dict():
            for value in tree.values():
                _refuse_non_finite(value)
        case list() | tuple():
            for value in tree:
                _refuse_non_finite(value)
        case _:
            pass

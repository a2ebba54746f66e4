"""An invitation to a federation: what a QR code says, and as text what may be typed.

    FEDMQ1:<base45 of the canonical msgpack of
        [1, host, port, spki, federation, root_fingerprint, token_id, token, expires]
    and of the first 4 bytes of its SHA-256>

It holds no private key. Whoever sees it before it expires may ask to be let in, once: the token is a secret
until then, and is in no `repr`. The four bytes are for people who type: one wrong character may still spell a list.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from common import base45, certificates, codec, ids, limits, topics
from common.certificates import Root
from common.errors import ConfigError, DecodeError, InvitationError
from common.ids import FederationId

VERSION: Literal[1] = 1
TOKEN_BYTES = 16
CHECK_BYTES = 4
HOST = r"[A-Za-z0-9:](?:[A-Za-z0-9.:_-]{0,251}[A-Za-z0-9.:])?"  # a name, IPv4, or IPv6 without its brackets

_PREFIX = re.compile(r"FEDMQ([0-9]{1,4}):")
_Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]


class _Spelling(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The list that is spelled, part by part."""

    version: Literal[1]
    host: Annotated[str, Meta(pattern=rf"^{HOST}\Z")]
    port: Annotated[int, Meta(ge=1, le=65_535)]
    spki: _Hash | None
    federation: str
    root_fingerprint: _Hash
    token_id: Annotated[bytes, Meta(min_length=topics.TOKEN_ID_BYTES, max_length=topics.TOKEN_ID_BYTES)]
    token: Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
    expires: Annotated[int, Meta(ge=1, le=2**40)]


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where to connect, whom to believe there, and the secret to ask with."""

    host: str
    port: int
    spki: bytes | None  # SHA-256 of the broker's SubjectPublicKeyInfo; None: no TLS
    federation: FederationId
    root_fingerprint: bytes  # SHA-256 of the root's certificate
    token_id: bytes
    token: bytes = field(repr=False)
    expires: int  # unix seconds

    @property
    def code(self) -> str:
        """Spell the invitation: this holds the secret."""
        spelled = _Spelling(
            VERSION,
            self.host,
            self.port,
            self.spki,
            self.federation,
            self.root_fingerprint,
            self.token_id,
            self.token,
            self.expires,
        )
        data = codec.encode(spelled)
        return f"FEDMQ{VERSION}:{base45.encode(data + _check_of(data))}"

    @property
    def user(self) -> str:
        """The name that the newcomer goes by at the broker, and in its topics."""
        return self.token_id.hex()


def parse(text: str) -> Invitation:
    """Read an invitation as it was scanned or typed. Raises: InvitationError."""
    typed = text.strip()
    if len(typed) > limits.INVITATION_CHARACTERS_MAX or not typed.isascii():
        raise InvitationError("this is no invitation: it is too long, or has letters that none has")
    typed = typed.upper()
    found = _PREFIX.match(typed)
    if found is None:
        raise InvitationError("this is no invitation: it does not begin with FEDMQ1:")
    if int(found[1]) != VERSION:
        raise InvitationError(
            f"this invitation is of version {int(found[1])}, and this fedmq reads version {VERSION}",
            advice="Install the same version of fedmq on both machines.",
        )
    try:
        read = codec.decode(_checked(base45.decode(typed[found.end() :])), _Spelling)
        return Invitation(
            host=read.host,
            port=read.port,
            spki=read.spki,
            federation=ids.federation_id(read.federation),
            root_fingerprint=read.root_fingerprint,
            token_id=read.token_id,
            token=read.token,
            expires=read.expires,
        )
    except (DecodeError, ConfigError):  # its own words may hold a part of the secret
        raise InvitationError("the invitation was not copied whole, or a character of it is wrong") from None


def _check_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:CHECK_BYTES]


def _checked(data: bytes) -> bytes:
    """Take the check off. Raises: DecodeError."""
    spelled, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    if check != _check_of(spelled):
        raise DecodeError("the check does not match")
    return spelled


def link_fingerprint(root: Root) -> bytes:
    """Say how an invitation names its root."""
    return hashlib.sha256(certificates.der(root.certificate)).digest()

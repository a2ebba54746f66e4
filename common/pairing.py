"""Pairing: what a newcomer and an inviter both compute, and the messages between them.

    newcomer (`common.newcomer`)                        inviter (`common.inviter`)
        | -- enrol-request: key, wish, nonce -----------------> |  signed by the new key, MAC by the token
        | <----------------- enrol-challenge: nonce, root ----- |  signed by the root's key, MAC by the token
        |    six digits on both screens, compared by people     |
        | <-------------------------- enrol-certificate ------- |  signed by the root's key
        | -- enrol-cancel ------------------------------------> |  instead, or after it: the newcomer has left

The newcomer asks on `enrol/<token-id>/request` and is answered on `enrol/<token-id>/answer`. The signed topic names
federation and token, so the envelopes' headers say nothing that would have to be read. The six digits show that no
third one, who saw the invitation, came first.
"""

import hashlib
import hmac
from dataclasses import dataclass
from types import UnionType
from typing import TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common import codec, envelope, limits
from common.envelope import pae
from common.errors import DecodeError
from common.ids import Boot
from common.invitation import Invitation
from common.keys import PrivateKey
from common.messages import EnrolReason, Message
from common.topics import Topics

T = TypeVar("T", bound=Message)

NONCE_BYTES = 16
CLIENT, COORDINATOR = b"fedmq-enrol-v1/client", b"fedmq-enrol-v1/coordinator"  # whose MAC it is
CANCEL = b"fedmq-enrol-v1/cancel"  # the newcomer's, when it leaves
_CODE = b"fedmq-enrol-v1/sas"


@dataclass(frozen=True, slots=True)
class Heard:
    """Something came on the topic that this half listens to."""

    data: bytes


def request_topic(invitation: Invitation) -> str:
    """Say where the newcomer asks."""
    return Topics(invitation.federation).enrol_request(invitation.user)


def answer_topic(invitation: Invitation) -> str:
    """Say where the inviter answers."""
    return Topics(invitation.federation).enrol_answer(invitation.user)


def code_of(request: bytes, challenge: bytes) -> str:
    """Compute the six digits from both digests."""
    digest = hashlib.sha256(pae(_CODE, request, challenge)).digest()
    return f"{int.from_bytes(digest[:4], 'big') % 10**6:06d}"


def request_digest(payload: bytes | memoryview) -> bytes:
    """Name a request by all that it says but its MAC, fields of a newer peer included. Raises: DecodeError."""
    tree = codec.unpack(payload, bytes_max=limits.PAIRING_BYTES_MAX)
    del tree["mac"]
    return hashlib.sha256(codec.pack(tree)).digest()


def cancelled(request: bytes, reason: EnrolReason) -> bytes:
    """Join what the MAC of a farewell covers."""
    return pae(request, reason.encode())


def challenged(request: bytes, nonce: bytes, root: bytes) -> bytes:
    """Join what the challenge's MAC covers, and its digest names."""
    return pae(request, nonce, root)


def mac_of(token: bytes, side: bytes, data: bytes) -> bytes:
    """Prove that this side holds the token. Source: RFC 5869 and RFC 2104, with SHA-256."""
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=side).derive(token)
    return hmac.digest(key, data, "sha256")


def read(data: bytes, kinds: "type[T] | UnionType") -> tuple[envelope.Envelope, T] | None:
    """Take a message apart, before its signature: the key that signs rides inside."""
    if len(data) > limits.PAIRING_BYTES_MAX:
        return None
    try:
        parts = envelope.read(data)
        message: T = codec.decode(parts.payload, kinds)
    except DecodeError:
        return None
    return (parts, message) if message.__struct_config__.tag == parts.type else None


def seal(key: PrivateKey, topic: str, sender: str, invitation: Invitation, message: Message) -> bytes:
    """Sign a message for the one topic."""
    boot = Boot(invitation.user)  # nobody starts twice with one token
    header = envelope.Header(federation=invitation.federation, sender=sender, boot=boot, sequence=0)
    kind = str(message.__struct_config__.tag)
    return envelope.seal_with(key, topic, kind, header, codec.encode(message))

"""Key pairs and signatures: which algorithms there are, and how each of them signs.

RSA with PSS (RFC 8017 §8.1: 2048 to 4096 bits, e = 65537, SHA-256, MGF1 with SHA-256, a salt of exactly 32
bytes), or Ed25519 (RFC 8032). The algorithm is a property of the key: no message can choose one, so a
PKCS#1 v1.5 signature or another salt length is simply wrong. PSS is randomised: never use a signature as an
identity.
"""

import base64
import hashlib
from enum import StrEnum

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from common.errors import SignatureError

PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = rsa.RSAPublicKey | ed25519.Ed25519PublicKey

KID_BYTES = 16
RSA_BITS = 2048
RSA_BITS_MAX = 4096
_EXPONENT = 65537
_SALT_BYTES = 32
_HASH = SHA256()
_PSS = padding.PSS(mgf=padding.MGF1(_HASH), salt_length=_SALT_BYTES)
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class KeyType(StrEnum):
    """What kind of key to make."""

    RSA = "rsa"
    ED25519 = "ed25519"


def generate(kind: KeyType) -> PrivateKey:
    """Make a key from the system's randomness."""
    match kind:
        case KeyType.RSA:
            return rsa.generate_private_key(_EXPONENT, RSA_BITS)
        case KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.generate()


def usable(public: object) -> PublicKey:
    """Check that a public key is of a kind and a size that this federation takes. Raises: SignatureError."""
    if isinstance(public, ed25519.Ed25519PublicKey):
        return public
    if not isinstance(public, rsa.RSAPublicKey):
        raise SignatureError(f"a key of type {type(public).__name__} is neither RSA nor Ed25519")
    if not RSA_BITS <= public.key_size <= RSA_BITS_MAX:
        raise SignatureError(
            f"an RSA key of {public.key_size} bits is not within {RSA_BITS} to {RSA_BITS_MAX}"
        )
    if public.public_numbers().e != _EXPONENT:
        raise SignatureError(f"an RSA key has the exponent {public.public_numbers().e}, not {_EXPONENT}")
    return public


def type_of(public: PublicKey) -> KeyType:
    """Say what kind of key this is."""
    return KeyType.RSA if isinstance(public, rsa.RSAPublicKey) else KeyType.ED25519


def spki_of(public: PublicKey) -> bytes:
    """Write a public key as its SubjectPublicKeyInfo, in DER."""
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_spki(spki: bytes) -> PublicKey:
    """Read a public key from the one spelling of its SubjectPublicKeyInfo. Raises: SignatureError."""
    try:
        public = usable(serialization.load_der_public_key(spki))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"this is no public key: {error}") from error
    if spki_of(public) != spki:
        raise SignatureError("a public key is not in the form that it has in DER")
    return public


def kid_of(public: PublicKey) -> bytes:
    """Name a key: the first 16 bytes of the SHA-256 of its SubjectPublicKeyInfo."""
    return hashlib.sha256(spki_of(public)).digest()[:KID_BYTES]


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Sign with the algorithm of the key."""
    match key:
        case rsa.RSAPrivateKey():
            return key.sign(data, _PSS, _HASH)
        case ed25519.Ed25519PrivateKey():
            return key.sign(data)


def verify(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Tell whether the key signed these bytes, by the algorithm of the key."""
    try:
        match key:
            case rsa.RSAPublicKey():
                key.verify(signature, data, _PSS, _HASH)
            case ed25519.Ed25519PublicKey():
                key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def fingerprint(data: bytes) -> str:
    """Name bytes for eyes and voices: their SHA-256 in base32, in eight groups of seven.

    The form of Syncthing's device ids: 4 × 13 digits, each 13 followed by a Luhn check digit modulo 32.
    """
    digits = base64.b32encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    checked = "".join(part + check_digit(part) for part in (digits[at : at + 13] for at in range(0, 52, 13)))
    return "-".join(checked[at : at + 7] for at in range(0, 56, 7))


def check_digit(part: str) -> str:
    """Compute the Luhn digit modulo 32, with the factors 1, 2, 1, … from the left."""
    total = 0
    for at, digit in enumerate(part):
        addend = _BASE32.index(digit) * (1 + at % 2)
        total += addend // 32 + addend % 32
    return _BASE32[-total % 32]

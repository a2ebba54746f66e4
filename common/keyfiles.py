"""Keys and certificates as files: written whole and for their owner only, keys behind a passphrase if there is one.

A key is PKCS #8 in PEM. What encrypts it is not the passphrase itself but what scrypt (RFC 7914) makes of it, for the
PBKDF2 of PKCS #8 as OpenSSL writes it is cheap to guess at; salt and cost stand in a line before the PEM text.
"""

import hashlib
import re
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from common import files, keys
from common.errors import ConfigError, SignatureError
from common.keys import PrivateKey

_COST = (2**15, 8, 1)  # n, r, p: 32 MiB and about 0.1 s
_SALT_BYTES = 16
_HEAD = re.compile(rb"fedmq-scrypt: ([0-9a-f]{32}) (\d{1,9}) (\d{1,4}) (\d{1,4})\n")
_MEMORY_BYTES_MAX = 1 << 30


def write_key(path: Path, key: PrivateKey, passphrase: bytes | None = None) -> None:
    """Write a private key. Raises: OSError."""
    head, encryption = b"", serialization.NoEncryption()
    if passphrase is not None:
        salt = secrets.token_bytes(_SALT_BYTES)
        head = f"fedmq-scrypt: {salt.hex()} {' '.join(map(str, _COST))}\n".encode()
        encryption = serialization.BestAvailableEncryption(_stretch(passphrase, salt, *_COST))  # type: ignore[assignment]
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    files.replace(path, head + pem)


def read_key(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """Read a private key. Raises: ConfigError."""
    try:
        data = path.read_bytes()
        key = serialization.load_pem_private_key(data, password=password_of(path, data, passphrase))
        keys.usable(key.public_key())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, SignatureError) as error:
        if _HEAD.match(data):
            raise ConfigError(f"the passphrase does not open {path}") from None
        raise ConfigError(f"{path} is no private key of ours") from error
    assert isinstance(key, PrivateKey)  # the public half is usable
    return key


def is_locked(path: Path) -> bool:
    """Tell whether a key needs a passphrase; one that is not there does not."""
    try:
        return _HEAD.match(path.read_bytes()) is not None
    except OSError:
        return False


def password_of(path: Path, data: bytes, passphrase: bytes | None) -> bytes | None:
    """Give what opens the PEM text of a key file; None for one without a passphrase. Raises: ConfigError."""
    head = _HEAD.match(data)
    if head is None:
        return None
    if passphrase is None:
        raise ConfigError(
            f"{path} is locked with a passphrase", advice="Say with --passphrase-file which file holds it."
        )
    salt, cost = bytes.fromhex(head[1].decode()), tuple(map(int, head.groups()[1:]))
    if 128 * cost[0] * cost[1] > _MEMORY_BYTES_MAX:
        raise ConfigError(f"{path} asks for more than a gigabyte to be opened: it is not one of ours")
    return _stretch(passphrase, salt, *cost)


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    """Write a certificate. Raises: OSError."""
    files.replace(path, certificate.public_bytes(serialization.Encoding.PEM))


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate. Raises: ConfigError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no certificate") from error


def _stretch(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    made = hashlib.scrypt(passphrase, salt=salt, n=n, r=r, p=p, maxmem=2 * _MEMORY_BYTES_MAX - 1, dklen=32)
    return made.hex().encode()

"""Key files: opened by their passphrase and nothing else, and by other tools that are told how."""

import re
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from common import keyfiles, keys
from common.errors import ConfigError
from common.keys import KeyType

WORDS = b"correct horse battery staple"
KEY = keys.generate(KeyType.ED25519)


def same(one, other) -> bool:
    return one.private_bytes_raw() == other.private_bytes_raw()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "client-c1.key"


@pytest.mark.parametrize("passphrase", [None, WORDS, b"", "Grüße \0".encode()])
def test_a_key_is_read_as_it_was_written_and_by_its_owner_only(path, passphrase):
    keyfiles.write_key(path, KEY, passphrase)
    assert same(keyfiles.read_key(path, passphrase), KEY)
    assert keyfiles.is_locked(path) is (passphrase is not None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name]  # nothing half written is left


def test_what_is_written_over_a_file_that_all_could_read_is_not_read_by_all(path):
    path.write_text("old")
    path.chmod(0o644)
    keyfiles.write_key(path, KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_locks_a_key_is_scrypt_at_the_cost_in_its_first_line(path):
    """By another road: another implementation of scrypt, and the PEM text alone."""
    keyfiles.write_key(path, KEY, WORDS)
    head, pem = path.read_bytes().split(b"\n", 1)
    found = re.fullmatch(rb"fedmq-scrypt: ([0-9a-f]{32}) (\d+) (\d+) (\d+)", head)
    n, r, p = map(int, found.groups()[1:])
    assert (n, r, p) == (2**15, 8, 1)
    made = Scrypt(bytes.fromhex(found[1].decode()), length=32, n=n, r=r, p=p).derive(WORDS)
    opened = serialization.load_pem_private_key(pem, password=made.hex().encode())
    assert same(opened, KEY)
    with pytest.raises(ValueError, match=r"(?i)password"):  # the words alone, which are cheap to guess at
        serialization.load_pem_private_key(pem, password=WORDS)


def test_two_keys_under_one_passphrase_have_salts_of_their_own(path):
    heads = []
    for _ in range(2):
        keyfiles.write_key(path, KEY, WORDS)
        heads.append(path.read_bytes().split(b"\n", 1)[0])
    assert heads[0] != heads[1]


def test_a_locked_key_without_its_passphrase_says_what_to_do(path):
    keyfiles.write_key(path, KEY, WORDS)
    with pytest.raises(ConfigError, match="locked with a passphrase") as locked:
        keyfiles.read_key(path)
    assert "--passphrase-file" in locked.value.advice
    for wrong in (b"", WORDS[:-1], WORDS + b"\n"):
        with pytest.raises(ConfigError, match="the passphrase does not open"):
            keyfiles.read_key(path, wrong)


def test_a_key_that_is_not_locked_is_opened_whatever_passphrase_is_there(path):
    keyfiles.write_key(path, KEY)
    assert same(keyfiles.read_key(path, WORDS), KEY)
    assert keyfiles.password_of(path, path.read_bytes(), WORDS) is None


def test_a_file_that_asks_for_more_than_a_gigabyte_is_not_tried(path):
    keyfiles.write_key(path, KEY, WORDS)
    data = path.read_bytes()
    assert data.count(b" 32768 8 1\n") == 1
    path.write_bytes(data.replace(b" 32768 8 1\n", b" 1048577 8 1\n"))
    with pytest.raises(ConfigError, match="more than a gigabyte"):
        keyfiles.read_key(path, WORDS)


@pytest.mark.parametrize("cost", [b" 32767 8 1\n", b" 0 8 1\n", b" 32768 0 1\n", b" 16384 8 1\n"])
def test_a_cost_that_was_changed_opens_nothing(path, cost):
    keyfiles.write_key(path, KEY, WORDS)
    path.write_bytes(path.read_bytes().replace(b" 32768 8 1\n", cost))
    with pytest.raises(ConfigError, match="the passphrase does not open"):
        keyfiles.read_key(path, WORDS)


def test_what_is_no_key_of_ours_is_named(path):
    with pytest.raises(ConfigError, match=f"cannot read {path}"):
        keyfiles.read_key(path)
    assert not keyfiles.is_locked(path)
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    by_openssl = KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(WORDS),
    )
    for data in (b"", b"nonsense", other, by_openssl):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="is no private key of ours"):
            keyfiles.read_key(path, WORDS)
    assert not keyfiles.is_locked(path)


def test_a_certificate_that_is_not_there_or_none_is_named(tmp_path):
    path = tmp_path / "root.pem"
    with pytest.raises(ConfigError, match=f"cannot read {path}"):
        keyfiles.read_certificate(path)
    path.write_text("nonsense")
    with pytest.raises(ConfigError, match="is no certificate"):
        keyfiles.read_certificate(path)

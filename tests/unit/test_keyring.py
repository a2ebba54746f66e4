"""What an operator sees of the keys, and what comes of making, replacing and revoking them."""

import asyncio
import getpass
import io
import re
import socket
from datetime import UTC, datetime, timedelta

import pytest

from common import identity, keyfiles, keys
from common.certificates import Role
from common.errors import ConfigError, KeysMissingError, NotFoundError, UsageError
from common.identity import KeyType
from common.register import Register
from common.settings import Settings
from compose import keyring
from support import federation
from support.patience import within

ED = KeyType.ED25519
WORDS = b"open sesame"
NOW = datetime.now(UTC)


class Terminal(io.StringIO):
    """Somebody sits there."""

    def isatty(self):
        return True


@pytest.fixture
def home(tmp_path):
    return tmp_path / "keys"


@pytest.fixture
def settings(home):
    return Settings(federation="lab", keys_dir=home, key_type="ed25519")


@pytest.fixture
def answers(monkeypatch):
    """Type at a terminal; what was asked for is listed."""
    asked = []

    def type_in(*words):
        left = list(words)

        def answered(prompt):
            asked.append(prompt)
            return left.pop(0)

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr(getpass, "getpass", answered)
        return asked

    return type_in


def told(settings):
    root, *certificates = keyring.shown(settings, datetime.now(UTC))
    return root, {(one["role"], one["name"], one["state"], one["private_key"]) for one in certificates}


# --- making and showing ---------------------------------------------------------------------------


def test_a_root_is_made_once(settings, home):
    root, is_new = keyring.init(settings, None)
    assert is_new
    again, is_new = keyring.init(settings, None)
    assert not is_new
    assert again.fingerprint == root.fingerprint
    assert not identity.is_root_locked(home)


def test_a_root_is_locked_with_the_passphrase_that_was_given(settings, home):
    keyring.init(settings, WORDS)
    facts, _ = told(settings)
    assert facts["private_key"] == "here, locked"
    assert identity.root_identity(home, WORDS).federation == "lab"


def test_what_is_here_and_what_was_signed_is_told_each_certificate_once(settings, home):
    keyring.init(settings, None)
    identity.issue(home, Role.CLIENT, "c1", ED)
    identity.issue(home, Role.CLIENT, "c2", ED, passphrase=WORDS)
    identity.vouch(home, Role.CLIENT, "phone", keys.generate(ED).public_key())
    root, certificates = told(settings)
    assert root["federation"] == "lab"
    assert root["fingerprint"] == federation.root(home).fingerprint
    assert (root["key_type"], root["private_key"], root["revocations"]) == ("ed25519", "here", 0)
    assert root["directory"] == str(home)
    assert certificates == {
        ("client", "c1", "valid", "here"),
        ("client", "c2", "valid", "here, locked"),
        ("client", "phone", "valid", "elsewhere"),
    }
    assert len(list(keyring.shown(settings, NOW))) == 4


def test_on_a_machine_without_the_root_key_what_is_here_is_told(settings, home, tmp_path):
    keyring.init(settings, None)
    identity.issue(home, Role.CLIENT, "c1", ED)
    identity.export(home, tmp_path / "machine", Role.CLIENT, "c1")
    root, certificates = told(Settings(federation="lab", keys_dir=tmp_path / "machine"))
    assert root["private_key"] == "elsewhere"
    assert certificates == {("client", "c1", "valid", "here")}


def test_a_certificate_that_is_to_be_revoked_or_was_says_so(settings, home):
    keyring.init(settings, None)
    identity.issue(home, Role.CLIENT, "c1", ED)
    ends = keyring.rotate(settings, Role.CLIENT, "c1", 7.0)
    _, certificates = told(settings)
    assert certificates == {
        ("client", "c1", f"to be revoked on {ends:%Y-%m-%d}", "gone"),
        ("client", "c1", "valid", "here"),
    }
    identity.revoke(home, Role.CLIENT, "c1")
    root, certificates = told(settings)
    assert root["revocations"] == 1
    assert certificates == {
        ("client", "c1", "revoked", "gone"),
        ("client", "c1", "revoked", "here"),
    }


def test_lines_for_people_say_the_same(settings, home):
    keyring.init(settings, None)
    mine = identity.issue(home, Role.CLIENT, "c1", ED)
    lines = list(keyring.lines(keyring.shown(settings, NOW)))
    assert lines[0] == f"federation lab, {home}"
    assert lines[1] == f"root {federation.root(home).fingerprint}"
    assert re.fullmatch(r" +ed25519, private key here, valid to \d{4}-\d\d-\d\d", lines[2])
    assert re.fullmatch(
        rf"client c1: valid, private key here, valid to \d{{4}}-\d\d-\d\d, kid {mine.kid.hex()}", lines[3]
    )
    assert len(lines) == 4


def test_certificates_are_listed_by_role_and_name_the_older_first(settings, home):
    keyring.init(settings, None)
    for role, name in ((Role.OPERATOR, "operator"), (Role.CLIENT, "c2"), (Role.CLIENT, "c1")):
        identity.issue(home, role, name, ED)
    keyring.rotate(settings, Role.CLIENT, "c1", 7.0)
    _, *certificates = keyring.shown(settings, NOW)
    assert [(one["name"], one["private_key"]) for one in certificates] == [
        ("c1", "gone"),
        ("c1", "here"),
        ("c2", "here"),
        ("operator", "here"),
    ]


def test_what_was_replaced_elsewhere_is_not_known_to_be_gone(settings, home):
    keyring.init(settings, None)
    for _ in range(2):
        public = keys.generate(ED).public_key()
        identity.vouch(home, Role.CLIENT, "far", public, overlap=timedelta(days=1))
    _, *certificates = keyring.shown(settings, NOW)
    assert [one["private_key"] for one in certificates] == ["elsewhere", "elsewhere"]


def test_a_key_elsewhere_is_not_gone_though_another_was_made_here(settings, home):
    keyring.init(settings, None)
    identity.vouch(home, Role.CLIENT, "c1", keys.generate(ED).public_key())
    identity.issue(home, Role.CLIENT, "c1", ED)
    _, *certificates = keyring.shown(settings, NOW)
    assert [one["private_key"] for one in certificates] == ["elsewhere", "here"]


def test_what_has_expired_is_not_called_valid(settings, home):
    keyring.init(settings, None)
    identity.issue(home, Role.CLIENT, "c1", ED)
    identity.issue(home, Role.CLIENT, "c2", ED)
    identity.revoke(home, Role.CLIENT, "c2")
    later = NOW + timedelta(days=365 * 100)
    root, *certificates = keyring.shown(settings, later)
    assert root["state"] == "expired"
    assert [one["state"] for one in certificates] == ["expired", "revoked"]
    lines = list(keyring.lines(keyring.shown(settings, later)))
    assert re.search(r", was valid to \d{4}-\d\d-\d\d$", lines[2])
    assert re.match(r"client c1: expired, private key here, was valid to \d{4}", lines[3])


def test_where_there_is_no_root_there_is_nothing_to_show(settings):
    with pytest.raises(ConfigError, match=r"keys holds no root\.pem"):
        list(keyring.shown(settings, NOW))


def test_a_role_is_one_of_those_that_there_are():
    assert keyring.role_of("client") is Role.CLIENT
    with pytest.raises(UsageError, match="no role is called 'server'; there are: coordinator, client"):
        keyring.role_of("server")


# --- passphrases ----------------------------------------------------------------------------------


def test_the_roots_passphrase_is_asked_for_only_where_it_is_locked_and_not_in_a_file(
    settings, home, tmp_path, answers
):
    keyring.init(settings, None)
    asked = answers("open sesame")
    assert keyring.passphrase(settings) is None
    (home / "root.key").unlink()
    (home / "root.pem").unlink()
    keyring.init(settings, WORDS)
    (tmp_path / "words").write_bytes(b"from a file\n")
    told_where = settings.model_copy(update={"passphrase_file": tmp_path / "words"})
    assert keyring.passphrase(told_where) == b"from a file"
    assert asked == []
    assert keyring.passphrase(settings) == WORDS
    assert len(asked) == 1


def test_where_nobody_sits_nobody_is_asked(settings, monkeypatch):
    keyring.init(settings, WORDS)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert keyring.passphrase(settings) is None
    with pytest.raises(ConfigError, match="no terminal") as nobody:
        keyring.new_passphrase()
    assert "--passphrase-file" in nobody.value.advice


def test_a_new_passphrase_is_typed_twice(answers):
    answers("words", "words")
    assert keyring.new_passphrase() == b"words"
    for typed in (("words", "wrods"), ("", "")):
        answers(*typed)
        with pytest.raises(ConfigError, match="not the same, or empty"):
            keyring.new_passphrase()


# --- replacing and revoking -----------------------------------------------------------------------


def test_a_rotation_tells_when_the_old_certificate_ends(settings, home):
    keyring.init(settings, None)
    before = identity.issue(home, Role.CLIENT, "c1", ED)
    ends = keyring.rotate(settings, Role.CLIENT, "c1", 0.5)
    assert abs(ends - datetime.now(UTC) - timedelta(hours=12)) < timedelta(minutes=1)
    assert identity.load(home, Role.CLIENT, "c1").kid != before.kid
    (old, _) = Register(home).all()
    assert abs(old.ends - ends) < timedelta(minutes=1)


def test_a_rotation_opens_what_is_locked_and_locks_it_again(settings, home, tmp_path):
    keyring.init(settings, WORDS)
    identity.issue(home, Role.CLIENT, "c1", ED, passphrase=WORDS)
    (tmp_path / "words").write_bytes(WORDS + b"\n")
    with pytest.raises(ConfigError, match="locked"):
        keyring.rotate(settings, Role.CLIENT, "c1", 1.0)
    told_where = settings.model_copy(update={"passphrase_file": tmp_path / "words"})
    keyring.rotate(told_where, Role.CLIENT, "c1", 1.0)
    assert keyfiles.is_locked(home / "client-c1.key")
    assert identity.load(home, Role.CLIENT, "c1", passphrase=WORDS).name == "c1"


@pytest.fixture
def closed():
    """The address of a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_revocation_stands_though_nobody_can_be_told(settings, home, closed):
    keyring.init(settings, None)
    identity.issue(home, Role.CLIENT, "c1", ED)
    link = settings.link.model_copy(update={"brokers": [closed]})
    away = settings.model_copy(update={"link": link})

    async def main():
        async with asyncio.timeout(within(20)):
            return await keyring.revoke(away, Role.CLIENT, "c1", None)

    came = asyncio.run(main())
    assert came.endswith("Connection refused")
    assert len(identity.read_revocations(home).at) == 1


def test_what_cannot_be_revoked_is_an_error(settings):
    keyring.init(settings, None)
    with pytest.raises(NotFoundError):
        asyncio.run(keyring.revoke(settings, Role.CLIENT, "c9", None))


# --- what is elsewhere ----------------------------------------------------------------------------


@pytest.fixture
def enrolled(settings, home):
    """Let c1 and an operator have made their keys on their own machines."""
    keyring.init(settings, None)
    for role, name in ((Role.CLIENT, "c1"), (Role.OPERATOR, "operator")):
        identity.vouch(home, role, name, keys.generate(ED).public_key())


@pytest.mark.usefixtures("enrolled")
@pytest.mark.parametrize(("role", "name"), [(Role.CLIENT, "c1"), (Role.OPERATOR, "operator")])
def test_who_has_its_key_elsewhere_gets_a_new_one_by_an_invitation(settings, home, role, name):
    for asked in (
        lambda: keyring.rotate(settings, role, name, 1.0),
        lambda: keyring.export(settings, home / "away", role, name),
    ):
        with pytest.raises(
            NotFoundError, match=f"the private key of {role} {name} is not in {home}"
        ) as missing:
            asked()
        assert f"`fedmq pair invite --replace --role {role} --name {name}` here" in missing.value.advice
        assert "`fedmq pair join CODE` there" in missing.value.advice
    assert len(Register(home).all()) == 2
    assert not (home / "away").exists()


@pytest.mark.usefixtures("enrolled")
def test_who_is_not_known_or_cannot_be_invited_is_not_told_to_be(settings, home, tmp_path):
    identity.issue(home, Role.BROKER, "broker", ED)
    (home / "broker-broker.key").unlink()
    for role, name in ((Role.CLIENT, "c9"), (Role.BROKER, "broker")):
        with pytest.raises(NotFoundError) as missing:
            keyring.export(settings, tmp_path, role, name)
        assert missing.value.advice.startswith("Run this where it is")


def test_what_is_here_is_exported(settings, home, tmp_path):
    keyring.init(settings, None)
    identity.issue(home, Role.CLIENT, "c1", ED)
    written = keyring.export(settings, tmp_path / "away", Role.CLIENT, "c1")
    assert [path.name for path in written] == ["client-c1.key", "client-c1.pem", "root.pem"]
    assert [path.name for path in keyring.export(settings, tmp_path / "root", None, "")] == ["root.pem"]


def test_what_a_crash_has_left_half_done_is_here(settings, home, tmp_path):
    keyring.init(settings, None)
    identity.issue(home, Role.CLIENT, "c1", ED)
    for end in ("key", "pem"):
        (home / f"client-c1.{end}").rename(home / f"client-c1.new.{end}")
    assert keyring.export(settings, tmp_path / "away", Role.CLIENT, "c1")
    keyring.rotate(settings, Role.CLIENT, "c1", 1.0)


def test_what_is_asked_of_a_federation_that_is_not_here_leaves_nothing_behind(settings, tmp_path):
    for asked in (
        lambda: keyring.rotate(settings, Role.CLIENT, "c1", 1.0),
        lambda: keyring.export(settings, tmp_path / "away", Role.CLIENT, "c1"),
        lambda: keyring.export(settings, tmp_path / "away", None, ""),
        lambda: keyring.passphrase(settings),
        lambda: list(keyring.shown(settings, NOW)),
    ):
        with pytest.raises(KeysMissingError, match="this machine has no keys of federation 'lab'"):
            asked()
    assert not list(tmp_path.iterdir())

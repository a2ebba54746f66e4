"""What the root has signed: written down line by line, and the same when it is read again."""

import json
import stat
from datetime import UTC, datetime, timedelta

import pytest

from common import certificates, keys, limits
from common.certificates import Role
from common.errors import ConfigError
from common.ids import FederationId
from common.keys import KeyType
from common.register import FILE, Register

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
ROOT_KEY = keys.generate(KeyType.ED25519)
ROOT = certificates.read_root(certificates.make_root(ROOT_KEY, FederationId("lab"), NOW))


def certified(name="c1", role=Role.CLIENT, now=NOW):
    public = keys.generate(KeyType.ED25519).public_key()
    return certificates.make(ROOT, ROOT_KEY, public, role=role, name=name, now=now)


@pytest.fixture
def register(tmp_path):
    return Register(tmp_path)


def test_nothing_was_signed_where_there_is_no_file(register, tmp_path):
    assert register.all() == ()
    assert register.ended(NOW) == {}
    assert not (tmp_path / FILE).exists()


def test_what_is_added_is_there_in_order_and_after_a_restart(register, tmp_path):
    made = [certified("c1"), certified("c2"), certified("operator", Role.OPERATOR)]
    for one in made:
        register.add(ROOT, one)
    for known in (register, Register(tmp_path)):
        assert [(one.role, one.name) for one in known.all()] == [
            ("client", "c1"),
            ("client", "c2"),
            ("operator", "operator"),
        ]
        for one, certificate in zip(known.all(), made, strict=True):
            peer = certificates.check(ROOT, certificates.der(certificate), NOW)
            assert (one.serial, one.kid, one.not_after) == (peer.serial, peer.kid.hex(), peer.not_after)
            assert one.ends is None
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert len((tmp_path / FILE).read_text().splitlines()) == 3


def test_of_one_participant_those_count_that_are_valid_now(register):
    old, ended, mine, other = certified(), certified(), certified(), certified("c2")
    for one in (old, ended, mine, other):
        register.add(ROOT, one)
    register.end(old.serial_number, NOW)
    register.end(ended.serial_number, NOW + HOUR)
    assert [one.serial for one in register.of("client", "c1", NOW)] == [
        ended.serial_number,
        mine.serial_number,
    ]
    assert [one.serial for one in register.of("client", "c1", NOW + HOUR)] == [mine.serial_number]
    assert register.of("operator", "c1", NOW) == ()
    assert register.of("client", "c1", NOW + timedelta(days=limits.CERTIFICATE_DAYS + 1)) == ()


def test_the_earliest_end_stands(register, tmp_path):
    mine = certified()
    register.add(ROOT, mine)
    register.end(mine.serial_number, NOW + 2 * HOUR)
    assert register.ended(NOW + HOUR) == {}
    register.end(mine.serial_number, NOW + HOUR)
    register.end(mine.serial_number, NOW + 3 * HOUR)
    for known in (register, Register(tmp_path)):
        assert known.ended(NOW + HOUR) == {mine.serial_number: NOW + HOUR}
    assert len((tmp_path / FILE).read_text().splitlines()) == 3  # what would change nothing is not written


def test_an_expired_certificate_is_written_down_like_any_other(register):
    """It is the root's own word, and it may have to be revoked all the same."""
    long_ago = NOW - timedelta(days=2 * limits.CERTIFICATE_DAYS)
    register.add(ROOT, certified(now=long_ago))
    assert len(register.all()) == 1
    assert register.of("client", "c1", NOW) == ()


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        '{"serial":"1f"',
        "{}",
        "[]",
        '{"serial":"xyz","ends":"2026-12-01T10:00:00+00:00"}',
        '{"serial":"1f","ends":"2026-12-01T10:00:00+00:00"}',  # of one that was never signed
        '{"serial":"1f","role":"client","name":"c1","kid":"9a","not_after":"tomorrow"}',
    ],
)
def test_a_line_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path, line):
    (tmp_path / FILE).write_text(line + "\n")
    with pytest.raises(ConfigError, match=FILE) as spoilt:
        Register(tmp_path)
    assert "backup" in spoilt.value.advice


def test_the_lines_are_those_that_the_documentation_shows(register, tmp_path):
    mine = certified()
    register.add(ROOT, mine)
    register.end(mine.serial_number, NOW)
    added, ended = map(json.loads, (tmp_path / FILE).read_text().splitlines())
    assert list(added) == ["serial", "role", "name", "kid", "not_after"]
    assert int(added["serial"], 16) == mine.serial_number
    assert ended == {"serial": f"{mine.serial_number:x}", "ends": NOW.isoformat()}

"""Certificates that come and go: signed for others, installed, replaced, taken back; killed at every moment."""

import os
import shutil
import stat
from datetime import UTC, datetime, timedelta

import pytest

from common import certificates, identity, keyfiles, keys, limits
from common.certificates import Role
from common.errors import (
    ConfigError,
    NotFoundError,
    OutOfDateError,
    RevokedError,
    SignatureError,
    StorageError,
)
from common.identity import KeyType
from common.register import Register
from common.trust import TrustStore

ED = KeyType.ED25519
WEEK = timedelta(days=7)
WORDS = b"open sesame"
BROKER_HOSTS = ("broker.example", "10.0.0.7")


@pytest.fixture
def home(tmp_path):
    """Where the root of the federation "lab" lives, and the keys of c1."""
    identity.create_root(tmp_path, "lab", ED)
    identity.issue(tmp_path, Role.CLIENT, "c1", ED)
    return tmp_path


@pytest.fixture
def machine(tmp_path_factory):
    """Another machine, with nothing on it yet."""
    return tmp_path_factory.mktemp("machine")


def now() -> datetime:
    return datetime.now(UTC)


def rotated(home, overlap=WEEK, name="c1", role=Role.CLIENT):
    return identity.rotate(home, role, name, ED, overlap)


def loaded(home, name="c1"):
    """What a participant signs with now: proved to be a pair that the root vouches for."""
    found = identity.load(home, Role.CLIENT, name)
    peer = TrustStore(identity.read_root(home)).admit(found.certificate_der)
    assert (peer.kid, peer.name) == (found.kid, name)
    assert peer.verify(found.sign(b"words"), b"words")
    return found


def serial_of(found) -> int:
    return certificates.read(found.certificate_der).serial_number


def root_of(home):
    return keyfiles.read_certificate(home / "root.pem")


# --- the root -------------------------------------------------------------------------------------


def test_the_root_signs_as_the_one_that_its_certificate_names(home):
    us = identity.root_identity(home)
    public = root_of(home).public_key()
    assert keys.verify(public, us.sign(b"words"), b"words")
    assert (us.kid, us.federation) == (keys.kid_of(public), "lab")
    assert us.certificate_der == certificates.der(root_of(home))


def test_a_locked_root_signs_nothing_without_its_passphrase(tmp_path):
    identity.create_root(tmp_path, "lab", ED, WORDS)
    assert identity.is_root_locked(tmp_path)
    public = keys.generate(ED).public_key()
    for sign in (
        lambda **words: identity.root_identity(tmp_path, **words),
        lambda **words: identity.vouch(tmp_path, Role.CLIENT, "c2", public, **words),
    ):
        with pytest.raises(ConfigError, match="locked"):
            sign()
        with pytest.raises(ConfigError, match="does not open"):
            sign(passphrase=b"wrong")
        assert sign(passphrase=WORDS)
    assert [one.name for one in Register(tmp_path).all()] == ["c2"]  # what was not signed is not listed


def test_where_the_root_key_is_not_nothing_is_signed(home):
    (home / "root.key").unlink()
    assert not identity.holds_root_key(home)
    assert not identity.is_root_locked(home)
    for sign in (
        lambda: identity.root_identity(home),
        lambda: identity.vouch(home, Role.CLIENT, "c2", keys.generate(ED).public_key()),
        lambda: rotated(home),
        lambda: identity.revoke(home, Role.CLIENT, "c1"),
    ):
        with pytest.raises(ConfigError, match="does not hold the root's private key") as missing:
            sign()
        assert "--keys-dir" in missing.value.advice
    assert identity.refresh_revocations(home) is None
    loaded(home)


# --- somebody else's key --------------------------------------------------------------------------


def test_a_key_that_never_leaves_its_machine_gets_a_certificate_and_is_installed(home, machine):
    key = keys.generate(ED)
    made = identity.vouch(home, Role.CLIENT, "phone", key.public_key(), overlap=WEEK)
    assert [one.serial for one in Register(home).of("client", "phone", now())] == [made.serial_number]
    assert not (home / "client-phone.pem").exists()
    us = identity.install(machine / "keys", root_of(home), made, key, WORDS)
    assert (us.name, us.role, us.federation) == ("phone", Role.CLIENT, "lab")
    assert identity.load(machine / "keys", Role.CLIENT, "phone", passphrase=WORDS).kid == us.kid
    assert sorted(path.name for path in (machine / "keys").glob("[a-z]*")) == [
        "client-phone.key",
        "client-phone.pem",
        "root.pem",
    ]
    assert keyfiles.is_locked(machine / "keys" / "client-phone.key")
    assert stat.S_IMODE((machine / "keys").stat().st_mode) == 0o700
    assert not identity.holds_root_key(machine / "keys")


def test_nobody_is_vouched_for_under_a_name_that_its_role_may_not_have(home):
    public = keys.generate(ED).public_key()
    with pytest.raises(ConfigError, match="no client can be called 'operator'"):
        identity.vouch(home, Role.CLIENT, "operator", public)
    assert len(Register(home).all()) == 1


def test_what_another_root_signed_is_not_installed(home, machine):
    key = keys.generate(ED)
    made = identity.vouch(home, Role.CLIENT, "phone", key.public_key(), overlap=WEEK)
    identity.create_root(machine, "lab", ED)
    with pytest.raises(ConfigError, match="another root than the one that enrolled us") as other:
        identity.install(machine, root_of(home), made, key)
    assert "never changes" in other.value.advice
    with pytest.raises(ConfigError, match="cannot be used"):
        identity.install(machine, root_of(machine), made, key)  # nor what this root did not sign
    with pytest.raises(ConfigError, match="cannot be used"):
        identity.install(machine / "new", made, made, key)  # nor beneath what is no root
    assert not list(machine.glob("client-*"))
    assert not (machine / "new").exists()


def test_a_certificate_is_not_installed_beside_another_key(home, machine):
    made = identity.vouch(home, Role.CLIENT, "phone", keys.generate(ED).public_key(), overlap=WEEK)
    with pytest.raises(ConfigError, match="does not belong to the key beside it"):
        identity.install(machine, root_of(home), made, keys.generate(ED))


def test_an_enrolment_replaces_an_older_one(home, machine):
    kids = []
    for _ in range(2):
        key = keys.generate(ED)
        made = identity.vouch(home, Role.CLIENT, "phone", key.public_key(), overlap=WEEK)
        kids.append(identity.install(machine, root_of(home), made, key).kid)
    assert loaded(machine, "phone").kid == kids[1] != kids[0]


# --- what is copied -------------------------------------------------------------------------------


def test_what_a_machine_needs_is_copied_and_the_root_key_is_not(home, machine):
    written = identity.export(home, machine / "card", Role.CLIENT, "c1")
    assert [path.name for path in written] == ["client-c1.key", "client-c1.pem", "root.pem"]
    assert loaded(machine / "card").kid == loaded(home).kid
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    assert not identity.holds_root_key(machine / "card")
    assert [path.name for path in identity.export(home, machine / "root")] == ["root.pem"]
    identity.revoke(home, Role.CLIENT, "c1")
    assert [path.name for path in identity.export(home, machine / "root")] == ["root.pem", "crl.pem"]
    assert identity.read_revocations(machine / "root").number == 1


def test_what_is_not_there_cannot_be_copied(home, machine):
    with pytest.raises(ConfigError, match=r"cannot copy .*client-c9\.key"):
        identity.export(home, machine / "card", Role.CLIENT, "c9")
    assert not (machine / "card").exists()


def test_those_whose_keys_are_here_are_found(home):
    identity.issue(home, Role.BROKER, "broker", ED)
    (home / "client-c7.pem").write_bytes((home / "client-c1.pem").read_bytes())  # its key is elsewhere
    (home / "stranger-x.pem").touch()
    (home / "stranger-x.key").touch()
    assert identity.found(home) == ((Role.BROKER, "broker"), (Role.CLIENT, "c1"))
    peer = identity.peer(home, Role.CLIENT, "c1")
    assert (peer.name, peer.kid) == ("c1", loaded(home).kid)
    with pytest.raises(ConfigError, match="cannot read"):
        identity.peer(home, Role.CLIENT, "c9")


def test_a_certificate_is_told_of_though_it_has_run_out(home, monkeypatch):
    monkeypatch.setattr(limits, "CERTIFICATE_DAYS", -0.5)
    identity.vouch(home, Role.CLIENT, "old", keys.generate(ED).public_key())
    rotated_out(home)
    assert identity.peer(home, Role.CLIENT, "old").name == "old"


def rotated_out(home):
    """Put a certificate that has run out among the keys."""
    key = keys.generate(ED)
    made = identity.vouch(home, Role.CLIENT, "old", key.public_key())
    keyfiles.write_key(home / "client-old.key", key)
    keyfiles.write_certificate(home / "client-old.pem", made)


# --- a new key ------------------------------------------------------------------------------------


def test_after_a_rotation_both_certificates_count_until_the_overlap_is_over(home):
    before = loaded(home)
    after = rotated(home)
    assert loaded(home).kid == after.kid != before.kid
    old, new = Register(home).all()
    assert (old.serial, new.serial) == (serial_of(before), serial_of(after))
    assert abs(old.ends - now() - WEEK) < timedelta(minutes=1)
    assert new.ends is None
    assert identity.refresh_revocations(home) is None  # nothing has come to its end
    store = TrustStore(identity.read_root(home))
    assert store.admit(before.certificate_der).name == store.admit(after.certificate_der).name


def test_without_an_overlap_the_next_list_takes_the_old_certificate_back(home):
    before = loaded(home)
    after = rotated(home, timedelta(0))
    made = identity.refresh_revocations(home)
    assert made.number == 1
    assert dict(made.at).keys() == {serial_of(before)}
    store = TrustStore(identity.read_root(home), revoked=made)
    store.admit(after.certificate_der)
    with pytest.raises(RevokedError):
        store.admit(before.certificate_der)
    assert identity.refresh_revocations(home).pem == made.pem  # nothing new: the same list


def test_a_second_rotation_ends_all_that_were_there_and_puts_no_end_off(home):
    first = loaded(home)
    second = rotated(home, timedelta(hours=1))
    rotated(home, WEEK)
    ends = {one.serial: one.ends for one in Register(home).all()}
    assert ends[serial_of(first)] < now() + timedelta(hours=2)
    assert ends[serial_of(second)] > now() + timedelta(days=6)


def test_a_broker_that_is_given_a_new_key_keeps_its_hosts(home):
    identity.issue(home, Role.BROKER, "broker", ED, hosts=BROKER_HOSTS)
    rotated(home, role=Role.BROKER, name="broker")
    assert certificates.hosts_of(keyfiles.read_certificate(home / "broker-broker.pem")) == BROKER_HOSTS


def test_a_rotation_may_change_the_kind_of_key_and_keeps_the_lock(tmp_path):
    identity.create_root(tmp_path, "lab", ED, WORDS)
    identity.issue(tmp_path, Role.CLIENT, "c1", ED, passphrase=WORDS)
    made = identity.rotate(tmp_path, Role.CLIENT, "c1", KeyType.RSA, WEEK, passphrase=WORDS)
    assert keys.type_of(made.key.public_key()) is KeyType.RSA
    assert keyfiles.is_locked(tmp_path / "client-c1.key")


def test_a_certificate_that_has_run_out_can_be_replaced(home, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(limits, "CERTIFICATE_DAYS", -0.5)
        rotated_out(home)
    with pytest.raises(ConfigError, match="is valid") as out:
        identity.load(home, Role.CLIENT, "old")
    assert out.value.advice == OutOfDateError("x").advice  # which says to rotate
    rotated(home, name="old")
    assert loaded(home, "old").name == "old"


def test_there_must_be_something_to_replace(home):
    with pytest.raises(NotFoundError, match="holds no certificate of client c9"):
        rotated(home, name="c9")
    assert len(Register(home).all()) == 1


# --- killed ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def dying(monkeypatch, after: int) -> None:
    """Let the process die before its `after`-th change of a file, counted from 0: a file replaced, a line added."""
    left = [after]

    def counted(change):
        def changing(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return change(*arguments, **options)

        return changing

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(Register, "_append", counted(Register._append))


CHANGES = 6  # the register's line, key, certificate, both put in their place, the old one's end


@pytest.mark.parametrize("after", range(CHANGES + 1))
def test_a_rotation_that_is_killed_leaves_a_pair_that_works_and_can_be_done_again(
    home, machine, monkeypatch, after
):
    before = loaded(home)
    with monkeypatch.context() as patched:
        dying(patched, after)
        if after < CHANGES:
            with pytest.raises(Killed):
                rotated(home)
        else:
            rotated(home)
    assert identity.found(home) == ((Role.CLIENT, "c1"),)
    identity.export(home, machine, Role.CLIENT, "c1")
    assert loaded(machine).kid == loaded(home).kid
    signed = {one.serial for one in Register(home).all()}
    assert serial_of(loaded(home)) in signed  # so that it can be revoked
    assert (loaded(home).kid == before.kid) == (after <= 2)  # the new one from its certificate on
    again = rotated(home, timedelta(0))
    assert loaded(home).kid == again.kid
    revoked = identity.refresh_revocations(home)
    assert serial_of(before) in revoked
    everything = {one.serial for one in Register(home).all()}
    assert everything - revoked.at.keys() == {serial_of(again)}  # nothing that was ever signed is left over


@pytest.mark.parametrize("after", range(6))
def test_an_enrolment_that_is_killed_leaves_the_old_pair_or_the_new_one(home, machine, monkeypatch, after):
    first, second = keys.generate(ED), keys.generate(ED)
    old = identity.vouch(home, Role.CLIENT, "phone", first.public_key(), overlap=WEEK)
    new = identity.vouch(home, Role.CLIENT, "phone", second.public_key(), overlap=WEEK)
    was = identity.install(machine, root_of(home), old, first)
    with monkeypatch.context() as patched:
        dying(patched, after)
        if after < 5:
            with pytest.raises(Killed):
                identity.install(machine, root_of(home), new, second)
        else:
            identity.install(machine, root_of(home), new, second)
    assert (loaded(machine, "phone").kid == was.kid) == (after <= 2)
    assert identity.install(machine, root_of(home), new, second).kid == keys.kid_of(second.public_key())
    assert loaded(machine, "phone").kid == keys.kid_of(second.public_key())


def test_an_enrolment_is_not_undone_by_what_an_older_rotation_left(home, monkeypatch):
    with monkeypatch.context() as patched:
        dying(patched, 3)
        with pytest.raises(Killed):
            rotated(home)
    key = keys.generate(ED)
    made = identity.vouch(home, Role.CLIENT, "c1", key.public_key(), overlap=WEEK)
    identity.install(home, root_of(home), made, key)
    assert loaded(home).kid == keys.kid_of(key.public_key())


@pytest.mark.parametrize("again", range(5))
def test_killed_once_more_while_it_mends_what_it_left_it_still_leaves_a_pair(home, monkeypatch, again):
    key = keys.generate(ED)
    made = identity.vouch(home, Role.CLIENT, "c1", key.public_key(), overlap=WEEK)
    for after, change in (
        (4, lambda: rotated(home)),  # the new key is in its place, its certificate is not
        (again, lambda: identity.install(home, root_of(home), made, key)),
    ):
        with monkeypatch.context() as patched:
            dying(patched, after)
            with pytest.raises(Killed):
                change()
    loaded(home)


# --- taken back -----------------------------------------------------------------------------------


def test_all_certificates_of_a_participant_are_taken_back_and_nobody_elses(home):
    first = loaded(home)
    second = rotated(home)
    other = identity.issue(home, Role.CLIENT, "c2", ED)
    made = identity.revoke(home, Role.CLIENT, "c1")
    assert dict(made.at).keys() == {serial_of(first), serial_of(second)}
    assert identity.read_revocations(home).pem == made.pem
    store = TrustStore(identity.read_root(home), revoked=made)
    store.admit(other.certificate_der)
    for one in (first, second):
        with pytest.raises(RevokedError):
            store.admit(one.certificate_der)


def test_who_is_enrolled_anew_after_that_counts_again(home):
    identity.revoke(home, Role.CLIENT, "c1")
    again = rotated(home)
    made = identity.read_revocations(home)
    assert TrustStore(identity.read_root(home), revoked=made).admit(again.certificate_der).name == "c1"


def test_each_list_has_a_higher_number_and_keeps_what_was_revoked_before(home):
    first = loaded(home)
    one = identity.revoke(home, Role.CLIENT, "c1")
    identity.issue(home, Role.CLIENT, "c2", ED)
    two = identity.revoke(home, Role.CLIENT, "c2")
    assert (one.number, two.number) == (1, 2)
    assert one.at.items() <= two.at.items()
    (home / "issued.jsonl").unlink()  # also where the register was lost
    identity.issue(home, Role.CLIENT, "c3", ED)
    three = identity.revoke(home, Role.CLIENT, "c3")
    assert serial_of(first) in three
    assert three.number == 3


def test_revoking_again_tells_when_it_was_revoked_first(home):
    one = identity.revoke(home, Role.CLIENT, "c1")
    two = identity.revoke(home, Role.CLIENT, "c1")
    assert (one.at, two.number) == (two.at, 2)


def test_nobody_is_revoked_to_whom_nothing_was_given(home):
    with pytest.raises(NotFoundError, match="has signed no certificate of client c9") as unknown:
        identity.revoke(home, Role.CLIENT, "c9")
    assert "fedmq keys show" in unknown.value.advice
    with pytest.raises(NotFoundError):
        identity.revoke(home, Role.OPERATOR, "c1")
    assert not (home / "crl.pem").exists()


def test_a_revocation_that_is_killed_before_its_list_was_written_is_caught_up(home, monkeypatch):
    mine = loaded(home)
    with monkeypatch.context() as patched:
        dying(patched, 1)  # the register knows
        with pytest.raises(Killed):
            identity.revoke(home, Role.CLIENT, "c1")
    assert identity.read_revocations(home) is None
    assert serial_of(mine) in identity.refresh_revocations(home)


def test_a_list_that_was_heard_is_kept_and_read_again(home, machine):
    made = identity.revoke(home, Role.CLIENT, "c1")
    identity.keep_revocations(machine, made.pem)
    root = identity.read_root(home)
    assert identity.read_revocations(machine, root).pem == made.pem
    with pytest.raises(StorageError):
        identity.keep_revocations(machine / "missing", made.pem)
    (machine / "crl.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"crl\.pem: no revocation list"):
        identity.read_revocations(machine, root)


def test_a_list_of_another_root_is_not_read(home, machine):
    identity.create_root(machine, "lab", ED)
    identity.issue(machine, Role.CLIENT, "c1", ED)
    made = identity.revoke(machine, Role.CLIENT, "c1")
    identity.keep_revocations(home, made.pem)
    with pytest.raises(ConfigError, match="not signed by this federation's root") as other:
        identity.read_revocations(home)
    assert isinstance(other.value.__cause__, SignatureError)


def test_a_second_certificate_under_one_name_has_to_be_wanted(home):
    first = identity.vouch(home, Role.CLIENT, "phone", keys.generate(ED).public_key())
    with pytest.raises(ConfigError, match="has a certificate already"):
        identity.vouch(home, Role.CLIENT, "phone", keys.generate(ED).public_key())
    identity.vouch(home, Role.CLIENT, "phone", keys.generate(ED).public_key(), overlap=timedelta())
    assert first.serial_number in Register(home).ended(datetime.now(UTC))


def test_who_cannot_open_the_roots_key_revokes_nothing(tmp_path):
    identity.create_root(tmp_path, "demo", ED, b"right")
    identity.vouch(tmp_path, Role.CLIENT, "phone", keys.generate(ED).public_key(), b"right")
    with pytest.raises(ConfigError, match="does not open"):
        identity.revoke(tmp_path, Role.CLIENT, "phone", b"wrong")
    assert Register(tmp_path).ended(datetime.now(UTC)) == {}
    assert len(Register(tmp_path).of("client", "phone", datetime.now(UTC))) == 1


def test_two_copies_of_a_root_join_what_each_has_revoked(home, tmp_path):
    for name in ("a", "b"):
        identity.vouch(home, Role.CLIENT, name, keys.generate(ED).public_key())
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    first = identity.revoke(home, Role.CLIENT, "a")
    identity.revoke(copy, Role.CLIENT, "b")
    joined = identity.revoke(copy, Role.CLIENT, "b", heard=first)
    assert joined.number > first.number
    assert set(first.at) < set(joined.at)


def test_half_a_line_of_the_register_is_passed_over_and_then_overwritten(home):
    identity.vouch(home, Role.CLIENT, "a", keys.generate(ED).public_key())
    with (home / "issued.jsonl").open("ab") as file:
        file.write(b'{"serial":"1f')
    identity.vouch(home, Role.CLIENT, "b", keys.generate(ED).public_key())
    assert {one.name for one in Register(home).all()} >= {"a", "b"}


def test_only_brokers_name_hosts(home):
    with pytest.raises(ConfigError, match="only a broker's certificate names hosts"):
        identity.issue(home, Role.CLIENT, "c9", ED, hosts=("example.org",))

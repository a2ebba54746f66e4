"""What a participant is put together from: its keys, whom it believes, where its broker is."""

import json

import pytest

from common import identity, parts
from common.errors import ConfigError, KeysMissingError, RevokedError
from common.identity import Role
from common.settings import Settings, default_keys
from support.federation import member, root


@pytest.fixture
def settings(tmp_path):
    root(tmp_path / "keys")
    return Settings(
        federation="lab", keys_dir=tmp_path / "keys", state_dir=tmp_path / "state", key_type="ed25519"
    )


def with_brokers(settings, *brokers):
    link = settings.link.model_copy(update={"brokers": list(brokers)})
    return settings.model_copy(update={"link": link})


def test_a_participant_whose_certificate_was_revoked_does_not_start(settings):
    """Nobody would hear it: to the others it is as if it said nothing."""
    made = parts.assemble(settings, Role.CLIENT, "c1", first=5)
    assert made.voice.next_number() == 7  # its will has the one before
    made.store.sweep(set(), parts=True)
    identity.revoke(settings.keys_dir, Role.CLIENT, "c1")
    with pytest.raises(RevokedError, match="client c1 was revoked"):
        parts.assemble(settings, Role.CLIENT, "c1")
    assert parts.assemble(settings, Role.CLIENT, "c2").voice.identity.name == "c2"


def test_the_newest_list_counts_whether_it_lies_among_the_keys_or_the_state(settings, tmp_path):
    us = member(settings.keys_dir, Role.CLIENT, "c1")
    assert parts.trust(settings, us).revoked is None
    older = identity.revoke(settings.keys_dir, Role.CLIENT, "c1")
    newer = identity.revoke(settings.keys_dir, Role.CLIENT, "c1")
    state = tmp_path / "state"
    state.mkdir()
    for among_keys, in_state in ((older, newer), (newer, older)):
        identity.keep_revocations(settings.keys_dir, among_keys.pem)
        identity.keep_revocations(state, in_state.pem)
        assert parts.trust(settings, us, state).revoked.number == newer.number
    assert parts.trust(settings, us, tmp_path / "nowhere").revoked.number == newer.number


def test_a_passphrase_is_what_stands_in_its_file_but_for_the_end_of_the_line(settings, tmp_path):
    assert parts.passphrase(settings) is None
    path = tmp_path / "words"
    named = settings.model_copy(update={"passphrase_file": path})
    for written, read in ((b"words\n", b"words"), (b"words\r\n", b"words"), (b" two words ", b" two words ")):
        path.write_bytes(written)
        assert parts.passphrase(named) == read
    path.unlink()
    with pytest.raises(ConfigError, match=f"cannot read {path}"):
        parts.passphrase(named)


def test_the_broker_is_where_it_was_set_or_where_the_pairing_said_or_here(settings):
    def found(which):
        return [(one.host, one.port, one.tls) for one in parts.addresses(which)]

    assert found(settings) == [("127.0.0.1", 1883, False)]
    told = settings.keys_dir / parts.BROKERS_FILE
    told.write_text(json.dumps(["mqtts://10.0.0.7:8883", "mqtt://other:1883"]))
    assert found(settings) == [("10.0.0.7", 8883, True), ("other", 1883, False)]
    assert found(with_brokers(settings, "mqtt://set:1")) == [("set", 1, False)]
    told.write_text("nonsense")
    assert found(with_brokers(settings, "mqtt://set:1")) == [("set", 1, False)]
    with pytest.raises(ConfigError, match=parts.BROKERS_FILE) as spoilt:
        parts.addresses(settings)
    assert "--broker" in spoilt.value.advice


def test_keys_of_another_federation_are_not_ours(settings):
    other = settings.model_copy(update={"federation": "other"})
    with pytest.raises(ConfigError, match="holds keys of federation 'lab', not of 'other'"):
        parts.member(other, Role.CLIENT, "c1")


def test_where_the_federation_has_no_keys_the_others_are_named_and_the_one_that_may_be_meant():
    with pytest.raises(KeysMissingError, match=r"has no keys of federation 'lba'$") as alone:
        parts.member(Settings(federation="lba"), Role.CLIENT, "c1")
    assert "`fedmq pair join CODE`" in alone.value.advice
    for name in ("lab", "ward"):
        identity.create_root(default_keys(name), name, identity.KeyType.ED25519)
    default_keys("empty").mkdir(parents=True)
    with pytest.raises(
        KeysMissingError, match=r"There are keys of: lab, ward\. Did you mean --federation lab\?$"
    ):
        parts.member(Settings(federation="lba"), Role.CLIENT, "c1")
    with pytest.raises(KeysMissingError, match=r"There are keys of: lab, ward\.$"):
        parts.require_keys(Settings(federation="hospital"))
    assert not default_keys("lba").parent.exists()


def test_who_says_where_the_keys_are_is_not_told_of_other_places(tmp_path):
    identity.create_root(default_keys("lab"), "lab", identity.KeyType.ED25519)
    with pytest.raises(KeysMissingError, match=r"has no keys of federation 'lba'$"):
        parts.require_keys(Settings(federation="lba", keys_dir=tmp_path))
    assert parts.other_federations(Settings(federation="lab")) == ""

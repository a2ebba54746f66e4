"""Whether a machine is enrolled already: only with a certificate that still counts."""

import pytest

from common import identity, joining, parts
from common.certificates import Role
from common.errors import ConfigError
from common.identity import KeyType
from common.invitation import Invitation, link_fingerprint
from common.messages import EnrolReason
from common.newcomer import Failed
from common.settings import Settings
from support import federation
from support.federation import member


def invitation(root) -> Invitation:
    return Invitation(
        host="example.org",
        port=8884,
        spki=None,
        federation=federation.NAME,
        root_fingerprint=link_fingerprint(root),
        token_id=bytes(8),
        token=bytes(16),
        expires=2**31,
    )


@pytest.fixture
def settings(tmp_path):
    return Settings(federation=federation.NAME, keys_dir=tmp_path / "keys", state_dir=tmp_path / "state")


def known(settings, name=""):
    root = identity.read_root(parts.keys_dir(settings))
    return joining.enrolled_already(settings, invitation(root), Role.CLIENT, name)


def test_a_machine_with_a_certificate_needs_no_invitation(settings):
    member(settings.keys_dir, Role.CLIENT, "c1")
    assert known(settings) == known(settings, "c1") == (Role.CLIENT, "c1")
    assert known(settings, "c2") is None


def test_one_with_two_names_has_to_say_which(settings):
    for name in ("c1", "c2"):
        member(settings.keys_dir, Role.CLIENT, name)
    assert known(settings) is None
    assert known(settings, "c2") == (Role.CLIENT, "c2")


@pytest.mark.parametrize("place", ["keys_dir", "state_dir"])
def test_one_whose_certificate_was_revoked_is_enrolled_anew(settings, place):
    member(settings.keys_dir, Role.CLIENT, "c1")
    revoked = identity.revoke(settings.keys_dir, Role.CLIENT, "c1")
    (settings.keys_dir / identity.CRL_FILE).unlink()
    assert known(settings) == (Role.CLIENT, "c1")  # nothing of it is known here
    directory = getattr(settings, place)
    directory.mkdir(exist_ok=True)
    identity.keep_revocations(directory, revoked.pem)
    assert known(settings) is None


def test_another_root_is_an_error(settings, tmp_path):
    member(settings.keys_dir, Role.CLIENT, "c1")
    other = identity.create_root(tmp_path / "other", federation.NAME, KeyType.ED25519)
    with pytest.raises(ConfigError, match="another root than the one that invites us"):
        joining.enrolled_already(settings, invitation(other), Role.CLIENT, "")


def test_each_reason_for_which_nothing_comes_of_a_pairing_has_its_advice():
    assert set(joining._ADVICE) == set(EnrolReason)


def test_a_failure_says_its_reason_and_its_advice_and_steers_no_terminal():
    error = joining._error(Failed(EnrolReason.NAME_TAKEN, "c1\x1b[2J is here"), "refused")
    assert str(error) == "the pairing failed: name-taken, c1\\u001b[2J is here; the broker: refused"
    assert "--replace" in error.advice
    assert error.exit_code == 6
    assert str(joining._error(Failed(EnrolReason.GIVEN_UP, ""), "")) == "the pairing failed: given-up"

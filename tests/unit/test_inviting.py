"""What an invitation would come to nothing for is found out before anybody is shown a code."""

from dataclasses import replace

import pytest

from common import identity, keys
from common.certificates import Role
from common.errors import ConfigError, UsageError
from common.keys import KeyType
from compose.inviting import Wish, _checked
from support import federation

WISH = Wish(Role.CLIENT, "c1", None, confirm=True, may_replace=False)


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.BROKER])
def test_nobody_is_invited_as_what_lives_beside_the_root(tmp_path, role):
    federation.root(tmp_path)
    with pytest.raises(UsageError, match=f"nobody is invited as {role}"):
        _checked(replace(WISH, role=role), tmp_path)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.DASHBOARD])
def test_who_can_have_one_name_only_gets_it(tmp_path, role):
    federation.root(tmp_path)
    assert _checked(replace(WISH, role=role, name=""), tmp_path).name == role
    with pytest.raises(UsageError, match="can be called 'c1'"):
        _checked(replace(WISH, role=role), tmp_path)


def test_a_client_may_choose_its_name_itself(tmp_path):
    federation.root(tmp_path)
    assert _checked(replace(WISH, name=""), tmp_path).name == ""


def test_a_name_that_has_a_certificate_is_invited_only_to_replace_it(tmp_path):
    federation.root(tmp_path)
    assert _checked(WISH, tmp_path) == WISH
    identity.vouch(tmp_path, Role.CLIENT, "c1", keys.generate(KeyType.ED25519).public_key())
    with pytest.raises(ConfigError, match="has a certificate already") as taken:
        _checked(WISH, tmp_path)
    assert "--replace" in taken.value.advice
    again = replace(WISH, may_replace=True)
    assert _checked(again, tmp_path) == again

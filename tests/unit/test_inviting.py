"""What an invitation would come to nothing for is found out before anybody is shown a code; and what is shown."""

import json
import os
import select
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from common import identity, keys, qr
from common.certificates import Role
from common.errors import ConfigError, UsageError
from common.ids import FederationId
from common.invitation import Invitation
from common.inviter import Offer
from common.keys import KeyType
from common.messages import EnrolReason
from common.register import Register
from compose import inviting
from compose.cli import app
from compose.inviting import Wish, _checked, _forget_typed, _is_taken
from support import federation

OFFER = Offer(
    Invitation(
        host="192.0.2.1",
        port=8884,
        spki=None,
        federation=FederationId("lab"),
        root_fingerprint=bytes(32),
        token_id=bytes(8),
        token=bytes(16),
        expires=1_800_000_000,
    ),
    Role.CLIENT,
    "c1",
)
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


@pytest.mark.parametrize("at", ["192.0.2.1", "192.0.2.1:", "192.0.2.1:0", "a b:1", "http://a:1", ":8884"])
def test_an_address_that_no_newcomer_can_read_says_its_form(tmp_path, at):
    federation.root(tmp_path)
    with pytest.raises(UsageError, match="is not HOST:PORT") as raised:
        _checked(replace(WISH, at=at), tmp_path)
    assert "--at 192.0.2.1:8884" in raised.value.advice


@pytest.mark.parametrize("at", ["192.0.2.1:8884", "[::1]:8884", "broker.example.org:1"])
def test_addresses_with_their_port_are_taken(tmp_path, at):
    federation.root(tmp_path)
    assert _checked(replace(WISH, at=at), tmp_path).at == at


def shown(capsys, offer, *, as_json=False, png=None):
    inviting.show(offer, png=png, svg=None, as_json=as_json)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("role", "name", "who", "command"),
    [
        (Role.CLIENT, "c1", "For client c1,", "fedmq client --join '{}'"),
        (Role.CLIENT, "", "For client,", "fedmq client --join '{}' --client-id NAME"),
        (Role.BRIDGE, "bridge-1", "For bridge bridge-1,", "fedmq pair join '{}'"),
        (Role.BRIDGE, "", "For bridge,", "fedmq pair join '{}' --name bridge-NAME"),
        (Role.OPERATOR, "operator", "For operator,", "fedmq pair join '{}'"),
        (Role.DASHBOARD, "dashboard", "For dashboard,", "fedmq pair join '{}'"),
    ],
)
def test_below_the_code_stands_whom_it_is_for_and_what_they_type(capsys, role, name, who, command):
    offer = replace(OFFER, role=role, name=name)
    *_, about, typed = shown(capsys, offer).splitlines()
    assert about.startswith(f"{who} until ")
    assert about.endswith("once, at 192.0.2.1:8884. On its machine:")
    assert typed == command.format(offer.invitation.code)


@pytest.mark.parametrize("name", ["c1", ""])
def test_as_json_an_invitation_says_all_that_a_program_needs(capsys, name):
    said = json.loads(shown(capsys, replace(OFFER, name=name), as_json=True))
    assert said == {
        "event": "pairing.invitation",
        "role": "client",
        "name": name or None,
        "at": "192.0.2.1:8884",
        "federation": "lab",
        "expires": 1_800_000_000,
        "code": OFFER.invitation.code,
    }


def test_a_picture_is_drawn_where_there_is_a_folder_for_it_and_nothing_is_shown_where_not(capsys, tmp_path):
    shown(capsys, OFFER, png=tmp_path / "code.png")
    assert qr.read_image(tmp_path / "code.png") == OFFER.invitation.code
    with pytest.raises(UsageError, match="No such file or directory") as raised:
        inviting.show(OFFER, png=tmp_path / "no" / "code.png", svg=None, as_json=False)
    assert "folder that exists" in raised.value.advice
    assert not capsys.readouterr().out


def test_a_program_that_cannot_answer_has_to_say_yes_beforehand():
    told = CliRunner().invoke(app, ["pair", "invite", "--json"])
    assert told.exit_code == UsageError.exit_code
    assert "nobody can be asked to compare codes\nSay --yes" in told.stderr


def test_each_reason_for_which_nothing_comes_of_a_pairing_has_its_advice():
    assert set(inviting._ADVICE) == set(EnrolReason)
    assert "--replace" in inviting._ADVICE[EnrolReason.NAME_TAKEN]


@pytest.mark.parametrize(("host", "here"), [("127.0.0.9", True), ("localhost", True), ("192.0.2.1", False)])
def test_loopback_addresses_are_those_of_this_machine(host, here):
    assert inviting._is_here(host) is here


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.DASHBOARD])
def test_one_more_operator_is_invited_though_there_is_one(tmp_path, role):
    identity.create_root(tmp_path, "lab", KeyType.ED25519)
    identity.issue(tmp_path, role, role, KeyType.ED25519)
    wish = replace(WISH, role=role, name="")
    assert _checked(wish, tmp_path).name == role
    assert not _is_taken(tmp_path, role, role)
    identity.vouch(tmp_path, role, role, keys.generate(KeyType.ED25519).public_key())
    assert [one.ends for one in Register(tmp_path).all()] == [None, None]  # both count


@pytest.mark.parametrize(
    ("role", "name", "advice"),
    [(Role.OPERATOR, "ada", "Leave --name out"), (Role.CLIENT, "A_1", "lower-case letters")],
)
def test_a_name_that_cannot_be_comes_with_those_that_can(tmp_path, role, name, advice):
    with pytest.raises(UsageError) as refused:
        _checked(replace(WISH, role=role, name=name), tmp_path)
    assert advice in refused.value.advice


def test_what_was_typed_before_the_question_answers_nothing(monkeypatch):
    keyboard, terminal = os.openpty()
    with os.fdopen(terminal) as stdin, os.fdopen(keyboard, "wb", 0) as hand:
        monkeypatch.setattr(sys, "stdin", stdin)
        hand.write(b"y\n")
        assert select.select([stdin], [], [], 5)[0]
        _forget_typed()
        assert not select.select([stdin], [], [], 0)[0]


def test_a_standard_input_that_is_no_terminal_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "answers").write_text("y\n")
    with (tmp_path / "answers").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        _forget_typed()
        assert stdin.read() == "y\n"

"""Invitations: what is spelled is read back, and what was spoilt says nothing of what it holds."""

import hashlib
from dataclasses import astuple, replace
from datetime import UTC, datetime

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from common import base45, certificates, codec, ids, invitation, keys, limits
from common.errors import ConfigError, InvitationError
from common.ids import FederationId
from common.invitation import Invitation
from common.keys import KeyType

SPOILT = "the invitation was not copied whole, or a character of it is wrong"
TOKEN = b"sixteen secrets!"
INVITATION = Invitation(
    host="broker.example.org",
    port=8884,
    spki=bytes(range(32)),
    federation=FederationId("lab"),
    root_fingerprint=bytes(range(32, 64)),
    token_id=bytes(range(8)),
    token=TOKEN,
    expires=1_800_000_000,
)
PARTS = [1, *astuple(INVITATION)]

invitations = st.builds(
    Invitation,
    host=st.from_regex(invitation.HOST, fullmatch=True),
    port=st.integers(1, 65_535),
    spki=st.none() | st.binary(min_size=32, max_size=32),
    federation=st.from_regex(ids.NAME, fullmatch=True).filter("mesh".__ne__),
    root_fingerprint=st.binary(min_size=32, max_size=32),
    token_id=st.binary(min_size=8, max_size=8),
    token=st.binary(min_size=16, max_size=16),
    expires=st.integers(1, 2**40),
)


def spelled(tree, version=1):
    data = codec.pack(tree)
    return f"FEDMQ{version}:{base45.encode(data + hashlib.sha256(data).digest()[:4])}"


@given(invitations)
@example(replace(INVITATION, host="a" * 253, federation=FederationId("f" * 63), port=65_535, expires=2**40))
def test_what_is_spelled_is_read_back_also_in_lower_case_and_between_spaces(one):
    assert invitation.parse(one.code) == one
    assert invitation.parse(f" \t{one.code.lower()} \r\n") == one


def test_the_form_is_the_one_in_the_document():
    assert spelled(PARTS) == INVITATION.code
    assert INVITATION.code.startswith("FEDMQ1:")
    assert 169 <= len(INVITATION.code) <= 240


@pytest.mark.parametrize("host", ["localhost", "10.0.0.7", "::1", "fe80::1", "a.b-c.example", "x", "h" * 253])
def test_names_and_addresses_are_hosts(host):
    assert invitation.parse(replace(INVITATION, host=host).code).host == host


WRONG = {
    "host": (1, ["", "a b", "a/b", "-a", "a\n", "ü", "a" * 254, b"a", None, "a%eth0", "user@host"]),
    "port": (2, [0, 65_536, -1, True, "8884", 1.5, None]),
    "spki": (3, [b"", bytes(31), bytes(33), "x" * 32, 0]),
    "federation": (4, ["", "Lab", "a/b", "mesh", "+", "a" * 64, b"lab", "lab\n"]),
    "root": (5, [None, bytes(31), bytes(33), "x" * 32]),
    "token id": (6, [None, bytes(7), bytes(9), 0]),
    "token": (7, [None, bytes(15), bytes(17), "x" * 16]),
    "expires": (8, [None, 0, -1, 2**41, True, 1e9, "tomorrow"]),
    "version": (0, [0, 2, True, "1", None, 1.0]),
}


@pytest.mark.parametrize(("at", "value"), [(at, value) for at, values in WRONG.values() for value in values])
def test_each_part_has_its_type_and_its_bounds(at, value):
    tree = [*PARTS[:at], value, *PARTS[at + 1 :]]
    with pytest.raises(InvitationError, match="not copied whole"):
        invitation.parse(spelled(tree))


def test_a_list_without_its_check_or_with_a_wrong_one_is_no_invitation():
    data = codec.pack(PARTS)
    for check in (b"", bytes(4), hashlib.sha256(data).digest()[:3], hashlib.sha256(data).digest()[:5]):
        with pytest.raises(InvitationError, match="not copied whole"):
            invitation.parse(f"FEDMQ1:{base45.encode(data + check)}")


@given(st.integers(7, len(INVITATION.code) - 1), st.sampled_from(base45.ALPHABET))
def test_one_wrong_character_is_noticed_before_anything_is_connected_to(at, letter):
    assume(INVITATION.code[at] != letter)
    assert outcome(INVITATION.code[:at] + letter + INVITATION.code[at + 1 :]) == SPOILT


@pytest.mark.parametrize("tree", [[], {}, 1, None, PARTS[:-1], [*PARTS, 0], [PARTS]])
def test_another_shape_is_no_invitation(tree):
    with pytest.raises(InvitationError, match="not copied whole"):
        invitation.parse(spelled(tree))


@pytest.mark.parametrize(
    "text",
    ["", "FEDMQ", "FEDMQ1", "hello", "https://x", "FEDMQ1:" + "A" * 2000, "\N{LATIN SMALL LETTER DOTLESS I}"],
)
def test_what_is_no_invitation_says_so(text):
    with pytest.raises(InvitationError, match=r"no invitation|not copied whole"):
        invitation.parse(text)


def test_letters_that_only_look_like_those_of_a_code_are_refused():
    code = replace(INVITATION, host="sississippi.example").code
    for letter, lookalike in (
        ("I", "\N{LATIN SMALL LETTER DOTLESS I}"),
        ("S", "\N{LATIN SMALL LETTER LONG S}"),
    ):
        assert letter in code[7:]
        with pytest.raises(InvitationError, match="letters that none has"):
            invitation.parse(code[:7] + code[7:].replace(letter, lookalike))


def test_a_text_of_any_length_is_no_invitation():
    with pytest.raises(InvitationError, match="too long"):
        invitation.parse(INVITATION.code.ljust(limits.INVITATION_CHARACTERS_MAX + 1, "0"))
    with pytest.raises(InvitationError, match="not copied whole"):
        invitation.parse(INVITATION.code.ljust(limits.INVITATION_CHARACTERS_MAX, "0"))


def test_an_invitation_of_another_version_says_so():
    with pytest.raises(InvitationError, match="version 2, and this fedmq reads version 1") as raised:
        invitation.parse(spelled([2, "of", "another", "shape"], version=2))
    assert "same version" in raised.value.advice


def test_the_error_is_one_of_settings_and_advises_to_copy_the_code_again():
    with pytest.raises(ConfigError) as raised:
        invitation.parse(INVITATION.code[:-3])
    assert "Copy the whole code again" in raised.value.advice


@given(st.integers(7, len(INVITATION.code) - 1), st.sampled_from(base45.ALPHABET), st.booleans())
def test_an_error_never_shows_the_code_or_the_token(at, letter, cut):
    spoilt = INVITATION.code[:at] + letter + INVITATION.code[at + 1 :]
    said = outcome(spoilt[: at if cut else None])
    assert said == SPOILT or (spoilt == INVITATION.code and TOKEN.decode() not in said)


def outcome(text):
    """Say what an operator is shown of a code: the invitation, or the error."""
    try:
        return repr(invitation.parse(text))
    except InvitationError as error:
        return str(error)


def test_the_token_is_in_no_representation():
    for text in (repr(INVITATION), str(INVITATION), f"{INVITATION}", f"{[INVITATION]!r}"):
        assert "sixteen" not in text
        assert INVITATION.token.hex() not in text
        assert INVITATION.code not in text


def test_the_user_name_is_the_id_of_the_token():
    assert INVITATION.user == "0001020304050607"
    assert ids.is_name(INVITATION.user)


def test_a_root_is_named_by_the_hash_of_its_certificate():
    key = keys.generate(KeyType.ED25519)
    root = certificates.read_root(certificates.make_root(key, FederationId("lab"), datetime.now(UTC)))
    assert invitation.link_fingerprint(root) == hashlib.sha256(certificates.der(root.certificate)).digest()

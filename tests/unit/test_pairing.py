"""Pairing: the whole story, what an attacker may try, and that no weather enrols a wrong key."""

import hashlib
import hmac
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from common import certificates, codec, envelope, keys, limits, pairing
from common.certificates import Role
from common.errors import ConfigError, TransitionError
from common.ids import Boot, FederationId
from common.invitation import Invitation, link_fingerprint
from common.inviter import MOVES as INVITER_MOVES
from common.inviter import (
    Answer,
    Ask,
    Confirmed,
    Ended,
    Inviter,
    Issue,
    Issued,
    NotIssued,
    Offer,
    Rejected,
    Warn,
    Withdrawn,
)
from common.inviter import Phase as InviterPhase
from common.keys import KeyType
from common.machine import Tick
from common.messages import (
    BY_ENROL_ANSWER,
    EnrolCancel,
    EnrolCertificate,
    EnrolChallenge,
    EnrolReason,
    EnrolRefused,
    EnrolRequest,
)
from common.newcomer import MOVES as NEWCOMER_MOVES
from common.newcomer import Begin, Enrolled, Failed, Farewell, GaveUp, Newcomer, Send, Show
from common.newcomer import Phase as NewcomerPhase
from common.pairing import Heard

LAB = FederationId("lab")
NOW = 1_800_000_000.0
EXPIRES = int(NOW) + limits.PAIRING_TTL_S
TODAY = datetime.fromtimestamp(NOW, UTC)
TOKEN = b"sixteen secrets!"
BROKERS = ("broker.example.org:8883", "[::1]:8883")


def authority(federation=LAB):
    key = keys.generate(KeyType.ED25519)
    return key, certificates.read_root(certificates.make_root(key, federation, TODAY))


ROOT_KEY, ROOT = authority()
KEY, OTHER_KEY = (keys.generate(KeyType.ED25519) for _ in range(2))
INVITATION = Invitation(
    host="broker.example.org",
    port=8884,
    spki=None,
    federation=LAB,
    root_fingerprint=link_fingerprint(ROOT),
    token_id=bytes(range(8)),
    token=TOKEN,
    expires=EXPIRES,
)
OFFER = Offer(INVITATION, Role.CLIENT, brokers=BROKERS)


def newcomer(name="client-1", key=KEY, invitation=INVITATION, nonce=b"n" * 16, today=TODAY):
    return Newcomer(invitation, key, nonce=nonce, today=lambda: today, name=name, version="0.1.0")


def inviter(offer=OFFER, enrolled=()):
    return Inviter(offer, ROOT, ROOT_KEY, nonce=b"i" * 16, is_enrolled=lambda name: name in enrolled)


def request(machine):
    """Begin, and take what is sent."""
    (sent,) = machine.handle(Begin(), NOW)
    return sent.data


def certificate(key, name="client-1", role=Role.CLIENT, by=(ROOT_KEY, ROOT), now=TODAY):
    root_key, root = by
    return certificates.der(
        certificates.make(root, root_key, key.public_key(), role=role, name=name, now=now)
    )


def answers(effects):
    """Read what is answered, whoever signed it."""
    read = (envelope.read(effect.data).payload for effect in effects if isinstance(effect, Answer))
    return [codec.decode(payload, BY_ENROL_ANSWER) for payload in read]


def heard(machine, effects, now=NOW):
    """Hand all answers to a newcomer; collect what it does."""
    told = [effect.data for effect in effects if isinstance(effect, Answer)]
    return tuple(done for data in told for done in machine.handle(Heard(data), now))


def resealed(data, key, **changes):
    """Say the same with other fields, signed by this key: what somebody in the middle can do."""
    parts = envelope.read(data)
    tree = {**codec.unpack(parts.payload, bytes_max=2**20), **changes}
    header = codec.decode(parts.header, envelope.Header)
    payload = codec.pack(dict(sorted(tree.items())))
    is_request = parts.type in {"enrol-request", "enrol-cancel"}
    topic = (pairing.request_topic if is_request else pairing.answer_topic)(INVITATION)
    return envelope.seal_with(key, topic, parts.type, header, payload)


def maced(data, key, token=TOKEN, **changes):
    """Make a request anew by somebody who holds a token: with another key, or other fields, and the right MAC."""
    changes = {"spki": keys.spki_of(key.public_key())} | changes
    payload = envelope.read(resealed(data, key, **changes)).payload
    digest = pairing.request_digest(payload)
    return resealed(data, key, **changes, mac=pairing.mac_of(token, pairing.CLIENT, digest))


def refused(effects):
    (one,) = answers(effects)
    assert isinstance(one, EnrolRefused)
    return one.reason


def asked(theirs, ours):
    """Bring the two to where both show a code."""
    effects = theirs.handle(Heard(request(ours)), NOW)
    return effects, heard(ours, effects)


# --- how it goes well -----------------------------------------------------------------------------


def test_the_whole_story():
    ours, theirs = newcomer(), inviter()
    effects, (show,) = asked(theirs, ours)
    assert [type(effect) for effect in effects] == [Answer, Ask]
    fingerprint = keys.fingerprint(keys.spki_of(KEY.public_key()))
    assert effects[1] == Ask(show.code, Role.CLIENT, "client-1", fingerprint, replaces=False)
    assert re.fullmatch("[0-9]{6}", show.code)

    assert theirs.handle(Confirmed(), NOW + 9) == (Issue(Role.CLIENT, "client-1", KEY.public_key()),)
    made = certificate(KEY)
    effects = theirs.handle(Issued(made), NOW + 9)
    assert heard(ours, effects, NOW + 9) == (Enrolled(ROOT, made, Role.CLIENT, "client-1", BROKERS),)
    assert ours.phase is NewcomerPhase.ENROLLED
    assert ours.wake_at() is None
    assert theirs.wake_at() == NOW + 9 + limits.PAIRING_LINGER_S
    assert theirs.handle(Tick(), theirs.wake_at()) == (Ended(None),)
    assert theirs.wake_at() is None
    assert (ours.ignored, theirs.ignored) == (0, 0)


def test_the_code_is_computed_as_the_document_says():
    ours, theirs = newcomer(), inviter()
    sent = request(ours)
    effects = theirs.handle(Heard(sent), NOW)
    tree = codec.unpack(envelope.read(sent).payload, bytes_max=2**20)
    mac = tree.pop("mac")
    asked_digest = hashlib.sha256(codec.pack(tree)).digest()
    root = certificates.der(ROOT.certificate)
    (challenge,) = answers(effects)
    covered = envelope.pae(asked_digest, b"i" * 16, root)
    assert (challenge.nonce, challenge.root) == (b"i" * 16, root)

    def derived(info):  # RFC 5869, one block
        extracted = hmac.digest(bytes(32), TOKEN, "sha256")
        return hmac.digest(extracted, info + b"\1", "sha256")

    assert mac == hmac.digest(derived(b"fedmq-enrol-v1/client"), asked_digest, "sha256")
    assert challenge.mac == hmac.digest(derived(b"fedmq-enrol-v1/coordinator"), covered, "sha256")
    joined = envelope.pae(b"fedmq-enrol-v1/sas", asked_digest, hashlib.sha256(covered).digest())
    number = int.from_bytes(hashlib.sha256(joined).digest()[:4], "big")
    assert heard(ours, effects) == (Show(f"{number % 10**6:06d}"),)


def test_rsa_keys_pair_as_well():
    key = keys.generate(KeyType.RSA)
    ours, theirs = newcomer(key=key), inviter()
    asked(theirs, ours)
    theirs.handle(Confirmed(), NOW)
    made = certificate(key)
    (done,) = heard(ours, theirs.handle(Issued(made), NOW))
    assert done.certificate == made


def test_without_confirmation_the_certificate_is_asked_for_at_once():
    theirs = inviter(replace(OFFER, confirm=False))
    effects, (show,) = asked(theirs, newcomer())
    assert isinstance(show, Show)
    assert [type(effect) for effect in effects] == [Answer, Issue]


def test_a_newcomer_without_a_wish_is_called_as_invited():
    ours, theirs = newcomer(name=""), inviter(replace(OFFER, name="sensor-7"))
    effects, _ = asked(theirs, ours)
    assert effects[1].name == "sensor-7"
    theirs.handle(Confirmed(), NOW)
    (done,) = heard(ours, theirs.handle(Issued(certificate(KEY, "sensor-7")), NOW))
    assert (done.name, done.role) == ("sensor-7", Role.CLIENT)


def test_fields_of_a_newer_newcomer_are_covered_by_its_mac_and_passed_over():
    sent = maced(request(newcomer()), KEY, mood="curious")
    effects = inviter().handle(Heard(sent), NOW)
    assert [type(effect) for effect in effects] == [Answer, Ask]


# --- what is lost or comes twice ------------------------------------------------------------------


def test_the_newcomer_asks_again_until_it_is_enrolled():
    ours = newcomer()
    assert ours.wake_at() is None
    (first,) = ours.handle(Begin(), NOW)
    assert ours.wake_at() == NOW + limits.PAIRING_AGAIN_S
    assert ours.handle(Tick(), NOW + 1) == ()
    assert ours.handle(Tick(), NOW + limits.PAIRING_AGAIN_S) == (Send(first.data),)
    assert ours.handle(Begin(), NOW + 4) == ()
    heard(ours, inviter().handle(Heard(first.data), NOW + 5), NOW + 5)
    assert ours.phase is NewcomerPhase.SHOWING
    assert ours.handle(Tick(), NOW + 6) == (Send(first.data),)


def test_the_same_request_gets_the_same_answers_in_every_phase():
    ours, theirs = newcomer(), inviter()
    sent = Heard(request(ours))
    challenge, _ = theirs.handle(sent, NOW)
    assert theirs.handle(sent, NOW + 1) == (challenge,)
    theirs.handle(Confirmed(), NOW + 2)
    assert theirs.handle(sent, NOW + 2) == (challenge,)
    (granted,) = theirs.handle(Issued(certificate(KEY)), NOW + 3)
    assert theirs.handle(sent, NOW + 4) == (challenge, granted)
    assert theirs.wake_at() == NOW + 4 + limits.PAIRING_LINGER_S
    assert theirs.handle(Tick(), NOW + 5) == ()


def test_a_newcomer_that_missed_the_challenge_gets_both_and_is_let_in():
    ours, theirs = newcomer(), inviter()
    sent = Heard(request(ours))
    theirs.handle(sent, NOW)
    theirs.handle(Confirmed(), NOW)
    granted = theirs.handle(Issued(certificate(KEY)), NOW)
    assert heard(ours, granted) == ()  # a certificate before the challenge says nothing
    assert [type(effect) for effect in heard(ours, theirs.handle(sent, NOW))] == [Show, Enrolled]


def test_a_challenge_that_comes_twice_is_shown_once_and_is_no_noise():
    ours, theirs = newcomer(), inviter()
    effects, _ = asked(theirs, ours)
    assert heard(ours, effects) == ()
    assert ours.ignored == 0


def test_who_repeats_a_recorded_request_keeps_nobody_waiting_for_ever():
    ours, theirs = newcomer(), inviter()
    sent = Heard(request(ours))
    theirs.handle(sent, NOW)
    theirs.handle(Confirmed(), NOW)
    theirs.handle(Issued(certificate(KEY)), NOW)
    now = NOW
    while theirs.phase is not InviterPhase.ENDED:
        now += 5
        theirs.handle(sent, now)
        theirs.handle(Tick(), now)
    assert now == EXPIRES + limits.PAIRING_LINGER_S


def test_a_rival_that_asks_again_keeps_nobody_waiting():
    theirs = inviter()
    asked(theirs, newcomer())
    rival = Heard(request(newcomer(key=OTHER_KEY)))
    theirs.handle(rival, NOW)
    theirs.handle(Confirmed(), NOW)
    theirs.handle(Issued(certificate(KEY)), NOW)
    assert refused(theirs.handle(rival, NOW + 5)) is EnrolReason.USED
    assert theirs.wake_at() == NOW + limits.PAIRING_LINGER_S


# --- time -----------------------------------------------------------------------------------------


def test_an_invitation_that_nobody_uses_ends():
    theirs = inviter()
    assert theirs.wake_at() == EXPIRES
    assert theirs.handle(Tick(), EXPIRES - 1) == ()
    assert theirs.handle(Tick(), EXPIRES) == (Ended(EnrolReason.EXPIRED, "nobody came in time"),)
    assert theirs.handle(Heard(request(newcomer())), EXPIRES) == ()


def test_a_request_after_the_invitation_expired_is_refused():
    ours, theirs = newcomer(), inviter()
    effects = theirs.handle(Heard(request(ours)), EXPIRES)
    assert refused(effects) is EnrolReason.EXPIRED
    assert effects[1:] == (Ended(EnrolReason.EXPIRED, "the invitation has expired"),)


def test_a_code_that_nobody_confirms_in_time_lets_nobody_in():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    effects = theirs.handle(Confirmed(), EXPIRES)
    assert refused(effects) is EnrolReason.EXPIRED
    assert effects[1].reason is EnrolReason.EXPIRED
    assert not any(isinstance(effect, Issue) for effect in effects)
    (failed,) = heard(ours, effects, EXPIRES)
    assert failed.reason is EnrolReason.EXPIRED


def test_what_was_confirmed_in_time_is_issued_and_still_heard_of():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    theirs.handle(Confirmed(), EXPIRES - 1)
    assert theirs.wake_at() is None
    assert theirs.handle(Tick(), EXPIRES + 1) == ()
    (done,) = heard(ours, theirs.handle(Issued(certificate(KEY)), EXPIRES + 1), EXPIRES + 1)
    assert isinstance(done, Enrolled)


@pytest.mark.parametrize("event", [Begin(), Tick(), Heard(b""), GaveUp(EnrolReason.NOT_KEPT)])
def test_a_newcomer_gives_up_ten_minutes_after_it_began(event):
    ours = newcomer()
    ours.handle(Begin(), NOW)
    assert ours.handle(Tick(), EXPIRES - 1) != ()
    farewell, failed = ours.handle(event, EXPIRES)
    assert said_at_last(farewell) is EnrolReason.EXPIRED
    assert failed == Failed(EnrolReason.EXPIRED, "no certificate came in time")
    assert ours.wake_at() is None
    assert ours.handle(Begin(), NOW) == ()


@pytest.mark.parametrize("wrong", [-(10.0**9), 3600.0, 10.0**9])
def test_a_newcomer_asks_whatever_its_own_clock_says_of_the_invitation(wrong):
    ours, theirs = newcomer(), inviter()
    (sent,) = ours.handle(Begin(), NOW + wrong)
    (show,) = heard(ours, theirs.handle(Heard(sent.data), NOW), NOW + wrong)
    assert isinstance(show, Show)


def test_a_newcomer_that_is_not_answered_gives_up_and_says_what_it_heard():
    ours = newcomer()
    ours.handle(Begin(), NOW)
    ours.handle(Tick(), EXPIRES - 1)
    ours.handle(Heard(b"garbage"), EXPIRES - 1)
    assert ours.wake_at() == EXPIRES
    _, failed = ours.handle(Tick(), EXPIRES)
    assert failed.detail.endswith("1 messages were not by the root in the invitation")


# --- who leaves -----------------------------------------------------------------------------------


def said_at_last(farewell):
    assert isinstance(farewell, Farewell)
    return codec.decode(envelope.read(farewell.data).payload, EnrolCancel).reason


def left(machine, reason=EnrolReason.GIVEN_UP):
    farewell, failed = machine.handle(GaveUp(reason, "Ctrl-C"), NOW)
    assert said_at_last(farewell) is reason
    assert failed == Failed(reason, "Ctrl-C")
    assert machine.phase is NewcomerPhase.FAILED
    assert machine.wake_at() is None
    assert machine.handle(GaveUp(reason), NOW) == ()
    return Heard(farewell.data)


def test_the_operator_is_asked_no_more_about_a_newcomer_that_left():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    assert theirs.handle(left(ours), NOW) == (Ended(EnrolReason.GIVEN_UP, "the newcomer ended it"),)
    assert theirs.phase is InviterPhase.ENDED
    assert theirs.handle(Confirmed(), NOW) == ()


def test_a_newcomer_that_has_not_asked_leaves_without_a_word():
    ours = newcomer()
    assert ours.handle(GaveUp(EnrolReason.GIVEN_UP), NOW) == (Failed(EnrolReason.GIVEN_UP, ""),)


def test_a_newcomer_that_leaves_while_its_certificate_is_made_ends_it_once_it_is_made():
    ours, theirs = newcomer(), inviter(replace(OFFER, confirm=False))
    asked(theirs, ours)
    assert theirs.handle(left(ours), NOW) == ()
    (ended,) = theirs.handle(Issued(certificate(KEY)), NOW)
    assert ended.reason is EnrolReason.GIVEN_UP
    assert "client-1 has a certificate now that nobody uses" in ended.detail


def test_a_newcomer_that_cannot_keep_its_keys_says_so_after_it_was_enrolled():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    theirs.handle(Confirmed(), NOW)
    heard(ours, theirs.handle(Issued(certificate(KEY)), NOW))
    assert ours.phase is NewcomerPhase.ENROLLED
    (ended,) = theirs.handle(left(ours, EnrolReason.NOT_KEPT), NOW)
    assert ended.reason is EnrolReason.NOT_KEPT
    assert "that nobody uses" in ended.detail


def test_a_farewell_is_believed_only_of_the_request_that_burned_the_token():
    ours, theirs = newcomer(), inviter()
    request(ours)
    farewell = left(ours)
    assert theirs.handle(farewell, NOW) == ()  # nobody has asked
    asked(theirs, newcomer(nonce=b"m" * 16))
    assert theirs.handle(farewell, NOW) == ()  # another request of the same key and token
    assert theirs.ignored == 2
    assert theirs.phase is InviterPhase.CONFIRMING


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        (OTHER_KEY, {}),
        (KEY, {"reason": "not-kept"}),
        (KEY, {"mac": bytes(32)}),
        (KEY, {"request": bytes(32)}),
        (KEY, {"reason": "boredom"}),
    ],
)
def test_a_farewell_that_somebody_else_made_or_changed_is_passed_over(key, changes):
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    farewell = left(ours)
    assert theirs.handle(Heard(resealed(farewell.data, key, **changes)), NOW) == ()
    assert theirs.ignored == 1
    assert theirs.handle(farewell, NOW) != ()


def test_an_operator_who_leaves_tells_the_newcomer_that_waits():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    effects = theirs.handle(Withdrawn(), NOW)
    assert heard(ours, effects) == (Failed(EnrolReason.GIVEN_UP, "the operator ended the pairing"),)
    assert effects[-1] == Ended(EnrolReason.GIVEN_UP)
    assert theirs.handle(Withdrawn(), NOW) == ()


def test_an_operator_who_leaves_while_the_certificate_is_made_is_told_that_there_may_be_one():
    ours, theirs = newcomer(), inviter(replace(OFFER, confirm=False))
    asked(theirs, ours)
    effects = theirs.handle(Withdrawn(), NOW)
    assert heard(ours, effects) == (Failed(EnrolReason.GIVEN_UP, "the operator ended the pairing"),)
    assert "may have a certificate now that nobody uses" in effects[-1].detail


def test_an_operator_who_leaves_before_anybody_came_or_after_all_is_done_tells_nobody():
    (ended,) = inviter().handle(Withdrawn(), NOW)
    assert ended.reason is EnrolReason.GIVEN_UP
    ours, theirs = newcomer(), inviter(replace(OFFER, confirm=False))
    asked(theirs, ours)
    theirs.handle(Issued(certificate(KEY)), NOW)
    assert theirs.handle(Withdrawn(), NOW) == (Ended(None),)


def test_no_machine_makes_a_move_that_it_does_not_have():
    for machine, moves in ((newcomer(), NEWCOMER_MOVES), (inviter(), INVITER_MOVES)):
        for before, after in moves.items():
            for other in set(moves) - after:
                machine.phase = before
                with pytest.raises(TransitionError, match=f"cannot go from {before} to {other}"):
                    machine._move(other)
                assert machine.phase is before


def test_a_newcomer_that_shows_its_code_waits_a_little_longer():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    assert [type(effect) for effect in ours.handle(Tick(), EXPIRES)] == [Send]
    _, failed = ours.handle(Tick(), EXPIRES + limits.PAIRING_LINGER_S)
    assert failed.reason is EnrolReason.EXPIRED


# --- who holds no token ---------------------------------------------------------------------------


def test_a_wrong_token_is_refused_and_the_operator_is_told():
    ours = newcomer(invitation=replace(INVITATION, token=bytes(16)))
    theirs = inviter()
    effects = theirs.handle(Heard(request(ours)), NOW)
    assert refused(effects) is EnrolReason.WRONG_TOKEN
    assert effects[1:] == (Warn(EnrolReason.WRONG_TOKEN, "a request with a wrong token, 1 of 5"),)
    (failed,) = heard(ours, effects)
    assert failed == Failed(EnrolReason.WRONG_TOKEN, "the token is not that of this invitation")
    assert theirs.phase is InviterPhase.WAITING


def guess(number):
    wrong = replace(INVITATION, token=number.to_bytes(16, "big"))
    return Heard(request(newcomer(invitation=wrong)))


def test_there_is_no_sixth_attempt():
    theirs = inviter()
    for number in range(4):
        theirs.handle(guess(number), NOW)
    again = theirs.handle(guess(0), NOW)  # a copy of an earlier one, and no attempt
    assert refused(again) is EnrolReason.WRONG_TOKEN
    *_, ended = theirs.handle(guess(4), NOW)
    assert ended.reason is EnrolReason.TOO_MANY_ATTEMPTS
    assert theirs.handle(Heard(request(newcomer())), NOW) == ()
    assert theirs.wake_at() is None


def test_the_fifth_attempt_may_be_the_right_one():
    theirs = inviter()
    for number in range(4):
        theirs.handle(guess(number), NOW)
    assert isinstance(theirs.handle(Heard(request(newcomer())), NOW)[-1], Ask)


def test_nobody_without_the_token_ends_a_pairing_that_is_under_way():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    for number in range(9):
        assert theirs.handle(guess(number), NOW) == ()
    assert theirs.ignored == 9
    assert theirs.handle(Confirmed(), NOW) != ()


def test_a_key_that_is_swapped_in_transit_has_the_wrong_mac():
    ours, theirs = newcomer(), inviter()
    swapped = resealed(request(ours), OTHER_KEY, spki=keys.spki_of(OTHER_KEY.public_key()))
    effects = theirs.handle(Heard(swapped), NOW)
    assert refused(effects) is EnrolReason.WRONG_TOKEN
    assert heard(ours, effects) == ()  # it is not our request that was refused
    assert ours.phase is NewcomerPhase.ASKING


def test_a_key_that_is_swapped_under_our_signature_is_garbage():
    ours, theirs = newcomer(), inviter()
    swapped = resealed(request(ours), KEY, spki=keys.spki_of(OTHER_KEY.public_key()))
    assert theirs.handle(Heard(swapped), NOW) == ()
    assert theirs.ignored == 1


def test_a_changed_name_has_the_wrong_mac():
    changed = resealed(request(newcomer()), KEY, name="client-2")
    assert refused(inviter().handle(Heard(changed), NOW)) is EnrolReason.WRONG_TOKEN


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"\x30\x00",
        keys.spki_of(KEY.public_key()) + b"\0",
        bytes(limits.PUBLIC_KEY_BYTES_MAX + 1),
    ],
)
def test_a_key_that_nobody_may_have_is_garbage(key):
    theirs = inviter()
    assert theirs.handle(Heard(resealed(request(newcomer()), KEY, spki=key)), NOW) == ()
    assert theirs.ignored == 1


def test_a_key_that_is_too_short_is_garbage_though_it_signs_and_holds_the_token():
    theirs = inviter()
    short = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    assert theirs.handle(Heard(maced(request(newcomer()), short, algorithm="rsa")), NOW) == ()
    assert theirs.ignored == 1


def test_a_request_on_another_topic_or_of_another_kind_is_garbage():
    sent = request(newcomer())
    parts = envelope.read(sent)
    header = codec.decode(parts.header, envelope.Header)
    topic = pairing.request_topic(INVITATION)
    for where, kind in ((topic + "x", "enrol-request"), (topic, "enrol-challenge")):
        theirs = inviter()
        theirs.handle(Heard(envelope.seal_with(KEY, where, kind, header, bytes(parts.payload))), NOW)
        assert theirs.ignored == 1


def test_a_request_that_is_too_large_is_garbage():
    theirs = inviter()
    large = maced(request(newcomer()), KEY, padding=bytes(limits.PAIRING_BYTES_MAX - 300))
    assert len(large) > limits.PAIRING_BYTES_MAX > len(envelope.read(large).payload)
    assert theirs.handle(Heard(large), NOW) == ()
    assert theirs.ignored == 1


# --- who holds the token as well ------------------------------------------------------------------


def test_an_invitation_is_used_once():
    theirs = inviter()
    asked(theirs, newcomer())
    theirs.handle(Confirmed(), NOW)
    theirs.handle(Issued(certificate(KEY)), NOW)
    late = newcomer(key=OTHER_KEY)
    effects = theirs.handle(Heard(request(late)), NOW + 1)
    assert refused(effects) is EnrolReason.USED
    (failed,) = heard(late, effects)
    assert failed.reason is EnrolReason.USED
    theirs.handle(Tick(), NOW + limits.PAIRING_LINGER_S)
    assert theirs.handle(Heard(request(newcomer(nonce=b"m" * 16))), NOW + 30) == ()


def test_of_two_newcomers_that_race_the_first_goes_on_and_the_operator_hears_of_the_other():
    first, second, theirs = newcomer(), newcomer(key=OTHER_KEY), inviter()
    asked(theirs, first)
    effects = theirs.handle(Heard(request(second)), NOW)
    assert refused(effects) is EnrolReason.USED
    assert effects[1].reason is EnrolReason.USED
    assert keys.fingerprint(keys.spki_of(OTHER_KEY.public_key())) in effects[1].detail
    assert heard(first, effects) == ()  # both listen on one topic
    assert [type(effect) for effect in heard(second, effects)] == [Failed]
    assert theirs.handle(Confirmed(), NOW) == (Issue(Role.CLIENT, "client-1", KEY.public_key()),)
    assert [type(effect) for effect in heard(first, theirs.handle(Issued(certificate(KEY)), NOW))] == [
        Enrolled
    ]


def test_the_newcomer_that_lost_the_race_takes_neither_the_challenge_nor_the_certificate_of_the_first():
    first, second, theirs = newcomer(), newcomer(key=OTHER_KEY), inviter()
    request(second)
    effects, _ = asked(theirs, first)
    assert heard(second, effects) == ()
    theirs.handle(Confirmed(), NOW)
    assert heard(second, theirs.handle(Issued(certificate(KEY)), NOW)) == ()
    assert second.ignored == 2


def test_the_same_machine_with_a_new_request_is_a_second_one():
    theirs = inviter()
    asked(theirs, newcomer())
    effects = theirs.handle(Heard(request(newcomer(nonce=b"m" * 16))), NOW)
    assert refused(effects) is EnrolReason.USED


def test_rivals_without_end_are_passed_over():
    theirs = inviter()
    asked(theirs, newcomer())
    rivals = [Heard(request(newcomer(nonce=bytes([number]) * 16))) for number in range(7)]
    told = [len(theirs.handle(rival, NOW)) for rival in rivals]
    assert told == [2, 2, 2, 2, 2, 0, 0]
    assert theirs.ignored == 2


def test_a_thief_of_the_invitation_who_is_first_shows_another_code_than_the_newcomer():
    ours, theirs = newcomer(), inviter()
    stolen = maced(request(ours), OTHER_KEY)
    effects = theirs.handle(Heard(stolen), NOW)
    assert heard(ours, effects) == ()  # it shows no code at all
    effects = theirs.handle(Heard(ours.handle(Tick(), NOW + 3)[0].data), NOW + 3)
    assert [type(effect) for effect in heard(ours, effects)] == [Failed]
    rejected = theirs.handle(Rejected(), NOW + 4)
    assert refused(rejected) is EnrolReason.REJECTED
    assert rejected[1] == Ended(EnrolReason.REJECTED, "the operator did not confirm the code")


def test_codes_of_different_requests_differ():
    codes = set()
    for number in range(20):
        _, (show,) = asked(inviter(), newcomer(nonce=bytes([number]) * 16))
        codes.add(show.code)
    assert len(codes) == 20


def test_an_operator_who_rejects_ends_it_for_both():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    effects = theirs.handle(Rejected(), NOW)
    assert heard(ours, effects) == (Failed(EnrolReason.REJECTED, "the operator did not confirm the code"),)
    assert ours.phase is NewcomerPhase.FAILED
    assert theirs.handle(Confirmed(), NOW) == ()


def test_a_certificate_that_cannot_be_made_ends_it_and_the_newcomer_does_not_hear_why():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    theirs.handle(Confirmed(), NOW)
    effects = theirs.handle(NotIssued("/home/ann/keys is full"), NOW)
    (failed,) = heard(ours, effects)
    assert failed == Failed(EnrolReason.NOT_ISSUED, "the certificate could not be made")
    assert effects[-1] == Ended(EnrolReason.NOT_ISSUED, "/home/ann/keys is full")


@pytest.mark.parametrize("event", [Confirmed(), Rejected(), Issued(b""), NotIssued("")])
def test_what_nobody_asked_for_changes_nothing(event):
    theirs = inviter()
    assert theirs.handle(event, NOW) == ()
    assert theirs.phase is InviterPhase.WAITING


# --- names and algorithms -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "-a", "A", "a_b", "a/b", "+", "#", "ä", "a\n", "coordinator", "operator", "bridge-1", "dashboard"],
)
def test_a_name_that_no_client_can_have_is_refused(name):
    effects = inviter().handle(Heard(maced(request(newcomer()), KEY, name=name)), NOW)
    assert refused(effects) is EnrolReason.BAD_NAME
    assert effects[1].reason is EnrolReason.BAD_NAME


def test_a_name_that_is_longer_than_any_is_garbage():
    theirs = inviter()
    assert theirs.handle(Heard(maced(request(newcomer()), KEY, name="a" * 64)), NOW) == ()
    assert theirs.ignored == 1


@pytest.mark.parametrize("name", ["A", "a" * 64, "a\n", "a/b"])
def test_a_newcomer_does_not_even_ask_for_a_name_that_nobody_can_have(name):
    with pytest.raises(ConfigError, match="does not match"):
        newcomer(name=name)


def test_another_name_than_invited_is_refused():
    effects = inviter(replace(OFFER, name="client-2")).handle(Heard(request(newcomer())), NOW)
    assert refused(effects) is EnrolReason.BAD_NAME


def test_a_name_that_is_enrolled_already_is_refused_unless_it_may_be_replaced():
    effects = inviter(enrolled={"client-1"}).handle(Heard(request(newcomer())), NOW)
    assert refused(effects) is EnrolReason.NAME_TAKEN
    assert effects[1] == Ended(EnrolReason.NAME_TAKEN, "client-1 is enrolled already")
    theirs = inviter(replace(OFFER, may_replace=True), enrolled={"client-1"})
    assert theirs.handle(Heard(request(newcomer())), NOW)[1].replaces


def test_a_request_that_is_refused_has_used_the_invitation_up():
    theirs = inviter(enrolled={"client-1"})
    theirs.handle(Heard(request(newcomer())), NOW)
    assert theirs.handle(Heard(request(newcomer(name="client-2"))), NOW) == ()


@pytest.mark.parametrize("algorithm", ["rsa", "none", "", "ED25519"])
def test_an_algorithm_that_is_not_the_keys_own_is_refused(algorithm):
    sent = maced(request(newcomer()), KEY, algorithm=algorithm)
    assert refused(inviter().handle(Heard(sent), NOW)) is EnrolReason.WRONG_ALGORITHM


@pytest.mark.parametrize(
    "change",
    [{"name": "a_b"}, {"name": "coordinator"}, {"brokers": ("nowhere",)}, {"brokers": ("a:1",) * 9}],
)
def test_an_offer_that_cannot_be_is_the_operators_mistake(change):
    with pytest.raises(ConfigError):
        replace(OFFER, **change)


# --- whom the newcomer believes -------------------------------------------------------------------


def test_a_challenge_by_another_root_is_passed_over():
    ours = newcomer()
    sent = request(ours)
    key, root = authority()
    evil = replace(INVITATION, root_fingerprint=link_fingerprint(root))
    impostor = Inviter(
        replace(OFFER, invitation=evil), root, key, nonce=b"i" * 16, is_enrolled=set().__contains__
    )
    assert heard(ours, impostor.handle(Heard(sent), NOW)) == ()
    assert ours.ignored == 1
    assert heard(ours, impostor.handle(Rejected(), NOW)) == ()
    assert ours.ignored == 2
    (show,) = heard(ours, inviter().handle(Heard(sent), NOW))  # and disturbs nothing
    assert isinstance(show, Show)


def test_the_pinned_certificate_under_another_signature_is_passed_over():
    ours, theirs = newcomer(), inviter()
    challenge, _ = theirs.handle(Heard(request(ours)), NOW)
    assert ours.handle(Heard(resealed(challenge.data, OTHER_KEY)), NOW) == ()
    assert ours.ignored == 1


def test_a_challenge_with_a_wrong_mac_is_passed_over():
    ours, theirs = newcomer(), inviter()
    challenge, _ = theirs.handle(Heard(request(ours)), NOW)
    assert ours.handle(Heard(resealed(challenge.data, ROOT_KEY, mac=bytes(32))), NOW) == ()
    assert ours.handle(Heard(resealed(challenge.data, ROOT_KEY, nonce=bytes(16))), NOW) == ()
    assert ours.ignored == 2


def told_by_root(message, key=ROOT_KEY):
    header = envelope.Header(federation="lab", sender="root", boot=Boot("00"), sequence=0)
    kind = message.__struct_config__.tag
    return Heard(
        envelope.seal_with(key, pairing.answer_topic(INVITATION), kind, header, codec.encode(message))
    )


def challenge_to(ours_digest, root):
    covered = pairing.challenged(ours_digest, b"i" * 16, root)
    return EnrolChallenge(nonce=b"i" * 16, root=root, mac=pairing.mac_of(TOKEN, pairing.COORDINATOR, covered))


@pytest.mark.parametrize("federation", ["home", None])
def test_an_invitation_with_the_root_of_another_federation_or_of_none_fails(federation):
    if federation:
        key, root = authority(FederationId(federation))
        der = certificates.der(root.certificate)
    else:
        key, der = ROOT_KEY, certificate(ROOT_KEY)  # names a client
    ours = newcomer(invitation=replace(INVITATION, root_fingerprint=hashlib.sha256(der).digest()))
    digest = pairing.request_digest(envelope.read(request(ours)).payload)
    farewell, failed = ours.handle(told_by_root(challenge_to(digest, der), key), NOW)
    assert said_at_last(farewell) is failed.reason is EnrolReason.WRONG_ROOT
    assert ours.wake_at() is None


@pytest.mark.parametrize("der", [b"", b"\x30\x00"])
def test_a_pinned_root_that_is_no_certificate_is_never_believed(der):
    ours = newcomer(invitation=replace(INVITATION, root_fingerprint=hashlib.sha256(der).digest()))
    digest = pairing.request_digest(envelope.read(request(ours)).payload)
    assert ours.handle(told_by_root(challenge_to(digest, der)), NOW) == ()
    assert ours.ignored == 1


def test_a_pinned_root_with_a_key_of_a_foreign_kind_is_never_believed():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "x")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, TODAY, TODAY + timedelta(1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, keys.SHA256())
    )
    der = certificates.der(made)
    ours = newcomer(invitation=replace(INVITATION, root_fingerprint=hashlib.sha256(der).digest()))
    digest = pairing.request_digest(envelope.read(request(ours)).payload)
    assert ours.handle(told_by_root(challenge_to(digest, der)), NOW) == ()


def certified(made, name="client-1", today=TODAY):
    """Let an inviter answer with this certificate."""
    ours, theirs = newcomer(name=name, today=today), inviter(replace(OFFER, name="client-1"))
    asked(theirs, ours)
    theirs.handle(Confirmed(), NOW)
    return heard(ours, theirs.handle(Issued(made), NOW))


def test_a_certificate_is_checked_before_anything_is_stored():
    other = authority()
    for made in (
        certificate(KEY, by=other),
        certificate(OTHER_KEY),
        certificate(KEY, name="client-2"),
        certificates.der(ROOT.certificate),
        b"\x30\x00",
        b"",
    ):
        farewell, failed = certified(made)
        assert said_at_last(farewell) is failed.reason is EnrolReason.BAD_CERTIFICATE
        assert failed.detail
    (done,) = certified(certificate(KEY))
    assert isinstance(done, Enrolled)


@pytest.mark.parametrize("wrong", [timedelta(days=-2), timedelta(days=3000)])
def test_a_certificate_of_another_day_may_mean_that_our_clock_is_wrong(wrong):
    farewell, failed = certified(certificate(KEY), today=TODAY + wrong)
    assert said_at_last(farewell) is failed.reason is EnrolReason.OUT_OF_DATE
    assert f"the clock of this machine says {TODAY + wrong:%Y-%m-%d %H:%M} UTC" in failed.detail


def test_a_certificate_for_another_request_or_by_another_key_is_passed_over():
    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    digest = pairing.request_digest(envelope.read(ours.handle(Tick(), NOW + 3)[0].data).payload)
    other = EnrolCertificate(request=bytes(32), certificate=certificate(KEY))
    right = EnrolCertificate(request=digest, certificate=certificate(KEY))
    assert ours.handle(told_by_root(other), NOW) == ()
    assert ours.handle(told_by_root(right, OTHER_KEY), NOW) == ()
    assert ours.ignored == 2
    assert [type(effect) for effect in ours.handle(told_by_root(right), NOW)] == [Enrolled]


def test_a_newcomer_that_has_not_begun_hears_nothing():
    ours, theirs = newcomer(), inviter()
    twin = newcomer()
    effects = theirs.handle(Heard(request(twin)), NOW) + theirs.handle(Rejected(), NOW)
    assert len(answers(effects)) == 2
    assert heard(ours, effects) == ()
    assert ours.phase is NewcomerPhase.READY


def test_what_comes_after_the_end_says_nothing_any_more():
    ours, theirs = newcomer(), inviter()
    effects, _ = asked(theirs, ours)
    rejected = theirs.handle(Rejected(), NOW)
    heard(ours, rejected)
    for event in (Begin(), Tick(), Heard(rejected[0].data), Heard(effects[0].data)):
        assert ours.handle(event, NOW) == ours.handle(event, EXPIRES) == ()

    ours, theirs = newcomer(), inviter()
    asked(theirs, ours)
    theirs.handle(Confirmed(), NOW)
    granted = theirs.handle(Issued(certificate(KEY)), NOW)
    heard(ours, granted)
    for event in (Begin(), Tick(), Heard(granted[0].data)):
        assert ours.handle(event, NOW) == ours.handle(event, EXPIRES + 99) == ()
    assert ours.phase is NewcomerPhase.ENROLLED


# --- the secret -----------------------------------------------------------------------------------


def test_the_token_is_in_no_effect_error_or_representation():
    ours, theirs = newcomer(), inviter()
    told = [ours, theirs, OFFER, *ours.handle(Begin(), NOW)]
    told += theirs.handle(Heard(told[-1].data), NOW)
    told += [*heard(ours, told[-2:]), *theirs.handle(guess(1), NOW), *theirs.handle(Confirmed(), NOW)]
    told += theirs.handle(Issued(certificate(KEY)), NOW)
    told += heard(ours, told[-1:])
    assert [type(one) for one in told][-1] is Enrolled
    for one in told:
        text = repr(one).encode() + getattr(one, "data", b"")
        assert not any(secret in text for secret in (TOKEN, TOKEN.hex().encode(), INVITATION.code.encode()))


# --- any weather ----------------------------------------------------------------------------------

weather = st.lists(
    st.tuples(
        st.sampled_from(["deliver", "drop", "copy", "swap", "flip", "steal", "leave", "tick", "tick"]),
        st.integers(0, 2**16),
    ),
    max_size=60,
)


def spoilt(data, seed):
    at = seed % (8 * len(data))
    flipped = bytearray(data)
    flipped[at // 8] ^= 1 << at % 8
    return bytes(flipped)


class Air:
    """What lies between the two, and an operator who confirms equal codes only."""

    def __init__(self):
        self.ours, self.theirs, self.now = newcomer(), inviter(), NOW
        self.up, self.down = [], []
        self.shown = self.enrolled = self.failed = self.ended = None
        self.issued = []
        self.take(self.ours.handle(Begin(), self.now))

    def take(self, effects):
        for effect in effects:
            match effect:
                case Send(data) | Farewell(data):
                    self.up.append(data)
                case Answer(data):
                    self.down.append(data)
                case Show(code):
                    self.shown = code
                case Ask(code):
                    self.asked = code
                case Issue(key=key, name=name):
                    assert self.asked == self.shown
                    self.issued.append(key)
                    made = certificates.make(ROOT, ROOT_KEY, key, role=Role.CLIENT, name=name, now=TODAY)
                    self.take(self.theirs.handle(Issued(certificates.der(made)), self.now))
                case Ended():
                    assert self.ended is None
                    self.ended = effect
                case Enrolled():
                    self.enrolled = effect
                case Failed(reason):
                    self.failed = reason

    def weather(self, what, seed):
        queue, machine = (self.up, self.theirs) if seed % 2 else (self.down, self.ours)
        match what:
            case "tick":
                self.now += seed % 7
                for one in (self.ours, self.theirs):
                    self.take(one.handle(Tick(), self.now))
            case "leave":
                self.enrolled = None  # it could not keep its keys
                self.take(self.ours.handle(GaveUp(EnrolReason.GIVEN_UP), self.now))
            case "steal":  # the right MAC, the wrong key
                self.up.append(maced(request(newcomer(nonce=seed.to_bytes(16, "big"))), OTHER_KEY))
            case _ if not queue:
                return
            case "deliver":
                self.take(machine.handle(Heard(queue.pop(0)), self.now))
            case _:
                self.disturb(queue, what, seed)
        self.look()

    def disturb(self, queue, what, seed):
        data = queue.pop(0)
        match what:
            case "copy":
                queue += [data, data]
            case "swap":
                queue.append(data)
            case "flip":
                queue.insert(0, spoilt(data, seed))

    def look(self):
        if self.theirs.phase is InviterPhase.CONFIRMING and self.shown is not None:
            verdict = Confirmed() if self.asked == self.shown else Rejected()
            self.take(self.theirs.handle(verdict, self.now))


@settings(max_examples=60, deadline=None)
@given(weather)
def test_no_weather_and_no_thief_enrols_a_wrong_key_and_it_always_ends(days):
    air = Air()
    for what, seed in days:
        air.weather(what, seed)
    while air.ended is None or (air.enrolled is None and air.failed is None):
        wakes = [at for at in (air.ours.wake_at(), air.theirs.wake_at()) if at is not None]
        assert wakes  # nobody waits for what never comes
        air.now = max(air.now, min(wakes))
        for one in (air.ours, air.theirs):
            air.take(one.handle(Tick(), air.now))
    assert air.now <= EXPIRES + 2 * limits.PAIRING_LINGER_S
    assert all(key == KEY.public_key() for key in air.issued)
    assert len(air.issued) <= 1
    if air.enrolled:
        assert air.failed is None
        assert keys.kid_of(
            x509.load_der_x509_certificate(air.enrolled.certificate).public_key()
        ) == keys.kid_of(KEY.public_key())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["drop", "copy", "swap", "deliver"]), max_size=20))
def test_in_mere_bad_weather_it_ends_well(days):
    air = Air()
    for number, what in enumerate(days):
        air.weather(what, number)
    while air.ended is None:
        air.weather("tick", 3)
        for seed in (1, 0, 0, 1, 0, 0):
            air.weather("deliver", seed)
    assert air.enrolled.name == "client-1"
    assert air.ended == Ended(None)


@given(
    st.binary(max_size=200)
    | st.just(b"\x96\x01").flatmap(lambda head: st.binary(max_size=99).map(head.__add__))
)
def test_garbage_is_counted_and_changes_nothing(data):
    ours, theirs = newcomer(), inviter()
    request(ours)
    assert (ours.handle(Heard(data), NOW), theirs.handle(Heard(data), NOW)) == ((), ())
    assert (ours.ignored, theirs.ignored) == (1, 1)


@given(st.integers(0, 2**32))
def test_a_spoilt_key_is_garbage_whoever_signs_it(seed):
    theirs = inviter()
    key = spoilt(keys.spki_of(KEY.public_key()), seed)
    assert theirs.handle(Heard(resealed(request(newcomer()), KEY, spki=key)), NOW) == ()
    assert theirs.ignored == 1


@given(st.integers(0, 2**32))
def test_every_flipped_bit_of_a_request_is_noticed(seed):
    theirs = inviter()
    assert theirs.handle(Heard(spoilt(request(newcomer()), seed)), NOW) == ()
    assert theirs.ignored == 1


def test_the_structs_are_bounded():
    good = EnrolRequest(algorithm="rsa", spki=b"", nonce=bytes(16), mac=bytes(32))
    assert codec.decode(codec.encode(good), EnrolRequest) == good
    for change in ({"nonce": bytes(15)}, {"nonce": bytes(17)}, {"mac": bytes(31)}, {"mac": bytes(33)}):
        with pytest.raises(Exception, match="length"):
            codec.decode(codec.encode(msgspec.structs.replace(good, **change)), EnrolRequest)

"""The one way in: what passes, what is refused, with which reason, and in which order."""

import base64
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import certificates, codec, envelope, keyfiles, limits, lines, revocations
from common.identity import Role
from common.ids import Boot, ClientId, FederationId
from common.ingress import Frame, Ingress, Refused, Said, Withdrawn
from common.limits import (
    CHUNK_BYTES_MAX,
    CHUNK_FRAME_BYTES,
    ENVELOPE_BYTES_MAX,
    LINE_BYTES_MAX,
    MANIFEST_LINE_BYTES_MAX,
    STARTS_REMEMBERED,
)
from common.limits import REPLAY_WINDOW as WINDOW
from common.messages import Done, Heartbeat, Info, Metrics, Presence, Reason, Start, Status
from common.topics import Kind, Topics
from common.trust import TrustStore
from support import federation
from support.federation import ingress, member

TOPICS = Topics(federation.NAME)
BOOT = Boot("0b" * 8)
REPLY = TOPICS.client(ClientId("a"), Kind.REPLY)
STATUS = TOPICS.client(ClientId("a"), Kind.STATUS)
HEARTBEAT = TOPICS.client(ClientId("a"), Kind.HEARTBEAT)
DONE = Done(digest="d" * 64)
BEAT = Heartbeat(boot=BOOT, sequence=1)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def alice(keys):
    return member(keys, Role.CLIENT, "a")


@pytest.fixture(scope="module")
def bob(keys):
    return member(keys, Role.CLIENT, "b")


@pytest.fixture(scope="module")
def operator(keys):
    return member(keys, Role.OPERATOR, "operator")


@pytest.fixture(scope="module")
def coordinator(keys):
    return member(keys, Role.COORDINATOR, "coordinator")


@pytest.fixture
def door(keys, alice, bob, operator):
    """An ingress that knows all three."""
    return ingress(keys, alice, bob, operator)


def sealed(
    who,
    topic=REPLY,
    message=DONE,
    sequence=1,
    *,
    boot=BOOT,
    sender=None,
    of=federation.NAME,
    kind=None,
    epoch=0,
    audience="",
):
    head = envelope.Header(
        federation=of,
        sender=sender or who.name,
        boot=boot,
        sequence=sequence,
        epoch=epoch,
        audience=audience,
    )
    tag = kind or message.__struct_config__.tag
    return envelope.seal(who, topic, tag, head, codec.encode(message))


def reason(admitted) -> Reason:
    assert isinstance(admitted, Refused), admitted
    return admitted.reason


def status(who) -> Status:
    certificate = base64.b64encode(who.certificate_der).decode()
    return Status(state=Presence.ONLINE, boot=BOOT, certificate=certificate)


def test_a_signed_envelope_passes_with_its_sender(door, alice):
    said = door.admit(REPLY, sealed(alice))
    assert isinstance(said, Said)
    assert (said.sender.name, said.message, said.place.kind) == ("a", DONE, Kind.REPLY)


def test_a_signed_line_passes(door, alice):
    said = door.admit(HEARTBEAT, lines.seal(alice, HEARTBEAT, BEAT))
    assert isinstance(said, Said)
    assert said.message == BEAT


def test_a_line_is_json_whose_last_keys_are_kid_and_sig(alice):
    line = lines.seal(alice, HEARTBEAT, BEAT)
    tree = json.loads(line)
    assert list(tree)[-2:] == ["kid", "sig"]
    assert tree["boot"] == BOOT
    assert b"\n" not in line


def test_a_chunk_passes_as_a_frame_unread(door):
    topic = TOPICS.up(ClientId("a"), "e" * 64)
    assert door.admit(topic, b"anything") == Frame(door.admit(topic, b"x").place, b"anything")


def test_an_emptied_topic_says_nothing(door):
    assert door.admit(STATUS, b"") is None
    assert not door.refusals


def test_a_stranger_introduces_itself_by_its_certificate(keys, alice):
    door = ingress(keys)
    assert reason(door.admit(REPLY, sealed(alice))) is Reason.UNKNOWN_KEY
    assert isinstance(door.admit(STATUS, lines.seal(alice, STATUS, status(alice))), Said)
    assert isinstance(door.admit(REPLY, sealed(alice)), Said)


def test_a_certificate_of_another_root_introduces_nobody(keys, tmp_path):
    mallory = member(tmp_path, Role.CLIENT, "a")
    door = ingress(keys)
    assert reason(door.admit(STATUS, lines.seal(mallory, STATUS, status(mallory)))) is Reason.UNKNOWN_KEY
    assert reason(door.admit(REPLY, sealed(mallory))) is Reason.UNKNOWN_KEY


def test_nobody_introduces_another(keys, alice, bob):
    door = ingress(keys)
    assert reason(door.admit(STATUS, lines.seal(alice, STATUS, status(bob)))) is Reason.UNKNOWN_KEY


@pytest.mark.parametrize("certificate", ["", "A", "é", base64.b64encode(b"junk").decode()])
def test_who_is_known_introduces_itself_by_its_own_certificate_again_or_not_at_all(
    door, alice, bob, certificate
):
    topic = TOPICS.client(ClientId("a"), Kind.INFO)

    def info(certificate):
        return Info(boot=BOOT, version="1", certificate=certificate, examples=1, schema="0" * 64)

    assert isinstance(door.admit(topic, lines.seal(alice, topic, info(text(alice)))), Said)
    refused = reason(door.admit(topic, lines.seal(alice, topic, info(certificate))))
    assert refused in {Reason.MALFORMED, Reason.UNKNOWN_KEY}
    assert reason(door.admit(topic, lines.seal(alice, topic, info(text(bob))))) is Reason.UNKNOWN_KEY


def text(who):
    return base64.b64encode(who.certificate_der).decode()


@pytest.mark.parametrize(
    "topic", ["fedmq/lab/client/a/nonsense", "fedmq/other/client/a/reply", "x", "$SYS/a"]
)
def test_other_topics_are_refused_first(door, alice, topic):
    assert reason(door.admit(topic, sealed(alice, topic))) is Reason.UNKNOWN_TOPIC


@pytest.mark.parametrize("topic", [TOPICS.enrol_request("0" * 16), TOPICS.enrol_answer("0" * 16)])
def test_pairing_is_not_for_participants(door, coordinator, topic):
    door.trust.admit(coordinator.certificate_der)
    assert reason(door.admit(topic, sealed(coordinator, topic))) is Reason.UNKNOWN_TOPIC


def test_size_is_looked_at_before_anything_is_read(door):
    assert reason(door.admit(REPLY, bytes(ENVELOPE_BYTES_MAX + 1))) is Reason.OVERSIZE
    assert reason(door.admit(STATUS, bytes(LINE_BYTES_MAX + 1))) is Reason.OVERSIZE


def test_each_kind_of_topic_has_its_own_limit(door, alice):
    chunk, model = TOPICS.up(ClientId("a"), "e" * 64), TOPICS.coordinator(Kind.COORDINATOR_MODEL)
    frame_bytes_max = CHUNK_BYTES_MAX + CHUNK_FRAME_BYTES
    assert isinstance(door.admit(chunk, bytes(frame_bytes_max)), Frame)
    assert reason(door.admit(chunk, bytes(frame_bytes_max + 1))) is Reason.OVERSIZE
    assert reason(door.admit(model, bytes(LINE_BYTES_MAX + 1))) is Reason.MALFORMED  # it carries hashes
    assert reason(door.admit(model, bytes(MANIFEST_LINE_BYTES_MAX + 1))) is Reason.OVERSIZE


def test_a_stranger_whose_certificate_is_no_text_of_ours_is_unknown(keys, alice):
    """Whoever reaches the broker can say this: it must not raise."""
    odd = msgspec.structs.replace(status(alice), certificate="é")
    assert reason(ingress(keys).admit(STATUS, lines.seal(alice, STATUS, odd))) is Reason.UNKNOWN_KEY


def test_a_stranger_that_commands_at_length_is_not_read(keys, operator):
    class Long(Start, frozen=True, kw_only=True, tag="start"):
        filler: bytes = bytes(LINE_BYTES_MAX)

    start = Long(command="c1", certificate=operator.certificate_der)
    assert reason(ingress(keys).admit(TOPICS.control, sealed(operator, TOPICS.control, start))) is (
        Reason.UNKNOWN_KEY
    )


def test_an_operator_is_no_client_even_in_a_branch_of_its_name(door, operator):
    topic = TOPICS.client(operator.name, Kind.REPLY)
    assert reason(door.admit(topic, sealed(operator, topic))) is Reason.NOT_ALLOWED


def test_the_starts_that_are_remembered_are_limited_and_what_is_forgotten_is_refused(door, alice):
    first = sealed(alice, sequence=1, boot=Boot("aa" * 8))
    assert isinstance(door.admit(REPLY, first), Said)
    for n in range(STARTS_REMEMBERED):
        later = sealed(alice, sequence=100 * (n + 1), boot=Boot(f"{n:02x}" * 8))
        assert isinstance(door.admit(REPLY, later), Said)
    assert reason(door.admit(REPLY, first)) is Reason.REPLAYED
    assert reason(door.admit(REPLY, sealed(alice, sequence=1, boot=Boot("bb" * 8)))) is Reason.REPLAYED
    assert isinstance(door.admit(REPLY, sealed(alice, sequence=2, boot=Boot("cc" * 8))), Said)


def test_one_key_with_many_starts_makes_nobody_else_forgotten(door, alice, bob):
    mine = sealed(alice)
    assert isinstance(door.admit(REPLY, mine), Said)
    for n in range(3 * STARTS_REMEMBERED):
        theirs = TOPICS.client(ClientId("b"), Kind.REPLY)
        door.admit(theirs, sealed(bob, theirs, sequence=n + 1, boot=Boot(f"{n:016x}")))
    assert reason(door.admit(REPLY, mine)) is Reason.REPLAYED


def test_an_unsigned_payload_is_never_parsed(door, alice):
    """The payload is no message at all: with a broken signature that must not come to light."""
    head = envelope.Header(federation=federation.NAME, sender="a", boot=BOOT, sequence=1)
    data = envelope.seal(alice, REPLY, "done", head, b"\xc1 not msgpack")
    assert reason(door.admit(REPLY, data)) is Reason.MALFORMED
    assert reason(door.admit(REPLY, data[:-1] + bytes([data[-1] ^ 1]))) is Reason.BAD_SIGNATURE


def test_a_message_holds_on_its_own_topic_only(door, alice):
    other = TOPICS.client(ClientId("a"), Kind.METRICS)
    assert reason(door.admit(other, lines.seal(alice, HEARTBEAT, BEAT))) is Reason.BAD_SIGNATURE
    control = sealed(alice, TOPICS.control)
    assert reason(door.admit(REPLY, control)) is Reason.BAD_SIGNATURE


def test_nobody_speaks_in_anothers_branch(door, bob):
    assert reason(door.admit(REPLY, sealed(bob))) is Reason.NOT_ALLOWED
    assert reason(door.admit(STATUS, lines.seal(bob, STATUS, status(bob)))) is Reason.NOT_ALLOWED


def test_a_client_gives_no_commands_and_an_operator_no_updates(door, alice, operator):
    start = Start(command="c1")
    assert reason(door.admit(TOPICS.control, sealed(alice, TOPICS.control, start))) is Reason.NOT_ALLOWED
    assert isinstance(door.admit(TOPICS.control, sealed(operator, TOPICS.control, start)), Said)
    assert reason(door.admit(REPLY, sealed(operator))) is Reason.NOT_ALLOWED


def test_an_operator_introduces_itself_in_its_command(keys, operator, alice):
    start = Start(command="c1", certificate=operator.certificate_der)
    door = ingress(keys)
    assert isinstance(door.admit(TOPICS.control, sealed(operator, TOPICS.control, start)), Said)
    stolen = sealed(alice, TOPICS.control, start)
    assert reason(ingress(keys).admit(TOPICS.control, stolen)) is Reason.UNKNOWN_KEY
    own = Start(command="c1", certificate=alice.certificate_der)
    assert (
        reason(ingress(keys).admit(TOPICS.control, sealed(alice, TOPICS.control, own))) is Reason.NOT_ALLOWED
    )


def test_a_client_is_not_the_coordinator(door, alice):
    topic = TOPICS.coordinator(Kind.COORDINATOR_STATUS)
    assert reason(door.admit(topic, lines.seal(alice, topic, status(alice)))) is Reason.NOT_ALLOWED
    task = TOPICS.client(ClientId("a"), Kind.TASK)
    assert reason(door.admit(task, sealed(alice, task))) is Reason.NOT_ALLOWED


def test_header_and_key_must_name_the_same_sender_and_federation(door, alice):
    assert reason(door.admit(REPLY, sealed(alice, sender="b"))) is Reason.NOT_ALLOWED
    assert reason(door.admit(REPLY, sealed(alice, of=FederationId("other")))) is Reason.NOT_ALLOWED


def test_the_type_in_the_envelope_must_be_that_of_the_payload(door, alice):
    assert reason(door.admit(REPLY, sealed(alice, kind="update"))) is Reason.MALFORMED


def test_a_message_belongs_on_its_kind_of_topic(door, alice):
    assert reason(door.admit(STATUS, lines.seal(alice, STATUS, BEAT))) is Reason.NOT_ALLOWED


def test_a_replay_is_refused_also_after_newer_messages(door, alice):
    first, third = sealed(alice, sequence=1), sealed(alice, sequence=3)
    assert isinstance(door.admit(REPLY, first), Said)
    assert isinstance(door.admit(REPLY, third), Said)
    assert reason(door.admit(REPLY, first)) is Reason.REPLAYED
    assert reason(door.admit(REPLY, third)) is Reason.REPLAYED
    assert isinstance(door.admit(REPLY, sealed(alice, sequence=2)), Said)  # late, but for the first time
    far = sealed(alice, sequence=3 + WINDOW)
    assert isinstance(door.admit(REPLY, far), Said)
    assert reason(door.admit(REPLY, sealed(alice, sequence=2 + 1))) is Reason.REPLAYED


def test_a_new_start_counts_anew(door, alice):
    assert isinstance(door.admit(REPLY, sealed(alice, sequence=9)), Said)
    assert isinstance(door.admit(REPLY, sealed(alice, sequence=1, boot=Boot("0c" * 8))), Said)


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_number_passes_once_unless_it_is_too_old(keys, alice, numbers):
    door, seen = ingress(keys, alice), set()
    for number in numbers:
        passed = isinstance(door.admit(REPLY, sealed(alice, sequence=number)), Said)
        assert passed == (number not in seen and number > max(seen, default=-1) - WINDOW)
        if passed:
            seen.add(number)


def test_what_was_said_comes_with_its_bytes(door, alice):
    envelope_, line = sealed(alice), lines.seal(alice, HEARTBEAT, BEAT)
    assert door.admit(REPLY, envelope_).data == envelope_
    assert door.admit(HEARTBEAT, line).data == line


# --- a coordinator that another one has replaced --------------------------------------------------

TASK = TOPICS.client(ClientId("a"), Kind.TASK)
COORDINATOR_STATUS = TOPICS.coordinator(Kind.COORDINATOR_STATUS)


def from_coordinator(who, epoch, sequence):
    return sealed(who, TASK, sequence=sequence, epoch=epoch)


def says(who, state, epoch):
    line = Status(
        state=state,
        boot=BOOT,
        certificate=base64.b64encode(who.certificate_der).decode(),
        epoch=epoch,
    )
    return lines.seal(who, COORDINATOR_STATUS, line)


def test_an_envelope_of_a_replaced_coordinator_is_fenced_off(keys, coordinator):
    door = ingress(keys, coordinator)
    assert isinstance(door.admit(TASK, from_coordinator(coordinator, 3, 1)), Said)
    assert reason(door.admit(TASK, from_coordinator(coordinator, 2, 2))) is Reason.FENCED
    assert isinstance(door.admit(TASK, from_coordinator(coordinator, 3, 3)), Said)
    assert isinstance(door.admit(TASK, from_coordinator(coordinator, 4, 4)), Said)
    assert door.epoch == 4


def test_a_coordinator_that_says_online_replaces_the_one_before(keys, coordinator):
    door = ingress(keys)
    assert isinstance(door.admit(COORDINATOR_STATUS, says(coordinator, Presence.ONLINE, 3)), Said)
    assert reason(door.admit(TASK, from_coordinator(coordinator, 2, 1))) is Reason.FENCED
    door.admit(COORDINATOR_STATUS, says(coordinator, Presence.ONLINE, 2))  # retained, and heard late
    assert door.epoch == 3


@pytest.mark.parametrize("state", [Presence.OFFLINE, Presence.LOST])
def test_a_will_or_a_farewell_replaces_nobody(keys, coordinator, state):
    door = ingress(keys)
    door.admit(COORDINATOR_STATUS, says(coordinator, state, 3))
    assert door.epoch == 0


def test_an_epoch_that_is_not_proved_replaces_nobody(keys, coordinator):
    door = ingress(keys, coordinator)
    said, line = from_coordinator(coordinator, 3, 1), says(coordinator, Presence.ONLINE, 3)
    door.admit(TASK, said[:-1] + bytes([said[-1] ^ 1]))
    door.admit(COORDINATOR_STATUS, line.replace(b'"epoch":3', b'"epoch":4'))
    assert door.epoch == 0


def test_clients_have_no_epochs(keys, alice, coordinator):
    door = ingress(keys, alice, coordinator)
    door.admit(TASK, from_coordinator(coordinator, 3, 1))
    assert isinstance(door.admit(REPLY, sealed(alice)), Said)
    assert isinstance(door.admit(REPLY, sealed(alice, sequence=2, epoch=9)), Said)
    assert isinstance(door.admit(STATUS, lines.seal(alice, STATUS, status(alice))), Said)
    assert door.epoch == 3


def test_the_highest_epoch_of_an_earlier_start_counts(keys, coordinator):
    trust = TrustStore(federation.root(keys))
    trust.admit(coordinator.certificate_der)
    door = Ingress(federation.NAME, trust, epoch=5)
    assert reason(door.admit(TASK, from_coordinator(coordinator, 4, 1))) is Reason.FENCED


def test_what_is_fenced_off_uses_no_number_up(keys, coordinator):
    door = ingress(keys, coordinator)
    door.admit(TASK, from_coordinator(coordinator, 3, 1))
    door.admit(TASK, from_coordinator(coordinator, 2, 2))
    assert isinstance(door.admit(TASK, from_coordinator(coordinator, 3, 2)), Said)


# --- meant for one start of ours ------------------------------------------------------------------

OURS = Boot("aa" * 8)


def test_an_envelope_for_another_start_of_ours_is_refused_and_uses_no_number_up(keys, alice):
    """So what was recorded before a restart cannot be played to us after it."""
    door = ingress(keys, alice, boot=OURS)
    assert isinstance(door.admit(REPLY, sealed(alice, audience=OURS)), Said)
    for audience in ("bb" * 8, ""):
        assert reason(door.admit(REPLY, sealed(alice, sequence=2, audience=audience))) is Reason.OTHER_START
    assert isinstance(door.admit(REPLY, sealed(alice, sequence=2, audience=OURS)), Said)


def test_who_is_no_start_hears_what_is_meant_for_anybody(keys, alice):
    door = ingress(keys, alice)
    for number, audience in enumerate(("", "bb" * 8)):
        assert isinstance(door.admit(REPLY, sealed(alice, sequence=number, audience=audience)), Said)


def test_a_replaced_coordinator_is_fenced_off_whomever_it_speaks_to(keys, coordinator):
    door = ingress(keys, coordinator, boot=OURS)
    door.admit(TASK, sealed(coordinator, TASK, epoch=3, audience=OURS))
    old = sealed(coordinator, TASK, sequence=2, epoch=2, audience="bb" * 8)
    assert reason(door.admit(TASK, old)) is Reason.FENCED


def test_what_was_said_tells_the_start_that_said_it(door, alice):
    assert door.admit(REPLY, sealed(alice)).boot == BOOT
    assert door.admit(HEARTBEAT, lines.seal(alice, HEARTBEAT, BEAT)).boot is None


# --- too much of one client -----------------------------------------------------------------------


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def slow(keys, alice, bob, coordinator, monkeypatch):
    """An ingress that lets two messages a second through, and three at once; and its clock."""
    monkeypatch.setattr(limits, "MESSAGES_PER_S_MAX", 2.0)
    monkeypatch.setattr(limits, "MESSAGES_BURST_MAX", 3.0)
    trust, clock = TrustStore(federation.root(keys)), Clock()
    for one in (alice, bob, coordinator):
        trust.admit(one.certificate_der)
    return Ingress(federation.NAME, trust, clock=clock), clock


def test_a_client_that_says_too_much_is_refused_until_time_has_passed(slow, alice):
    door, clock = slow
    for number in range(3):
        assert isinstance(door.admit(REPLY, sealed(alice, sequence=number)), Said)
    late = sealed(alice, sequence=3)
    assert reason(door.admit(REPLY, late)) is Reason.TOO_OFTEN
    assert reason(door.admit(REPLY, late)) is Reason.TOO_OFTEN
    clock.now = 0.5
    assert isinstance(door.admit(REPLY, late), Said)  # it used no number up
    assert reason(door.admit(REPLY, sealed(alice, sequence=4))) is Reason.TOO_OFTEN


def test_too_much_is_refused_before_it_is_read_on_all_topics_of_a_client_together(slow):
    door, _ = slow
    for topic in (REPLY, STATUS, HEARTBEAT):
        assert reason(door.admit(topic, b"junk")) is Reason.MALFORMED
    for topic in (REPLY, STATUS, HEARTBEAT):
        assert reason(door.admit(topic, b"junk")) is Reason.TOO_OFTEN
    assert reason(door.admit(REPLY, bytes(ENVELOPE_BYTES_MAX + 1))) is Reason.OVERSIZE  # that costs nothing


def test_one_client_leaves_the_others_their_say(slow, bob, coordinator):
    door, _ = slow
    for _ in range(9):
        door.admit(REPLY, b"junk")
    theirs = TOPICS.client(ClientId("b"), Kind.REPLY)
    assert isinstance(door.admit(theirs, sealed(bob, theirs)), Said)
    for number in range(9):  # nor is the coordinator counted, on whichever client's topic
        assert isinstance(door.admit(TASK, sealed(coordinator, TASK, sequence=number)), Said)


def test_chunks_are_not_counted(slow):
    door, _ = slow
    topic = TOPICS.up(ClientId("a"), "e" * 64)
    assert all(isinstance(door.admit(topic, b"chunk"), Frame) for _ in range(9))


def test_without_a_clock_nothing_is_too_often(keys, alice, monkeypatch):
    monkeypatch.setattr(limits, "MESSAGES_BURST_MAX", 1.0)
    door = ingress(keys, alice)
    assert all(isinstance(door.admit(REPLY, sealed(alice, sequence=n)), Said) for n in range(3))


# --- a client's newest start ----------------------------------------------------------------------

INFO = TOPICS.client(ClientId("a"), Kind.INFO)
EARLIER, NEWER = Boot("01" * 8), Boot("02" * 8)


def declared(who, state, sequence, boot):
    line = msgspec.structs.replace(status(who), state=state, sequence=sequence, boot=boot)
    return STATUS, lines.seal(who, STATUS, line)


def born(who, sequence, boot):
    info = Info(boot=boot, sequence=sequence, version="1", certificate=text(who), examples=1, schema="0" * 64)
    return INFO, lines.seal(who, INFO, info)


def test_a_late_will_of_an_earlier_start_is_refused_and_so_is_its_birth(door, alice):
    assert isinstance(door.admit(*declared(alice, Presence.ONLINE, 5, EARLIER)), Said)
    assert isinstance(door.admit(*declared(alice, Presence.ONLINE, 9, NEWER)), Said)
    assert reason(door.admit(*declared(alice, Presence.LOST, 4, EARLIER))) is Reason.REPLAYED
    assert reason(door.admit(*declared(alice, Presence.ONLINE, 9, EARLIER))) is Reason.REPLAYED
    assert reason(door.admit(*born(alice, 6, EARLIER))) is Reason.REPLAYED
    assert isinstance(door.admit(*born(alice, 10, NEWER)), Said)


def test_the_newest_start_is_heard_in_any_order_and_again(door, alice):
    """Its will is made before it speaks, and what is retained is heard again after each connect."""
    for state, sequence in (
        (Presence.ONLINE, 9),
        (Presence.ONLINE, 9),
        (Presence.LOST, 1),
        (Presence.OFFLINE, 12),
    ):
        assert isinstance(door.admit(*declared(alice, state, sequence, NEWER)), Said)
        assert isinstance(door.admit(*born(alice, 8, NEWER)), Said)
    assert isinstance(door.admit(*declared(alice, Presence.LOST, 1, NEWER)), Said)
    assert reason(door.admit(*declared(alice, Presence.ONLINE, 9, NEWER))) is Reason.REPLAYED


def test_a_heartbeat_counts_once(door, alice):
    first, second = (lines.seal(alice, HEARTBEAT, Heartbeat(boot=BOOT, sequence=n)) for n in (1, 2))
    assert isinstance(door.admit(HEARTBEAT, first), Said)
    assert reason(door.admit(HEARTBEAT, first)) is Reason.REPLAYED
    assert isinstance(door.admit(HEARTBEAT, second), Said)
    assert reason(door.admit(HEARTBEAT, first)) is Reason.REPLAYED
    anew = lines.seal(alice, HEARTBEAT, Heartbeat(boot=NEWER, sequence=1))
    assert isinstance(door.admit(HEARTBEAT, anew), Said)


def test_a_start_whose_will_was_made_before_the_last_ones_end_is_not_the_newest_by_its_will(door, alice):
    assert isinstance(door.admit(*declared(alice, Presence.OFFLINE, 12, EARLIER)), Said)
    assert reason(door.admit(*declared(alice, Presence.LOST, 11, NEWER))) is Reason.REPLAYED
    assert isinstance(door.admit(*declared(alice, Presence.ONLINE, 13, NEWER)), Said)


def test_the_starts_of_one_client_say_nothing_of_another(door, alice, bob):
    assert isinstance(door.admit(*declared(alice, Presence.ONLINE, 100, NEWER)), Said)
    topic = TOPICS.client(ClientId("b"), Kind.STATUS)
    line = msgspec.structs.replace(status(bob), sequence=1, boot=EARLIER)
    assert isinstance(door.admit(topic, lines.seal(bob, topic, line)), Said)


def test_a_start_that_is_not_proved_displaces_nobody(door, alice, bob):
    topic, line = declared(alice, Presence.ONLINE, 9, NEWER)
    assert isinstance(door.admit(*declared(alice, Presence.ONLINE, 5, EARLIER)), Said)
    assert reason(door.admit(topic, line.replace(b'"sequence":9', b'"sequence":8'))) is Reason.BAD_SIGNATURE
    assert reason(door.admit(*declared(bob, Presence.ONLINE, 99, NEWER))) is Reason.NOT_ALLOWED
    assert isinstance(door.admit(*declared(alice, Presence.LOST, 4, EARLIER)), Said)


# --- whom the root has taken back -----------------------------------------------------------------

REVOKED = TOPICS.revoked


@pytest.fixture
def root_key(keys):
    return keyfiles.read_key(keys / "root.key")


def listed(keys, root_key, number, *members):
    serials = (certificates.read(one.certificate_der).serial_number for one in members)
    now = datetime.now(UTC)
    return revocations.make(federation.root(keys), root_key, number, dict.fromkeys(serials, now), now).pem


def test_from_a_revocation_on_nothing_of_that_participant_is_let_in(door, keys, root_key, alice, bob):
    assert isinstance(door.admit(REPLY, sealed(alice)), Said)
    pem = listed(keys, root_key, 1, alice)
    assert door.admit(REVOKED, pem) == Withdrawn(pem)
    assert reason(door.admit(REPLY, sealed(alice, sequence=2))) is Reason.REVOKED
    assert reason(door.admit(STATUS, lines.seal(alice, STATUS, status(alice)))) is Reason.REVOKED
    assert reason(door.admit(HEARTBEAT, lines.seal(alice, HEARTBEAT, BEAT))) is Reason.REVOKED
    theirs = TOPICS.client(ClientId("b"), Kind.REPLY)
    assert isinstance(door.admit(theirs, sealed(bob, theirs)), Said)


def test_a_stranger_whose_certificate_was_revoked_is_told_apart_from_one_that_has_none(keys, root_key, alice):
    door = ingress(keys)
    door.admit(REVOKED, listed(keys, root_key, 1, alice))
    assert reason(door.admit(STATUS, lines.seal(alice, STATUS, status(alice)))) is Reason.REVOKED
    assert reason(door.admit(REPLY, sealed(alice))) is Reason.UNKNOWN_KEY


def test_an_operator_whose_certificate_was_revoked_commands_nothing(keys, root_key, operator):
    start = Start(command="c1", certificate=operator.certificate_der)
    door = ingress(keys)
    door.admit(REVOKED, listed(keys, root_key, 1, operator))
    assert reason(door.admit(TOPICS.control, sealed(operator, TOPICS.control, start))) is Reason.REVOKED


def test_a_certificate_that_has_run_out_is_a_reason_of_its_own(keys, alice):
    now = [datetime.now(UTC)]
    trust = TrustStore(federation.root(keys), lambda: now[0])
    trust.admit(alice.certificate_der)
    door = Ingress(federation.NAME, trust)
    now[0] += timedelta(days=limits.CERTIFICATE_DAYS + 1)
    assert reason(door.admit(REPLY, sealed(alice))) is Reason.OUT_OF_DATE
    assert reason(door.admit(STATUS, lines.seal(alice, STATUS, status(alice)))) is Reason.OUT_OF_DATE


def test_the_same_list_is_no_news_an_older_one_is_refused_and_a_newer_one_forgives(
    door, keys, root_key, alice
):
    door.admit(REVOKED, listed(keys, root_key, 5, alice))
    assert door.admit(REVOKED, listed(keys, root_key, 5, alice)) is None
    assert reason(door.admit(REVOKED, listed(keys, root_key, 4))) is Reason.REPLAYED
    assert reason(door.admit(REPLY, sealed(alice))) is Reason.REVOKED
    assert isinstance(door.admit(REVOKED, listed(keys, root_key, 6)), Withdrawn)
    assert isinstance(door.admit(REPLY, sealed(alice)), Said)


def test_a_list_that_another_root_signed_or_nobody_is_refused(door, keys, alice, tmp_path):
    foreign = federation.root(tmp_path)
    made = revocations.make(foreign, keyfiles.read_key(tmp_path / "root.key"), 1, {}, datetime.now(UTC))
    for data in (made.pem, b"junk", b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"):
        assert reason(door.admit(REVOKED, data)) is Reason.BAD_SIGNATURE
    assert isinstance(door.admit(REPLY, sealed(alice)), Said)
    assert door.admit(REVOKED, b"") is None


def test_a_list_may_be_longer_than_any_line_but_has_its_limit(door):
    assert reason(door.admit(REVOKED, bytes(LINE_BYTES_MAX + 1))) is Reason.BAD_SIGNATURE
    assert reason(door.admit(REVOKED, bytes(limits.REVOCATIONS_BYTES_MAX + 1))) is Reason.OVERSIZE


def test_a_flood_of_refusals_is_news_ever_more_seldom(door):
    refused = [door.admit(REPLY, b"junk") for _ in range(20)]
    assert [one.count for one in refused if one.is_news] == [1, 2, 4, 8, 16]
    assert door.admit("x", b"junk").is_news  # each reason by itself


def test_refusals_are_counted_by_reason(door, alice):
    door.admit(REPLY, b"junk")
    door.admit(REPLY, b"junk")
    door.admit("x", b"junk")
    assert door.refusals == {Reason.MALFORMED: 2, Reason.UNKNOWN_TOPIC: 1}


@given(st.binary(max_size=300))
def test_any_bytes_anywhere_end_in_a_reason(tmp_path_factory, data):
    door = ingress(tmp_path_factory.getbasetemp() / "fuzz-keys")
    for topic in (REPLY, STATUS, TOPICS.control, TOPICS.coordinator(Kind.COORDINATOR_MODEL), REVOKED):
        admitted = door.admit(topic, data)
        assert admitted is None if not data else isinstance(admitted, Refused)


@given(st.integers(0, 2000), st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_byte_of_a_message_gets_through(door, alice, at, flip):
    for topic, data in ((REPLY, sealed(alice)), (STATUS, lines.seal(alice, STATUS, status(alice)))):
        spoilt = bytearray(data)
        spoilt[at % len(data)] ^= flip
        admitted = door.admit(topic, bytes(spoilt))
        if isinstance(
            admitted, Said
        ):  # base64 has spare bits at its end: the same signature, spelled otherwise
            assert admitted.message == status(alice)


def test_a_line_refuses_to_say_what_json_cannot(alice):
    topic = TOPICS.coordinator(Kind.COORDINATOR_METRICS)
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            lines.seal(alice, topic, Metrics(run="r", round=1, loss=number))


def test_pae_follows_paseto():
    assert envelope.pae() == bytes(8)
    assert envelope.pae(b"") == b"\x01" + bytes(15)
    assert envelope.pae(b"test") == b"\x01" + bytes(7) + b"\x04" + bytes(7) + b"test"


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_pae_tells_lists_of_parts_apart(one, other):
    assert (envelope.pae(*one) == envelope.pae(*other)) == (one == other)


def test_the_envelope_is_msgpack(alice):
    tree = msgspec.msgpack.decode(sealed(alice))
    assert tree[:3] == [1, "done", alice.kid]
    assert codec.decode(tree[4], Done) == DONE


def test_an_info_introduces_too(keys, alice):
    door, topic = ingress(keys), TOPICS.client(ClientId("a"), Kind.INFO)
    info = Info(boot=BOOT, version="1", certificate=status(alice).certificate, examples=1, schema="a" * 64)
    assert isinstance(door.admit(topic, lines.seal(alice, topic, info)), Said)

"""What a start says is numbered, and its numbers rise over restarts, whatever the clock does."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import codec, envelope, lines, voice
from common.errors import TransportError
from common.identity import Role
from common.ids import Boot, ClientId
from common.messages import Done, Presence, Status
from common.topics import Kind, Topics
from common.voice import NUMBERS_RESERVED, Voice, reserve
from support import federation
from support.federation import member

TOPICS = Topics(federation.NAME)
REPLY = TOPICS.client(ClientId("a"), Kind.REPLY)
BOOT = Boot("0b" * 8)
DONE = Done(digest="d" * 64)


class Sheet:
    """A bus that writes down what is published, or has no link."""

    def __init__(self, *, is_up=True):
        self.is_up, self.published = is_up, []

    async def publish(self, topic, payload, *, qos=1, retain=False):
        if not self.is_up:
            raise TransportError("the link is down")
        self.published.append((topic, payload, qos, retain))


@pytest.fixture(scope="module")
def alice(tmp_path_factory):
    return member(tmp_path_factory.mktemp("keys"), Role.CLIENT, "a")


def header(data: bytes) -> envelope.Header:
    return codec.decode(envelope.read(data).header, envelope.Header)


# --- numbers --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2**52), st.integers(0, NUMBERS_RESERVED - 1)), max_size=8))
def test_a_start_begins_above_all_that_the_one_before_it_may_have_said(starts):
    """Each start at a time of its own, in microseconds, earlier than the last one's perhaps."""
    stored, highest = None, -1
    for now, said in starts:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(voice, "time", SimpleNamespace(time_ns=lambda now=now: now * 1000))
            first, stored = reserve(stored)
        assert first >= now
        assert first > highest
        highest = first + said


def test_without_anything_stored_a_start_begins_at_the_time_of_day():
    """So that one whose state was lost is above those before it as well."""
    first, stored = reserve(None)
    later, _ = reserve("")
    assert 0 <= later - first < 60 * 10**6
    assert int(stored) == first + NUMBERS_RESERVED
    assert reserve(stored)[0] == int(stored)


def test_everything_that_is_numbered_takes_the_next_number(alice):
    async def main():
        sheet, mine = Sheet(), Voice(alice, TOPICS, BOOT, epoch=3, first=100)
        await mine.tell(sheet, REPLY, DONE)
        status = mine.status(Presence.ONLINE)
        await mine.tell(sheet, REPLY, DONE)
        return (
            [header(data).sequence for _, data, _, _ in sheet.published],
            status.sequence,
            mine.next_number(),
        )

    assert asyncio.run(main()) == ([101, 103], 102, 104)


def test_a_voice_that_is_told_no_number_begins_at_the_time_of_day(alice):
    before, _ = reserve(None)
    assert Voice(alice, TOPICS, BOOT).next_number() > before


# --- what is said ---------------------------------------------------------------------------------


def test_an_envelope_names_its_sender_the_start_and_whom_it_is_for(alice):
    async def main():
        sheet, mine = Sheet(), Voice(alice, TOPICS, BOOT, epoch=3, first=0)
        assert await mine.tell(sheet, REPLY, DONE, "cc" * 8)
        assert await mine.tell(sheet, REPLY, DONE)
        return sheet.published

    for (topic, data, qos, retain), audience in zip(asyncio.run(main()), ["cc" * 8, ""], strict=True):
        assert (topic, qos, retain) == (REPLY, 1, False)
        said = header(data)
        assert (said.federation, said.sender, said.boot, said.epoch) == ("lab", "a", BOOT, 3)
        assert said.audience == audience
        parts = envelope.read(data)
        assert parts.type == "done"
        assert codec.decode(parts.payload, Done) == DONE


def test_the_audience_is_signed(alice):
    async def main():
        sheet = Sheet()
        await Voice(alice, TOPICS, BOOT).tell(sheet, REPLY, DONE, "cc" * 8)
        return sheet.published[0][1]

    data, public = asyncio.run(main()), alice.key.public_key()
    changed = data.replace(b"cc" * 8, b"dd" * 8)
    assert header(changed).audience == "dd" * 8
    assert [envelope.read(one).is_signed_with(public, REPLY) for one in (data, changed)] == [True, False]


def test_a_line_is_shown_as_it_was_asked_for(alice):
    async def main():
        sheet, mine = Sheet(), Voice(alice, TOPICS, BOOT, first=0)
        status = mine.status(Presence.ONLINE)
        topic = TOPICS.client(ClientId("a"), Kind.STATUS)
        assert await mine.show(sheet, topic, status, retain=True, qos=0)
        return sheet.published, status, mine

    ((_, data, qos, retain),), status, mine = asyncio.run(main())
    assert (qos, retain) == (0, True)
    assert lines.read(data).message() == status
    assert status == Status(
        state=Presence.ONLINE,
        boot=BOOT,
        sequence=1,
        version=voice.VERSION,
        certificate=mine.certificate,
    )
    assert mine.bytes_out == len(data)


def test_what_is_said_into_a_broken_link_is_told_and_counted(alice):
    async def main():
        mine = Voice(alice, TOPICS, BOOT)
        told = await mine.tell(Sheet(is_up=False), REPLY, DONE)
        return told, mine.bytes_out

    told, spent = asyncio.run(main())
    assert not told
    assert spent > 0

"""A peer's words never become a path or a topic before they are known to be a name or a digest.

Where the product makes paths of words that came from somebody else:

    common/blobs.py          blobs/<digest>, parts/<digest>.<chunk>     of a manifest, a want
    coordinator/replay.py    blobs/<digest>                             of a transcript

All other paths are made of what the operator said, or of what this process made: a run's id, a round's number, a
participant's name in the settings. No archive is unpacked into files: `tests/architecture` forbids the functions.
"""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import codec, limits, topics
from common.blobs import BlobStore
from common.errors import ConfigError, DecodeError, NotFoundError
from common.identity import Role
from common.ids import FederationId, client_id, federation_id, is_client_name
from common.ingress import Refused
from common.messages import BY_CONTROL, BY_REPLY, BY_TASK, Hex, Name, Reason
from common.topics import Topics
from coordinator.transcript import Kid, MergedUpdate
from support import federation, hostile
from support.federation import ingress, member
from support.updates import manifest, task, update

ESCAPES = [
    "..",
    ".",
    "",
    "../x",
    "/etc/passwd",
    "a/../../b",
    "..\\x",
    "a\0b",
    "a\n",
    "\na",
    "a b",
    "~",
    "$HOME",
    "a%2f..",
    "%2e%2e",
    "Ａ",
    "ａ",  # the letter a, twice as wide
    "a\u2215b",
    "con:",
    "-a",
    ".hidden",
    "x" * 64,
    "a+",
    "#",
]


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.mark.parametrize("text", ESCAPES)
def test_what_leads_elsewhere_is_no_name_for_anybody(keys_dir, text):
    assert not is_client_name(text)
    for read in (client_id, federation_id):
        with pytest.raises(ConfigError):
            read(text)
    with pytest.raises(ConfigError):
        member(keys_dir, Role.CLIENT, text)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, Name)


@pytest.mark.parametrize(
    "text", [*ESCAPES, "0" * 32 + "\n", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "0" * 63 + "/"]
)
def test_what_leads_elsewhere_is_no_digest(tmp_path, text):
    for kind in (Hex, Kid):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, kind)
    store = BlobStore(tmp_path / "store", 1000)
    outside = tmp_path / "x"
    outside.write_bytes(b"not theirs")
    for touch in (store.has, store.read, store.delete):
        with pytest.raises(NotFoundError):
            touch(text)
    with pytest.raises(NotFoundError):
        store.open_part(msgspec.structs.replace(manifest("a"), digest=text))
    store.sweep({text})
    assert outside.read_bytes() == b"not theirs"
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["blobs", "parts"]


@pytest.mark.parametrize("text", ["../../x", "/etc/passwd", "b" * 64 + "\n", "B" * 64, ""])
@pytest.mark.parametrize(
    ("message", "kind", "path"),
    [
        (update("a"), BY_REPLY, ("base",)),
        (update("a"), BY_REPLY, ("delta", "digest")),
        (update("a"), BY_REPLY, ("delta", "schema")),
        (task(), BY_TASK, ("base", "digest")),
    ],
)
def test_no_message_carries_a_digest_that_is_none(message, kind, path, text):
    tree = codec.unpack(codec.encode(message), bytes_max=2**16)
    inner = tree
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = text
    with pytest.raises(DecodeError):
        codec.decode(codec.pack(tree), kind)


@pytest.mark.parametrize("kind", ["want", "done", "unavailable"])
def test_nothing_is_asked_for_that_is_no_digest(kind):
    tree = {"digest": "../../state.db", "have": [], "kind": kind, "reason": Reason.DISK.value}
    for union in (BY_REPLY, BY_TASK):
        with pytest.raises(DecodeError):
            codec.decode(codec.pack(tree), union)


def test_a_command_has_a_name():
    for text in ESCAPES:
        with pytest.raises(DecodeError):
            codec.decode(codec.pack({"command": text, "kind": "start"}), BY_CONTROL)


def test_a_transcript_names_blobs_by_digests_only():
    good = {
        "client": "a",
        "kid": "0" * 32,
        "round": 1,
        "base": "0" * 64,
        "delta": "0" * 64,
        "weight": 1.0,
        "staleness": 0,
        "envelope": "",
    }
    assert msgspec.json.decode(msgspec.json.encode(good), type=MergedUpdate)
    for name, text in (
        ("delta", "../../x"),
        ("base", "/etc/passwd"),
        ("client", ".."),
        ("delta", "0" * 64 + "\n"),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode({**good, name: text}), type=MergedUpdate)


@pytest.mark.parametrize("text", ESCAPES)
def test_a_topic_with_such_a_level_is_none_of_ours(keys_dir, text):
    door = ingress(keys_dir)
    mine = Topics(federation.NAME)
    for topic in (
        f"fedmq/lab/client/{text}/reply",
        f"fedmq/{text}/client/a/reply",
        f"fedmq/lab/client/a/up/{text}",
        f"fedmq/lab/model/{text}",
        f"fedmq/lab/round/{text}/summary",
        f"{mine.control}/{text}",
        f"{mine.control}/{text}" * 1000,
    ):
        assert topics.parse(topic) is None
        refused = door.admit(topic, b"x")
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.UNKNOWN_TOPIC
        assert len(refused.topic) <= limits.TOPIC_BYTES_MAX


@given(st.text(max_size=80))
def test_any_text_is_a_plain_file_name_or_no_name(tmp_path_factory, text):
    if is_client_name(text):
        directory = tmp_path_factory.getbasetemp()
        assert (directory / text).parent == directory
        assert (directory / text).name == text


def test_a_run_that_is_named_by_a_peer_is_a_word_to_compare_and_nothing_more(keys_dir):
    """An update for the run `../..` is a message like others: it is answered `not-invited` (unit/test_services)."""
    message = msgspec.structs.replace(update("a"), run="../../..")
    assert codec.decode(codec.encode(message), BY_REPLY) == message
    alice = member(keys_dir, Role.CLIENT, "a")
    topic = Topics(FederationId("lab")).client("a", topics.Kind.REPLY)
    said = ingress(keys_dir, alice).admit(
        topic, hostile.sealed(alice, topic, codec.encode(message), kind="update")
    )
    assert said.message.run == "../../.."

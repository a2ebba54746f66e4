"""An attacker with a certificate of its own, mallory, at a real broker with TLS: one test a verb, on both engines."""

import asyncio
import contextlib
import os
import re
import ssl
from datetime import UTC, datetime

import pytest
import websockets

from broker.bounds import Bounds
from broker.gate import Entrance, Gate
from broker.hardened import HardenedBroker
from common import envelope, identity, parts, revocations, tls
from common.bus import Arrived, LinkDown, LinkUp
from common.codec import encode
from common.errors import ConfigError, SignatureError
from common.identity import Role
from common.ids import ClientId, sha256
from common.ingress import Refused, Said
from common.limits import PACKET_BYTES_MAX_UNKNOWN, PAIRING_BYTES_MAX, SESSIONS_BY_ONE_MAX
from common.messages import Done, Exclude, Presence, Reason, Start
from common.mqtt import Address, MqttLink
from common.settings import Link, Settings
from common.topics import COORDINATOR_KINDS, Kind
from common.trust import TrustStore
from support import federation
from support.hardened_broker import hardened
from support.patience import within
from support.raw_mqtt import PUBACK, Raw, Will, connect, publish, subscribe
from support.require import need
from support.town import LAB, Town, anonymous

VICTIM = ClientId("client-1")
MALLORY = ClientId("mallory")
DIGEST = sha256(b"a blob")
TOKEN, OTHER_TOKEN = "0" * 16, "1" * 16
LINES = (Kind.STATUS, Kind.INFO, Kind.HEARTBEAT, Kind.METRICS)
STATUS, REPLY = LAB.client(VICTIM, Kind.STATUS), LAB.client(VICTIM, Kind.REPLY)
MY_STATUS, MY_REPLY = LAB.client(MALLORY, Kind.STATUS), LAB.client(MALLORY, Kind.REPLY)
ONLINE = LAB.coordinator(Kind.COORDINATOR_STATUS)
END = b"that was all"

# What is said where mallory may neither speak nor listen, and by whom
PRIVATE = (
    ("coordinator", LAB.client(VICTIM, Kind.TASK)),
    ("coordinator", LAB.down(VICTIM, DIGEST)),
    ("operator", LAB.control),
    *((VICTIM, LAB.client(VICTIM, kind)) for kind in (*LINES, Kind.REPLY)),
    (VICTIM, LAB.up(VICTIM, DIGEST)),
)
FOREIGN = (
    *(topic for _, topic in PRIVATE),
    *(LAB.coordinator(kind) for kind in COORDINATOR_KINDS),
    LAB.revoked,
    LAB.model(DIGEST),
    LAB.summary(1),
    LAB.client(MALLORY, Kind.TASK),  # about itself, but not for it to say
    LAB.down(MALLORY, DIGEST),
    LAB.enrol_request(TOKEN),
    LAB.enrol_answer(TOKEN),
)
EARS = {
    "coordinator": (
        "fedmq/lab/control",
        "fedmq/lab/coordinator/+",
        "fedmq/lab/client/#",
        "fedmq/lab/round/+/summary",
        LAB.revoked,
    ),
    VICTIM: (LAB.client(VICTIM, Kind.TASK), LAB.all_down(VICTIM), "fedmq/lab/model/+"),
    "operator": ("fedmq/lab/enrol/+/request",),
}


@pytest.fixture(params=["amqtt", "mosquitto"])
def engine(request):
    if request.param == "mosquitto":
        need("mosquitto")
    return request.param


@pytest.fixture
def town(engine, tmp_path):
    return Town(tmp_path, engine)


@pytest.fixture
def hardened_town(tmp_path):
    return Town(tmp_path, "amqtt")


def play(town, story, **how):
    """Run a story while the broker runs."""

    async def main():
        async with asyncio.timeout(within(30)), town.open(**how):
            await story()

    asyncio.run(main())


async def listening(town):
    """Connect everybody whom mallory could do harm."""
    ears = {name: await town.raw(name) for name in EARS}
    for name, raw in ears.items():
        for wanted in EARS[name]:
            assert await raw.subscribe(wanted) < 128
    return ears


async def topics_until_end(raw):
    """List where something was said until the end mark came."""
    heard = []
    while (message := await raw.message()).payload != END:
        heard.append(message.topic)
        await raw.acknowledge(message)
    await raw.acknowledge(message)
    return heard


async def mark_end(town):
    """Let everybody who listens hear that nothing more comes: who says it came after all others."""
    coordinator = await town.raw("coordinator", "the-end")
    for topic in (LAB.client(VICTIM, Kind.TASK), ONLINE):
        await coordinator.publish(topic, END)
    newcomer = await town.stranger("the-end-of-pairing", user=OTHER_TOKEN)
    await newcomer.publish(LAB.enrol_request(OTHER_TOKEN), END)


async def is_refused(port, context, hello=None):
    """Tell whether somebody who connects so is not let in."""
    try:
        raw = await Raw.open(port, tls=context)
        return await raw.introduce(hello or connect("somebody", user="mallory")) != 0
    except OSError:  # also all that TLS has to say
        return True
    except AssertionError as error:
        return "closed" in str(error)


# --- read -----------------------------------------------------------------------------------------


def test_it_cannot_read_what_others_are_told(town):
    wanted = (
        "#",
        "+/#",
        "fedmq/#",
        "+/+/client/+/+",
        "+/+/client/+/+/+",
        "fedmq/lab/client/client-1/#",
        "fedmq/+/control",
        *(topic for _, topic in PRIVATE),
        *(f"$share/spies/{topic}" for _, topic in PRIVATE),
        "$share/spies/#",
        "$SYS/#",
    )

    async def say_all(said_by, *, retain):
        for who, topic in PRIVATE:
            await said_by[who].publish(topic, b"private", retain=retain)

    async def story():
        said_by = {who: await town.raw(who) for who in ("coordinator", "operator", VICTIM)}
        await say_all(said_by, retain=True)
        spies = await town.hearing(MALLORY, *wanted)
        for spy in spies:
            await spy.send(subscribe(ONLINE, qos=0))
        await say_all(said_by, retain=False)
        await mark_end(town)
        for name, spy in zip(wanted, spies, strict=True):
            assert not await private_until_end(spy), name

    play(town, story)


async def private_until_end(spy):
    """List the private topics that a spy hears of."""
    heard = set()
    while True:
        first, body = await spy.packet()
        if first & 0xF0 == 0x30:
            heard |= {topic for _, topic in PRIVATE if topic.encode() in body}
            if body.endswith(END):
                return heard


# --- change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("payload", [b"forged", b""])
def test_it_cannot_say_anything_where_others_speak(town, retain, payload):
    async def story():
        ears, mallory = await listening(town), await town.raw(MALLORY)
        for topic in FOREIGN:
            await mallory.publish(topic, payload, retain=retain)
        await mark_end(town)
        for raw in ears.values():
            assert await topics_until_end(raw) == []

    play(town, story)


def test_nothing_that_it_retains_on_others_topics_is_kept_or_cleared(town):
    kept = [(VICTIM, STATUS), (VICTIM, LAB.client(VICTIM, Kind.INFO)), ("coordinator", ONLINE)]

    async def story():
        for who, topic in kept:
            await (await town.raw(who)).publish(topic, b"true", retain=True)
        mallory = await town.raw(MALLORY)
        for payload in (b"forged", b""):
            for topic in FOREIGN:
                await mallory.publish(topic, payload, retain=True)
        coordinator = await town.raw("coordinator")
        found = {}
        for wanted in EARS["coordinator"]:
            await coordinator.send(subscribe(wanted))
        for _ in kept:
            message = await next_message(coordinator)
            found[message] = message
        assert {topic for topic, _ in found} == {topic for _, topic in kept}
        assert {payload for _, payload in found} == {b"true"}

    play(town, story)


async def next_message(raw):
    """Skip what is no message; give topic and payload."""
    while True:
        first, body = await raw.packet()
        if first & 0xF0 == 0x30:
            end = 2 + int.from_bytes(body[:2])
            return body[2:end].decode(), body[end + (2 if first & 6 else 0) :]


@pytest.mark.parametrize("topic", [STATUS, ONLINE, LAB.control, LAB.revoked])
def test_it_leaves_no_will_on_anothers_topic(town, topic):
    async def story():
        ears = await listening(town)
        context = town.tls(MALLORY).context
        forged = connect("forged", user=MALLORY, will=Will(topic, b"forged", retain=True))
        raw = await Raw.open(town.broker.port, tls=context)
        await raw.introduce(forged)
        await raw.vanish()
        heir = await town.raw(MALLORY, will=Will(MY_STATUS, b"mine"))
        await heir.vanish()
        message = await ears["coordinator"].message()
        assert (message.topic, message.payload) == (MY_STATUS, b"mine")
        assert await ears["coordinator"].silent()

    play(town, story)


# --- replay ---------------------------------------------------------------------------------------


class Tape:
    """A bus that records what is said instead of saying it."""

    def __init__(self):
        self.said = []

    async def publish(self, topic, payload, *, qos=1, retain=False):
        self.said.append((topic, payload))


async def recorded(voice, topic, message, audience=""):
    tape = Tape()
    await voice.tell(tape, topic, message, audience)
    ((_, sealed),) = tape.said
    return sealed


def test_what_another_said_counts_neither_on_its_own_topics_nor_after_a_restart(town):
    first, second = "a" * 16, "b" * 16

    async def story():
        hers = await recorded(town.voice(VICTIM), REPLY, Done(digest=DIGEST), first)
        own = await recorded(town.voice(MALLORY), MY_REPLY, Done(digest=DIGEST), first)
        status = town.voice(VICTIM).line(STATUS, town.voice(VICTIM).status(Presence.ONLINE))
        coordinator = await town.raw("coordinator")
        await coordinator.subscribe("fedmq/lab/client/#")
        mallory, victim = await town.raw(MALLORY), await town.raw(VICTIM)
        before = town.ingress(VICTIM, MALLORY, boot=first)
        after = town.ingress(VICTIM, MALLORY, boot=second)

        async def heard():
            message = await coordinator.message()
            await coordinator.acknowledge(message)
            return message.topic, message.payload

        await victim.publish(REPLY, hers)
        assert isinstance(before.admit(*await heard()), Said)
        for topic, said in ((REPLY, hers), (STATUS, status), (MY_REPLY, hers), (MY_STATUS, status)):
            await mallory.publish(topic, said)
        for topic in (MY_REPLY, MY_STATUS):  # the first two did not pass the broker
            came = await heard()
            assert came[0] == topic
            assert [one.admit(*came).reason for one in (before, after)] == [Reason.BAD_SIGNATURE] * 2
        for expected in (None, Reason.REPLAYED):
            await mallory.publish(MY_REPLY, own)
            came = await heard()
            assert getattr(before.admit(*came), "reason", None) is expected
            assert after.admit(*came).reason is Reason.OTHER_START
        assert after.admit(REPLY, hers).reason is Reason.OTHER_START  # whoever may bring it

    play(town, story)


def test_what_it_signs_in_anothers_name_is_refused(town):
    boot = "a" * 16

    async def story():
        coordinator = town.ingress(VICTIM, MALLORY, boot=boot)
        mallory = town.issue(MALLORY)
        header = envelope.Header(
            federation=federation.NAME, sender=VICTIM, boot=boot, sequence=1, audience=boot
        )
        for topic, expected in ((REPLY, Reason.NOT_ALLOWED), (MY_REPLY, Reason.NOT_ALLOWED)):
            forged = envelope.seal(mallory, topic, "done", header, encode(Done(digest=DIGEST)))
            assert coordinator.admit(topic, forged).reason is expected
        for message in (Start(command="go"), Exclude(command="out", client=VICTIM)):
            told = await recorded(town.voice(MALLORY), LAB.control, message, boot)
            assert coordinator.admit(LAB.control, told).reason is Reason.NOT_ALLOWED
        voice = town.voice(MALLORY)
        for topic in (ONLINE, STATUS):
            line = voice.line(topic, voice.status(Presence.ONLINE))
            assert coordinator.admit(topic, line).reason is Reason.NOT_ALLOWED

    asyncio.run(story())


# --- block ----------------------------------------------------------------------------------------


def test_the_name_of_another_brings_nothing_without_its_certificate(town):
    async def story():
        ears = await listening(town)
        victim = await town.raw(VICTIM, "hers")
        for user in (VICTIM, "coordinator", "operator"):
            raw = await Raw.open(town.broker.port, tls=town.tls(MALLORY).context)
            if (
                await raw.introduce(connect("mine", user=user)) == 0
            ):  # Mosquitto goes by the certificate alone
                assert town.engine == "mosquitto"
                for topic in FOREIGN:
                    await raw.publish(topic, b"forged")
        await victim.ping()
        await mark_end(town)
        for raw in ears.values():
            assert await topics_until_end(raw) == []

    play(town, story)


def test_an_mqtt_client_id_cannot_be_guessed(hardened_town):
    settings = Settings(federation="lab", keys_dir=hardened_town.keys, link=Link(brokers=("127.0.0.1:1",)))
    us, trust = hardened_town.issue(VICTIM), TrustStore(federation.root(hardened_town.keys))
    made = {parts.link(settings, us, trust, us.name)._client_id for _ in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch(r"client-1-[0-9a-f]{32}", one) for one in made)


@pytest.mark.parametrize("clean", [True, False])
def test_anothers_mqtt_client_id_brings_nothing_of_its_session(town, clean):
    """Mosquitto lets whoever knows it cut the other off: so ids cannot be guessed."""

    async def story():
        task = LAB.client(VICTIM, Kind.TASK)
        victim = await town.raw(VICTIM, "hers", clean=clean)
        await victim.subscribe(task)
        if town.engine == "mosquitto":
            await victim.vanish()
        coordinator = await town.raw("coordinator")
        await coordinator.publish(task, b"private")
        mallory = await Raw.open(town.broker.port, tls=town.tls(MALLORY).context)
        code = await mallory.introduce(connect("hers", user=MALLORY, clean=clean))
        assert (code == 0) is (town.engine == "mosquitto")
        if code == 0:
            await coordinator.publish(task, b"private")
            await mallory.ping()  # nothing came before the answer
        else:
            assert (await victim.message()).payload == b"private"
            await victim.ping()

    play(town, story)


def test_a_session_that_another_left_is_not_taken_over(hardened_town):
    async def story():
        task = LAB.client(VICTIM, Kind.TASK)
        victim = await hardened_town.raw(VICTIM, "hers", clean=False)
        await victim.subscribe(task)
        await victim.leave()
        await (await hardened_town.raw("coordinator")).publish(task, b"kept for her")
        context = hardened_town.tls(MALLORY).context
        for clean in (True, False):
            assert await is_refused(
                hardened_town.broker.port, context, connect("hers", user=MALLORY, clean=clean)
            )
            socket = await web_socket(hardened_town, MALLORY)
            async with socket:
                await socket.send(connect("hers", user=MALLORY, clean=clean))
                assert await socket.recv() == b"\x20\x02\x00\x05"
        again = await hardened_town.raw(VICTIM, "hers", clean=False)
        assert (await again.message()).payload == b"kept for her"

    play(hardened_town, story, websockets=True)


def test_a_flood_of_it_does_not_keep_others_from_being_heard(town):
    async def story():
        async with town.link("coordinator") as coordinator, town.link(VICTIM) as victim:
            ingress = town.ingress(VICTIM, MALLORY, boot="a" * 16)
            await coordinator.subscribe(LAB.client("+", Kind.REPLY), LAB.client("+", Kind.HEARTBEAT))
            await until(coordinator, LinkUp)
            await until(victim, LinkUp)
            mallory = await town.raw(MALLORY)
            flood = publish(LAB.client(MALLORY, Kind.HEARTBEAT), b"junk" * 50) * 200
            pouring = asyncio.create_task(repeatedly(mallory, flood, 50))
            greedy = await town.raw(MALLORY, "greedy")
            await greedy.send(b"".join(subscribe(f"fedmq/lab/model/{n:032x}") for n in range(500)))
            voice = town.voice(VICTIM)
            for _ in range(5):
                await voice.tell(victim, REPLY, Done(digest=DIGEST), "a" * 16)
            heard = 0
            while heard < 5:
                arrived = await until(coordinator, Arrived)
                heard += isinstance(ingress.admit(arrived.topic, arrived.payload), Said)
            await pouring

    play(town, story)


async def repeatedly(raw, data, times):
    for _ in range(times):
        await raw.send(data)


async def until(link, kind):
    while not isinstance(event := await link.next(), kind):
        pass
    return event


def test_its_retained_messages_leave_room_for_those_of_others(hardened_town):
    async def story():
        mallory = await hardened_town.raw(MALLORY)
        for number in range(40):
            topic = LAB.up(MALLORY, sha256(b"%d" % number))
            await mallory.publish(topic, bytes(3 * 2**20), retain=True)  # together more than is ever kept
        for number in range(2000):
            await mallory.send(publish(f"fedmq/x{number}/client/mallory/status", b"junk", retain=True))
        await mallory.ping()
        coordinator = await hardened_town.raw("coordinator")
        await coordinator.publish(ONLINE, bytes(2**20), retain=True)
        await mallory.publish(MY_STATUS, b"mine", retain=True)
        client = await hardened_town.raw(VICTIM)
        await client.send(subscribe(ONLINE))
        assert len((await next_message(client))[1]) == 2**20

    play(hardened_town, story)


def test_its_sessions_leave_room_for_those_of_others(hardened_town):
    async def story():
        for number in range(SESSIONS_BY_ONE_MAX):
            raw = await hardened_town.raw(MALLORY, f"left-{number}", clean=False)
            await raw.leave()
        context = hardened_town.tls(MALLORY).context
        for clean in (True, False):
            hello = connect("one-more", user=MALLORY, clean=clean)
            assert await is_refused(hardened_town.broker.port, context, hello)
        await hardened_town.raw(MALLORY, "left-0", clean=True)  # instead of what it had
        await hardened_town.raw(VICTIM)

    play(hardened_town, story)


def test_a_revocation_list_that_it_signs_revokes_nobody(town):
    async def story():
        root, mallory = federation.root(town.keys), town.issue(MALLORY)
        serial = town.ingress().trust.admit(town.issue(VICTIM).certificate_der).serial
        now = datetime.now(UTC)
        forged = revocations.make(root, mallory.key, 7, {serial: now}, now)
        coordinator, victim = await town.raw("coordinator"), await town.raw(VICTIM)
        await coordinator.subscribe(LAB.revoked)
        await (await town.raw(MALLORY)).publish(LAB.revoked, forged.pem, retain=True)
        operator = await town.raw("operator")
        await operator.publish(LAB.revoked, forged.pem)  # and if somebody else's mistake lets it through
        message = await coordinator.message()
        refused = town.ingress().admit(message.topic, message.payload)
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.BAD_SIGNATURE
        assert await coordinator.silent()
        await victim.ping()
        await town.raw(VICTIM, "again")
        assert town.trust.revoked is None

    play(town, story)


# --- pose -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def impostor(certificate, key):
    """Listen as a broker does, with somebody's certificate; give the port, and what it was told."""
    told = []

    async def serve(reader, writer):
        with contextlib.suppress(OSError):
            told.append(await reader.read(100))
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], told


def refuses(link, told):
    async def story():
        async with link:
            down = await link.next()
            assert isinstance(down, LinkDown)
            assert "is not our broker" in down.why
        assert not any(told)  # neither a name nor a will

    return story()


@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")  # paho drops it where TLS fails
@pytest.mark.parametrize("whose", ["mallory", "another root's"])
def test_no_link_takes_it_for_the_broker(hardened_town, tmp_path, whose):
    async def story():
        ours = hardened_town.files(MALLORY)
        if whose != MALLORY:
            federation.member(tmp_path / "other", Role.BROKER, "broker")
            ours = tls.Files.of(tmp_path / "other", Role.BROKER, "broker")
        async with asyncio.timeout(within(10)), impostor(ours.certificate, ours.key) as (port, told):
            await refuses(hardened_town.link(VICTIM, port), told)
            spki = tls.spki_hash(hardened_town.issue("broker").certificate_der)
            address = Address("127.0.0.1", port, tls=True)
            newcomer = MqttLink([address], "newcomer", username=TOKEN, tls=tls.pinned(spki), jitter=max)
            await refuses(newcomer, told)

    asyncio.run(story())


def test_a_server_certificate_of_our_root_is_no_brokers_by_itself(hardened_town):
    check = hardened_town.tls(VICTIM).check
    check(hardened_town.issue("broker").certificate_der)
    for name in (MALLORY, "coordinator", "operator"):
        with pytest.raises(SignatureError, match="poses as the broker"):
            check(hardened_town.issue(name).certificate_der)


# --- with a certificate that counts no more, or with none -----------------------------------------


def test_a_revoked_certificate_is_cut_off_and_not_let_in_again(town):
    async def story():
        mallory, coordinator = await town.raw(MALLORY), await town.raw("coordinator")
        town.issue(VICTIM)
        made = identity.revoke(town.keys, Role.CLIENT, MALLORY)
        await coordinator.send(publish(LAB.revoked, made.pem, qos=1, retain=True))
        assert await mallory.ends(within(10))
        context = town.tls(MALLORY).context
        await let_in(town, VICTIM)
        assert await is_refused(town.broker.port, context)
        if town.engine == "amqtt":
            async with await web_socket(town, MALLORY) as socket:
                await socket.send(connect("somebody", user=MALLORY))
                assert await socket.recv() == b"\x20\x02\x00\x05"

    async def after_a_restart():
        assert await is_refused(town.broker.port, town.tls(MALLORY).context)
        await town.raw(VICTIM)

    play(town, story, websockets=town.engine == "amqtt")
    play(town, after_a_restart)


async def let_in(town, name):
    """Connect as soon as the broker takes connections: Mosquitto starts anew to heed a list."""
    while True:
        try:
            return await town.raw(name)
        except (OSError, AssertionError):
            await asyncio.sleep(0.01)


def test_without_a_certificate_of_this_root_nobody_is_let_in(town, tmp_path):
    async def story():
        port = town.broker.port
        assert await is_refused(port, anonymous())
        assert await is_refused(port, None)  # without TLS
        federation.member(tmp_path / "other", Role.COORDINATOR, "coordinator")
        files = tls.Files.of(tmp_path / "other", Role.COORDINATOR, "coordinator")
        other = anonymous()
        other.load_cert_chain(files.certificate, files.key)
        assert await is_refused(port, other, connect("coordinator", user="coordinator"))
        await town.raw(VICTIM)

    play(town, story)


@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning"
)  # asyncio forgets the sockets of failed handshakes
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_older_tls_is_not_spoken(town):
    async def story():
        for port in filter(None, (town.broker.port, town.broker.pairing_port, town.broker.ws_port)):
            files, old = town.files(MALLORY), anonymous()
            old.load_cert_chain(files.certificate, files.key)
            old.minimum_version = ssl.TLSVersion.TLSv1_2
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(OSError):  # noqa: PT011 - alert, or the end
                await Raw.open(port, tls=old)

    play(town, story, websockets=town.engine == "amqtt")


# --- over WebSocket -------------------------------------------------------------------------------


async def web_socket(town, name):
    return await websockets.connect(
        f"wss://localhost:{town.broker.ws_port}",
        ssl=town.tls(name).context if name else anonymous(),
        subprotocols=[websockets.Subprotocol("mqtt")],
        max_size=None,
    )


def test_over_websocket_the_same_holds(hardened_town):
    async def story():
        ears = await listening(hardened_town)
        async with await web_socket(hardened_town, MALLORY) as mallory:
            await mallory.send(connect("web", user=VICTIM))
            assert await mallory.recv() == b"\x20\x02\x00\x05"
        async with await web_socket(hardened_town, MALLORY) as mallory:
            await mallory.send(connect("web"))
            assert await mallory.recv() == b"\x20\x02\x00\x00"
            for topic in FOREIGN:
                await mallory.send(publish(topic, b"forged", qos=1))
                assert (await mallory.recv())[0] == PUBACK
        await mark_end(hardened_town)
        for raw in ears.values():
            assert await topics_until_end(raw) == []
        with pytest.raises((OSError, websockets.WebSocketException)):
            await (await web_socket(hardened_town, None)).recv()

    play(hardened_town, story, websockets=True)


@pytest.mark.parametrize("piece", [2**18, 2**22])
def test_large_messages_pass_over_websocket(hardened_town, piece):
    big = os.urandom(3 * 2**20)

    async def story():
        coordinator = await hardened_town.raw("coordinator")
        await coordinator.subscribe("fedmq/lab/client/#")
        async with await web_socket(hardened_town, VICTIM) as victim:
            await victim.send(connect("hers", user=VICTIM))
            await victim.recv()
            whole = publish(LAB.up(VICTIM, DIGEST), big, qos=1)
            for at in range(0, len(whole), piece):
                await victim.send(whole[at : at + piece])
            assert (await coordinator.message()).payload == big

    play(hardened_town, story, websockets=True)


def test_mosquitto_offers_no_websockets_where_certificates_count(tmp_path):
    """It would let revoked ones in there."""
    need("mosquitto")
    with pytest.raises(ConfigError, match="no revocation list"):
        play(Town(tmp_path, "mosquitto"), None, websockets=True)


# --- at the door for newcomers --------------------------------------------------------------------


def test_a_stranger_does_nothing_at_the_door_but_ask(town):
    async def story():
        ears = await listening(town)
        operator, coordinator = ears["operator"], await town.raw("coordinator", "answers")
        stranger = await town.stranger("newcomer", user=TOKEN)
        spies = [stranger, await town.stranger("spy", user=OTHER_TOKEN)]
        for spy in spies:
            for wanted in (
                "#",
                "fedmq/#",
                "fedmq/+/enrol/+/+",
                LAB.enrol_request(TOKEN),
                LAB.revoked,
                ONLINE,
            ):
                await spy.subscribe(wanted)
        assert await spies[1].subscribe(LAB.enrol_answer(TOKEN)) in {1, 128}
        assert await stranger.subscribe(LAB.enrol_answer(TOKEN)) == 1
        for topic in FOREIGN:
            if topic != LAB.enrol_request(TOKEN):
                await stranger.publish(topic, b"forged")
        await stranger.publish(LAB.enrol_request(TOKEN), b"let me in")
        message = await operator.message()
        assert (message.topic, message.payload) == (LAB.enrol_request(TOKEN), b"let me in")
        await operator.acknowledge(message)
        for who, topic in (("coordinator", ONLINE), (VICTIM, STATUS)):
            await (await town.raw(who, f"{who}-says")).publish(topic, b"private", retain=True)
        await (await town.raw("operator", "answering")).publish(LAB.enrol_answer(TOKEN), b"answer")
        answer = await stranger.message()
        assert (answer.topic, answer.payload) == (LAB.enrol_answer(TOKEN), b"answer")
        await spies[1].ping()  # nothing came before
        await coordinator.ping()

    play(town, story)


@pytest.mark.parametrize("user", ["coordinator", "operator", VICTIM, "+", "#", f"{TOKEN}/request", "", None])
def test_who_comes_under_another_name_than_a_tokens_gets_nothing(town, user):
    async def story():
        ears = await listening(town)
        door = town.broker.pairing_port
        hello = connect(VICTIM, user=user)
        if not await is_refused(door, anonymous(), hello):
            assert town.engine == "mosquitto"  # it lets everybody in, and tells nobody anything
            raw = await Raw.open(door, tls=anonymous())
            await raw.introduce(hello)
            for wanted in ("#", "fedmq/#", LAB.client(VICTIM, Kind.TASK)):
                await raw.subscribe(wanted)
            for topic in FOREIGN:
                await raw.publish(topic, b"forged")
            for who, topic in PRIVATE:
                await (await town.raw(who, f"{who}-says")).publish(topic, END)
            await raw.ping()
        await mark_end(town)
        for raw in ears.values():
            assert await topics_until_end(raw) == []

    play(town, story)


def test_nothing_that_a_stranger_retains_is_kept(hardened_town):
    async def story():
        request = LAB.enrol_request(TOKEN)
        stranger = await hardened_town.stranger("a", user=TOKEN)
        await stranger.publish(request, b"kept?", retain=True)
        heir = await hardened_town.stranger("b", user=TOKEN, will=Will(request, b"kept?", retain=True))
        operator = await hardened_town.raw("operator")
        await operator.subscribe(request)
        await heir.vanish()
        assert (await operator.message()).payload == b"kept?"
        late = await hardened_town.raw("operator", "late")
        assert await late.subscribe(request) == 1
        await late.ping()  # nothing came before

    play(hardened_town, story)


def test_a_stranger_sends_small_packets_only(hardened_town):
    async def story():
        stranger = await hardened_town.stranger("newcomer", user=TOKEN)
        await stranger.publish(LAB.enrol_request(TOKEN), bytes(PAIRING_BYTES_MAX))
        await stranger.send(publish(LAB.enrol_request(TOKEN), bytes(PACKET_BYTES_MAX_UNKNOWN)))
        assert await stranger.ends()

    play(hardened_town, story)


def test_strangers_crowd_out_nobody_but_strangers():
    async def story():
        async with hardened(Bounds(strangers_max=2, connections_max=2, sessions_max=3)) as (port, _):
            assert await (await Raw.open(port)).introduce(connect("s", user=TOKEN, clean=False)) == 5
            first = await Raw.connected(port, "s-1", user=TOKEN)
            for number in range(2, 5):
                await Raw.connected(port, f"s-{number}", user=TOKEN)
            assert await first.ends()
            await Raw.connected(port, "client-1", user="client-1")
            await Raw.connected(port, "coordinator", user="coordinator")

    asyncio.run(story())


def test_who_never_shakes_hands_crowds_out_strangers_only(hardened_town):
    """A socket that says nothing costs the broker a buffer: of such there is a bounded number too."""
    town, room = hardened_town, 4
    root = federation.root(town.keys)
    secure = tls.of_broker(town.files("broker"), town.keys / "root.pem")

    async def main():
        patient = Bounds(strangers_max=room, handshake_s=600)  # no time-out ends them in their stead
        gate = Gate(observers=False, trust=TrustStore(root))
        broker = HardenedBroker("127.0.0.1", 0, tls={Entrance.MUTUAL: secure}, gate=gate, bounds=patient)
        await broker.start()
        port, silent = broker.port_of(), []
        try:
            async with asyncio.timeout(within(20)):
                friend = await Raw.connected(port, "friend", tls=town.tls("alice").context)
                silent += [await asyncio.open_connection("127.0.0.1", port) for _ in range(room + 1)]
                with contextlib.suppress(ConnectionResetError):
                    assert await silent[0][0].read() == b""  # the oldest is cut off
                await friend.ping()
                await Raw.connected(port, "newer", tls=town.tls("bob").context)
        finally:
            for _, writer in silent:
                writer.close()
            await Raw.close_all()
            await broker.shutdown()

    asyncio.run(main())

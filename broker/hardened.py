"""amqtt 0.12.1's broker with its own connections, codec and delivery: the only file on amqtt's private names.

amqtt gives configuration, listeners, sessions and subscriptions. Reading, writing, judging and passing on are
done here, because the stock ways lose, leak, forge or stall. What was wrong, and where it is mended:

    B1, B1b, B16  authentication and the will's permission before any state is touched       _admit
    B2, B2b       one watchdog for each connection                                           connection
    B3, B4, B5    QoS 1 is kept until its PUBACK; queued for persistent sessions             sessions
    B6            a PUBACK opens the publisher's window and promises nothing: nothing to mend
    B7, B13       retained messages: one's own subscriptions, each checked, nobody waits     _on_subscribe
    B8, B9        take-over: the old connection and its will are over before the new one  _take_over
    B10, B11      subscriptions are listed before anything waits; no message is printed      _targets
    B12           what is outstanding to one client is bounded; slow clients slow sources    sessions
    B14, B14b     a new SUBSCRIBE replaces the old; every error ends in the one clean-up     _serve
    B15, B17      malformed, oversize and cut-off packets end the connection                 packets
    B18           a bounded inbox, packets one by one, a rate                                connection

The version is checked at start, because private methods are overridden.
"""

import asyncio
import contextlib
import logging
import math
import secrets
import ssl
from collections import Counter
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import cast

import amqtt
import websockets.asyncio.server
from amqtt.broker import Broker
from amqtt.contexts import Action, ListenerType
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import Session

from broker import rules
from broker.bounds import DEFAULT, Bounds
from broker.connection import Connection
from broker.door import Door
from broker.gate import Entrance, Gate, User
from broker.matching import FilterTree
from broker.packets import (
    FLAGS,
    REFUSED,
    Buffer,
    Connack,
    Connect,
    Packet,
    Type,
    build_ack,
    build_connack,
    build_pingresp,
    build_suback,
    is_filter,
    is_topic,
    parse_connect,
    parse_packet_id,
    parse_publish,
    parse_subscribe,
    parse_unsubscribe,
)
from broker.sessions import ClientSession, Outgoing
from broker.websocket import WebSocketWire
from common import limits, log
from common.errors import ConfigError, DecodeError

AMQTT_VERSION = "0.12.1"
PAIRING = "pairing"  # the listener for newcomers

logger = logging.getLogger(__name__)


def check_version() -> None:
    """Refuse an amqtt that this file was not written for. Raises: ConfigError."""
    if amqtt.__version__ != AMQTT_VERSION:
        raise ConfigError(
            f"amqtt {amqtt.__version__} is installed, the broker needs {AMQTT_VERSION}: "
            f"pip install amqtt=={AMQTT_VERSION}, or use --engine mosquitto"
        )


class HardenedBroker(Broker):
    """Listens on one TCP port, and on one WebSocket port if asked to; port 0 takes a free one."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ws_port: int | None = None,
        pairing_port: int | None = None,
        tls: Mapping[Entrance, ssl.SSLContext] = MappingProxyType({}),
        gate: Gate | None = None,
        bounds: Bounds = DEFAULT,
    ) -> None:
        """`tls`: for participants and for newcomers; `gate`: lets everybody in by default, observers too."""
        check_version()
        for name in ("amqtt", "websockets"):  # prose and tracebacks, for what we log as events
            logging.getLogger(name).setLevel(logging.CRITICAL)
        listeners = {"default": {"type": "tcp", "bind": f"{host}:{port}"}}
        if ws_port is not None:
            listeners["ws"] = {"type": "ws", "bind": f"{host}:{ws_port}"}
        if pairing_port is not None:
            listeners[PAIRING] = {"type": "tcp", "bind": f"{host}:{pairing_port}"}
        super().__init__(
            {
                "listeners": listeners,
                "plugins": {},  # left out, amqtt would load those that let everybody in; who may what is asked here
                "session_expiry_interval": bounds.session_expiry_s,
            }
        )
        self.bounds = bounds
        self.gate = gate or Gate(observers=True)
        self._tls = tls
        self._filters = FilterTree()
        self._connections: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}  # not let in yet, in the order they came
        self._verdicts: dict[tuple[User, str, Action], bool] = {}
        self._users: Counter[User] = Counter()  # how many sessions each has
        self._retained_bytes = 0
        self._refused = 0  # who was not let in
        self._keepers: dict[str, User] = {}  # who had a retained topic kept
        self._kept: Counter[User] = Counter()  # how many topics each
        self._is_stopping = False
        # amqtt keeps a protocol handler beside each session; our connections need none.
        self._no_handler = BrokerProtocolHandler(self.plugins_manager)

    def port_of(self, listener: str = "default") -> int:
        """Say on which port a listener listens."""
        sockets = self._servers[listener].instance.sockets
        return int(next(iter(sockets)).getsockname()[1])

    def expel_revoked(self) -> None:
        """Cut off whose certificate is revoked by now."""
        for connection in tuple(self._connections):
            user = connection.user
            revoked = self.gate.trust.revoked if self.gate.trust else None
            if (
                user is not None
                and user.serial is not None
                and revoked is not None
                and user.serial in revoked
            ):
                connection.abort("its certificate was revoked")

    async def shutdown(self) -> None:
        """Stop listening, cut everybody off without wills, and end all tasks."""
        self._is_stopping = True
        for server in self._servers.values():
            if isinstance(server.instance, websockets.asyncio.server.Server):
                for socket in server.instance.handlers:
                    socket.transport.abort()  # those that never got past the handshake as well
            server.instance.close()
        for stranger in tuple(self._strangers):
            stranger.abort()
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        tasks = [connection.task for connection in connections]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.bounds.takeover_s)
            for task in late:
                task.cancel()
        self._sessions.clear()
        self._subscriptions.clear()
        await super().shutdown()

    # --- connections ------------------------------------------------------------------------------

    async def _create_server_instance(
        self,
        listener_name: str,
        listener_type: ListenerType,
        address: str | None,
        port: int,
        ssl_context: ssl.SSLContext | None,
    ) -> asyncio.Server | websockets.asyncio.server.Server:
        entrance = self._entrance(listener_name)
        tls = self._tls.get(entrance)
        if listener_type == ListenerType.WS:
            return await websockets.asyncio.server.serve(
                partial(self.ws_connected, listener_name=listener_name),
                address,
                port,
                ssl=tls,
                subprotocols=[websockets.Subprotocol("mqtt")],
                max_size=self.bounds.packet_bytes_max,
                compression=None,
                open_timeout=self.bounds.connect_s,
                close_timeout=self.bounds.takeover_s,
            )
        return await self._loop.create_server(
            partial(self._behind_tls, entrance, tls) if tls else partial(self._new_connection, entrance),
            address,
            port,
            reuse_address=True,
        )

    def _behind_tls(self, entrance: Entrance, tls: ssl.SSLContext) -> Door:
        return Door(
            self._new_connection(entrance),
            tls,
            knocked=self._make_room_for,
            gone=lambda connection: self._strangers.pop(connection, None),
            handshake_s=self.bounds.handshake_s,
        )

    def _entrance(self, listener_name: str) -> Entrance:
        if listener_name == PAIRING:
            return Entrance.PAIRING
        return Entrance.MUTUAL if Entrance.MUTUAL in self._tls else Entrance.PLAIN

    def _new_connection(self, entrance: Entrance = Entrance.PLAIN) -> Connection:
        return Connection(self.bounds, self._serve, entrance)

    async def ws_connected(
        self, websocket: websockets.asyncio.server.ServerConnection, listener_name: str
    ) -> None:
        connection = self._new_connection(self._entrance(listener_name))
        wire = WebSocketWire(websocket, connection)
        connection.start(wire)
        await wire.run()

    async def _serve(self, connection: Connection) -> None:
        """Serve one connection, from its first byte to the clean-up after its last."""
        if self._is_stopping:
            connection.abort()
            return
        self._connections.add(connection)
        self._make_room_for(connection)
        session = None
        polite = False
        try:
            session = await self._admit(connection)
            if session is not None:
                polite = await self._converse(session, connection)
        except DecodeError as error:
            connection.abort(str(error))
        except Exception:  # the one boundary: a bug in one conversation must not end the others
            logger.exception("broker.failed")
        finally:
            if polite or session is None:
                connection.close()
            else:
                connection.abort()
            if session is not None:
                await self._leave(session, polite=polite)
            self._connections.discard(connection)
            self._strangers.pop(connection, None)
            if connection.why:
                client = session.client_id if session is not None else None
                logger.info("broker.cut_off", extra=log.facts(client=client, why=connection.why))

    def _make_room_for(self, stranger: Connection) -> None:
        """Let strangers crowd out strangers only: who is known stays, and a newer stranger has its chance."""
        self._strangers[stranger] = None
        if len(self._strangers) > self.bounds.strangers_max:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.abort("too many connections that say nothing")

    async def _admit(self, connection: Connection) -> ClientSession | None:
        """Judge a CONNECT, and begin its session. No state is touched for anybody who is refused."""
        packet = await connection.next()
        if packet is None:
            return None
        if packet.kind != Type.CONNECT or packet.flags:
            raise DecodeError("the first packet is no CONNECT")  # [MQTT-3.1.0-1]
        connect = parse_connect(packet.body)
        if connect is None:
            connection.send(build_connack(Connack.UNACCEPTABLE_VERSION))
            return None
        client_id = connect.client_id or f"{rules.OBSERVER}-{secrets.token_hex(8)}"
        code = self._refuse(connect, client_id)
        user = self._user(connect, client_id, connection) if code is Connack.ACCEPTED else None
        if user is None:
            self._say_refused(client_id, connect.username, connection.entrance)
            connection.send(build_connack(Connack.NOT_AUTHORIZED if code is Connack.ACCEPTED else code))
            return None
        connection.user = user  # from here on a revocation cuts it off
        # Only now: a session of amqtt's costs a millisecond, and strangers may be many.
        session = self._new_session(connect, client_id, user, connection)
        if not await self._may_will(session):
            connection.send(build_connack(Connack.NOT_AUTHORIZED))
            return None
        is_crowd = self._session(client_id) is None and self._users[user] >= self.bounds.sessions_by_one_max
        if is_crowd or not await self._take_over(client_id):
            connection.send(build_connack(Connack.UNAVAILABLE))
            return None
        return await self._begin(session, connection)

    def _say_refused(self, client_id: str, username: str | None, entrance: Entrance) -> None:
        """Log the 1st, 2nd, 4th, 8th ... who was not let in: a flood must not fill the log."""
        self._refused += 1
        if self._refused & (self._refused - 1) == 0:
            about = {"client": client_id, "user": username, "entrance": entrance, "count": self._refused}
            logger.warning("broker.refused", extra=log.facts(**about))

    def _refuse(self, connect: Connect, client_id: str) -> Connack:
        if connect.password is not None and connect.username is None:  # [MQTT-3.1.2-22]
            return Connack.BAD_CREDENTIALS
        if not connect.client_id and not connect.clean:  # [MQTT-3.1.3-8]
            return Connack.IDENTIFIER_REJECTED
        is_new = client_id not in self._sessions
        if len(self._connections) - len(self._strangers) >= self.bounds.connections_max or (
            is_new and len(self._sessions) >= self.bounds.sessions_max
        ):
            return Connack.UNAVAILABLE
        return Connack.ACCEPTED

    def _user(self, connect: Connect, client_id: str, connection: Connection) -> User | None:
        """Say who this is; None for one who may not come in, or not under a client id that is somebody else's."""
        tls = cast("ssl.SSLObject | None", connection.wire.get_extra_info("ssl_object"))
        user = self.gate.enter(connection.entrance, client_id, connect.username or None, tls)
        if user is not None and user.role is rules.Role.NEWCOMER and not connect.clean:
            return None  # whoever it is leaves nothing behind
        old = self._session(client_id)
        return None if old is not None and old.user != user else user

    def _new_session(
        self, connect: Connect, client_id: str, user: User, connection: Connection
    ) -> ClientSession:
        session = ClientSession(client_id, connect, self.bounds)
        session.user = user
        peer = connection.wire.get_extra_info("peername")
        if isinstance(peer, tuple):
            session.remote_address, session.remote_port = peer[:2]
        session.ssl_object = cast("ssl.SSLObject | None", connection.wire.get_extra_info("ssl_object"))
        return session

    async def _take_over(self, client_id: str) -> bool:
        """End any other connection with this client id, and wait for its will to be said."""
        while (old := self._session(client_id)) is not None and old.connection is not None:
            old.connection.abort()
            done, _ = await asyncio.wait((old.connection.task,), timeout=self.bounds.takeover_s)
            if not done:
                return False
        return True

    async def _begin(self, session: ClientSession, connection: Connection) -> ClientSession:
        # Nothing in here is waited for: two connections with one client id cannot both get past `_take_over`.
        old = self._session(session.client_id)
        if session.clean_session or old is None:
            await self._delete_session(session.client_id)
            old = None
        else:
            old.renew(session)
            session = old
        session.attach(connection)
        if old is None:
            self._users[session.user] += 1
        self._sessions[session.client_id] = (session, self._no_handler)
        bytes_max = self.bounds.packet_bytes_max_unknown
        if session.user.role is not rules.Role.NEWCOMER:  # who stays a stranger
            self._strangers.pop(connection, None)
            bytes_max = self.bounds.packet_bytes_max
        patience_s = min(math.ceil(1.5 * session.keep_alive) or math.inf, self.bounds.idle_s_max)
        connection.accept(patience_s, bytes_max)
        connection.send(build_connack(Connack.ACCEPTED, session_present=old is not None))
        session.resume()
        return session

    async def _converse(self, session: ClientSession, connection: Connection) -> bool:
        """Handle packet after packet; True when the client said goodbye."""
        while (packet := await connection.next()) is not None:
            if packet.kind == Type.PUBLISH:
                await self._on_publish(session, connection, packet)
                continue
            if FLAGS.get(packet.kind, packet.flags) != packet.flags:
                raise DecodeError("a packet has flags that do not exist")
            match packet.kind:
                case Type.PUBACK:
                    session.acknowledge(parse_packet_id(packet.body))
                case Type.PUBREL:
                    self._on_pubrel(session, connection, packet)
                case Type.SUBSCRIBE:
                    await self._on_subscribe(session, connection, packet)
                case Type.UNSUBSCRIBE:
                    self._on_unsubscribe(session, connection, packet)
                case Type.PINGREQ:
                    connection.send(build_pingresp())
                case Type.DISCONNECT:
                    return True
                case _:
                    raise DecodeError("a packet that clients do not send")
        return False

    async def _leave(self, session: ClientSession, *, polite: bool) -> None:
        """Say the will of a client that vanished, then end its session or keep it for its return."""
        try:
            if session.will_flag and not polite and not self._is_stopping and await self._may_will(session):
                if session.will_retain:
                    await self._keep(session, session.will_topic, session.will_message, session.will_qos)
                await self._broadcast_message(
                    session, session.will_topic, session.will_message, session.will_qos
                )
        finally:
            session.detach()
            if session.clean_session:
                await self._delete_session(session.client_id)

    async def _may_will(self, session: ClientSession) -> bool:
        if not session.will_flag or session.will_topic is None:
            return True
        return is_topic(session.will_topic) and await self._topic_filtering(
            session, session.will_topic, Action.PUBLISH
        )

    # --- packets ----------------------------------------------------------------------------------

    async def _on_publish(self, session: ClientSession, connection: Connection, packet: Packet) -> None:
        publish = parse_publish(packet)
        wait_s = session.pace(len(packet.body), self._loop.time())
        if wait_s:
            await asyncio.sleep(wait_s)
        if publish.qos == 2 and publish.packet_id in session.received:
            connection.send(build_ack(Type.PUBREC, publish.packet_id))
            return
        if await self._topic_filtering(session, publish.topic, Action.PUBLISH):
            if publish.retain:
                await self._keep(session, publish.topic, publish.payload, publish.qos)
            await self._broadcast_message(session, publish.topic, publish.payload, publish.qos)
        if publish.qos == 1:
            connection.send(build_ack(Type.PUBACK, publish.packet_id))
        elif publish.qos == 2:
            session.received.add(publish.packet_id)
            connection.send(build_ack(Type.PUBREC, publish.packet_id))

    def _on_pubrel(self, session: ClientSession, connection: Connection, packet: Packet) -> None:
        packet_id = parse_packet_id(packet.body)
        session.received.discard(packet_id)
        connection.send(build_ack(Type.PUBCOMP, packet_id))

    async def _on_subscribe(self, session: ClientSession, connection: Connection, packet: Packet) -> None:
        packet_id, wanted = parse_subscribe(packet.body)
        codes = [await self.add_subscription(row, session) for row in wanted]
        connection.send(build_suback(packet_id, codes))
        for (name, _), code in zip(wanted, codes, strict=True):
            if code != REFUSED:
                await self._publish_retained_messages_for_subscription((name, code), session)

    def _on_unsubscribe(self, session: ClientSession, connection: Connection, packet: Packet) -> None:
        packet_id, names = parse_unsubscribe(packet.body)
        for name in names:
            self._del_subscription(name, session)
        connection.send(build_ack(Type.UNSUBACK, packet_id))

    # --- passing on -------------------------------------------------------------------------------

    async def _broadcast_message(
        self,
        session: Session | None,
        topic: str | None,
        data: bytes | bytearray | memoryview | None,
        force_qos: int | None = None,
    ) -> None:
        """Pass a message on to all who subscribed and may hear it, with the lower of both QoS."""
        assert topic is not None
        assert data is not None
        message = Outgoing(topic.encode(), data)
        waited_for: list[ClientSession] = []
        for target, qos in self._targets(topic):
            if await self._topic_filtering(target, topic, Action.RECEIVE):
                sent_qos = qos if force_qos is None else min(qos, force_qos)
                target.deliver(message, sent_qos)
                if sent_qos and target is not session:
                    waited_for.append(target)
        # Where all are slow, so is their source; a few slow ones among others hold up nobody.
        if waited_for and not any(target.roomy.is_set() for target in waited_for):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.bounds.crowded_s):
                    await waited_for[0].roomy.wait()

    def _targets(self, topic: str) -> list[tuple[ClientSession, int]]:
        """List who subscribed to a topic: each once, with the highest QoS of its filters."""
        found: dict[str, tuple[ClientSession, int]] = {}
        for name in self._filters.matching(topic):
            for session, qos in self._subscriptions[name]:
                target = cast("ClientSession", session)
                known = found.get(target.client_id)
                if known is None or known[1] < qos:
                    found[target.client_id] = (target, qos)
        return list(found.values())

    async def _keep(
        self, session: ClientSession, topic: str | None, data: Buffer | None, qos: int | None
    ) -> None:
        """Retain what somebody said, within what it is due: nobody fills the room of all others."""
        assert topic is not None
        user, size, is_new = session.user, len(data or b""), topic not in self._retained_messages
        bounds = self.bounds
        if user.role is rules.Role.NEWCOMER:
            return
        if user.role is rules.Role.CLIENT and (
            size > bounds.retained_by_one_bytes_max
            or (size and is_new and self._kept[user] >= bounds.retained_by_one_max)
        ):
            logger.warning("broker.retained_full", extra=log.facts(topic=topic))
            return
        await self.retain_message(session, topic, data, qos)

    async def retain_message(
        self,
        source_session: Session | None,
        topic_name: str | None,
        data: bytes | bytearray | memoryview | None,
        qos: int | None = None,
    ) -> None:
        """Keep the last message of a topic, within the limits; an empty one clears it."""
        assert topic_name is not None
        old = self._retained_messages.get(topic_name)
        size = len(data or b"")
        growth = size - (len(old.data) if old is not None else 0)
        if size and (
            self._retained_bytes + growth > self.bounds.retained_bytes_max
            or (old is None and len(self._retained_messages) >= self.bounds.retained_messages_max)
        ):
            logger.warning("broker.retained_full", extra=log.facts(topic=topic_name))
            return
        self._retained_bytes += growth
        await super().retain_message(None, topic_name, bytes(data or b""), qos)
        keeper = self._keepers.pop(topic_name, None)
        if keeper is not None:
            _count_down(self._kept, keeper)
        if size and source_session is not None:
            self._keepers[topic_name] = user = cast("ClientSession", source_session).user
            self._kept[user] += 1

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        name, qos = subscription
        target = cast("ClientSession", session)
        if "+" in name or "#" in name:
            topics = [topic for topic in self._retained_messages if rules.covers(name, topic)]
        else:
            topics = [name]
        for topic in topics:
            if await self._topic_filtering(session, topic, Action.RECEIVE):
                retained = self._retained_messages.get(topic)
                if retained is not None:
                    message = Outgoing(topic.encode(), retained.data, retain=True)
                    target.deliver(message, min(qos, retained.qos or 0))

    # --- sessions and subscriptions ---------------------------------------------------------------

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Subscribe a session anew; the granted QoS is never above 1."""
        name, qos = subscription
        client = cast("ClientSession", session)
        if not is_filter(name) or name.startswith("$share/"):
            return REFUSED
        if name not in client.filters and len(client.filters) >= self.bounds.subscriptions_max:
            return REFUSED
        if not await self._topic_filtering(session, name, Action.SUBSCRIBE):
            return REFUSED
        self._del_subscription(name, session)  # [MQTT-3.8.4-3]
        code = await super().add_subscription((name, min(qos, 1)), session)
        if code != REFUSED:
            client.filters.add(name)
            self._filters.add(name)
        return code

    def _del_subscription(self, a_filter: str, session: Session) -> int:
        cast("ClientSession", session).filters.discard(a_filter)
        deleted = super()._del_subscription(a_filter, session)
        if deleted and not self._subscriptions[a_filter]:
            del self._subscriptions[a_filter]
            self._filters.discard(a_filter)
        return deleted

    async def _del_all_subscriptions(self, session: Session) -> None:
        for name in list(cast("ClientSession", session).filters):
            self._del_subscription(name, session)

    async def _cleanup_session(self, client_id: str) -> None:
        await self._delete_session(client_id)

    async def _delete_session(self, client_id: str) -> None:
        session = self._session(client_id)
        if session is not None:
            _count_down(self._users, session.user)
        await super()._delete_session(client_id)

    def _session(self, client_id: str) -> ClientSession | None:
        session, _ = self._sessions.get(client_id, (None, None))
        return cast("ClientSession | None", session)

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        """Ask the rules, once per user, topic and action: they do not change while a broker runs."""
        user = cast("ClientSession", session).user
        key = (user, topic, action)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = rules.may(user.role, user.name, action, topic)
            if len(self._verdicts) >= limits.VERDICTS_MAX:
                self._verdicts.clear()
            self._verdicts[key] = verdict
        return verdict


def _count_down(counter: Counter[User], user: User) -> None:
    """Take one away; who has none left is forgotten."""
    counter[user] -= 1
    if not counter[user]:
        del counter[user]

"""The bus over MQTT 3.1.1; the only file that imports paho.

    down --TCP, CONNACK--> subscribing --SUBACKs--> up --lost--> down (LinkDown, full jitter, next address)

Each connection has a paho client of its own, driven by the event loop. A client that reconnects would send
the unacknowledged messages of the lost connection again behind our back. Paho's thread would die in silence
of an exception in a callback, `loop_stop` can block for ever, and beside a training thread each packet would
wait for the GIL once more.
Nothing here relies on persistent sessions, order across a reconnect, or retain flags.
"""

import asyncio
import ipaddress
import random
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from common import limits, topics
from common.bus import Arrived, BusEvent, LinkDown, LinkUp
from common.errors import ConfigError, SignatureError, TransportError
from common.tls import Tls

_SUBSCRIPTION_REFUSED = 0x80
_WHY = {130: "the broker sent what is not MQTT", 141: "the broker fell silent"}  # by paho's reason code
_IF_TLS, _IF_NO_TLS = (
    "if it wants TLS, say mqtts://",
    "if it speaks none, and nothing need be secret, say mqtt://",
)
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_EOF_WHILE_READING"}  # OpenSSL's words for that
_MAY_FALL_OUT = topics.CHUNKS | {
    topics.Kind.HEARTBEAT,
    topics.Kind.METRICS,
}  # repaired, or overtaken by the next


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens, and whether it speaks TLS there."""

    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read HOST:PORT, with TLS unless only this machine can be meant; mqtt:// and mqtts:// say it outright.

        Raises: ConfigError.
        """
        scheme, _, rest = text.rpartition("://")
        host, colon, port = rest.rpartition(":")
        is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
        if scheme not in _SCHEMES or not (colon and host and is_port):
            raise ConfigError(
                f"broker address {text!r} is not HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT"
            )
        host = host.removeprefix("[").removesuffix("]")
        tls = _SCHEMES[scheme]
        return cls(host, int(port), not is_loopback(host) if tls is None else tls)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_SCHEMES = {"": None, "mqtt": False, "mqtts": True}  # whether it is TLS; None: it depends


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says, retained, when the link breaks without farewell."""

    topic: str
    payload: bytes


class _RefusedError(TransportError):
    """Check the credentials, and that this name is enrolled at the broker."""


class MqttLink:
    """One link to one broker, made again for as long as it is open: `async with link: ...`."""

    def __init__(
        self,
        brokers: Sequence[Address],
        client_id: str,
        *,
        will: Will | None = None,
        username: str | None = None,
        tls: Tls | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`tls`: for the brokers that speak it; a link to one that does not never uses it."""
        if not brokers:
            raise ConfigError("no broker address is given")
        self.dropped = 0  # inbound messages that fell out of the full inbox
        self.epoch = 0
        self._brokers = tuple(brokers)
        self._client_id, self._will, self._username, self._tls = client_id, will, username, tls
        self._jitter = jitter
        self._filters: dict[str, None] = {}  # in order
        self._inbox: asyncio.Queue[BusEvent] = asyncio.Queue()  # bounded by `_deliver`
        self._inbox_bytes = 0
        self.certificate: bytes | None = None  # of the broker, DER, where it speaks TLS
        self._connection: _Connection | None = None
        self._up = False
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep_up(), name=f"link {self._client_id}")
        self._keeping.add_done_callback(
            lambda _task: self._inbox.put_nowait(LinkDown("the link was closed", 0.0))
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeping is not None
        self._up = False
        if self._connection is not None:
            await self._connection.disconnect()
        self._keeping.cancel()
        await asyncio.wait((self._keeping,))
        self._raise_bugs()

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Hand a message to the broker; returns after its PUBACK (QoS 0: at once, or dropped).

        Raises: TransportError where the link is down or breaks before the PUBACK.
        """
        if self._connection is not None and self._up:
            await self._connection.publish(topic, payload, qos, retain)
        elif qos > 0:
            raise TransportError("the link to the broker is down")

    async def subscribe(self, *filters: str) -> None:
        """Subscribe now and after every reconnect; returns after SUBACK, while the link is down at once.

        Raises: TransportError if the broker refuses.
        """
        self._filters.update(dict.fromkeys(filters))
        if self._connection is not None and self._up:
            refused = await self._connection.subscribe(filters)
            for one in refused:
                self._filters.pop(one, None)
            if refused:
                raise TransportError(f"the broker refused the subscription to {', '.join(refused)}")

    async def unsubscribe(self, *filters: str) -> None:
        """Forget filters; returns after UNSUBACK, or at once while the link is down."""
        for one in filters:
            self._filters.pop(one, None)
        if self._connection is not None and self._up:
            await self._connection.unsubscribe(filters)

    async def next(self) -> BusEvent:
        """Wait for what happens next on this bus."""
        event = await self._inbox.get()
        self._raise_bugs()
        if isinstance(event, Arrived):
            self._inbox_bytes -= len(event.payload)
        if self._connection is not None and not self._is_full():
            self._connection.read_on()
        return event

    def _raise_bugs(self) -> None:
        """Let a bug in the link end the service, not only the link."""
        if self._keeping is not None and self._keeping.done() and not self._keeping.cancelled():
            self._keeping.result()

    async def _keep_up(self) -> None:
        failures = 0
        turn = 0
        while True:
            address = self._brokers[turn % len(self._brokers)]
            turn += 1
            low = 0.0
            start = time.monotonic()
            try:
                why = await self._live(address)
            except _RefusedError as error:  # asking again soon will not help
                why, low = str(error), limits.RECONNECT_MAX_S / 2
            except TransportError as error:
                why = str(error)
            if time.monotonic() - start >= limits.LINK_STEADY_S:
                failures = 0
            high = min(limits.RECONNECT_MAX_S, 2.0**failures)
            failures = min(failures + 1, 16)
            next_try_s = self._jitter(low, max(low * 2, high))
            self._inbox.put_nowait(LinkDown(why, next_try_s))
            await asyncio.sleep(next_try_s)

    async def _live(self, address: Address) -> str:
        """Connect, subscribe, and stay until the connection is lost; say why it was."""
        tls = self._tls if address.tls else None
        if address.tls and tls is None:
            raise TransportError(f"{address} speaks TLS, and no certificate to show there is at hand")
        connection = _Connection(self._client_id, self._will, self._username, tls, self._deliver)
        try:
            try:
                async with asyncio.timeout(2 * limits.CONNECT_S):
                    await connection.open(address)
                    self._connection = connection
                    self.certificate = connection.certificate
                    await self._subscribe_all(connection)
            except TimeoutError:
                raise TransportError(f"{address} does not answer") from None
            self.epoch += 1
            self._up = True
            self._inbox.put_nowait(LinkUp(self.epoch))
            return await connection.lost
        finally:
            self._up = False
            self._connection = None
            connection.close()

    async def _subscribe_all(self, connection: "_Connection") -> None:
        done: set[str] = set()
        while missing := [one for one in self._filters if one not in done]:  # it may grow in the meantime
            refused = await connection.subscribe(missing)
            if connection.lost.done():
                raise TransportError(connection.lost.result())
            if refused:
                raise _RefusedError(f"the broker refused the subscription to {', '.join(refused)}")
            done.update(missing)

    def _is_full(self) -> bool:
        events, size = self._inbox.qsize(), self._inbox_bytes
        return events >= limits.INBOX_EVENTS_MAX or size >= limits.LINK_INBOX_BYTES_MAX

    def _deliver(self, topic: str, payload: bytes, retain: bool) -> None:
        if self._is_full():
            place = topics.parse(topic)
            if place is None or place.kind in _MAY_FALL_OUT:
                self.dropped += 1
                return
            if self._connection is not None:  # control is never dropped: let it wait in the broker
                self._connection.read_later()
        self._inbox_bytes += len(payload)
        self._inbox.put_nowait(Arrived(topic, payload, retain))


class _Connection:
    """One paho client over one TCP connection; not used again after it broke."""

    def __init__(
        self,
        client_id: str,
        will: Will | None,
        username: str | None,
        tls: Tls | None,
        deliver: Callable[[str, bytes, bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[list[ReasonCode]]] = {}  # by message id
        self._slots = asyncio.Semaphore(limits.INFLIGHT_MESSAGES_MAX)
        self._heard = 0.0  # when the broker last acknowledged something
        self._tending: asyncio.TimerHandle | None = None
        self._reading = False
        self._deliver = deliver
        self._tls = tls
        self.certificate: bytes | None = None
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv311, reconnect_on_failure=False
        )
        client.connect_timeout = limits.CONNECT_S
        client.max_inflight_messages_set(limits.INFLIGHT_MESSAGES_MAX)
        client.max_queued_messages_set(limits.QUEUED_MESSAGES_MAX)
        if username is not None:
            client.username_pw_set(username)
        if tls is not None:
            client.tls_set_context(tls.context)
            client.tls_insecure_set(True)  # the host's name is not compared: `tls.check` looks at the role
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_socket_open = lambda _client, _data, sock: self._opened(sock)
        client.on_connect = lambda _client, _data, _flags, code, _properties: self._welcomed(code)
        client.on_message = lambda _client, _data, message: self._arrived(message)
        client.on_publish = lambda _client, _data, mid, code, _properties: self._settle(mid, [code])
        client.on_subscribe = lambda _client, _data, mid, codes, _properties: self._settle(mid, codes)
        client.on_unsubscribe = client.on_subscribe
        client.on_disconnect = lambda _client, _data, _flags, code, _properties: self._lose(
            _WHY.get(code.value, "the connection was closed")
        )

    async def open(self, address: Address) -> None:
        """Connect and wait for CONNACK. Raises: TransportError."""
        client = self._client
        try:  # in a thread: names are resolved and TCP connects in blocking calls
            await asyncio.to_thread(client.connect, address.host, address.port, limits.KEEPALIVE_S)
        except socket.gaierror:
            raise TransportError(f"the name {address.host!r} is not known to DNS") from None
        except TimeoutError:
            raise TransportError(f"{address} does not answer") from None
        except SignatureError as error:
            raise _RefusedError(f"{address} is not our broker: {error}") from None
        except ssl.SSLCertVerificationError as error:
            raise _RefusedError(f"{address} is not our broker: {error.verify_message}") from None
        except ssl.SSLError as error:
            hint = f"; {_IF_NO_TLS}{address}" if error.reason in _NO_TLS else ""
            raise _RefusedError(f"{address} and we do not agree on TLS: {error.reason}{hint}") from None
        except ConnectionResetError as error:
            hint = f"; {_IF_NO_TLS}{address}" if self._tls else ""
            raise TransportError(f"{address}: {error.strerror}{hint}") from None
        except OSError as error:
            raise TransportError(f"{address}: {error.strerror or error}") from None
        client.on_socket_close = lambda _client, _data, sock: self._unwatch(sock)
        client.on_socket_register_write = lambda _client, _data, sock: self._loop.add_writer(
            sock, self._guarded, client.loop_write
        )
        client.on_socket_unregister_write = lambda _client, _data, sock: self._unwatch(sock, write_only=True)
        self.read_on()
        if client.want_write():
            self._guarded(client.loop_write)
        self._tend()
        await asyncio.wait((self._welcome, self.lost), return_when=asyncio.FIRST_COMPLETED)
        if self._welcome.done():
            self._welcome.result()
        else:
            hint = "" if self._tls else f"; {_IF_TLS}{address}"
            raise TransportError(f"{address}: {self.lost.result()}{hint}")

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        if qos == 0:
            self._client.publish(topic, payload, 0, retain)
            return
        async with self._slots:
            if self.lost.done():
                raise TransportError(self.lost.result())
            info = self._client.publish(topic, payload, qos, retain)
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lose("the broker takes no more messages")
                raise TransportError(self.lost.result())
            await self._answer(info.mid)

    async def subscribe(self, filters: Sequence[str]) -> list[str]:
        """Subscribe and return what was refused; a connection that breaks meanwhile refuses nothing."""
        _rc, mid = self._client.subscribe([(one, 1) for one in filters])
        codes = await self._settled(mid)
        return [one for one, code in zip(filters, codes, strict=False) if code.value >= _SUBSCRIPTION_REFUSED]

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        _rc, mid = self._client.unsubscribe(list(filters))
        await self._settled(mid)

    async def disconnect(self) -> None:
        """Say farewell, so that the will is not sent; wait for a short while only."""
        self._client.disconnect()
        await asyncio.wait((self.lost,), timeout=limits.FAREWELL_S)

    def close(self) -> None:
        """Give the socket back, and fail everybody who waits."""
        self._lose("the link was closed")
        client = self._client
        client.on_socket_close = client.on_socket_unregister_write = (
            None  # paho closes once more, when collected
        )
        sock = client.socket()
        if sock is not None:
            self._unwatch(sock)
            sock.close()

    def _opened(self, sock: "paho.SocketLike") -> None:
        """Look at who answered, before anything is said."""
        if self._tls is not None and isinstance(sock, ssl.SSLSocket):
            self.certificate = sock.getpeercert(binary_form=True) or b""
            self._tls.check(self.certificate)
        _tune(sock)

    def read_on(self) -> None:
        sock = self._client.socket()
        if not self._reading and sock is not None:
            self._reading = True
            self._loop.add_reader(sock, self._guarded, self._read)
            self._loop.call_soon(self._guarded, self._read)  # what TLS has decrypted wakes nobody

    def _read(self) -> None:
        """Take in packets for as long as there are some: the socket does not tell of what TLS has decrypted."""
        while self._reading:
            self._client.loop_read()
            sock = self._client.socket()
            if not isinstance(sock, ssl.SSLSocket) or not sock.pending():
                return

    def read_later(self) -> None:
        sock = self._client.socket()
        if self._reading and sock is not None:
            self._reading = False
            self._loop.remove_reader(sock)

    def _unwatch(self, sock: "paho.SocketLike", *, write_only: bool = False) -> None:
        self._loop.remove_writer(sock)
        if not write_only:
            self._loop.remove_reader(sock)

    async def _answer(self, mid: int) -> list[ReasonCode]:
        if not self._answers:
            self._heard = self._loop.time()
        future: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._answers[mid] = future
        return await future

    async def _settled(self, mid: int | None) -> list[ReasonCode]:
        if mid is None:
            return []
        try:
            return await self._answer(mid)
        except TransportError:
            return []

    def _guarded(self, step: Callable[[], object]) -> None:
        """Let paho work; whatever falls out of it ends this connection, never the process."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - paho names no limit to what it raises
            self._lose(f"paho failed: {error!r}")

    def _tend(self) -> None:
        """Let paho send its PINGs; give a broker up that acknowledges nothing any more."""
        self._guarded(self._client.loop_misc)
        if self._answers and self._loop.time() - self._heard > limits.ACKNOWLEDGE_S:
            self._lose("the broker acknowledges nothing")
        if not self.lost.done():
            self._tending = self._loop.call_later(limits.KEEPALIVE_S / 6, self._tend)

    def _lose(self, why: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(why)
        if self._tending is not None:
            self._tending.cancel()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(TransportError(why))
        self._answers.clear()

    def _settle(self, mid: int, codes: list[ReasonCode]) -> None:
        self._heard = self._loop.time()
        future = self._answers.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(codes)

    def _welcomed(self, code: ReasonCode) -> None:
        if self._welcome.done():
            return
        if code.is_failure:
            self._welcome.set_exception(_RefusedError(f"the broker refused the connection: {code}"))
        else:
            self._welcome.set_result(None)

    def _arrived(self, message: paho.MQTTMessage) -> None:
        with suppress(UnicodeDecodeError):  # of the topic: none of ours
            self._deliver(message.topic, bytes(message.payload), message.retain)


def _tune(sock: "paho.SocketLike") -> None:
    """Send at once, and notice a dead peer. The kernel sizes the buffers: a fixed size is slower far away."""
    assert isinstance(sock, socket.socket)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limits.KEEPALIVE_S * 1000)

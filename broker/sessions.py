"""What the broker keeps for one client: its connection, what it was sent and has not acknowledged, its queue.

Laws: 1. A QoS 1 message is kept until its PUBACK, however long that takes, and is sent again on the next
connection of a persistent session. 2. What is outstanding to one client has a limit in bytes: beyond it QoS 0
is dropped, and QoS 1 costs the client its connection.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from amqtt.session import Session

from broker.bounds import Bounds
from broker.connection import Connection
from broker.gate import User
from broker.packets import Buffer, Connect, build_publish

PACKET_ID_MAX = 65535
# What a new connection of a persistent session brings with it; the session object stays the same.
_OF_THE_CONNECTION = (
    "clean_session",
    "keep_alive",
    "password",
    "remote_address",
    "remote_port",
    "ssl_object",
    "user",
    "username",
    "will_flag",
    "will_message",
    "will_qos",
    "will_retain",
    "will_topic",
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way to one client, shared with the others that get it."""

    topic: bytes
    payload: Buffer
    retain: bool = False


class ClientSession(Session):
    """amqtt's session, with what belongs to its delivery."""

    def __init__(self, client_id: str, connect: Connect, bounds: Bounds) -> None:
        super().__init__()
        self.client_id: str = client_id
        self.clean_session = connect.clean
        self.keep_alive = connect.keepalive_s
        self.username = connect.username
        self.password = connect.password.decode("utf-8", "replace") if connect.password else None
        if connect.will is not None:
            self.will_flag = True
            self.will_topic = connect.will.topic
            self.will_message = connect.will.payload
            self.will_qos = connect.will.qos
            self.will_retain = connect.will.retain
        self.user: User  # set by whoever lets it in
        self.connection: Connection | None = None
        self.filters: set[str] = set()
        self.received: set[int] = set()  # ids of QoS 2 messages that were passed on and not yet released
        self.unacked: dict[int, Outgoing] = {}  # QoS 1, in the order of sending
        self.unacked_bytes = 0
        self.roomy = asyncio.Event()  # clear while so much is outstanding that its sources should wait
        self.roomy.set()
        self._second_began_at = 0.0
        self._published = 0
        self._published_bytes = 0
        self._waiting: deque[Outgoing] = deque()  # for a persistent session that is away
        self._waiting_bytes = 0
        self._next_id = 0
        self._bounds = bounds

    def renew(self, other: "ClientSession") -> None:
        """Take from the session object of a newer, authenticated connection all that it knows of it."""
        for name in _OF_THE_CONNECTION:
            setattr(self, name, getattr(other, name))

    def attach(self, connection: Connection) -> None:
        """Begin on a new connection; `resume` sends what waits."""
        self.connection = connection
        self.transitions.connect()

    def resume(self) -> None:
        """Send what waited for this connection: it never carries the retain flag."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for message in waiting:
            self.deliver(message, 1)

    def detach(self) -> None:
        """Keep what was not acknowledged, if the client may come back for it."""
        self.connection = None
        self.transitions.disconnect()
        unacked, self.unacked, self.unacked_bytes = self.unacked, {}, 0
        self.roomy.set()
        if not self.clean_session:
            later, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
            self._keep((*unacked.values(), *later))

    def deliver(self, message: Outgoing, qos: int) -> None:
        """Send a message, or keep it, or drop it, as QoS and limits say."""
        connection = self.connection
        if connection is None or not connection.is_open:
            if qos and not self.clean_session:
                self._keep((message,))
            return
        size = len(message.payload)
        if not qos:
            if connection.backlog_bytes + size <= self._bounds.outstanding_bytes_max:
                head = build_publish(message.topic, size, qos=0, packet_id=0, retain=message.retain)
                connection.send(head, message.payload)
            return
        if (
            self.unacked_bytes + size > self._bounds.outstanding_bytes_max
            or len(self.unacked) == PACKET_ID_MAX
        ):
            connection.abort(f"{self.unacked_bytes} bytes are outstanding")
            self.deliver(message, qos)
            return
        packet_id = self._new_id()
        self.unacked[packet_id] = message
        self.unacked_bytes += size
        if self.unacked_bytes > self._bounds.crowded_bytes:
            self.roomy.clear()
        head = build_publish(message.topic, size, qos=1, packet_id=packet_id, retain=message.retain)
        connection.send(head, message.payload)

    def acknowledge(self, packet_id: int) -> None:
        """Forget a message that has arrived."""
        message = self.unacked.pop(packet_id, None)
        if message is not None:
            self.unacked_bytes -= len(message.payload)
            if self.unacked_bytes <= self._bounds.crowded_bytes:
                self.roomy.set()

    def pace(self, size: int, now: float) -> float:
        """Count a message that the client publishes; say for how many seconds it goes too fast."""
        if now >= self._second_began_at + 1:
            self._second_began_at, self._published, self._published_bytes = now, 0, 0
        self._published += 1
        self._published_bytes += size
        if (
            self._published <= self._bounds.publishes_per_s_max
            and self._published_bytes <= self._bounds.published_bytes_per_s_max
        ):
            return 0.0
        return self._second_began_at + 1 - now

    def _new_id(self) -> int:
        while True:
            self._next_id = self._next_id % PACKET_ID_MAX + 1
            if self._next_id not in self.unacked:
                return self._next_id

    def _keep(self, messages: Iterable[Outgoing]) -> None:
        for message in messages:
            size = len(message.payload)
            if (
                len(self._waiting) < self._bounds.offline_messages_max
                and self._waiting_bytes + size <= self._bounds.offline_bytes_max
            ):
                self._waiting.append(Outgoing(message.topic, message.payload))
                self._waiting_bytes += size

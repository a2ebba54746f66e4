"""A federation whose broker speaks TLS, and everybody's certificates: mallory has one of a client as well."""

import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from broker.engine import BrokerPolicy, Private, Running, running
from common import identity, tls
from common.identity import Identity, Role
from common.ids import Boot
from common.ingress import Ingress
from common.mqtt import Address, MqttLink
from common.tls import Files
from common.topics import Topics
from common.trust import TrustStore
from common.voice import Voice
from support import federation
from support.raw_mqtt import Raw

LAB = Topics(federation.NAME)
ROLES = {"coordinator": Role.COORDINATOR, "operator": Role.OPERATOR, "broker": Role.BROKER}


class Town:
    """Who is who; `broker` while it runs."""

    def __init__(self, directory: Path, engine: str) -> None:
        self.keys, self.state, self.engine = directory / "keys", directory / "broker", engine
        self.broker: Running
        self.trust: TrustStore  # the broker's
        self.issue("broker")

    def issue(self, name: str) -> Identity:
        """Give somebody a certificate, or the one they have."""
        return federation.member(self.keys, ROLES.get(name, Role.CLIENT), name)

    def files(self, name: str) -> Files:
        self.issue(name)
        return Files.of(self.keys, ROLES.get(name, Role.CLIENT), name)

    def tls(self, name: str) -> tls.Tls:
        """What somebody's link speaks TLS with."""
        root = federation.root(self.keys)
        return tls.to_broker(self.files(name), self.keys / "root.pem", TrustStore(root))

    def voice(self, name: str, boot: str = "0123456789abcdef") -> Voice:
        return Voice(self.issue(name), LAB, Boot(boot))

    def ingress(self, *knows: str, boot: str | None = None) -> Ingress:
        """Who hears messages from these."""
        known = [self.issue(name) for name in knows]
        return federation.ingress(self.keys, *known, boot=Boot(boot) if boot else None)

    def link(self, name: str, port: int | None = None) -> MqttLink:
        """Make a link of somebody's, to the broker or to another port."""
        address = Address("127.0.0.1", port or self.broker.port, tls=True)
        return MqttLink([address], f"{name}-link", username=name, tls=self.tls(name), jitter=max)

    async def raw(self, name: str, client_id: str | None = None, **how) -> Raw:
        """Connect with somebody's certificate, and expect to be let in."""
        context = self.tls(name).context
        return await Raw.connected(self.broker.port, client_id or f"{name}-raw", tls=context, **how)

    async def hearing(self, name: str, *filters: str) -> list[Raw]:
        """Connect once for each filter: a broker may refuse some of them."""
        found = []
        for number, wanted in enumerate(filters):
            raw = await self.raw(name, f"{name}-hears-{number}")
            await raw.subscribe(wanted)
            found.append(raw)
        return found

    async def stranger(self, client_id: str, *, user: str | None = None, **how) -> Raw:
        """Connect to the listener for newcomers, without a certificate."""
        return await Raw.connected(self.broker.pairing_port, client_id, tls=anonymous(), user=user, **how)

    @contextlib.asynccontextmanager
    async def open(self, *, websockets: bool = False) -> AsyncIterator["Town"]:
        """Run the broker; again in the same state directory is a restart."""
        root = federation.root(self.keys)
        self.trust = TrustStore(root, revoked=identity.read_revocations(self.state, root))
        private = Private(
            self.issue("broker"),
            self.files("broker"),
            self.keys / "root.pem",
            self.trust,
            state_dir=self.state,
            pairing_port=0,
        )
        policy = BrokerPolicy(
            self.engine, port=0, ws_port=0 if websockets else None, state_dir=self.state, private=private
        )
        async with running(policy) as self.broker:
            try:
                yield self
            finally:
                await Raw.close_all()


def anonymous() -> ssl.SSLContext:
    """Speak TLS without a certificate, with whomever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

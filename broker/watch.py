"""Hears of revocations on the broker's own topics, as one of its clients: it has a certificate too."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine

from common import log
from common.bus import Arrived
from common.identity import Identity
from common.ingress import Ingress, Refused, Withdrawn
from common.mqtt import Address, MqttLink
from common.tls import Tls
from common.topics import Topics
from common.trust import TrustStore

logger = log.logger(__name__)


@contextlib.asynccontextmanager
async def watched(
    address: Address,
    us: Identity,
    trust: TrustStore,
    tls: Tls,
    heard: Callable[[bytes], Coroutine[None, None, None]],
) -> AsyncIterator[None]:
    """Put each newer list into `trust`, and tell `heard`, for as long as the block lasts."""
    link = MqttLink([address], f"{us.name}-{secrets.token_hex(16)}", username=us.name, tls=tls)
    await link.subscribe(Topics(us.federation).revoked)
    async with link:
        watching = asyncio.create_task(_watch(link, Ingress(us.federation, trust), heard), name="revocations")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait((watching,))


async def _watch(
    link: MqttLink, ingress: Ingress, heard: Callable[[bytes], Coroutine[None, None, None]]
) -> None:
    while True:
        event = await link.next()
        if not isinstance(event, Arrived):
            continue
        match ingress.admit(event.topic, event.payload):
            case Withdrawn(pem):
                logger.warning("broker.revoked", extra=log.facts(list=ingress.trust.number))
                await heard(pem)
            case Refused(topic, reason, detail) as refused if refused.is_news:
                logger.warning("message.refused", extra=log.facts(topic=topic, reason=reason, detail=detail))
            case _:
                pass

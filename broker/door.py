"""TLS in front of a connection: whoever has not shaken hands yet is a stranger already, and is counted as one.

asyncio would tell of a connection only after its handshake, so that those who never finish theirs were nobody's.
"""

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import cast

from broker.connection import Connection


class Door(SSLProtocol):
    """One connection's handshake, and its TLS after that."""

    def __init__(
        self,
        connection: Connection,
        tls: ssl.SSLContext,
        *,
        knocked: Callable[[Connection], None],
        gone: Callable[[Connection], object],
        handshake_s: float,
    ) -> None:
        """`knocked` hears of the connection before its handshake, `gone` when it is over."""
        super().__init__(
            asyncio.get_running_loop(),
            connection,
            tls,
            None,  # type: ignore[arg-type]  # nobody waits for it, which asyncio allows
            server_side=True,
            ssl_handshake_timeout=handshake_s,  # type: ignore[arg-type]  # seconds, whole or not
        )
        self._connection, self._knocked, self._gone = connection, knocked, gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.wire = cast("asyncio.Transport", transport)  # so that it can be cut off
        self._knocked(self._connection)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._gone(self._connection)
        super().connection_lost(exc)

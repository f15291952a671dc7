"""Connections that cannot use up the process: counted, and closed when nothing comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 200
"""Open connections at most; the cameras of the run need file descriptors too."""
REQUEST_S = 10.0
"""Seconds that a client may take for the head of its first request."""

_logger = logging.getLogger(__name__)


class Connections:
    """The open connections of a server; for the thread of its loop."""

    def __init__(self, *, max_connections: int = MAX_CONNECTIONS, request_s: float = REQUEST_S) -> None:
        """Sets the limits."""
        self.max_connections = max_connections
        self.request_s = request_s
        self._transports: dict[Any, asyncio.Transport] = {}

    def __len__(self) -> int:
        """Open connections."""
        return len(self._transports)

    def abort(self, scope: Scope) -> None:
        """Cuts off the connection of a request at once."""
        transport = self._transports.get(tuple(scope["client"] or ()))
        if transport is not None:
            transport.abort()

    def abort_all(self) -> None:
        """Cuts off every connection."""
        for transport in list(self._transports.values()):
            transport.abort()

    def protocol_class(self) -> type[asyncio.Protocol]:
        """What uvicorn makes for each connection."""
        connections = self

        class Protocol(H11Protocol):
            """HTTP/1.1 within the limits."""

            first: asyncio.TimerHandle | None = None

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                """Lets it in, if there is room."""
                super().connection_made(transport)
                connections._transports[self.client] = transport
                if len(connections) > connections.max_connections:
                    transport.abort()
                else:
                    self.first = self.loop.call_later(connections.request_s, self.close_silent)

            def connection_lost(self, error: Exception | None) -> None:
                """Forgets it."""
                if connections._transports.get(self.client) is self.transport:
                    del connections._transports[self.client]
                if self.first is not None:
                    self.first.cancel()
                super().connection_lost(error)

            def close_silent(self) -> None:
                """Closes it if there was no request yet."""
                if getattr(self, "cycle", None) is None:
                    self.transport.abort()

        return Protocol


class UvicornLog(logging.Handler):
    """Passes what uvicorn says on to our log: its errors as such, complaints about clients for debugging only."""

    def __init__(self) -> None:
        """Takes warnings and worse."""
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Passes one record on."""
        level = logging.ERROR if record.levelno >= logging.ERROR else logging.DEBUG
        _logger.log(level, "%s", record.getMessage().strip(), exc_info=record.exc_info)


def take_over_log() -> Callable[[], None]:
    """Leads uvicorn's log into ours; what it gives undoes that."""
    logger, handler = logging.getLogger("uvicorn.error"), UvicornLog()
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.propagate = before

    return undo

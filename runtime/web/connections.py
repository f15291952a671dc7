"""Limits of connections: their number, their buffers, and the time of one request."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgerpn.runtime.run.http_config import MAX_CONNECTIONS, is_loopback
from edgerpn.runtime.web.streaming import is_endless

MAX_PER_ADDRESS = 100
"""Maximum open connections of one address, unless it is this machine."""
REQUEST_S = 10.0
"""Seconds for one request and its answer, and for the silence before the next one."""

_SEND_BUFFER_BYTES = 128 * 1024
_UNSENT_BYTES = 32 * 1024
_HIGH_WATER_BYTES, _LOW_WATER_BYTES = 16 * 1024, 4 * 1024
_logger = logging.getLogger(__name__)


class Connections:
    """The open connections of a server; for the thread of its loop."""

    def __init__(
        self,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_per_address: int = MAX_PER_ADDRESS,
        request_s: float = REQUEST_S,
    ) -> None:
        self.max_connections = max_connections
        self.max_per_address = max_per_address
        self.request_s = request_s
        self._transports: dict[Any, asyncio.Transport] = {}
        self._phases: dict[asyncio.Transport, tuple[Any, float]] = {}

    def __len__(self) -> int:
        return len(self._transports)

    def abort(self, scope: Scope) -> None:
        """Aborts the connection of a request."""
        transport = self._transports.get(tuple(scope["client"] or ()))
        if transport is not None:
            transport.abort()

    def abort_all(self) -> None:
        for transport in list(self._transports.values()):
            transport.abort()

    def sweep(self) -> None:
        """Aborts connections that take too long; to be called about once a second.

        A connection alternates between two phases: request and answer. Bytes that dribble in or out do not start a new
        phase. Endless answers check their clients themselves.
        """
        now_s = time.monotonic()
        phases = {}
        for transport in self._transports.values():
            cycle = getattr(transport.get_protocol(), "cycle", None)
            is_answered = cycle is not None and cycle.response_complete
            phase = (cycle, is_answered)
            before, since_s = self._phases.get(transport, (None, 0.0))
            is_new = before is None or before[0] is not cycle or before[1] != is_answered
            if is_new or (cycle is not None and not is_answered and is_endless(cycle.scope)):
                since_s = now_s
            phases[transport] = (phase, since_s)
        self._phases = phases
        for transport, (_, since_s) in phases.items():
            if now_s - since_s >= self.request_s:
                transport.abort()

    def _has_room(self, host: str) -> bool:
        """Returns whether the newest connection may stay."""
        num_of_host = sum(client[0] == host for client in self._transports)
        is_crowded = num_of_host > self.max_per_address and not is_loopback(host)
        return len(self) <= self.max_connections and not is_crowded

    def protocol_class(self) -> type[asyncio.Protocol]:
        """Makes the class that uvicorn uses for each connection."""
        connections = self

        class LimitedProtocol(H11Protocol):
            """HTTP/1.1 within these limits."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                """Accepts the connection, or aborts it when there is no room."""
                super().connection_made(transport)
                connections._transports[self.client] = transport
                _bound_buffers(transport)
                if not connections._has_room(self.client[0] if self.client else ""):
                    transport.abort()

            def connection_lost(self, error: Exception | None) -> None:
                if connections._transports.get(self.client) is self.transport:
                    del connections._transports[self.client]
                super().connection_lost(error)

        return LimitedProtocol


def _bound_buffers(transport: asyncio.Transport) -> None:
    """Keeps send buffers small: buffered pictures are old when they arrive, and the kernel would hold 4 MB."""
    connected = transport.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES, low=_LOW_WATER_BYTES)


class UvicornLog(logging.Handler):
    """Passes uvicorn's log on to ours: errors as errors, warnings about clients at the level debug."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        level = logging.ERROR if record.levelno >= logging.ERROR else logging.DEBUG
        _logger.log(level, "%s", record.getMessage().strip(), exc_info=record.exc_info)


def take_over_log() -> Callable[[], None]:
    """Redirects uvicorn's log into ours; returns a function that undoes it."""
    logger, handler = logging.getLogger("uvicorn.error"), UvicornLog()
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.propagate = before

    return undo

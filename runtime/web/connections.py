"""Connections that cannot use up the process: counted, bounded in what they hold, and cut off when they take long."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgerpn.runtime.web.http_config import MAX_CONNECTIONS, is_loopback
from edgerpn.runtime.web.streaming import is_endless

MAX_PER_ADDRESS = 100
"""Open connections of one address at most, unless it is this machine."""
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
        """Sets the limits."""
        self.max_connections = max_connections
        self.max_per_address = max_per_address
        self.request_s = request_s
        self._transports: dict[Any, asyncio.Transport] = {}
        self._phases: dict[asyncio.Transport, tuple[Any, float]] = {}

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

    def sweep(self) -> None:
        """Cuts off who takes too long; call it about once a second.

        A connection goes through phases: a request comes, then it is answered, and so on. Bytes that dribble in or
        out do not make a new phase. Answers without an end watch over their clients themselves.
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
        """Whether the connection that was added last may stay."""
        num_of_host = sum(client[0] == host for client in self._transports)
        is_crowded = num_of_host > self.max_per_address and not is_loopback(host)
        return len(self) <= self.max_connections and not is_crowded

    def protocol_class(self) -> type[asyncio.Protocol]:
        """What uvicorn makes for each connection."""
        connections = self

        class Protocol(H11Protocol):
            """HTTP/1.1 within the limits."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                """Lets it in, if there is room."""
                super().connection_made(transport)
                connections._transports[self.client] = transport
                _bound_buffers(transport)
                if not connections._has_room(self.client[0] if self.client else ""):
                    transport.abort()

            def connection_lost(self, error: Exception | None) -> None:
                """Forgets it."""
                if connections._transports.get(self.client) is self.transport:
                    del connections._transports[self.client]
                super().connection_lost(error)

        return Protocol


def _bound_buffers(transport: asyncio.Transport) -> None:
    """Keeps little on the way to a client: what waits there is old when it comes, and the kernel would hold 4 MB."""
    connected = transport.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES, low=_LOW_WATER_BYTES)


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

"""The server of the page: a thread with its own event loop, which never blocks the run."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from contextlib import ExitStack, suppress

import uvicorn

from edgerpn.errors import SinkError
from edgerpn.machine import bind_to_process, is_foreign
from edgerpn.runtime.run.http_config import HttpConfig
from edgerpn.runtime.run.service import PageInfo, RemoteStreams
from edgerpn.runtime.threads import start_thread
from edgerpn.runtime.web.access import AccessGuard, AccessRules
from edgerpn.runtime.web.connections import Connections, take_over_log
from edgerpn.runtime.web.hub import Hub
from edgerpn.runtime.web.routes import PageRoutes
from edgerpn.runtime.web.streaming import StreamRoutes

SAMPLE_S = 1.0
"""Seconds between two samples of the sources, and between two sweeps of the connections."""

_START_S = 10.0
_LAST_S = 0.5
_STOP_S = 2.0
_logger = logging.getLogger(__name__)


class WebServer:
    """Serves the page from its creation until `close`.

    Attributes:
        hub: The run's first sink; its `begin` takes the run.
    """

    def __init__(self, config: HttpConfig) -> None:
        """Binds the address and starts the thread.

        Raises:
            ConfigError: Other machines could reach the page, and there is no valid token.
            SinkError: The port is in use, the address is not of this machine, or the token cannot be read.
            NoThreadError: The system gives no more threads.
        """
        self._config = config
        self._access = AccessRules(config)
        self._live: StreamRoutes | None = None
        self._server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._is_started = threading.Event()
        self._is_closing = False
        self._failure: BaseException | None = None
        self.connections = Connections()
        with ExitStack() as on_failure:
            self._socket = on_failure.enter_context(_bound(config))
            self.url = _url(self._socket)
            self.hub = Hub(config, on_picture=self._on_picture, on_close=self.begin_close)
            on_failure.callback(self.hub.pictures.close)
            bind_to_process(self)
            self._thread = threading.Thread(target=self._run, name="edgerpn-web", daemon=True)
            start_thread(self._thread)
            self._is_started.wait(_START_S)
            if self._failure is not None:
                raise SinkError(f"{self.url}: the web page cannot be served: {self._failure}") from self._failure
            on_failure.pop_all()
        _logger.info("web page: %s%s", self.url, ", with a token" if self._access.needs_token else "")

    def begin(self, streams: RemoteStreams, info: PageInfo) -> None:
        """Takes over the run, which is ready."""
        self.hub.begin(streams, info)

    def begin_close(self) -> None:
        """Makes the server end open answers and itself; does not wait for it. Any thread may call it."""
        if is_foreign(self):
            return
        self._is_closing = True
        self.hub.pictures.begin_close()
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._end)

    def close(self) -> None:
        """Ends the server within about a second, whatever its clients do; nothing the second time, or after a fork."""
        if is_foreign(self):
            return
        self.begin_close()
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            _logger.warning("the server of the web page does not end; the run ends without it")
        self.hub.pictures.close()

    def _run(self) -> None:
        undo = take_over_log()
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            # Raised by the constructor, or logged.
            self._failure = error
            if self._is_started.is_set():
                _logger.exception("the web page has failed; the run continues")
        finally:
            self._is_started.set()
            self._socket.close()
            undo()

    async def _serve(self) -> None:
        self._closing = asyncio.Event()
        self._live = StreamRoutes(self.hub, self._config, self._closing, self.connections.abort)
        site = PageRoutes(self.hub, self._live, self._access, self._config)
        self._server = uvicorn.Server(
            uvicorn.Config(
                AccessGuard(site.application(), self._access),
                http=self.connections.protocol_class(),
                loop="asyncio",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._loop = asyncio.get_running_loop()
        if self._is_closing:
            return
        sampling = asyncio.ensure_future(self._sample())
        self._is_started.set()
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            sampling.cancel()
            self.connections.abort_all()

    def _end(self) -> None:
        if self._closing is not None and self._server is not None:
            self._closing.set()
            self._server.should_exit = True
            # The server waits for its clients, so the remaining ones are aborted.
            asyncio.get_running_loop().call_later(_LAST_S, self.connections.abort_all)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.connections.sweep()
            try:
                self.hub.sample()
            except Exception:
                # The charts lack a sample; the page continues.
                _logger.exception("the sources cannot be sampled")

    def _on_picture(self, source: str) -> None:
        live = self._live
        if live is not None:
            live.soon(lambda: live.wake(source))


def _bound(config: HttpConfig) -> socket.socket:
    """Makes a listening socket; its backlog accepts connections at once.

    Raises:
        SinkError: The address cannot be used.
    """
    host, port = config.address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        try:
            # So that the port is free at once after a restart.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(address)
            made.listen()
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise SinkError(
            f"http.listen: {config.listen}: cannot listen there: {reason}. Choose another port, or see which program "
            "uses this one (ss -ltnp)."
        ) from error
    return made


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

"""Endless answers: annotated pictures and emitted records, sent at the pace of each client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edgerpn.runtime.run.http_config import HttpConfig
from edgerpn.runtime.sinks.record import iso_utc
from edgerpn.runtime.web.feed import RecordListener, RecordType
from edgerpn.runtime.web.hub import Hub
from edgerpn.runtime.web.paint import EncodedPicture
from edgerpn.runtime.web.requests import problem

SEND_S = 20.0
"""Seconds after which the server aborts a client that takes nothing."""
BOUNDARY = "edgerpn-picture"
"""Separator of two pictures."""

_ALIVE_S = 15.0
_FIRST_PICTURE_S = 5.0
_LAST_S = 0.5
_MARK = "edgerpn_is_endless"


class StreamRoutes:
    """The endless answers of one server; all methods but `soon` belong to the thread of its loop."""

    def __init__(self, hub: Hub, config: HttpConfig, closing: asyncio.Event, abort: Callable[[Scope], None]) -> None:
        """Serves the pictures and records of `hub` until `closing` is set; `abort` aborts a client's connection."""
        self._hub = hub
        self._max_streams = config.max_streams
        self._closing = closing
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._viewers: dict[str, set[asyncio.Event]] = {}
        self.num_open = 0

    def wake(self, source: str) -> None:
        """Wakes all viewers of a source that has a new picture."""
        for event in self._viewers.get(source, ()):
            event.set()

    def soon(self, call: Callable[[], None]) -> None:
        """Schedules a call in the loop's thread; for any thread, also after the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    async def stream(self, request: Request) -> ASGIApp:
        """Streams pictures of one or several sources as MJPEG; each part names its source."""
        sources, refusal = self._asked(request)
        if refusal is not None:
            return refusal
        # Some browsers decode Motion JPEG themselves, even where a script wants to read it.
        is_raw = request.query_params.get("raw") == "1"
        content_type = "application/octet-stream" if is_raw else f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        return self._endless(request, lambda: self._pictures(sources), content_type)

    async def picture(self, request: Request) -> Response:
        """Returns the newest picture of one source, as JPEG."""
        sources, refusal = self._asked(request)
        if refusal is not None:
            return refusal
        if len(sources) != 1:
            return problem(400, "expected one source: ?source=NAME")
        async with aclosing(self._viewed(sources)) as viewed:
            try:
                source, picture = await asyncio.wait_for(anext(viewed), _FIRST_PICTURE_S)
            except asyncio.TimeoutError:
                return problem(503, "no picture yet")
        return Response(picture.jpeg, media_type="image/jpeg", headers=dict(_picture_headers(source, picture)))

    async def proposals(self, request: Request) -> ASGIApp:
        """Streams records of all or some sources as server-sent events, from now on."""
        query = request.query_params
        types = query.getlist("type")
        if set(types) - {"frame", "event"}:
            return problem(400, "type: expected frame or event")
        # A source that does not exist yet may be added later.
        sources = query.getlist("source")
        return self._endless(request, lambda: self._records(sources, types), "text/event-stream")  # type: ignore[arg-type]

    def _endless(
        self, request: Request, parts: Callable[[], AsyncGenerator[bytes, None]], content_type: str
    ) -> ASGIApp:
        answer = EndlessResponse(
            parts,
            content_type=content_type,
            closing=self._closing,
            abort=self._abort,
            is_head=request.method == "HEAD",
        )

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            # No await between check and count, so that simultaneous requests cannot pass the limit.
            if self.num_open >= self._max_streams:
                refusal = problem(503, f"{self.num_open} streams are open, and max_streams allows no more")
                await refusal(scope, receive, send)
                return
            self.num_open += 1
            try:
                await answer(scope, receive, send)
            finally:
                self.num_open -= 1

        return counted

    def _asked(self, request: Request) -> tuple[list[str], Response | None]:
        """Returns the sources that a request names, or all of them; and a refusal if one is unknown."""
        known = self._hub.stats()
        asked = list(dict.fromkeys(request.query_params.getlist("source"))) or list(known)
        if not asked or set(asked) - set(known):
            return asked, problem(404, "no such source")
        return asked, None

    async def _pictures(self, sources: Sequence[str]) -> AsyncGenerator[bytes, None]:
        yield f"--{BOUNDARY}\r\n".encode()
        async with aclosing(self._viewed(sources)) as viewed:
            async for source, picture in viewed:
                if picture.is_overdue(time.monotonic()):
                    # The next one, which is marked as old, follows soon.
                    continue
                head = "".join(f"{name}: {value}\r\n" for name, value in _picture_headers(source, picture))
                start = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture.jpeg)}\r\n{head}\r\n"
                # With the next boundary, because browsers show a picture when they see its end.
                yield start.encode("ascii") + picture.jpeg + f"\r\n--{BOUNDARY}\r\n".encode("ascii")

    async def _viewed(self, sources: Sequence[str]) -> AsyncGenerator[tuple[str, EncodedPicture], None]:
        """Yields new pictures of some sources; skips those that a newer one has replaced meanwhile."""
        changed = asyncio.Event()
        seen: dict[str, int] = {}
        for source in sources:
            self._viewers.setdefault(source, set()).add(changed)
        self._hub.pictures.watch(sources)
        try:
            while True:
                changed.clear()
                for source in sources:
                    picture = self._hub.pictures.newest(source)
                    if picture is not None and picture.number != seen.get(source):
                        seen[source] = picture.number
                        yield source, picture
                await changed.wait()
        finally:
            self._hub.pictures.unwatch(sources)
            for source in sources:
                self._viewers[source].discard(changed)
                if not self._viewers[source]:
                    del self._viewers[source]

    async def _records(self, sources: Sequence[str], types: Sequence[RecordType]) -> AsyncGenerator[bytes, None]:
        changed = asyncio.Event()
        listener = RecordListener(sources, types, lambda: self.soon(changed.set))
        self._hub.feed.join(listener)
        try:
            yield b"retry: 2000\n\n"
            while True:
                try:
                    await asyncio.wait_for(changed.wait(), _ALIVE_S)
                except asyncio.TimeoutError:
                    yield b": alive\n\n"
                    continue
                changed.clear()
                records, num_dropped = listener.take()
                dropped = [b'event: dropped\ndata: {"dropped":%d}\n\n' % num_dropped] if num_dropped else []
                yield b"".join([*dropped, *(_sse(kind, line) for kind, line in records)])
        finally:
            self._hub.feed.leave(listener)


def _sse(kind: RecordType, line: bytes) -> bytes:
    return b"event: %s\ndata: %s\n" % (kind.encode(), line)


def _picture_headers(source: str, picture: EncodedPicture) -> list[tuple[str, str]]:
    """Makes the headers of a picture; the source is percent-encoded, because headers are ASCII."""
    captured = iso_utc(picture.captured_at) if picture.captured_at is not None else ""
    frame = "" if picture.frame is None else str(picture.frame)
    return [
        ("X-Source", quote(source, safe="")),
        ("X-Frame", frame),
        ("X-Captured-At", captured),
        ("X-Live", "1" if picture.is_live else "0"),
        ("X-Boxes", str(picture.num_boxes)),
    ]


def is_endless(scope: Any) -> bool:
    """Returns whether a request has an endless answer, which checks its client itself."""
    return _MARK in scope["state"]


class EndlessResponse:
    """Sends the parts of a generator until the client or the server ends it.

    It asks for a part only when the client has room for it, so that the generator can skip old ones. It always closes
    the generator.
    """

    def __init__(
        self,
        parts: Callable[[], AsyncGenerator[bytes, None]],
        *,
        content_type: str,
        closing: asyncio.Event,
        abort: Callable[[Scope], None],
        is_head: bool,
    ) -> None:
        """Sends nothing yet.

        Args:
            parts: Starts the generator.
            content_type: Header of the answer.
            closing: Set when the server ends.
            abort: Aborts a connection at once, with unsent data.
            is_head: Whether the request asks for headers only.
        """
        self._parts = parts
        self._content_type = content_type
        self._closing = closing
        self._abort = abort
        self._is_head = is_head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self._content_type.encode("ascii")), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            if not self._is_head:
                scope["state"][_MARK] = True
                await self._until_enough(receive, send)
            await asyncio.wait_for(send({"type": "http.response.body", "body": b"", "more_body": False}), _LAST_S)
        except asyncio.TimeoutError:
            self._abort(scope)

    async def _until_enough(self, receive: Receive, send: Send) -> None:
        """Sends parts until the client or the server ends it.

        Raises:
            asyncio.TimeoutError: The client takes nothing.
        """
        is_over = asyncio.Event()
        pump = asyncio.ensure_future(self._pump(send, is_over))
        ends = [asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(self._closing.wait())]
        try:
            await asyncio.wait([pump, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_over.set()
            for task in (pump, *ends):
                task.cancel()
            await asyncio.gather(pump, *ends, return_exceptions=True)
        if not pump.cancelled():
            pump.result()

    async def _pump(self, send: Send, is_over: asyncio.Event) -> None:
        async with aclosing(self._parts()) as parts:
            async for part in parts:
                # The server waits before it sends: without the empty part, the generator would make the next one now,
                # and it would be old when the client has room for it.
                for body in (part, b""):
                    message = {"type": "http.response.body", "body": body, "more_body": True}
                    await asyncio.wait_for(send(message), SEND_S)
                    # Before Python 3.12, `wait_for` loses its cancellation when `send` ends at the same moment.
                    if is_over.is_set():
                        return


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue

"""Answers that go on: annotated pictures, and records as they are emitted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edgerpn.runtime.sinks.record import iso_utc
from edgerpn.runtime.web.feed import Listener, RecordType
from edgerpn.runtime.web.guard import problem
from edgerpn.runtime.web.http_config import HttpConfig
from edgerpn.runtime.web.hub import Hub
from edgerpn.runtime.web.paint import Picture
from edgerpn.runtime.web.streaming import EndlessResponse

BOUNDARY = "edgerpn-picture"
"""What stands between two pictures."""

_ALIVE_S = 15.0
_FIRST_PICTURE_S = 5.0


class Live:
    """The endless answers of one server; everything but `soon` is for the thread of its loop."""

    def __init__(self, hub: Hub, config: HttpConfig, closing: asyncio.Event, abort: Callable[[Scope], None]) -> None:
        """Serves what `hub` gives until `closing` is set; `abort` cuts a client off."""
        self._hub = hub
        self._max_streams = config.max_streams
        self._closing = closing
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._viewers: dict[str, set[asyncio.Event]] = {}
        self.num_open = 0

    def wake(self, source: str) -> None:
        """Tells all viewers of a source that there is a new picture."""
        for event in self._viewers.get(source, ()):
            event.set()

    def soon(self, call: Callable[[], None]) -> None:
        """Has the loop's thread call something; for any thread, and for a loop that has ended too."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    async def stream(self, request: Request) -> ASGIApp:
        """Pictures of one or several sources, as MJPEG; each part names its source."""
        sources, refusal = self._asked(request)
        if refusal is not None:
            return refusal
        # Some browsers take Motion JPEG apart themselves, also where a script wants to read it.
        is_raw = request.query_params.get("raw") == "1"
        content_type = "application/octet-stream" if is_raw else f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        return self._endless(request, lambda: self._pictures(sources), content_type)

    async def picture(self, request: Request) -> Response:
        """The newest picture of one source, as JPEG."""
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
        """Records of all or some sources as server-sent events, from now on."""
        query = request.query_params
        types = query.getlist("type")
        if set(types) - {"frame", "event"}:
            return problem(400, "type: expected frame or event")
        # A source that is not there yet may come.
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
            # Judged and counted without a wait between, so that many at once find no gap.
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
        """The sources that a request names, all of them if it names none; or why not."""
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
                    # Its successor, which is marked as old, is about to come.
                    continue
                head = "".join(f"{name}: {value}\r\n" for name, value in _picture_headers(source, picture))
                start = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture.jpeg)}\r\n{head}\r\n"
                # With the next boundary at once, because browsers show a picture when they see it end.
                yield start.encode("ascii") + picture.jpeg + f"\r\n--{BOUNDARY}\r\n".encode("ascii")

    async def _viewed(self, sources: Sequence[str]) -> AsyncGenerator[tuple[str, Picture], None]:
        """Each new picture of some sources; those that came while the last one was sent are left out."""
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
        listener = Listener(sources, types, lambda: self.soon(changed.set))
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


def _picture_headers(source: str, picture: Picture) -> list[tuple[str, str]]:
    """What a program may want to know of a picture; the name is percent-encoded, because headers are ASCII."""
    captured = iso_utc(picture.captured_at) if picture.captured_at is not None else ""
    frame = "" if picture.frame is None else str(picture.frame)
    return [
        ("X-Source", quote(source, safe="")),
        ("X-Frame", frame),
        ("X-Captured-At", captured),
        ("X-Live", "1" if picture.is_live else "0"),
        ("X-Boxes", str(picture.num_boxes)),
    ]

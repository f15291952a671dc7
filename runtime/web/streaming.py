"""Answers without an end: parts are sent as the client takes them, until one of both sides has enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

SEND_S = 20.0
"""Seconds after which a client that takes nothing is cut off."""

_LAST_S = 0.5
_MARK = "edgerpn_is_endless"


def is_endless(scope: Any) -> bool:
    """Whether the answer to a request is one without an end, which watches over its client itself."""
    return _MARK in scope["state"]


class EndlessResponse:
    """Sends what a generator gives.

    A part is asked for only when the client has room for it, so the generator can leave out what has
    become old meanwhile. It is closed in any case.
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
        """Prepares.

        Args:
            parts: Starts the generator.
            content_type: Header of the answer.
            closing: Set when the server ends.
            abort: Cuts a connection off at once, with all that was not taken.
            is_head: Whether only headers are asked for.
        """
        self._parts = parts
        self._content_type = content_type
        self._closing = closing
        self._abort = abort
        self._is_head = is_head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
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
                # The server waits before it sends: without the empty part, the next one would be made now, and be old
                # when the client has room for it.
                for body in (part, b""):
                    message = {"type": "http.response.body", "body": body, "more_body": True}
                    await asyncio.wait_for(send(message), SEND_S)
                    # Before Python 3.12 `wait_for` forgets that it was cancelled when `send` ends in the same moment.
                    if is_over.is_set():
                        return


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue

"""What a request brings, checked; and errors as answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from edgerpn.runtime.web.guard import problem

MAX_BODY = 16_384
"""Bytes of a request at most."""
BODY_S = 5.0
"""Seconds for the body of a request."""


async def http_problem(request: Request, error: Exception) -> Response:
    """The answer to what a route, or its absence, has refused."""
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, dict(error.headers or {}))


async def internal_problem(request: Request, error: Exception) -> Response:
    """The answer when a route has failed; the error goes on to who logs it."""
    return problem(500, "an error of ours; the log says more")


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: It is too long, or takes too long.
        ClientDisconnect: The client has gone.
    """
    try:
        return await asyncio.wait_for(_read(request), BODY_S)
    except asyncio.TimeoutError as error:
        problem = f"expected the body of the request within {BODY_S:g} s"
        raise HTTPException(408, problem, {"Connection": "close"}) from error


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"expected at most {MAX_BODY} bytes")
    return bytes(body)


async def json_object(request: Request) -> dict[str, Any]:
    """The object of a request; only as JSON, which a form of another page cannot send.

    Raises:
        HTTPException: It is something else.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected Content-Type: application/json")
    try:
        table = json.loads(await read_body(request))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "expected JSON") from error
    if not isinstance(table, dict):
        raise HTTPException(422, "expected a JSON object")
    return table


def whole_number(request: Request, name: str) -> int:
    """A number in the query; 0 if it is not there.

    Raises:
        HTTPException: It is no number.
    """
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise HTTPException(400, f"{name}: expected a whole number")
    return int(text)

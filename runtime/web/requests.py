"""Checks of requests: body, numbers, and the source to add; and errors as answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgerpn.errors import ConfigError
from edgerpn.runtime.sources.spec import parse_source

MAX_BODY = 16_384
"""Maximum bytes of a request's body."""
BODY_S = 5.0
"""Seconds within which a body must arrive."""
KINDS = ("camera", "csi", "url")
"""Kinds of sources that may be added; files and pipelines could read, and pipelines write, anything."""
SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "srt")
"""URL schemes that may be added; with others, such as udp and tcp, this machine would listen."""
KEYS = (
    "name", "source", "policy", "queue_frames", "max_fps", "max_age_ms", "gap_s", "stall_s", "open_timeout_s",
    "backoff_first_s", "backoff_max_s", "healthy_s", "size_wh", "rate_hz", "pixel_format", "transport",
)  # fmt: skip
"""Settings that a request may contain; the others affect decoders or memory."""
MAX_NAME = 100
"""Maximum characters of a name."""

# FFmpeg and GStreamer look for options anywhere behind the first "?"; RTMP's follow blanks.
_LISTEN = re.compile(r"[?&;#\s]listen\b", re.IGNORECASE)
_MODE = re.compile(r"[?&;#\s]mode=(?!caller(?:[&;#\s]|$))", re.IGNORECASE)


def problem(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Makes an error answer, as JSON."""
    return JSONResponse({"error": text}, status_code=status, headers=headers)


async def http_problem(request: Request, error: Exception) -> Response:
    """Makes the answer to a request that a route refused, or that has no route."""
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, dict(error.headers or {}))


async def internal_problem(request: Request, error: Exception) -> Response:
    """Makes the answer when a route has failed; Starlette passes the error on to `AccessGuard`, which logs it."""
    return problem(500, "internal error; see the log")


async def read_body(request: Request) -> bytes:
    """Reads the body of a request.

    Raises:
        HTTPException: The body is too long, or too slow.
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
    """Reads the JSON object of a request; only with its content type, which a form of another page cannot send.

    Raises:
        HTTPException: The body is not a JSON object.
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
    """Reads a number in the query; 0 if it is missing.

    Raises:
        HTTPException: The text is not a whole number.
    """
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise HTTPException(400, f"{name}: expected a whole number")
    return int(text)


def check_added(table: Mapping[str, Any]) -> None:
    """Checks that a table from the network adds a camera or a network stream, and nothing else.

    Raises:
        ConfigError: The table has other settings or another source, or no source.
        StreamOpenError: The source is not a camera, URL, pipeline or path.
    """
    problems = [f"{key}: unknown, or not allowed by HTTP; known: {', '.join(KEYS)}" for key in table if key not in KEYS]
    name, source = table.get("name", ""), table.get("source")
    if not (isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable()):
        problems.append(f"name: expected at most {MAX_NAME} printable characters")
    if not (isinstance(source, str) and source.isprintable()):
        problems.append("source: expected a camera or a URL")
    elif (kind := parse_source(source).kind) not in KINDS or (kind == "camera" and ".." in source):
        problems.append(
            "source: expected a camera (number or /dev/videoN), csi://N or a URL; files and pipelines cannot "
            "be added by HTTP"
        )
    elif kind == "url":
        problems += _url_problems(source)
    if problems:
        raise ConfigError(problems)


def _url_problems(url: str) -> list[str]:
    """Finds what would make this machine listen, instead of connecting to a camera."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return ["source: expected a URL with a host and a port"]
    if parts.scheme not in SCHEMES:
        return [f"source: {parts.scheme} cannot be added by HTTP; known: {', '.join(SCHEMES)}"]
    if not host:
        return ["source: expected a URL with a host; without one this machine could listen"]
    text = unquote(url)
    if parts.scheme in ("rtmp", "srt", "rtsp", "rtsps") and _LISTEN.search(text):
        return ["source: a URL that makes this machine listen cannot be added by HTTP: take out listen"]
    if parts.scheme == "srt" and _MODE.search(text):
        return ["source: only mode=caller can be added by HTTP"]
    return []

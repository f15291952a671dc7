"""What stands before every request: its host, its origin, its token; and the headers of every answer."""

from __future__ import annotations

import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgerpn.runtime.web.access import Access

SAFE_METHODS = ("GET", "HEAD")
OPEN_PATHS = ("/healthz", "/readyz", "/login", "/page.css", "/icon.svg")
"""Paths that need no token; /readyz tells the names of sources only to who has one."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer", under which browsers send our own login form with the origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_TRACEBACK_S = 10.0
_logger = logging.getLogger(__name__)


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Lets through to `app` what `access` allows."""
        self._app = app
        self._access = access
        self._traceback_s = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        has_started = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        scope["state"]["is_allowed"] = self._access.is_allowed(request.headers, request.cookies)
        answer = self._refusal(request) or self._app
        try:
            await answer(scope, receive, send_guarded)
        except ClientDisconnect:
            # It went in the midst of its request, which is its right.
            return
        except Exception as error:  # noqa: BLE001 - logged below
            self._log(request, error)
            if not has_started:
                await problem(500, "an error of ours; the log says more")(scope, receive, send_guarded)

    def _log(self, request: Request, error: Exception) -> None:
        """Logs an error of ours; with where it arose not more often than anybody reads it."""
        now_s = time.monotonic()
        is_due = now_s - self._traceback_s >= _TRACEBACK_S
        if is_due:
            self._traceback_s = now_s
        # The path is the client's text, but no secret: tokens are never in it.
        words = "%s %r failed: %s", request.method, request.url.path, error
        _logger.error(*words, exc_info=error if is_due else None)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to what is not allowed; None: it is."""
        headers, path = request.headers, request.url.path
        if len(headers.getlist("host")) != 1 or not self._access.knows_host(headers["host"]):
            return problem(421, "unknown host name; name it in the settings: http.hosts = ['NAME']")
        is_page = headers.get("sec-fetch-mode") == "navigate" and request.method in SAFE_METHODS
        if not is_page and not self._access.is_same_origin(headers):
            return problem(403, "requests from other web pages are not answered")
        if request.state.is_allowed or path in OPEN_PATHS:
            return None
        if path == "/" and request.method in SAFE_METHODS:
            return RedirectResponse("/login", status_code=303)
        return problem(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


def is_https(headers: Headers) -> bool:
    """Whether a browser came by way of TLS, which something before us has ended."""
    return urlsplit(headers.get("origin", "")).scheme == "https"


def problem(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error for programs and people."""
    return JSONResponse({"error": text}, status_code=status, headers=headers)

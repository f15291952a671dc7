"""Access to the page: host names, origins, the token and its cookie; and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgerpn.errors import ConfigError
from edgerpn.runtime.endpoint import read_secret
from edgerpn.runtime.run.http_config import HttpConfig
from edgerpn.runtime.web.requests import problem

COOKIE = "edgerpn_session"
"""Name of the cookie that replaces the token in a browser."""
COOKIE_S = 30 * 86400
"""Seconds for which a cookie is valid."""
MIN_TOKEN = 16
"""Minimum number of characters in a token."""
SAFE_METHODS = ("GET", "HEAD")
OPEN_PATHS = ("/healthz", "/readyz", "/login", "/page.css", "/icon.svg")
"""Paths that need no token; /readyz names sources only to clients with a token."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": with it browsers send our own login form with the origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_TRACEBACK_S = 10.0
_logger = logging.getLogger(__name__)


class AccessRules:
    """The access rules of one server; any thread may call them."""

    def __init__(self, config: HttpConfig) -> None:
        """Reads the token.

        Raises:
            SinkError: The variable or file with the token cannot be read.
            ConfigError: The token is too short, or missing while other machines can reach the page.
        """
        token = read_secret(env=config.token_env, file=config.token_file, purpose="token of the web page")
        if token is None and not config.is_loopback:
            raise ConfigError(
                [
                    f"http.listen: other machines can reach {config.listen}, which needs a token: write one of "
                    f"{MIN_TOKEN} characters or more into a file and name it by http.token_file (or a variable by "
                    "http.token_env), or listen on 127.0.0.1"
                ]
            )
        if token is not None and (len(token) < MIN_TOKEN or not token.isascii()):
            raise ConfigError(
                [
                    f"{config.token_env or config.token_file}: expected a token of {MIN_TOKEN} or more ASCII "
                    "characters; python3 -c 'import secrets; print(secrets.token_urlsafe())' makes one"
                ]
            )
        self._token = token.encode("ascii") if token is not None else None
        # From the token alone: cookies stay valid after a restart, and a new token ends them.
        self._key = hashlib.sha256(b"edgerpn web session\0" + self._token).digest() if self._token else os.urandom(32)
        machine = socket.gethostname().lower()
        self._names = {"localhost", machine, f"{machine}.local", *(name.lower() for name in config.hosts)}
        self._is_local_only = config.is_loopback

    @property
    def needs_token(self) -> bool:
        """Whether requests need a token."""
        return self._token is not None

    def knows_host(self, host: str) -> bool:
        """Returns whether a Host header is an address or a known name of ours.

        A foreign page whose name resolves to our address (DNS rebinding) still sends its own name.
        """
        name = _host_name(host)
        if name is None:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return address.is_loopback or not self._is_local_only

    def is_same_origin(self, headers: Mapping[str, str]) -> bool:
        """Returns whether a request comes from our page or from a program, not from another page in a browser."""
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == headers.get("host", "").lower()

    def is_token(self, text: str) -> bool:
        """Returns whether a text is the token, compared in constant time."""
        given = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return self._token is not None and hmac.compare_digest(given, hashlib.sha256(self._token).digest())

    def is_allowed(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Returns whether a request has the token or a valid cookie; always True where no token is needed."""
        if self._token is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(token.strip()):
            return True
        return self._is_session(cookies.get(COOKIE, ""))

    def new_session(self) -> str:
        """Makes the value of a new cookie, which does not reveal the token."""
        return self._signed(str(int(time.time()) + COOKIE_S))

    def _is_session(self, text: str) -> bool:
        end, _, _ = text.partition(".")
        # Texts of other letters are no numbers, and cannot be compared.
        is_number = text.isascii() and end.isdigit() and len(end) < 16
        return is_number and hmac.compare_digest(text, self._signed(end)) and int(end) > time.time()

    def _signed(self, end: str) -> str:
        return f"{end}.{hmac.new(self._key, end.encode('ascii'), hashlib.sha256).hexdigest()}"


class AccessGuard:
    """Wraps the application: checks every request and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, access: AccessRules) -> None:
        """Passes requests on to `app` that `access` allows."""
        self._app = app
        self._access = access
        self._traceback_s = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            # A client may go in the middle of its request.
            return
        except Exception as error:  # noqa: BLE001 - logged below
            self._log(request, error)
            if not has_started:
                await problem(500, "internal error; see the log")(scope, receive, send_guarded)

    def _log(self, request: Request, error: Exception) -> None:
        """Logs an internal error, with a traceback at most every ten seconds."""
        now_s = time.monotonic()
        is_due = now_s - self._traceback_s >= _TRACEBACK_S
        if is_due:
            self._traceback_s = now_s
        # The path is the client's text and holds no secret: tokens are never in it.
        words = "%s %r failed: %s", request.method, request.url.path, error
        _logger.error(*words, exc_info=error if is_due else None)

    def _refusal(self, request: Request) -> Response | None:
        """Makes the answer to a request that is not allowed; None: it is."""
        headers, path = request.headers, request.url.path
        if len(headers.getlist("host")) != 1 or not self._access.knows_host(headers["host"]):
            return problem(421, "unknown host name; add it to the settings: http.hosts = ['NAME']")
        is_page = headers.get("sec-fetch-mode") == "navigate" and request.method in SAFE_METHODS
        if not is_page and not self._access.is_same_origin(headers):
            return problem(403, "requests from other web pages are refused")
        if request.state.is_allowed or path in OPEN_PATHS:
            return None
        if path == "/" and request.method in SAFE_METHODS:
            return RedirectResponse("/login", status_code=303)
        return problem(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


def is_https(headers: Headers) -> bool:
    """Returns whether the browser uses TLS, which a proxy before us ends."""
    return urlsplit(headers.get("origin", "")).scheme == "https"


def _host_name(host: str) -> str | None:
    """Reads the name in a Host header, without port and brackets; None: not a valid header."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    is_plain = parts.netloc == host and not parts.username and not parts.path and "@" not in host
    # A fully qualified name may end with a dot.
    return parts.hostname.rstrip(".") if is_plain and parts.hostname else None

"""Who may use the page: names it goes by, pages that may speak to it, the token, and the cookie in its place."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from edgerpn.errors import ConfigError
from edgerpn.runtime.sinks.endpoint import read_secret
from edgerpn.runtime.web.http_config import HttpConfig

COOKIE = "edgerpn_session"
"""Name of the cookie that stands for the token in a browser."""
COOKIE_S = 30 * 86400
"""Seconds for which a cookie is good."""
MIN_TOKEN = 16
"""Characters of a token at least."""


class Access:
    """The rules of one server; any thread may use it."""

    def __init__(self, config: HttpConfig) -> None:
        """Reads the token.

        Raises:
            SinkError: The variable or file with the token cannot be read.
            ConfigError: The token is short, or there is none and others than this machine can reach the page.
        """
        token = read_secret(env=config.token_env, file=config.token_file, purpose="token of the web page")
        if token is None and not config.is_loopback:
            raise ConfigError(
                [
                    f"http.listen: {config.listen} can be reached from other machines, which needs a token: write one "
                    f"of {MIN_TOKEN} characters or more into a file and name it by http.token_file (or a variable by "
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
        # Of the token alone, so that a restart of the run throws nobody out, and a new token everybody.
        self._key = hashlib.sha256(b"edgerpn web session\0" + self._token).digest() if self._token else os.urandom(32)
        machine = socket.gethostname().lower()
        self._names = {"localhost", machine, f"{machine}.local", *(name.lower() for name in config.hosts)}
        self._is_local_only = config.is_loopback

    @property
    def needs_token(self) -> bool:
        """Whether requests must carry a token."""
        return self._token is not None

    def knows_host(self, host: str) -> bool:
        """Whether a Host header is one of ours: an address or a known name.

        A page that has its own name resolved to our address (DNS rebinding) still sends its own name here.
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
        """Whether a request comes from our own page or from a program, and not from another page in a browser."""
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
        """Whether a text is the token; takes as long for a wrong one."""
        given = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return self._token is not None and hmac.compare_digest(given, hashlib.sha256(self._token).digest())

    def is_allowed(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Whether a request carries the token, or a good cookie; always so where no token is needed."""
        if self._token is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(token.strip()):
            return True
        return self._is_session(cookies.get(COOKIE, ""))

    def new_session(self) -> str:
        """The value of a cookie that is good from now on; the token cannot be read from it."""
        return self._signed(str(int(time.time()) + COOKIE_S))

    def _is_session(self, text: str) -> bool:
        end, _, _ = text.partition(".")
        is_number = end.isascii() and end.isdigit() and len(end) < 16
        return is_number and hmac.compare_digest(text, self._signed(end)) and int(end) > time.time()

    def _signed(self, end: str) -> str:
        return f"{end}.{hmac.new(self._key, end.encode('ascii'), hashlib.sha256).hexdigest()}"


def _host_name(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None: it is no such header."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    is_plain = parts.netloc == host and not parts.username and not parts.path and "@" not in host
    # Behind a name in full form there may be a dot.
    return parts.hostname.rstrip(".") if is_plain and parts.hostname else None

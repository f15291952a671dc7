"""Sends records to a web server, by POST of JSON arrays."""

from __future__ import annotations

import base64
import http.client
import re
import secrets
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from edgerpn.errors import SinkError, check_setting
from edgerpn.runtime.endpoint import check_url, read_secret, tls_context
from edgerpn.runtime.redaction import redact, redact_url
from edgerpn.runtime.sinks.contract import NotDeliveredError, Record
from edgerpn.runtime.sinks.sink_queue import OutputConfig
from edgerpn.settings import PATH

_RETRIED = (408, 425, 429)
_ANSWER_BYTES = 1 << 16
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookConfig(OutputConfig):
    """Records to a web server: POST of a JSON array of records."""

    url: str = field(repr=False)
    """http:// or https:// address; USER:PASSWORD@ becomes basic authentication."""
    batch: int = 100
    """Maximum number of records in one request."""
    batch_s: float = 1.0
    """Seconds for which the first record of a request waits for others, at most."""
    timeout_s: float = 5.0
    """Seconds for which the server may be silent."""
    header: str = "Authorization"
    """Header that carries the token."""
    token_env: str = ""
    """Environment variable with the header's value, such as "Bearer 123"; empty: none."""
    token_file: str = field(default="", metadata=PATH)
    """File with the header's value, read again for every request; empty: none."""
    ca_file: str = field(default="", metadata=PATH)
    """File with the certificates to trust (https); empty: the system's."""

    def __post_init__(self) -> None:
        OutputConfig.__post_init__(self)
        parts = check_url("url", self.url, ("http", "https"))
        check_setting(1 <= self.batch <= 10_000, "batch", "1..10000", self.batch)
        check_setting(0 <= self.batch_s <= 60, "batch_s", "0..60 seconds", self.batch_s)
        check_setting(self.timeout_s > 0, "timeout_s", "more than 0 seconds", self.timeout_s)
        check_setting(bool(_HEADER_NAME.fullmatch(self.header)), "header", "the name of a header", self.header)
        secrets = [name for name in ("token_env", "token_file") if getattr(self, name)]
        is_basic = parts.username is not None and self.header.lower() == "authorization"
        check_setting(
            len(secrets) + is_basic <= 1, "url", "one of password, token_env and token_file", " and ".join(secrets)
        )


class WebhookSink:
    """Posts records in batches and repeats failed requests; at once when an idle connection turns out to be closed.

    A repeated request keeps its `Idempotency-Key`, so that a server can recognise it. Redirects are not followed: they
    would carry the records, and the token, to an address that is not in the settings.
    """

    config_class = WebhookConfig
    is_lossy = True

    def __init__(self, config: WebhookConfig) -> None:
        """Checks the secrets; connects later, with the first record.

        Raises:
            SinkError: The token or the certificates cannot be read.
        """
        self.target = redact_url(config.url)
        self.batch_records = config.batch
        self.batch_wait_s = config.batch_s
        self._config = config
        self._parts = urlsplit(config.url)
        self._context = tls_context(config.ca_file) if self._parts.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None
        self._last: tuple[Record, int, str] | None = None
        self._is_interrupted = False
        self._headers()

    def write_records(self, records: Sequence[Record]) -> None:
        """Posts records as one array; repeats a failed request exactly.

        Raises:
            NotDeliveredError: No connection, no answer, or an answer that asks for a retry (5xx, 408, 425, 429).
            SinkError: A final refusal, or a redirect.
        """
        done = 0
        while done < len(records):
            chunk = self._same_request(records[done:])
            try:
                self._send(chunk)
            except SinkError as error:
                if not done:
                    raise
                raise NotDeliveredError(str(error), num_done=done, retry_s=getattr(error, "retry_s", 0.0)) from error
            done += len(chunk)
            self._last = None

    def _same_request(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the records of the failed request, if these begin with them; otherwise all, as a new request."""
        if self._last is None or self._last[0] is not records[0] or self._last[1] > len(records):
            self._last = (records[0], len(records), secrets.token_hex(16))
        return records[: self._last[1]]

    def _send(self, records: Sequence[Record]) -> None:
        body = b"[" + b",".join(record.line.rstrip(b"\n") for record in records) + b"]"
        headers = self._headers()
        if self._last is not None:
            headers["Idempotency-Key"] = self._last[2]
        try:
            status, reason, retry_after_s = self._post(body, headers)
        except (OSError, http.client.HTTPException) as error:
            self._disconnect()
            raise NotDeliveredError(f"webhook {self.target}: {redact(_words(error))}") from error
        if 200 <= status < 300:
            return
        self._disconnect()
        message = f"webhook {self.target}: the server answers {status} {reason}"
        if status in _RETRIED or status >= 500:
            raise NotDeliveredError(message, retry_s=retry_after_s)
        self._last = None
        if 300 <= status < 400:
            raise SinkError(f"{message}, a redirect, which is not followed; give the final address as url")
        raise SinkError(message)

    def interrupt(self) -> None:
        """Shuts the connection down, which ends the current request."""
        self._is_interrupted = True
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # It is closed already.
                return

    def close(self) -> None:
        self._disconnect()

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, str, float | None]:
        is_reused = self._connection is not None and self._connection.sock is not None
        try:
            answer = self._ask(body, headers)
        except (ConnectionError, ssl.SSLEOFError):
            if not is_reused or self._is_interrupted:
                raise
            # Servers close connections that are idle, some after two seconds, and this shows with the next request.
            self._disconnect()
            answer = self._ask(body, headers)
        if len(answer.read(_ANSWER_BYTES)) == _ANSWER_BYTES:
            # Too long to read to its end, so the connection cannot be used again.
            self._disconnect()
        return answer.status, answer.reason, _seconds(answer.getheader("Retry-After"))

    def _ask(self, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._is_interrupted:
            raise ConnectionAbortedError("closed before the server had answered")
        if self._connection is None:
            self._connection = self._connect()
        path = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
        self._connection.request("POST", path, body, headers)
        return self._connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        host, port, timeout_s = self._parts.hostname or "", self._parts.port, self._config.timeout_s
        if self._context is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._context)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "edgerpn"}
        token = read_secret(env=self._config.token_env, file=self._config.token_file, purpose="webhook token")
        if token is not None:
            headers[self._config.header] = token
        elif self._parts.username is not None:
            pair = f"{unquote(self._parts.username)}:{unquote(self._parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        return headers


def _seconds(text: str | None) -> float | None:
    """Reads a `Retry-After` in seconds, at most a minute; None: missing, or a date."""
    return float(min(int(text[:9]), 60)) if text and text.isdecimal() else None


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__

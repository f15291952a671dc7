"""Compares a camera's clock with ours, by the `Date` header of its RTSP or HTTP server.

It sends one request over a separate connection, without login and without the parts of the address that may be secret:
an answer that demands a login has a date, too.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import quote, urlsplit

from edgerpn.runtime.redaction import redact_url
from edgerpn.runtime.sources import CaptureConfig
from edgerpn.runtime.sources.spec import SourceSpec

_TIMEOUT_S = 4.0
_MAX_HEAD_BYTES = 65_536
# The header has whole seconds, so the true time is half a second later on average.
_HALF_RESOLUTION_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockSkew:
    """Difference between the camera's clock and ours."""

    skew_s: float | None = None
    """Camera's time minus ours, to about 1 second; above zero: the camera is ahead; None: unknown."""
    why_unknown: str = ""
    """Reason why the skew is unknown."""


def skew_in_words(skew_s: float) -> str:
    """Describes a skew, as in "2 s ahead"."""
    size_s = abs(skew_s)
    if round(size_s) == 0:
        return "in step with ours (to about 1 s)"
    more = f" ({size_s / 3600:.1f} h)" if size_s >= 3600 else ""
    return f"{size_s:.0f} s{more} {'ahead' if skew_s > 0 else 'behind'} (to about 1 s)"


def find_clock_skew(config: CaptureConfig, *, timeout_s: float = _TIMEOUT_S) -> ClockSkew:
    """Asks a camera for its time; returns the reason instead of raising when that fails.

    Args:
        config: The source; only rtsp, rtsps, http and https have a clock to ask for.
        timeout_s: Limit for connection and answer together.
    """
    spec = config.spec
    if not (spec.is_rtsp or spec.is_http):
        return ClockSkew(why_unknown="only RTSP and HTTP servers report their time")
    protocol: Literal["RTSP", "HTTP"] = "RTSP" if spec.is_rtsp else "HTTP"
    try:
        head, asked_at = _exchange(spec, protocol, time.monotonic() + timeout_s)
    except TimeoutError:
        return ClockSkew(why_unknown=f"no answer within {timeout_s:g} s")
    except OSError as error:
        return ClockSkew(why_unknown=f"the camera could not be asked: {error.strerror or type(error).__name__}")
    except ValueError:
        # The error's text may hold a part of a password.
        return ClockSkew(why_unknown="the address has no usable host name or port")
    return _skew(head, protocol, asked_at)


def _exchange(spec: SourceSpec, protocol: Literal["RTSP", "HTTP"], deadline_s: float) -> tuple[bytes, float]:
    """Returns the head of the answer, and our time halfway between request and answer, seconds since 1970."""
    address = spec.address()
    is_encrypted = spec.scheme in ("rtsps", "https")
    with socket.create_connection(address, timeout=_left(deadline_s)) as plain:
        plain.settimeout(_left(deadline_s))
        connection = _tls().wrap_socket(plain, server_hostname=address[0]) if is_encrypted else plain
        with connection:
            sent_at = time.time()
            connection.sendall(_request(spec.text, protocol))
            head = _read_head(connection, deadline_s)
            return head, (sent_at + time.time()) / 2


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Cameras sign their own certificates, and the request holds no secret. A camera with a wrong clock could not pass
    # a check of dates.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _request(url: str, protocol: Literal["RTSP", "HTTP"]) -> bytes:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    if protocol == "HTTP":
        # Any page has the date; a request for the stream's page might start the stream.
        lines = ["HEAD / HTTP/1.1", f"Host: {place}", "Connection: close"]
    else:
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
        bare = f"{parts.scheme}://{place}{path}"
        target = bare if redact_url(bare) == bare else f"{parts.scheme}://{place}/"
        lines = [f"OPTIONS {target} RTSP/1.0", "CSeq: 1"]
    return "\r\n".join([*lines, "User-Agent: edgerpn", "", ""]).encode()


def _read_head(connection: socket.socket, deadline_s: float) -> bytes:
    """Reads up to the first empty line, the end, or the size limit."""
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < _MAX_HEAD_BYTES:
        connection.settimeout(_left(deadline_s))
        more = connection.recv(4096)
        if not more:
            break
        head += more
    return head


def _left(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _skew(head: bytes, protocol: str, asked_at: float) -> ClockSkew:
    status, *lines = head.decode("latin-1").splitlines() or [""]
    if not status.startswith(f"{protocol}/"):
        return ClockSkew(why_unknown=f"the server did not answer in {protocol}")
    for line in lines:
        if not line:
            break
        name, _, value = line.partition(":")
        if name.strip().lower() == "date":
            return _skew_of(value.strip(), asked_at)
    return ClockSkew(why_unknown="the answer has no date")


def _skew_of(date: str, asked_at: float) -> ClockSkew:
    try:
        parsed = parsedate_to_datetime(date)
        # Both protocols demand GMT, so a date without a zone is GMT.
        seconds = (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return ClockSkew(why_unknown="the answer has an invalid date")
    return ClockSkew(skew_s=seconds + _HALF_RESOLUTION_S - asked_at)

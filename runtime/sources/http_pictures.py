"""Web servers of cameras: pictures that come one for each request, and the reasons of servers that give no video.

FFmpeg neither shows what a server answers instead of a video (a login page, a refusal without a challenge), nor asks
twice for a picture. These requests do, with the credentials, headers and certificates that FFmpeg would use.
"""

from __future__ import annotations

import http.client
import io
import math
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPMessage
from types import ModuleType
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import numpy as np

from edgerpn.images.formats import HEAD_BYTES, image_format
from edgerpn.images.header import read_header
from edgerpn.runtime.frame import Reason
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.failures import CaptureFailedError
from edgerpn.runtime.sources.readers import Image

DEFAULT_RATE_HZ = 1.0
"""Pictures that are requested in a second, unless `rate_hz` says otherwise."""

_MAX_BYTES = 64 << 20
_PAGE_BYTES = 4096
_EXPLAIN_S = 4.0
_FORMATS = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF")
# Texts that FFmpeg reads as lists of videos.
_PLAYLISTS = (b"#extm3u", b"v=0", b"ffconcat", b"<mpd", b"<smoothstreaming")
_STATUS_REASONS: dict[int, Reason] = {
    **dict.fromkeys((401, 403, 407), "unauthorised"),
    **dict.fromkeys((404, 410), "not_found"),
    **dict.fromkeys((408, 504), "timeout"),
    **dict.fromkeys((429, 503), "busy"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpAnswer:
    """The thing that a server gives at an address."""

    reason: Reason
    """picture: one whole picture; else the reason that there is no video."""
    message: str
    """For people, without passwords."""
    body: bytes = b""
    """File of the picture."""


def explain(config: CaptureConfig) -> HttpAnswer:
    """Asks the server of an HTTP address that gave no video, or one picture; takes a few seconds at most."""
    try:
        return HttpClient(config).get(min(_EXPLAIN_S, config.longest_open_s))
    except CaptureFailedError as error:
        return HttpAnswer(reason=error.reason, message=str(error))


class HttpClient:
    """Requests the address of one source."""

    def __init__(self, config: CaptureConfig) -> None:
        """Prepares the requests; the first one connects.

        Raises:
            CaptureFailedError: The certificates that the settings name cannot be read.
        """
        parts = urlsplit(config.source)
        host = parts.netloc.rpartition("@")[2]
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~", errors="surrogateescape")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~?[]", errors="surrogateescape")
        self._url = urlunsplit((parts.scheme, host, path, query, ""))
        options = _ffmpeg_options(config.ffmpeg_options)
        self._headers = _headers(options)
        self._has_login = parts.username is not None or "Authorization" in self._headers
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if parts.username is not None:
            place = f"{parts.scheme}://{host}/"
            passwords.add_password(None, place, unquote(parts.username), unquote(parts.password or ""))
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=_tls(options)),
            _Redirects(host, self._headers),
            _Digest(passwords),
            _Basic(passwords),
        )
        self._opener.addheaders = [("User-Agent", options.get("user_agent") or "edgerpn"), ("Accept", "*/*")]

    def get(self, timeout_s: float) -> HttpAnswer:
        """Requests the address once.

        Raises:
            CaptureFailedError: The server refuses or is not reached, or a picture is not whole.
        """
        end_s = time.monotonic() + timeout_s
        request = urllib.request.Request(self._url)
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                return _read(response, end_s)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refused(error.code, str(error.reason)) from None
        except urllib.error.URLError as error:
            raise _unreached(error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise _unreached(error) from None
        except (ValueError, IndexError):
            # Python's own message may show a part of the address; IndexError: a challenge with an empty value.
            message = "the server demands a login of a kind that is not known here"
            raise CaptureFailedError(message, reason="unauthorised") from None

    def _refused(self, status: int, words: str) -> CaptureFailedError:
        reason = _STATUS_REASONS.get(status, "server" if status >= 500 else "unknown")
        words = "with a redirect that is not followed" if 300 <= status < 400 else words
        message = f"the server answers {status} {words}".rstrip()
        if status == 401:
            message += ": wrong or missing password" + ("" if self._has_login else " (the address has none)")
        return CaptureFailedError(message, reason=reason)


class PictureReader:
    """Pictures that are requested one by one, without times; see `Reader`."""

    camera_hw: tuple[int, int] | None = None

    num_frames = 0
    is_live = True

    def __init__(self, cv2: ModuleType, config: CaptureConfig) -> None:
        """Prepares the requests; the first `grab` connects."""
        self._cv2 = cv2
        self.fps = config.rate_hz or DEFAULT_RATE_HZ
        self.decoder = f"OpenCV {cv2.__version__}: the address gives one picture, requested {self.fps:g} times a second"
        self._client = HttpClient(config)
        self._timeout_s = config.longest_open_s
        self._due_s = -math.inf
        self._body = b""

    def grab(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._due_s:
            time.sleep(self._due_s - now_s)
        # A server that is too slow for the rate sets the pace.
        self._due_s = max(self._due_s, now_s) + 1 / self.fps
        answer = self._client.get(self._timeout_s)
        if answer.reason != "picture":
            raise CaptureFailedError(answer.message, reason=answer.reason)
        self._body = answer.body
        return True

    def retrieve(self, into: Image | None) -> Image | None:
        flags = self._cv2.IMREAD_COLOR | self._cv2.IMREAD_IGNORE_ORIENTATION
        image = self._cv2.imdecode(np.frombuffer(self._body, np.uint8), flags)
        return image if image is not None and image.size else None

    def media_time_s(self) -> float | None:
        return None

    def close(self) -> None:
        """Does nothing: each request closes its connection."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only; the headers of the settings go to the host of the address only."""

    def __init__(self, host: str, headers: Mapping[str, str]) -> None:
        self._host = host
        self._headers = headers

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        parts = urlsplit(newurl)
        if parts.scheme not in ("http", "https"):
            raise urllib.error.HTTPError(newurl, code, msg, headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and parts.netloc == self._host:
            for name, value in self._headers.items():
                request.add_unredirected_header(name, value)
        return request


class _Digest(urllib.request.HTTPDigestAuthHandler):
    """Tries a password once: Python's own tries it six times, and cameras lock accounts."""

    def http_error_401(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        challenge = _challenge("digest", req, headers)
        return self.retry_http_digest_auth(req, challenge) if challenge else None


class _Basic(urllib.request.HTTPBasicAuthHandler):
    """Likewise; digest comes first where a server offers both, as in FFmpeg."""

    def http_error_401(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        return super().http_error_401(req, fp, code, msg, headers) if _challenge("basic", req, headers) else None


def _challenge(scheme: str, request: urllib.request.Request, headers: HTTPMessage) -> str:
    """Returns the challenge of a login that has not been tried yet; empty: there is none."""
    if request.has_header("Authorization"):
        return ""
    offers = [text for text in headers.get_all("WWW-Authenticate", []) if text.lower().startswith(f"{scheme} ")]
    # Python has no SHA-256 for it; cameras offer MD5 beside it.
    return min(offers, key=lambda text: "sha-256" in text.lower(), default="")


def _read(response: http.client.HTTPResponse, end_s: float) -> HttpAnswer:
    """Reads a picture to its end; of anything else only the beginning."""
    body = bytearray()
    content_type = response.headers.get_content_type()
    while data := response.read1(1 << 16):
        body += data
        if content_type.startswith(("multipart/", "video/")) or len(body) > _MAX_BYTES:
            message = f"the server answers with a stream that is not readable here ({content_type})"
            return HttpAnswer(reason="codec", message=message)
        if len(body) >= _PAGE_BYTES and not _is_picture(body):
            break
        if time.monotonic() > end_s:
            raise TimeoutError
    if not _is_picture(body):
        return _no_picture(bytes(body[:_PAGE_BYTES]), content_type)
    fault = "truncated" if response.length else read_header(io.BytesIO(body)).fault
    if fault:
        raise CaptureFailedError(f"the server sent a part of a picture only ({fault})", reason="unknown")
    return HttpAnswer(reason="picture", message="the address gives one picture at a time", body=bytes(body))


def _is_picture(body: bytearray) -> bool:
    """Returns whether these bytes begin a picture that OpenCV decodes, whatever the server calls them."""
    return image_format(bytes(body[:HEAD_BYTES])) in _FORMATS


def _no_picture(head: bytes, content_type: str) -> HttpAnswer:
    """Describes an answer that begins so, by its content before the name that the server gives it."""
    words = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_page = words.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<meta"))
    is_text = content_type.startswith("text/") or content_type.endswith(("json", "xml")) or words[:1] in (b"{", b"<")
    if not words:
        return HttpAnswer(reason="unknown", message="the server answers with nothing")
    if words.startswith(_PLAYLISTS) or not (is_page or is_text):
        return HttpAnswer(reason="codec", message=f"the server answers, but not with a video ({content_type})")
    if any(word in words for word in (b"password", b"login", b"log in", b"sign in", b"unauthori")):
        return HttpAnswer(reason="unauthorised", message="the server answers with a login page, not with a video")
    name = "a web page" if is_page else f"a text ({content_type})"
    return HttpAnswer(reason="not_found", message=f"the server answers with {name}, not with a video")


def _unreached(error: object) -> CaptureFailedError:
    """Translates the errors of Python's client."""
    if isinstance(error, TimeoutError):
        return CaptureFailedError("the server did not answer in time", reason="timeout")
    if isinstance(error, ssl.SSLError):
        return CaptureFailedError(f"the encrypted connection fails: {error.reason}", reason="tls")
    if isinstance(error, ConnectionRefusedError):
        return CaptureFailedError("", reason="refused")
    if isinstance(error, (http.client.HTTPException, ConnectionError)):
        # Its text may hold a part of the answer.
        return CaptureFailedError(f"the server's answer breaks off ({type(error).__name__})", reason="unknown")
    return CaptureFailedError("", reason="unreachable")


def _ffmpeg_options(text: str) -> dict[str, str]:
    pairs = (pair.partition(";") for pair in text.split("|"))
    return {name.strip(): value for name, _, value in pairs}


def _headers(options: dict[str, str]) -> dict[str, str]:
    headers = {}
    for line in options.get("headers", "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().capitalize()] = value.strip()
    return headers


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """Certificates are checked if FFmpeg's options ask for it, as FFmpeg does: cameras sign their own."""
    try:
        context = ssl.create_default_context(cafile=options.get("ca_file") or None)
    except OSError as error:
        raise CaptureFailedError(f"ca_file cannot be read: {error.strerror}", reason="tls", is_final=True) from error
    if options.get("tls_verify", "0") in ("", "0"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context

"""The one parser of source specifications: from what a user types to the kind of source that it names."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

from edgerpn.errors import StreamOpenError
from edgerpn.files import expand_path, printable
from edgerpn.runtime.addresses import find_fault, show_faulty
from edgerpn.runtime.redaction import redact, redact_url

SourceKind = Literal["camera", "csi", "url", "pipeline", "path", "plugin"]

URL_SCHEMES = ("http", "https", "rtmp", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
"""Schemes that FFmpeg and GStreamer read as streams."""
PLUGIN_GROUP = "edgerpn.sources"
"""Group of the entry points by which other packages add schemes."""

# This machine may listen for these, without a host; none of them has a port of its own.
_DATAGRAMS = ("rtp", "srt", "tcp", "udp")
_DEFAULT_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935}
_SPEC = re.compile(
    r"(?P<camera>\d+|/dev/(?:video\d+|v4l/.+))"
    r"|(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?s:.*)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSpec:
    """A source as a user names it; nothing has been opened."""

    kind: SourceKind
    """camera: Video4Linux; csi: camera of a Jetson; url: stream; pipeline: GStreamer; path: file, folder or glob;
    plugin: a URL that another package reads."""
    text: str = field(repr=False)
    """The specification as typed; it may hold a password."""
    scheme: str = ""
    """Scheme of a URL, lower case; empty: not a URL."""

    @property
    def is_live(self) -> bool:
        """Whether a process of its own captures it: everything but files."""
        return self.kind != "path"

    @property
    def is_rtsp(self) -> bool:
        """Whether it is an RTSP stream, encrypted or not."""
        return self.scheme in ("rtsp", "rtsps")

    @property
    def is_http(self) -> bool:
        """Whether it is read over HTTP, encrypted or not."""
        return self.scheme in ("http", "https")

    @property
    def has_clock(self) -> bool:
        """Whether the times in the stream are the camera's, as those of RTSP and of plugins are.

        The decoder makes up many others: FFmpeg numbers the pictures of Motion JPEG over HTTP at 25 a second, whatever
        their rate, so that a lag computed from them would grow without end.
        """
        return self.is_rtsp or self.kind == "plugin"

    @property
    def shown(self) -> str:
        """The specification without passwords, as text that every file and terminal takes."""
        return printable(redact(self.text) if self.kind == "pipeline" else redact_url(self.text))

    @property
    def path(self) -> str:
        """The file system path of a file, a folder or a glob; file:// URLs are decoded."""
        return _path_of_url(self.text) if self.scheme == "file" else self.text

    @property
    def device(self) -> str:
        """The device file of a camera."""
        return f"/dev/video{self.text}" if self.text.isdecimal() else self.text

    def address(self) -> tuple[str, int]:
        """Host and port of a URL.

        Raises:
            ValueError: The URL does not name a usable host and port; the message may hold a part of a password.
        """
        parts = urlsplit(self.text)
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(self.scheme)
        if not host or not port:
            raise ValueError("the URL has no host or no port")
        return host, port


def parse_source(text: str) -> SourceSpec:
    """Recognises a source by its text. An existing file wins over every other reading; nothing else is looked for.

    Args:
        text: A camera index, /dev/videoN or /dev/v4l/...; csi://N; a URL; a GStreamer pipeline (a text with " ! ");
            or a file, a folder or a glob.

    Raises:
        StreamOpenError: The text is empty, a URL of an unknown scheme, or one whose host, port or credentials cannot be
            read; the message holds no password.
    """
    if not text.strip():
        raise StreamOpenError("source: expected a file, folder, camera, URL or GStreamer pipeline, got nothing")
    if "\0" in text:
        raise StreamOpenError(f"{show_faulty(text)!r}: no path and no address holds a NUL character")
    if re.search("[\ud800-\udc7f\udd00-\udfff]", text):
        raise StreamOpenError(f"{show_faulty(text)!r}: no path and no address holds half of a surrogate pair")
    found = _SPEC.fullmatch(text)
    if (found is None and " ! " not in text) or _is_file_here(text):
        return SourceSpec(kind="path", text=text)
    if found is None or " ! " in text:
        return SourceSpec(kind="pipeline", text=text)
    if found["camera"]:
        return SourceSpec(kind="camera", text=text)
    scheme = found["scheme"].lower()
    if scheme == "csi" and not re.fullmatch(r"\d+", text.partition("://")[2]):
        raise StreamOpenError(f"{redact_url(text)}: expected csi:// and the sensor's number, such as csi://0")
    kind = _kind_of_scheme(scheme, text)
    if scheme == "file" and not _path_of_url(text).startswith("/"):
        raise StreamOpenError(f"{redact_url(text)}: expected file:// and an absolute path, such as file:///tmp/a.mp4")
    if kind == "url" and (fault := _fault(scheme, text)):
        raise StreamOpenError(f"{show_faulty(text)}: {fault}")
    return SourceSpec(kind=kind, text=text, scheme=scheme)


def expand_source(text: str) -> str:
    """A source of the settings with ~ and $VARIABLES of a path expanded; an existing path, or another source, as it is.

    Raises:
        ValueError: See `expand_path`.
    """
    try:
        spec = parse_source(text)
    except StreamOpenError:
        # Its user gets the error of the whole source.
        return text
    is_plain = spec.kind != "path" or spec.scheme or os.path.exists(text)
    return text if is_plain else expand_path(text)


def _is_file_here(text: str) -> bool:
    try:
        return _is_file(text, os.getcwd())
    except FileNotFoundError:
        # The current folder was removed.
        return False


# Specifications are parsed for every frame, and must not change their meaning, or wait for a disk, during a run.
@lru_cache(maxsize=1024)
def _is_file(text: str, folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, text))


def _path_of_url(url: str) -> str:
    """Returns the path of a file:// URL; ? and # belong to it, because no file has a query."""
    path = url.partition("://")[2]
    path = path.removeprefix("localhost") if path.startswith("localhost/") else path
    try:
        return os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    except UnicodeEncodeError:
        # No file has such a name.
        return path


def _fault(scheme: str, text: str) -> str:
    is_datagram = scheme in _DATAGRAMS
    return find_fault(text, needs_host=not is_datagram, needs_port=is_datagram)


def _kind_of_scheme(scheme: str, text: str) -> SourceKind:
    if scheme == "file":
        return "path"
    if scheme == "csi":
        return "csi"
    if scheme in URL_SCHEMES:
        return "url"
    if find_plugin(scheme) is not None:
        return "plugin"
    known = ", ".join(("csi", "file", *URL_SCHEMES, *plugin_schemes()))
    raise StreamOpenError(f"{redact_url(text)}: unknown URL scheme {scheme!r}; known: {known}")


def find_plugin(scheme: str) -> EntryPoint | None:
    """Returns the entry point of another package for a scheme (lower case), or None; the package is not imported."""
    return next((entry for entry in _plugins(tuple(sys.path)) if entry.name.lower() == scheme), None)


def plugin_schemes() -> tuple[str, ...]:
    """Returns the schemes that other packages add, in alphabetical order."""
    return tuple(sorted({entry.name.lower() for entry in _plugins(tuple(sys.path))}))


# Reading the metadata of all packages takes tens of milliseconds, and specifications are parsed often.
@lru_cache(maxsize=4)
def _plugins(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=PLUGIN_GROUP))

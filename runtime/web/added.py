"""Which sources may be added by HTTP: cameras and URLs to connect to, never files, pipelines, decoders or listeners."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from edgerpn.errors import ConfigError
from edgerpn.runtime.sources.spec import parse_source

KINDS = ("camera", "csi", "url")
"""Kinds of sources that may be added; files and GStreamer pipelines can read, and pipelines write, anything."""
SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "srt")
"""URLs that may be added: for the others, such as udp and tcp, this machine may wait for whoever sends."""
KEYS = (
    "name", "source", "policy", "queue_frames", "max_fps", "max_age_ms", "gap_s", "stall_s", "open_timeout_s",
    "backoff_first_s", "backoff_max_s", "healthy_s", "size_wh", "rate_hz", "pixel_format", "transport",
)  # fmt: skip
"""Settings that may be given; the others reach into decoders or memory."""
MAX_NAME = 100
"""Characters of a name at most."""

# Both FFmpeg and GStreamer look for options behind the first "?", whatever stands between; RTMP's come after blanks.
_LISTEN = re.compile(r"[?&;#\s]listen\b", re.IGNORECASE)
_MODE = re.compile(r"[?&;#\s]mode=(?!caller(?:[&;#\s]|$))", re.IGNORECASE)


def check_added(table: Mapping[str, Any]) -> None:
    """Makes sure that a table from the network asks for nothing but a camera or a stream.

    Raises:
        ConfigError: It asks for more, or lacks its source.
        StreamOpenError: The source is a text that names nothing.
    """
    problems = [
        f"{key}: unknown, or not to be set by HTTP; known: {', '.join(KEYS)}" for key in table if key not in KEYS
    ]
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
    """What would have this machine listen, instead of connect to a camera."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return ["source: expected a URL with a host and a port"]
    if parts.scheme not in SCHEMES:
        return [f"source: {parts.scheme} cannot be added by HTTP; known: {', '.join(SCHEMES)}"]
    if not host:
        return ["source: expected a URL with a host; without one this machine may be the one that is called"]
    text = unquote(url)
    if parts.scheme in ("rtmp", "srt", "rtsp", "rtsps") and _LISTEN.search(text):
        return ["source: a URL that has this machine listen cannot be added by HTTP: take out listen"]
    if parts.scheme == "srt" and _MODE.search(text):
        return ["source: only mode=caller can be added by HTTP"]
    return []

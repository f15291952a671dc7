"""Which sources may be added by HTTP: cameras and URLs, never files, pipelines or options of decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgerpn.errors import ConfigError
from edgerpn.runtime.capture.config import source_kind

KINDS = ("camera", "csi", "url")
"""Kinds of sources that may be added; files and GStreamer pipelines can read, and pipelines write, anything."""
KEYS = (
    "name", "source", "policy", "queue_frames", "max_fps", "max_age_ms", "gap_s", "stall_s", "open_timeout_s",
    "backoff_first_s", "backoff_max_s", "healthy_s", "size_wh", "rate_hz", "pixel_format", "transport", "decoder",
)  # fmt: skip
"""Settings that may be given; the others reach into decoders or memory."""
MAX_NAME = 100
"""Characters of a name at most."""


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
    elif source_kind(source) not in KINDS or (source_kind(source) == "camera" and ".." in source):
        problems.append(
            "source: expected a camera (number or /dev/videoN), csi://N or a URL; files and pipelines cannot "
            "be added by HTTP"
        )
    if problems:
        raise ConfigError(problems)

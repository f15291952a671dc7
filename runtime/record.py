"""The JSON lines: one record for each frame, and one for each event in between.

    {"schema": 1, "type": "frame", "source": "cars.mp4", "frame": 7, "media_time_s": 0.56,
     "captured_at": "2026-01-31T12:00:00.123456Z", "age_ms": 31.2, "width": 768, "height": 432,
     "stage_ms": {"decode": 0.9, "preprocess": 0.3, "inference": 24.1, "postprocess": 0.1},
     "proposals": [[x1, y1, x2, y2, score], ...]}
    {"schema": 1, "type": "event", "event": "error", "source": "photos", "captured_at": "...",
     "message": "photos/b.jpg: this file is empty", "path": "photos/b.jpg"}

Boxes are in pixels of the frame, rounded to 0.01; scores to 0.0001; `path` is there for images only.
"""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from typing import Any

import numpy as np

from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Event, Result

SCHEMA = 1
"""Schema number of the records."""


def frame_record(result: Result) -> dict[str, Any]:
    """The record of one result; `age_ms` is the time from capture until now."""
    frame = result.frame
    height, width = frame.image.shape[:2]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "type": "frame",
        "source": frame.source,
        "frame": frame.index,
        "media_time_s": None if frame.media_time_s is None else round(frame.media_time_s, 6),
        "captured_at": iso_utc(frame.captured_at),
        "age_ms": round((time.monotonic() - frame.monotonic_s) * 1e3, 3),
        "width": width,
        "height": height,
        "stage_ms": {stage: round(duration_ms, 3) for stage, duration_ms in result.stage_ms.items()},
        "proposals": proposal_rows(result.proposals),
    }
    if frame.path is not None:
        record["path"] = str(frame.path)
    return record


def event_record(event: Event) -> dict[str, Any]:
    """The record of one event."""
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "type": "event",
        "event": event.kind,
        "source": event.source,
        "captured_at": iso_utc(event.captured_at),
        "message": event.message,
    }
    if event.path is not None:
        record["path"] = str(event.path)
    return record


def json_line(item: Result | Event) -> bytes:
    """The record of a result or an event as one line of JSON, ASCII, with its line end."""
    record = frame_record(item) if isinstance(item, Result) else event_record(item)
    # allow_nan: Python would write NaN, which is not JSON; a box that is not finite is an error to be seen.
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def proposal_rows(proposals: Proposals) -> list[list[float]]:
    """[x1, y1, x2, y2, score] of each box, rounded."""
    # In float64, because a rounded float32 prints with all its digits again.
    rows = np.empty((len(proposals), 5), np.float64)
    np.round(proposals.boxes.astype(np.float64), 2, out=rows[:, :4])
    np.round(proposals.scores.astype(np.float64), 4, out=rows[:, 4])
    return rows.tolist()


def iso_utc(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, with microseconds."""
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")

"""Records as JSON lines: one for each result, and one for each event.

    {"schema": 2, "type": "frame", "source": "door", "frame": 7, "media_time_s": 0.56,
     "captured_at": "2026-01-31T12:00:00.123456Z", "age_ms": 31.2, "width": 768, "height": 432,
     "dropped": 0, "skipped": 0,
     "stage_ms": {"capture_lag": 2.0, "decode": 0.9, "wait": 1.1, "preprocess": 0.3, "inference": 24.1,
                  "postprocess": 0.1},
     "proposals": [[x1, y1, x2, y2, score], ...],
     "tracks": [{"track_id": 3, "age_s": 4.12, "dwell_s": 0.6, "is_confirmed": true}, null, ...]}
    {"schema": 2, "type": "event", "event": "reconnecting", "source": "door", "happened_at": "...",
     "message": "door: the connection is refused; next attempt in 1.8 s", "reason": "refused",
     "fix": "Check the port, and whether the camera's server is enabled.", "attempt": 2, "delay_s": 1.8}

Boxes are in pixels of the frame, rounded to 0.01; scores to 0.0001. With `embeddings` a text for each proposal follows:
its embedding as base64 of little-endian float32. Only records of a model with classes have `labels`, the name of each
proposal's class, and `class_scores`, the probability of that class; only those of images `path`, only those of sources
with zones `zones`, and only those of a run with tracks `tracks`, one entry for each proposal; an event has only the
fields that apply to it. `record.schema.json` beside this file is the JSON Schema of both.
"""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Event, Frame, Result, Track

SCHEMA = 2
"""Schema number of the records."""

_DETAILS = ("fix", "attempt", "delay_s", "duration_s", "fps", "num_frames", "decoder", "zone")


def record_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of one record."""
    return json.loads(_schema_text())


def frame_record(result: Result, *, has_embeddings: bool = False) -> dict[str, Any]:
    """Makes the record of one result; `age_ms` is its age at emission, or now if it has not been emitted."""
    frame = result.frame
    age_ms = frame.age_ms(time.monotonic()) if result.age_ms is None else result.age_ms
    record: dict[str, Any] = {
        **frame_head(frame, "frame", age_ms),
        "dropped": frame.num_dropped,
        "skipped": frame.num_skipped,
        "stage_ms": {stage: round(duration_ms, 3) for stage, duration_ms in result.stage_ms.items()},
        "proposals": proposal_rows(result.proposals),
    }
    names, class_scores = result.proposals.names, result.proposals.class_scores
    if names is not None and class_scores is not None:
        record["labels"] = list(names)
        record["class_scores"] = np.round(class_scores.astype(np.float64), 4).tolist()
    if has_embeddings and result.proposals.embeddings is not None:
        import base64  # late: most runs do not write embeddings

        rows = result.proposals.embeddings.astype("<f4")
        record["embeddings"] = [base64.b64encode(row.tobytes()).decode("ascii") for row in rows]
    zones = result.zones
    if zones is not None:
        record["zones"] = zones
    if result.tracks is not None:
        record["tracks"] = [track and track_fields(track) for track in result.tracks]
    if frame.path is not None:
        record["path"] = str(frame.path)
    return record


def frame_head(frame: Frame, kind: str, age_ms: float) -> dict[str, Any]:
    """Returns the fields with which every record of a frame begins; `kind` becomes its `type`."""
    height, width = frame.size_hw
    return {
        "schema": SCHEMA,
        "type": kind,
        "source": frame.source,
        "frame": frame.index,
        "media_time_s": None if frame.media_time_s is None else round(frame.media_time_s, 6),
        "captured_at": iso_utc(frame.captured_at),
        "age_ms": round(age_ms, 3),
        "width": width,
        "height": height,
    }


def event_record(event: Event) -> dict[str, Any]:
    """Makes the record of one event, with the fields that apply."""
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "type": "event",
        "event": event.kind,
        "source": event.source,
        "happened_at": iso_utc(event.happened_at),
        "message": event.message,
        "reason": event.reason,
    }
    for name in _DETAILS:
        value = getattr(event, name)
        if value:
            record[name] = round(value, 3) if isinstance(value, float) else value
    if event.size_wh is not None:
        record["width"], record["height"] = event.size_wh
    if event.frame is not None:
        record["frame"] = event.frame
    if event.age_ms is not None:
        record["age_ms"] = round(event.age_ms, 3)
    if event.track is not None:
        record["track"] = track_fields(event.track)
    if event.box_xyxy is not None:
        record["box"] = [round(value, 2) for value in event.box_xyxy]
    if event.zones:
        record["zones"] = event.zones
    if event.path is not None:
        record["path"] = str(event.path)
    return record


def track_fields(track: Track) -> dict[str, Any]:
    """Returns a track as it stands in records; `label` only where the model has classes."""
    return {
        **({"label": track.label} if track.label else {}),
        "track_id": track.track_id,
        "age_s": round(track.age_s, 3),
        "dwell_s": round(track.dwell_s, 3),
        "is_confirmed": track.is_confirmed,
    }


def json_line(item: Result | Event, *, has_embeddings: bool = False) -> bytes:
    """Makes the record of a result or an event: one line of JSON, ASCII, with its line end."""
    record = frame_record(item, has_embeddings=has_embeddings) if isinstance(item, Result) else event_record(item)
    # allow_nan: NaN is not JSON, and a box that is not finite is an error that should be seen.
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def proposal_rows(proposals: Proposals) -> list[list[float]]:
    """Returns [x1, y1, x2, y2, score] of each box, rounded."""
    # In float64, because a rounded float32 prints with all its digits.
    rows = np.empty((len(proposals), 5), np.float64)
    np.round(proposals.boxes.astype(np.float64), 2, out=rows[:, :4])
    np.round(proposals.scores.astype(np.float64), 4, out=rows[:, 4])
    return rows.tolist()


def iso_utc(seconds: float) -> str:
    """Formats seconds since the epoch as ISO 8601 in UTC, with microseconds."""
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


@cache
def _schema_text() -> str:
    return Path(__file__).with_name("record.schema.json").read_text(encoding="utf-8")

"""The results as JSON and Markdown, with the machine that they were measured on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2

from benchmarks.machine import facts
from benchmarks.streams.plan import Part, Plan

_TITLES = {
    "files": "Many sources: throughput and fairness",
    "overload": "Overload: age of results",
    "soak": "Soak: reconnects without end",
    "sinks": "Dead consumers",
}


def about(plan: Plan, video: str, command: str) -> dict[str, Any]:
    """The models and the machine behind the figures."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        **facts("edgerpn", "numpy", "onnxruntime", "supervision", "paho-mqtt", opencv=cv2.__version__),
        "model": plan.model.name,
        "model_sha256": hashlib.sha256(plan.model.read_bytes()).hexdigest(),
        "video": Path(video).name,
        "camera": f"{plan.camera_wh[0]}x{plan.camera_wh[1]}, H.264, RTSP over TCP",
        "bare_fps": round(plan.bare_fps, 1),
    }


def as_json(facts: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """All figures; what is not a number becomes null."""
    found = {
        part.name: {
            "skipped": part.skipped or None,
            "failed": part.failed or None,
            "rows": part.rows,
            "limits": [limit.as_row() for limit in part.limits],
            "notes": part.notes,
            **part.figures,
        }
        for part in parts
    }
    return _finite({"benchmark": "streams", **facts, "parts": found})


def markdown(facts: Mapping[str, Any], parts: Sequence[Part]) -> str:
    """Tables for people."""
    pieces = ["# Streams", "`python -m benchmarks.streams`", *(_section(part) for part in parts)]
    lines = []
    for name, value in facts.items():
        shown = "; ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else value
        lines.append(f"- {name}: {shown}")
    return "\n\n".join([*pieces, "## Measured on", "\n".join(lines)]) + "\n"


def _section(part: Part) -> str:
    title = f"## {_TITLES[part.name]}"
    if part.skipped or part.failed:
        return f"{title}\n\nNot measured: {part.skipped}{part.failed}"
    pieces = [title]
    if part.rows:
        pieces.append(_table(part.rows))
    if part.limits:
        pieces.append(_table([limit.as_row() for limit in part.limits]))
    return "\n\n".join([*pieces, "\n".join(f"- {note}" for note in part.notes)])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a column for each key of any row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The results of `streams.py` as JSON and Markdown, and what they were measured on."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
from streams_plan import Part, Plan

from edgerpn.machine import available_cores

_PACKAGES = ("edgerpn", "numpy", "onnxruntime", "supervision", "paho-mqtt")
_TITLES = {
    "files": "Many sources: throughput and fairness",
    "overload": "Overload: age of results",
    "soak": "Soak: reconnects without end",
    "sinks": "Dead consumers",
}


def about(plan: Plan, video: str, command: str) -> dict[str, Any]:
    """What was measured, and on what."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES} | {"opencv": cv2.__version__},
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
    pieces = ["# Streams", "`benchmarks/streams.py`, see there.", *(_section(part) for part in parts)]
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")

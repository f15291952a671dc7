"""Part `overload`: the age of results of a camera that is faster than the model, beside other readers of streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks.streams.camera import Camera
from benchmarks.streams.plan import Limit, Part, Plan, ages

PEERS = {
    "ours": "edgerpn's StreamRunner",
    "read": "a loop of VideoCapture.read()",
    "supervision": "supervision's get_video_frames_generator, prefetch=8; it has no loader for live streams",
    "ultralytics": "Ultralytics' LoadStreams, buffer=False",
}
_PEER = "benchmarks.streams.peer"
_IDLE_S = 10.0
_START_S = 120.0


def overload(plan: Plan) -> Part:
    """Runs the peers one after the other, each against a camera of its own."""
    fps = plan.rate or round(plan.overload * plan.bare_fps)
    idle = _run(plan, "idle", fps, min(_IDLE_S, plan.overload_s))
    floor_ms = float(np.median(_column(idle["rows"], "age_ms")))
    figures: dict[str, Any] = {"camera_fps": fps, "camera_and_decoder_p50_ms": floor_ms, "seconds": plan.overload_s}
    rows, notes, limits = [], [], []
    for name, what in PEERS.items():
        try:
            found = _run(plan, name, fps, plan.overload_s)
        except PeerError as error:
            notes.append(f"{what}: left out, {error}")
            continue
        row = _row(name, found)
        if name == "ours":
            told_ms, bound = row["told_p99_ms"], 1e3 / fps + row["model_p99_ms"]
            limits = [
                Limit(what="p99 of the age in the records, ms", value=told_ms, sign="<=", bound=bound),
                Limit(what="p99 of the true age, ms", value=row["p99_ms"], sign="<=", bound=bound + floor_ms),
            ]
        rows.append(row)
        notes.append(f"{name}: {what} ({found['version']})")
    notes.append(
        f"The camera takes {fps:g} pictures a second and stamps each before it is encoded. Bounds: one frame period "
        f"and the 99th percentile of the time in the model; of the true age also the {floor_ms:.1f} ms that encoder, "
        "network and decoder take where no model runs (median). first and last minute: medians of the true age. told: "
        "by our records; wait: for the model, one frame period at most; lag: what network and decoder have held a "
        "picture back beyond the quickest ones, which counts as age and is not in the bound."
    )
    return Part(name="overload", rows=rows, limits=limits, notes=notes, figures=figures)


class PeerError(Exception):
    """A peer cannot run here."""


def _run(plan: Plan, name: str, fps: float, seconds: float) -> dict[str, Any]:
    """Runs one peer against a fresh camera, without a backlog."""
    python = sys.executable
    if name == "ultralytics":
        if plan.ultralytics_python is None:
            raise PeerError("--ultralytics-python is not given")
        python = str(plan.ultralytics_python)
    out = plan.folder / f"peer-{name}.json"
    with Camera(plan.pictures, plan.camera_wh, fps) as camera:
        words = [python, "-m", _PEER, name, "--url", camera.url, "--model", str(plan.model)]
        try:
            done = subprocess.run(
                [*words, "--seconds", str(seconds), "--out", str(out)],
                # Ultralytics: no network, and no settings in the user's folders.
                env={**os.environ, "YOLO_OFFLINE": "True", "YOLO_CONFIG_DIR": str(plan.folder)},
                capture_output=True, text=True, timeout=seconds + _START_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(str(error)) from error
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        raise PeerError(lines[-1] if lines else f"it ended with {done.returncode}")
    found = json.loads(out.read_text(encoding="ascii"))
    if not found["rows"]:
        raise PeerError(f"no picture came; {lines[-1] if lines else ''}")
    return found


def _row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """True ages of one reader, and the 99th percentile of all other figures of its results."""
    rows = found["rows"]
    times_s = _column(rows, "time_s")
    row: dict[str, Any] = {"reader": name, **ages(times_s, _column(rows, "age_ms"))}
    for figure in (name for name in rows[0] if name not in ("time_s", "age_ms")):
        row[f"{figure.removesuffix('_ms')}_p99_ms"] = float(np.percentile(_column(rows, figure), 99))
    return row | {"damaged": found["damaged"], "lasted_s": times_s[-1] - times_s[0]}


def _column(rows: list[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows]

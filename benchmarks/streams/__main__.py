"""Many streams through one model: rates, fairness, ages under overload, leaks, and dead consumers. Linux only.

    python -m benchmarks.streams --model model.onnx --source video.mp4 [--only files,overload,soak,sinks]
                                 [--ultralytics-python PATH] [--out results/streams_HARDWARE_DATE.json]

The parts, each in one run on one machine:

    files      1, 4 and 8 copies of the video at once, then as many connections to an RTSP camera: results per second
               over those of the bare model in a loop (files: 0.9 at least), the slowest source over the fastest (0.9)
    overload   an RTSP camera that is faster than the model: true age of results, by a stamp in the picture, beside a
               loop of VideoCapture.read(), supervision's generator and Ultralytics' loader; ours may be one frame
               period and one inference old at the 99th percentile
    soak       `edgerpn run` on an RTSP camera that is killed every 20 s: memory, descriptors, threads and shared memory
               of all processes must not grow
    sinks      a dead consumer on every kind of output: results per second over those without it (0.95)

RTSP needs PyGObject and GStreamer's RTSP server library for /usr/bin/python3, MQTT needs mosquitto, and ffmpeg repeats
the video; the report names the missing ones. Ultralytics (AGPL) is never imported here: name the Python of an
environment of its own, in which this package can be imported, too. --out also writes the table beside the JSON, as .md.

All parts take about 55 minutes. Exit status 1 when a limit is broken, a part failed, or nothing was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2

from benchmarks.machine import facts
from benchmarks.streams.camera import make_pictures, why_not
from benchmarks.streams.files import bare_fps, files
from benchmarks.streams.overload import overload
from benchmarks.streams.plan import Part, Plan
from benchmarks.streams.sinks import sinks
from benchmarks.streams.soak import soak
from edgerpn.errors import EdgeRpnError
from edgerpn.files import write_text

PARTS: dict[str, Callable[[Plan], Part]] = {"files": files, "overload": overload, "soak": soak, "sinks": sinks}
NEED_CAMERA = ("overload", "soak")
_ROOM = 1.5
_TITLES = {
    "files": "Many sources: throughput and fairness",
    "overload": "Overload: age of results",
    "soak": "Soak: reconnects without end",
    "sinks": "Dead consumers",
}


def main() -> int:
    """Measures, writes and prints the tables; returns the exit status."""
    options = _options()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="edgerpn-streams-") as folder:
        plan = _plan(options, Path(folder))
        parts = [_run(plan, name) for name in PARTS if name in options.only]
    words = [f"--{name.replace('_', '-')} {value}" for name, value in _given(options).items()]
    facts = about(plan, options.source, " ".join(["python -m benchmarks.streams", *words]))
    text = markdown(facts, parts)
    print(text)
    if options.out:
        write_text(options.out, json.dumps(as_json(facts, parts), indent=2) + "\n")
        write_text(options.out.with_suffix(".md"), text)
    return exit_status(parts)


def exit_status(parts: Sequence[Part]) -> int:
    """1 if a limit is broken, a part failed, or there is no limit at all; else 0."""
    limits = [limit for part in parts for limit in part.limits]
    is_good = limits and all(limit.holds for limit in limits) and not any(part.failed for part in parts)
    return 0 if is_good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="exported model.onnx")
    add("--source", required=True, help="video file")
    add("--only", type=_names, default=tuple(PARTS), help=f"some of {','.join(PARTS)} (all)")
    add("--out", type=Path, help="JSON file for the results; the table goes beside it, as .md")
    add("--sources", type=int, nargs="+", default=[1, 4, 8], help="files: numbers of sources (1 4 8)")
    add("--seconds", type=float, default=10.0, help="files, sinks: length of each measurement (10)")
    add("--rounds", type=int, default=5, help="files, sinks: rounds of each (5)")
    add("--outputs", metavar="TEXT", default="", help="sinks: only outputs whose name holds this, such as mqtt (all)")
    add("--source-fps", type=float, default=25.0, help="files: pictures per second of each RTSP source (25)")
    add("--camera-size", default="640x360", help="picture of the RTSP camera, WIDTHxHEIGHT (640x360)")
    add(
        "--rate",
        type=float,
        default=0.0,
        help="overload: pictures/s; 0: --overload times the bare model's (0)",
    )
    add("--overload", type=float, default=1.25, help="overload: see --rate (1.25)")
    add("--overload-seconds", type=float, default=300.0, help="overload: length for each reader (300)")
    add("--ultralytics-python", type=Path, help="overload: Python with Ultralytics and this package")
    add("--soak-seconds", type=float, default=1200.0, help="soak: length (1200)")
    add("--cycle-seconds", type=float, default=20.0, help="soak: from one death of the camera to the next (20)")
    add("--warm-up-seconds", type=float, default=120.0, help="soak: start that does not count (120)")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    return names


def _given(options: argparse.Namespace) -> dict[str, str]:
    """Returns the options for the report, without the folders of this machine."""
    given = {name: value for name, value in vars(options).items() if value not in (None, "") and name != "out"}
    shown = {"model": "MODEL", "source": "VIDEO", "ultralytics_python": "PYTHON", "only": ",".join(options.only)}
    shown["sources"] = " ".join(map(str, options.sources))
    return {name: shown.get(name, shlex.quote(str(value))) for name, value in given.items()}


def _plan(options: argparse.Namespace, folder: Path) -> Plan:
    width, _, height = options.camera_size.partition("x")
    camera_wh = (int(width), int(height))
    plan = Plan(
        model=options.model, video=options.source, folder=folder, bare_fps=0.0, no_camera=why_not(),
        pictures=make_pictures(options.source, folder, camera_wh), camera_wh=camera_wh, numbers=options.sources,
        rounds=options.rounds, seconds=options.seconds, source_fps=options.source_fps, rate=options.rate,
        overload=options.overload, overload_s=options.overload_seconds, soak_s=options.soak_seconds,
        cycle_s=options.cycle_seconds, warm_up_s=options.warm_up_seconds,
        ultralytics_python=options.ultralytics_python, outputs=options.outputs,
    )  # fmt: skip
    fps = bare_fps(plan)
    # For the part `sinks`, the longest run over the file.
    num_frames = round(fps * _ROOM * (plan.seconds + 2) * plan.rounds)
    return dataclasses.replace(plan, bare_fps=fps, video=repeated(options.source, num_frames, folder))


def repeated(video: str, num_frames: int, folder: Path) -> str:
    """A video of so many frames or more, by repeating one; the same where that cannot be done."""
    capture = cv2.VideoCapture(video)
    there = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    ffmpeg = shutil.which("ffmpeg")
    if there >= num_frames or there <= 0 or ffmpeg is None:
        return video
    path = folder / f"repeated{Path(video).suffix}"
    times = -(-num_frames // there) - 1
    words = [ffmpeg, "-v", "error", "-nostdin", "-stream_loop", str(times), "-i", video, "-map", "0:v:0", "-c", "copy"]
    done = subprocess.run([*words, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{video}: ffmpeg cannot repeat it: {done.stderr.strip()}")
    return str(path)


def _run(plan: Plan, name: str) -> Part:
    if name in NEED_CAMERA and plan.no_camera:
        return Part(name=name, rows=[], limits=[], notes=[], skipped=plan.no_camera)
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        return PARTS[name](plan)
    except (EdgeRpnError, OSError, RuntimeError) as error:
        # The other parts took long; their results must not be lost.
        traceback.print_exc()
        return Part(name=name, rows=[], limits=[], notes=[], failed=f"{type(error).__name__}: {error}")


def about(plan: Plan, video: str, command: str) -> dict[str, Any]:
    """Returns the models and the machine behind the figures."""
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
    """Returns a table with a column for each key of any row."""
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
    """Replaces NaN by None, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())

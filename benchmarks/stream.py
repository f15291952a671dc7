"""Frames per second of `edgerpn run` on a file over those of the bare model in a loop.

    python -m benchmarks.stream --model model.onnx [--source FILE] [--frames N] [--out results.json]

Both are measured in one process, in alternating rounds, so that a busy or throttling machine hits them alike:

    bare       `InferenceSession.run` on one ready frame, with ONNX Runtime's default options
    tuned      the same with the runtime's own session options (no spinning threads)
    pipeline   `edgerpn run MODEL SOURCE --jsonl FILE`: decode, letterbox, inference, JSON lines; a new session for
               each round, whose loading is not counted, while its slower first frames are

The ratio of a round is pipeline over the faster of bare and tuned. Exit status 1 when the median is below 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np

from benchmarks.inference import bare_calls
from benchmarks.machine import facts
from edgerpn.files import write_text
from edgerpn.runtime import cli

LIMIT = 0.9
WARM_UP_RUNS = 5


def main() -> int:
    """Measures, prints a table, and returns the exit status."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or _synthetic_video(Path(folder) / "synthetic.mp4", options.frames)
        rounds = []
        for number in range(options.rounds):
            rounds.append(_round(options.model, source, options.frames, Path(folder) / "out.jsonl"))
            row = "  ".join(f"{name} {value:.2f}" for name, value in rounds[-1].items())
            print(f"round {number + 1}: {row}", flush=True)
    ratios = [item["ratio"] for item in rounds]
    median = statistics.median(ratios)
    print(f"pipeline / bare model: median {median:.3f}, {min(ratios):.3f} to {max(ratios):.3f}; limit {LIMIT}")
    if options.out:
        report = {
            "benchmark": "stream",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": "edgerpn run MODEL SOURCE --jsonl FILE",
            "model": options.model.name,
            "source": Path(source).name if options.source else "synthetic 1280x720",
            "frames": options.frames,
            "machine": facts("edgerpn", "numpy", "onnxruntime", opencv=cv2.__version__),
            "rounds": rounds,
            "ratio": {"median": median, "min": min(ratios), "max": max(ratios), "limit": LIMIT},
        }
        write_text(options.out, json.dumps(report, indent=2) + "\n")
    return 0 if median >= LIMIT else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="exported model.onnx")
    parser.add_argument("--source", help="video file (a synthetic one when left out)")
    parser.add_argument("--frames", type=int, default=150, help="frames of each measurement (150)")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (5)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


def _round(model: Path, source: str | Path, frames: int, jsonl: Path) -> dict[str, float]:
    """Frames per second of each way, and the ratio."""
    speeds = {name: _loop_fps(call, frames, batch) for name, call, batch in bare_calls(model)}
    speeds["pipeline"] = _pipeline_fps(model, source, frames, jsonl)
    return {**speeds, "ratio": speeds["pipeline"] / max(speeds["bare"], speeds["tuned"])}


def _loop_fps(call: Callable[[], object], frames: int, batch: int) -> float:
    for _ in range(WARM_UP_RUNS):
        call()
    calls = -(-frames // batch)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return calls * batch / (time.perf_counter() - start)


def _pipeline_fps(model: Path, source: str | Path, frames: int, jsonl: Path) -> float:
    """The command's own figure, from the first read to the closed file."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    arguments = parser.parse_args(
        [os.fspath(model), str(source), "--jsonl", str(jsonl), "--max-frames", str(frames), "--provider", "cpu"]
    )
    summary = cli.run_sources(arguments, cli.load_config(arguments))
    num_lines = jsonl.read_bytes().count(b"\n")
    if not summary.num_frames or num_lines < summary.num_frames:
        raise SystemExit(f"{source}: {summary.num_frames} frames, but {num_lines} lines of JSON")
    return summary.fps


def _synthetic_video(path: Path, frames: int) -> Path:
    """1280x720 with moving shapes on a textured ground, as hard to decode as plain footage."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (1280, 720))
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(40, 200, (90, 160, 3), dtype=np.uint8), (1280, 720))
    for index in range(frames):
        picture = ground.copy()
        for shape in range(12):
            x, y = (100 * shape + (3 + shape) * index) % 1200, 50 * shape + 20
            cv2.rectangle(picture, (x, y), (x + 80, y + 60), (20 * shape, 255 - 20 * shape, 128), -1)
        writer.write(picture)
    writer.release()
    return path


if __name__ == "__main__":
    sys.exit(main())

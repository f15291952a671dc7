"""Many streams through one model: throughput and fairness over files, and ages under overload.

    python benchmarks/streams.py --model model.onnx [--source FILE] [--sources 1 4 8] [--seconds N] [--out results.json]

All figures are of one run on one machine:

    bare       `InferenceSession.run` on one ready frame in a loop, as in benchmarks/stream.py: the faster of ONNX
               Runtime's default options and the runtime's own
    files      N copies of the file at once through `edgerpn.runtime.streams`: aggregate results per second, from the
               first result on, while all sources give frames; over `bare`
    fairness   results of the slowest source over those of the fastest, in the same time
    overload   the file served as Motion JPEG over HTTP at `--rate` frames per second, faster than the model: age at
               emission, beside a loop of `VideoCapture.read()` and the same model, where age is counted from the moment
               the camera has sent the frame

Exit status 1 when a ratio or a fairness is below 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from edgerpn.files import write_text
from edgerpn.runtime import Model, load
from edgerpn.runtime.backend import available_cores
from edgerpn.runtime.frame import Result
from edgerpn.runtime.streams import SourceConfig, StreamRunner, StreamsConfig

LIMIT = 0.9
WARM_UP_RUNS = 5
SETTLE_S = 2.0
"""Seconds of an overload that do not count: what waited while the decoder started."""


def main() -> int:
    """Measures, prints a table, and returns the exit status."""
    options = _options()
    cv2.setNumThreads(1)
    rows = []
    for number in options.sources:
        for _ in range(options.rounds):
            row = _measure_files(options.model, options.source, number, options.seconds)
            rows.append(row)
            print("  ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
    report: dict[str, Any] = {
        "benchmark": "streams",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cores": available_cores(),
        "files": rows,
    }
    if options.rate:
        report["overload"] = _measure_overload(options)
        for name, ages in report["overload"].items():
            print(f"overload {name}: " + "  ".join(f"{key} {value:.4g}" for key, value in ages.items()), flush=True)
    if options.out:
        write_text(options.out, json.dumps(report, indent=2) + "\n")
    medians = {
        key: min(statistics.median(row[key] for row in rows if row["sources"] == number) for number in options.sources)
        for key in ("ratio", "fairness")
    }
    print(f"worst median: ratio {medians['ratio']:.3f}, fairness {medians['fairness']:.3f}; limit {LIMIT}")
    return 0 if min(medians.values()) >= LIMIT else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="exported model.onnx")
    parser.add_argument("--source", required=True, help="video file")
    parser.add_argument("--sources", type=int, nargs="+", default=[1, 4, 8], help="numbers of sources (1 4 8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement (10)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (3)")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="frames per second of the overload; 0: leave it out (0)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


def _measure_files(path: Path, source: str, number: int, seconds: float) -> dict[str, float]:
    bare = _bare_fps(path, seconds / 2)
    sources = tuple(SourceConfig(source=source, name=f"source{i}") for i in range(number))
    with load(path, providers=["cpu"], threads=max(1, available_cores() - 1)) as model:
        counts, elapsed_s = _count_results(model, sources, seconds)
    fps = sum(counts.values()) / elapsed_s
    return {
        "sources": number,
        "bare": bare,
        "fps": fps,
        "ratio": fps / bare,
        "fairness": min(counts.values()) / max(counts.values()) if len(counts) == number else 0.0,
    }


def _count_results(model: Model, sources: tuple[SourceConfig, ...], seconds: float) -> tuple[Counter[str], float]:
    """Results of each source in the time in which all give frames."""
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    start_s = 0.0
    with StreamRunner(model, StreamsConfig(sources=sources)) as runner:
        for item in runner:
            if isinstance(item, Result):
                seen.add(item.frame.source)
                if len(seen) == len(sources):
                    start_s = start_s or time.perf_counter()
                    counts[item.frame.source] += 1
            elif item.kind == "ended" or (start_s and time.perf_counter() - start_s >= seconds):
                break
            if start_s and time.perf_counter() - start_s >= seconds:
                break
        return counts, time.perf_counter() - start_s


def _bare_fps(path: Path, seconds: float) -> float:
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with load(path, providers=["cpu"]) as model:
        hw, batch = model.manifest.input.frame_hw, model.manifest.input.batch or 1
        ready = np.random.default_rng(0).integers(0, 256, (batch, *hw, 3), dtype=np.uint8)
        default = _loop_fps(lambda: session.run(None, {name: ready}), seconds / 2, batch)
        return max(default, _loop_fps(lambda: model.backend.infer(ready), seconds / 2, batch))


def _loop_fps(call: Any, seconds: float, batch: int) -> float:
    for _ in range(WARM_UP_RUNS):
        call()
    start_s, number = time.perf_counter(), 0
    while time.perf_counter() - start_s < seconds:
        call()
        number += batch
    return number / (time.perf_counter() - start_s)


class _Camera:
    """Serves pictures of a file over and over, and writes their number into the first pixels."""

    def __init__(self, source: str, rate: float) -> None:
        self.rate = rate
        self.sent_s: dict[int, float] = {}
        capture = cv2.VideoCapture(source)
        self._pictures = [capture.read()[1] for _ in range(25)]
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=edge")
                self.end_headers()
                try:
                    camera.serve(self.wfile)
                except OSError:
                    self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def serve(self, out: Any) -> None:
        """Sends pictures by the clock; one that cannot be sent in time holds up the next, as in a real camera."""
        index, due_s = 0, time.monotonic()
        while True:
            time.sleep(max(0.0, due_s - time.monotonic()))
            due_s = max(due_s + 1 / self.rate, time.monotonic() - 1)
            picture = self._pictures[index % len(self._pictures)].copy()
            for bit in range(16):
                picture[:16, 16 * bit : 16 * bit + 16] = 255 * (index >> bit & 1)
            data = cv2.imencode(".jpg", picture)[1].tobytes()
            self.sent_s[index] = time.monotonic()
            out.write(b"--edge\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n")
            index += 1

    def age_ms(self, picture: Any) -> float:
        """Time since the picture was sent."""
        bits = [int(picture[8, 16 * bit + 8].mean() > 127) << bit for bit in range(16)]
        return (time.monotonic() - self.sent_s[sum(bits)]) * 1e3


def _measure_overload(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    ours: list[float] = []
    told: list[float] = []
    camera = _Camera(options.source, options.rate)
    with load(options.model, providers=["cpu"]) as model:
        config = StreamsConfig(sources=(SourceConfig(source=camera.url, name="camera", max_age_ms=0.0),))
        inference_ms: list[float] = []
        with StreamRunner(model, config) as runner:
            end_s = time.monotonic() + options.seconds + SETTLE_S
            for item in runner:
                if isinstance(item, Result) and time.monotonic() > end_s - options.seconds:
                    ours.append(camera.age_ms(item.image))
                    told.append(item.age_ms or 0.0)
                    inference_ms.append(item.stage_ms["inference"])
                if time.monotonic() > end_s:
                    break
        plain: list[float] = []
        camera = _Camera(options.source, options.rate)
        capture = cv2.VideoCapture(camera.url)
        end_s = time.monotonic() + options.seconds + SETTLE_S
        while time.monotonic() < end_s:
            picture = capture.read()[1]
            model(picture)
            if time.monotonic() > end_s - options.seconds:
                plain.append(camera.age_ms(picture))
        capture.release()
    limit_ms = 1e3 / options.rate + float(np.percentile(inference_ms, 99))
    return {
        "ours": {**_ages(ours), "told_p99_ms": float(np.percentile(told, 99)), "limit_ms": limit_ms},
        "plain read() loop": _ages(plain),
    }


def _ages(ages: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(ages, [50, 99]).tolist()
    return {"results": len(ages), "p50_ms": p50, "p99_ms": p99, "last_ms": ages[-1]}


if __name__ == "__main__":
    sys.exit(main())

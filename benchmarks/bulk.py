"""Measures `edgerpn bulk`: the rate of two workers against one, on the same pictures in turn, and the memory of both.

    python -m benchmarks.bulk --out bulk.json

Each run starts a Ray of its own. Its rate counts from the moment at which every worker has written a part to the last
part, so that the start of Ray and the loading of the model are left out; `whole_s` has them. All runs must write the
same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from benchmarks.machine import facts, usage
from edgerpn.batch import BulkConfig, bulk

SIZE_HW = (384, 640)
PART_ROWS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="general-384x640", help="ONNX file, or an installed model")
    parser.add_argument("--pictures", type=int, default=600, help="made-up photographs")
    parser.add_argument("--rounds", type=int, default=2, help="runs with one worker, and with two")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        paint(photos, arguments.pictures)
        runs = [
            measure(arguments.model, photos, Path(folder) / f"{number}-{workers}", workers)
            for number in range(arguments.rounds)
            for workers in (1, 2)
        ]
        tables = [pq.read_table(path) for path in sorted(Path(folder).glob("*-*"))]
    if any(not table.equals(tables[0]) for table in tables):
        raise SystemExit("the runs wrote different rows")
    rates = {n: statistics.median(run["rate_hz"] for run in runs if run["workers"] == n) for n in (1, 2)}
    result = {
        "ratio": round(rates[2] / rates[1], 3),
        "runs": runs,
        "settings": {"model": arguments.model, "pictures": arguments.pictures, "part_rows": PART_ROWS, "threads": 1},
        **facts("numpy", "onnxruntime", "pyarrow", "ray"),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"two workers / one worker: {result['ratio']}")


def paint(folder: Path, num_pictures: int) -> None:
    """Writes photographs without objects, but with the entropy of real ones, so that decoding costs what it does."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(num_pictures):
        small = generator.integers(0, 256, (SIZE_HW[0] // 8, SIZE_HW[1] // 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), cv2.resize(small, SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC))


def measure(model: str, photos: Path, output: Path, workers: int) -> dict[str, Any]:
    """Runs all pictures; returns the rate, and the memory of a worker and of all processes."""
    start_s, peak_mib, is_over = time.perf_counter(), 0.0, Event()

    def watch() -> None:
        nonlocal peak_mib
        while not is_over.wait(1):
            peak_mib = max(peak_mib, usage(os.getpid()).rss_mib)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        summary = bulk(model, [str(photos)], output, BulkConfig(workers=workers, threads=1, part_rows=PART_ROWS))
    finally:
        is_over.set()
        watcher.join()
    whole_s = time.perf_counter() - start_s
    if summary.num_workers != workers:
        raise SystemExit(f"{workers} workers were asked for and {summary.num_workers} worked: one needs a core")
    # A worker's first part ends later than that of the other by its own start.
    ends_s = sorted(path.stat().st_mtime for path in output.glob("*.parquet"))[2 * workers :]
    run = {
        "workers": summary.num_workers,
        "rate_hz": round((len(ends_s) - 1) * PART_ROWS / (ends_s[-1] - ends_s[0]), 2),
        "whole_s": round(whole_s, 1),
        "worker_peak_mib": round(summary.worker_peak_bytes / 2**20),
        "all_peak_mib": round(peak_mib),
    }
    print(json.dumps(run))
    return run


if __name__ == "__main__":
    main()

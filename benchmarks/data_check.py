"""Time and memory of `edgerpn data check` on a large made-up set: by default 120 000 images with 900 000 boxes.

    python -m benchmarks.data_check --out data-check.json

The set is written into a temporary folder. Its images are small JPEG files (96 x 64) of different noise, a twentieth of
them copies of others; a COCO file of this size with polygons shows the cost of the annotations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import facts

WIDTH, HEIGHT = 96, 64
_COPIES = 20


def main() -> None:
    """Writes the set, checks it without and with its images, and prints seconds and MiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--boxes", type=int, default=900_000)
    parser.add_argument("--out", type=Path, help="JSON record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgerpn-data-check-") as name:
        folder = Path(name)
        write_set(folder, options.images, options.boxes)
        size_mib = sum(file.stat().st_size for file in folder.glob("*.json")) / 2**20
        runs = {
            "annotations": measure(["--no-images", "--json", str(folder / "report.json"), str(folder)]),
            "annotations and images": measure(["-o", str(folder / "page.html"), str(folder)]),
        }
    record = {
        "images": options.images,
        "boxes": options.boxes,
        "annotations_mib": round(size_mib, 1),
        "runs": runs,
        "machine": facts("numpy", "opencv-python-headless"),
    }
    for kind, run in runs.items():
        print(
            f"{kind}: {run['seconds']} s ({run['cpu_seconds']} s of a core), {run['peak_mib']} MiB, {run['last_line']}"
        )
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


def write_set(folder: Path, num_images: int, num_boxes: int) -> None:
    """Writes train.json, val.json (a tenth) and images/."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    encoded: list[bytes] = []
    for number in range(num_images):
        if number % _COPIES == 0 or not encoded:
            coarse = rng.integers(0, 256, (8, 12, 3), np.uint8)
            picture = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            encoded.append(cv2.imencode(".jpg", picture)[1].tobytes())
            data = encoded[-1]
        elif number % _COPIES == 1:
            data = encoded[-1]
        else:
            coarse = rng.integers(0, 256, (8, 12, 3), np.uint8)
            data = cv2.imencode(".jpg", cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))[1].tobytes()
        (folder / "images" / f"{number}.jpg").write_bytes(data)
    owners = rng.integers(0, num_images, num_boxes)
    places = rng.uniform((0, 0, 6, 6), (WIDTH - 30, HEIGHT - 30, 30, 30), (num_boxes, 4)).round(2)
    for split, is_val in (("train", False), ("val", True)):
        images = [
            {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(num_images)
            if (number % 10 == 9) == is_val
        ]
        rows = np.flatnonzero((owners % 10 == 9) == is_val).tolist()
        annotations = [_annotation(row, int(owners[row]), places[row].tolist()) for row in rows]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        (folder / f"{split}.json").write_text(json.dumps(content))


def _annotation(row: int, image_id: int, box: list[float]) -> dict[str, Any]:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x + w / 2, y + h / 2, x, y + h, x, y + h / 2]
    return {"id": row, "image_id": image_id, "category_id": 1, "bbox": box, "iscrowd": 0, "segmentation": [polygon]}


def measure(arguments: list[str]) -> dict[str, Any]:
    """Runs the command; returns exit status, last line, seconds, seconds of a core, and the largest resident memory."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "edgerpn", "data", "check", *arguments]
    with tempfile.TemporaryFile("w+") as output, subprocess.Popen(command, stdout=output) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        last = output.read().strip().rpartition("\n")[2]
    return {
        "status": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "last_line": last,
    }


if __name__ == "__main__":
    main()

"""Seconds and memory of `edgerpn data convert` on a large made-up set.

    python -m benchmarks.data_convert -o FOLDER --hardware NAME [--images 120000] [--boxes 900000]

Makes a COCO set of small JPEG files in FOLDER (kept for the next call), converts it to each format with hard links to
the images, and each result back to COCO. Writes benchmarks/results/data-convert_NAME_DATE.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.machine import facts
from edgerpn.labels import LabelledImage, open_writer

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = ("yolo", "voc", "coco", "cvat", "labelstudio")
NUM_PICTURES = 64
WIDTH, HEIGHT = 640, 480


def main() -> int:
    """Measures, prints each row, and writes the record."""
    options = _options()
    source = options.output / f"coco-{options.images}-{options.boxes}"
    if not source.exists():
        _make(source, options.images, options.boxes)
    rows = []
    for kind in KINDS:
        made = options.output / f"as-{kind}"
        rows.append(_row(f"coco to {kind}", source, made, kind))
        if kind != "coco":
            rows.append(_row(f"{kind} to coco", made, options.output / "back", "coco"))
            shutil.rmtree(options.output / "back")
        shutil.rmtree(made)
    date = datetime.datetime.now(tz=datetime.timezone.utc).date()
    lines = [
        f"# `edgerpn data convert` of {options.images:,} images with {options.boxes:,} boxes",
        "",
        "`benchmarks/data_convert.py`, see there. Images are hard links; seconds include reading every header.",
        "",
        "| conversion | images | boxes | seconds | of a core | largest memory MiB |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"- hardware: {options.hardware}",
        *(f"- {key}: {value}" for key, value in facts("numpy", "opencv-python-headless").items()),
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"data-convert_{options.hardware}_{date}.md").write_text(text, encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--boxes", type=int, default=900_000)
    return parser.parse_args()


def _make(folder: Path, num_images: int, num_boxes: int) -> None:
    """Writes a COCO set whose images are copies of a few pictures."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(NUM_PICTURES):
        pictures.append(folder.with_name(f"picture-{number}.jpg"))
        pixels = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (WIDTH, HEIGHT))
        pictures[-1].parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(pictures[-1]), pixels, [cv2.IMWRITE_JPEG_QUALITY, 50]):
            raise OSError(f"{pictures[-1]}: cannot be written")
    counts = np.bincount(rng.integers(0, num_images, num_boxes), minlength=num_images)
    with open_writer("coco", folder, [f"class {number}" for number in range(80)]) as writer:
        for number, count in enumerate(counts.tolist()):
            corners = rng.uniform(0, (WIDTH - 200, HEIGHT - 200), (count, 2)).round(2)
            boxes = np.concatenate((corners, corners + rng.uniform(5, 200, (count, 2)).round(2)), axis=1)
            image = LabelledImage(
                file_name=f"{number:012}.jpg",
                source=pictures[number % NUM_PICTURES],
                size_wh=(WIDTH, HEIGHT),
                boxes_xyxy=boxes,
                categories=rng.integers(0, 80, count),
            )
            writer.add(image, "train" if number % 20 else "val")
    for picture in pictures:
        picture.unlink()


def _row(label: str, source: Path, output: Path, kind: str) -> str:
    words = ["data", "convert", str(source), "-o", str(output), "--to", kind, "--link"]
    start_s = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "edgerpn", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    seconds, cpu_s = time.monotonic() - start_s, usage.ru_utime + usage.ru_stime
    if status:
        raise SystemExit(f"{label}: failed")
    images, boxes = (int(words.split()[0]) for words in lines[-1].split(", ")[1:])
    row = f"| {label} | {images:,} | {boxes:,} | {seconds:.0f} | {cpu_s:.0f} | {usage.ru_maxrss / 1024:.0f} |"
    print(row, flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())

"""The images on which a checkpoint finds most and least, as two sheets of pictures.

    python benchmarks/recall_pictures.py --checkpoint best.pt --data DIR --out FOLDER [--count 6]

Objects are drawn green where one of the 100 best proposals overlaps them by at least 0.5, red where none does; the
proposals that found them are thin and white, with their rank. Images are ordered by recall at 100, averaged over IoU
0.50 to 0.95; of equal ones those with more objects come first.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgerpn.matching import pairwise_iou
from edgerpn.train.checkpoint import load_model
from edgerpn.train.data.coco import ImageRecord, read_coco, read_image
from edgerpn.train.network.detector import Detector, detect

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
BUDGET, TILE_PX = 100, 420
FOUND, MISSED, PROPOSAL = (90, 200, 60), (60, 60, 235), (255, 255, 255)

Picture = np.ndarray[Any, np.dtype[np.uint8]]


def examine(detector: Detector, record: ImageRecord) -> tuple[float, Picture]:
    """Recall of an image at the budget, averaged over IoU thresholds, and its picture."""
    frame = read_image(record.file)
    boxes, _ = detect(detector, frame)
    overlap = pairwise_iou(record.boxes_xyxy, boxes[:BUDGET])
    best = overlap.max(axis=1) if len(boxes) else np.zeros(len(record.boxes_xyxy))
    recall = float(np.mean([(best >= threshold).mean() for threshold in THRESHOLDS]))
    shown = frame.copy()
    width = max(1, round(max(frame.shape[:2]) / 320))
    for box, row, iou in zip(record.boxes_xyxy, overlap, best, strict=True):
        _rectangle(shown, box, FOUND if iou >= 0.5 else MISSED, 2 * width)
        if iou >= 0.5:
            rank = int(row.argmax())
            _rectangle(shown, boxes[rank], PROPOSAL, width)
            place = (int(boxes[rank][0]) + 2, int(boxes[rank][1]) + 12 * width)
            cv2.putText(shown, str(rank + 1), place, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * width, PROPOSAL, width)
    return recall, _tile(shown, f"{record.file.name[:28]}  AR@{BUDGET} {recall:.2f}  {len(best)} objects")


def _rectangle(picture: Picture, box: Any, color: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    cv2.rectangle(picture, (x1, y1), (x2, y2), color, width)


def _tile(picture: Picture, title: str) -> Picture:
    scale = TILE_PX / max(picture.shape[:2])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    tile = np.full((TILE_PX + 24, TILE_PX, 3), 24, np.uint8)
    tile[24 : 24 + small.shape[0], : small.shape[1]] = small[:TILE_PX, :TILE_PX]
    cv2.putText(tile, title, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235, 235, 235), 1, cv2.LINE_AA)
    return tile


def sheet(tiles: list[Picture], columns: int = 3) -> Picture:
    """The tiles side by side."""
    tiles = [*tiles, *[np.full_like(tiles[0], 24)] * (-len(tiles) % columns)]
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    result: Picture = np.vstack(rows)
    return result


def main() -> None:
    """Writes best.jpg and worst.jpg."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with val.json and images/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6, help="images on each sheet, default 6")
    options = parser.parse_args()
    model, checkpoint = load_model(options.checkpoint)
    proposals = dataclasses.replace(checkpoint.settings.proposals, num_proposals=BUDGET)
    detector = Detector(model, proposals, network_hw=checkpoint.settings.data.input_hw).eval()
    dataset = read_coco(options.data / "val.json", options.data / "images", verify="header")
    records = [record for record in dataset.records if len(record.boxes_xyxy)]
    records.sort(key=lambda record: -len(record.boxes_xyxy))
    examined = [examine(detector, record) for record in records]
    order = sorted(range(len(examined)), key=lambda index: -examined[index][0])
    options.out.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("best", order[: options.count]), ("worst", order[: -options.count - 1 : -1])):
        file = options.out / f"{name}.jpg"
        cv2.imwrite(str(file), sheet([examined[index][1] for index in chosen]))
        print(f"wrote {file}")


if __name__ == "__main__":
    main()

"""Recall of a network on annotated images, inside training."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerpn.progress import track
from edgerpn.train.coco import Dataset, read_image
from edgerpn.train.detector import Detector, detect
from edgerpn.train.recall import average_recall


def measure(detector: Detector, dataset: Dataset) -> dict[str, float]:
    """Runs every image of `dataset` through `detector`, in full precision, and returns its recall."""
    results: list[dict[str, Any]] = []
    for record in track(dataset.records, "evaluating", unit="image"):
        boxes, scores = detect(detector, read_image(record.file))
        results += coco_results(record.image_id, boxes, scores)
    return average_recall(dataset.coco_ground_truth(), results)


def coco_results(image_id: int, boxes_xyxy: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """Proposals of an image as COCO results (bbox is x, y, width, height in pixels)."""
    xywh = np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
    return [
        {"image_id": image_id, "category_id": 1, "bbox": box, "score": score}
        for box, score in zip(xywh.tolist(), scores.tolist(), strict=True)
    ]

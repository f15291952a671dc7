"""Recall of a network on annotated images, inside training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerpn.progress import track
from edgerpn.train.data.coco import Dataset, ImageRecord, read_image
from edgerpn.train.network.detector import Detector, detect
from edgerpn.train.recall.average_recall import average_recall

Found = tuple[int, npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""COCO id of an image, its proposals' boxes (M, 4) in its pixels and their scores (M,)."""


def find(detector: Detector, records: Sequence[ImageRecord]) -> list[Found]:
    """The proposals of every image, in full precision."""
    return [
        (record.image_id, *detect(detector, read_image(record.file)))
        for record in track(records, "evaluating", unit="image")
    ]


def recall_of(found: Sequence[Found], dataset: Dataset) -> dict[str, float]:
    """Recall of proposals for the images of `dataset`, in any order."""
    results: list[dict[str, Any]] = []
    for image_id, boxes, scores in found:
        results += coco_results(image_id, boxes, scores)
    return average_recall(dataset.coco_ground_truth(), results)


def coco_results(image_id: int, boxes_xyxy: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """Proposals of an image as COCO results (bbox is x, y, width, height in pixels)."""
    xywh = np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
    return [
        {"image_id": image_id, "category_id": 1, "bbox": box, "score": score}
        for box, score in zip(xywh.tolist(), scores.tolist(), strict=True)
    ]

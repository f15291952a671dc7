"""Recall on objects of classes that training never saw, the open-world protocol of OLN (arXiv:2108.06753, section 4.1).

A class-agnostic model should find objects that are not annotated. Training holds out some classes, and evaluation
measures recall on them separately. A proposal on an object of the other part is not an error, so it does not count
against the budget of k proposals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError
from edgerpn.proposals import pairwise_iou
from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.coco import Dataset, ImageRecord
from edgerpn.train.recall.average_recall import average_recall
from edgerpn.train.recall.results import FoundBoxes, Results, by_image

ON_OBJECT_IOU = 0.5
"""IoU from which a proposal is on an object."""

Part = Literal["seen", "unseen"]
PARTS: tuple[Part, ...] = ("seen", "unseen")


def open_world_recall(dataset: Dataset, results: Results) -> dict[str, dict[str, float]]:
    """Measures recall on all objects, on those of classes seen in training, and on those of held-out classes.

    Args:
        dataset: Read with its held-out classes.
        results: The boxes found.

    Returns:
        The metrics of `average_recall` under "all", "seen" and "unseen".

    Raises:
        DataError: One of the parts has no objects.
    """
    check_parts(dataset)
    truth = dataset.coco_ground_truth("all")
    found = by_image(results, truth)
    columns = {"all": average_recall(truth, found)}
    for part in PARTS:
        columns[part] = average_recall(dataset.coco_ground_truth(part), without_other_part(dataset, found, part))
    return columns


def check_parts(dataset: Dataset) -> None:
    """Checks that both parts have objects.

    Raises:
        DataError: One part has no objects.
    """
    counts = {
        "seen": sum(len(record.boxes_xyxy) for record in dataset.records),
        "unseen": sum(len(record.held_out_xyxy) for record in dataset.records),
    }
    for part in PARTS:
        if not counts[part]:
            raise DataError(
                f"{dataset.annotation_file}: no objects of classes that were {part} in training, so recall on them is "
                "not defined"
            )


def without_other_part(dataset: Dataset, found: Mapping[ImageId, FoundBoxes], part: Part) -> dict[ImageId, FoundBoxes]:
    """Returns the boxes that are not on an object of the other part.

    A box is on the object that it overlaps most, if the IoU is at least `ON_OBJECT_IOU`; a tie counts for `part`.
    """
    records = {record.image_id: record for record in dataset.records}
    counted = {}
    for image_id, boxes in found.items():
        xywh = boxes.boxes_xywh.astype(np.float32)
        xyxy = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
        counted[image_id] = boxes.pick(~_is_on_other(xyxy, records[image_id], part))
    return counted


def _is_on_other(boxes: npt.NDArray[np.float32], record: ImageRecord, part: Part) -> npt.NDArray[np.bool_]:
    """Returns true for boxes (M, 4), x1 y1 x2 y2, that are on an object of the other part."""
    ours, others = record.boxes_xyxy, record.held_out_xyxy
    if part == "unseen":
        ours, others = others, ours
    on_other, on_ours = _best_iou(boxes, others), _best_iou(boxes, ours)
    return (on_other >= ON_OBJECT_IOU) & (on_other > on_ours)


def _best_iou(boxes: npt.NDArray[np.float32], objects: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    if not len(objects):
        return np.zeros(len(boxes))
    return pairwise_iou(boxes, objects).max(axis=1)

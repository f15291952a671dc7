"""Objects that nobody seems to have marked, by the opinion of a trained model.

A model's scores mean nothing by themselves, so its own scores on marked objects are the measure: an unmarked place
counts as an object if its score reaches the median of the best scores on the marked objects that the model finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerpn.progress import track
from edgerpn.proposals import Proposals
from edgerpn.train.check.boxes import intersections
from edgerpn.train.data.coco import ImageRecord, read_image

Boxes = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Detect = Callable[[npt.NDArray[np.uint8]], Proposals]
"""From a frame (H, W, 3) uint8 BGR to the proposals in its pixels."""

NUM_PROPOSALS = 100
"""Proposals of each image."""
_FOUND_IOU = 0.5
_SAME_IOU = 0.5
_SHARED = 0.5
"""A place that shares so much with a marked box, of itself or of the box, is a part or a surrounding of it."""
_MAX_PLACES = 20
"""Places that are kept of an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmarked:
    """An image that holds more unmarked objects than marked ones."""

    row: int
    """Position of the image."""
    boxes: Boxes
    """(M, 4) the unmarked ones, best first."""
    num_marked: int
    """Number of marked objects."""


def find_unmarked(records: Sequence[ImageRecord], detect: Detect, label: str) -> list[Unmarked]:
    """Returns the images whose objects are mostly unmarked, the one with the most first; `label` names the bar."""
    places: dict[int, tuple[Boxes, Scores]] = {}
    found_scores: list[float] = []
    for row, record in enumerate(track(records, f"unmarked objects of {label}", unit="image")):
        proposals = detect(read_image(record.file, record.exif))
        boxes, scores = proposals.boxes, proposals.scores
        marked = np.concatenate((record.boxes_xyxy, record.ignore_xyxy, record.held_out_xyxy))
        common = intersections(boxes, marked)
        own, other = _areas(boxes)[:, None], _areas(marked)[None]
        hits = common / np.maximum(own + other - common, 1e-6) >= _FOUND_IOU
        found_scores += [float(scores[np.argmax(hit)]) for hit in hits.T if hit.any()]
        is_free = ~(common >= _SHARED * np.minimum(own, other)).any(axis=1)
        kept = _without_copies(boxes[is_free])
        places[row] = boxes[is_free][kept], scores[is_free][kept]
    least = float(np.median(found_scores)) if found_scores else 1.0
    unmarked = []
    for row, (boxes, scores) in places.items():
        boxes = boxes[scores >= least]
        num_marked = len(records[row].boxes_xyxy) + len(records[row].held_out_xyxy)
        if len(boxes) >= 2 and len(boxes) > num_marked:
            unmarked.append(Unmarked(row=row, boxes=boxes, num_marked=num_marked))
    return sorted(unmarked, key=lambda one: (one.num_marked - len(one.boxes), one.row))


def _areas(boxes: Boxes) -> npt.NDArray[np.float32]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _without_copies(boxes: Boxes) -> list[int]:
    """Returns the positions of the best boxes that do not overlap a better one."""
    common, area = intersections(boxes, boxes), _areas(boxes)
    iou = common / np.maximum(area[:, None] + area[None] - common, 1e-6)
    kept: list[int] = []
    for row in range(len(boxes)):
        if len(kept) < _MAX_PLACES and not (iou[row, kept] >= _SAME_IOU).any():
            kept.append(row)
    return kept

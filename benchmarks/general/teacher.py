"""The boxes that a teacher adds to a labelled image: objects where it is sure, regions to ignore where it is not.

Only some classes are labelled in each data set, and an object without a box would be background. A teacher that knows
everyday things fills in the objects of which it is sure. The places of which it is less sure become ignore regions
(iscrowd): neither object nor background.

Legend: T boxes of the teacher, G labelled boxes; all x1 y1 x2 y2 in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.general.nanodet import suppress

OBJECT_SCORE = 0.38
"""Score from which on a box is an object."""
REGION_SCORE = 0.15
"""Score above which a box is at least a region to ignore."""
LARGE_SHARE, LARGE_SCORE = 0.3, 0.3
"""A box that covers at least this share of its image must have more than this score: unsure ones of that size are often
the room, and to ignore them would hide most of the background."""
NMS_IOU = 0.5
"""IoU above which the weaker of two boxes of the teacher goes."""
SAME_IOU, INSIDE_SHARE = 0.4, 0.8
"""A box with this IoU with a labelled object is that object; one of which this share lies inside a labelled object is a
part of it. Both add nothing."""
AROUND_SHARE = 0.7
"""A box that covers this share of a labelled object is a region at most: a group, or the object and what it lies on."""

Boxes = npt.NDArray[np.float32]


class Taught(NamedTuple):
    """The boxes to add to an image."""

    objects: Boxes
    """(M, 4)"""
    regions: Boxes
    """(R, 4); to be ignored."""


def fill(boxes: Boxes, scores: npt.NDArray[np.float32], labelled: Boxes, size_wh: tuple[int, int]) -> Taught:
    """Chooses the boxes of a teacher that say more about an image than its labels.

    Args:
        boxes: (T, 4) before NMS, best first.
        scores: (T,) 0..1.
        labelled: (G, 4)
        size_wh: Width and height of the image, pixels.
    """
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    is_small = area < LARGE_SHARE * size_wh[0] * size_wh[1]
    is_used = (scores > REGION_SCORE) & (is_small | (scores > LARGE_SCORE))
    boxes, scores = boxes[is_used], scores[is_used]
    keep = suppress(boxes, NMS_IOU)
    boxes, scores = boxes[keep], scores[keep]
    common, areas, labelled_areas = _intersections(boxes, labelled)  # (T, G), (T, 1), (G,)
    iou = common / np.maximum(areas + labelled_areas - common, 1e-9)
    inside, around = common / np.maximum(areas, 1e-9), common / np.maximum(labelled_areas, 1e-9)
    is_new = (iou.max(1, initial=0) < SAME_IOU) & (inside.max(1, initial=0) < INSIDE_SHARE)
    is_object = (scores >= OBJECT_SCORE) & (around.max(1, initial=0) < AROUND_SHARE)
    return Taught(boxes[is_new & is_object], boxes[is_new & ~is_object])


def _intersections(first: Boxes, second: Boxes) -> tuple[Boxes, Boxes, Boxes]:
    """Returns the areas that boxes have in common (T, G), and their own areas (T, 1) and (G,)."""
    lower = np.maximum(first[:, None, :2], second[None, :, :2])
    upper = np.minimum(first[:, None, 2:], second[None, :, 2:])
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return np.prod(np.clip(upper - lower, 0, None), axis=2), areas[0][:, None], areas[1]

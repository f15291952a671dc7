"""Figures of the boxes of a split: copies and nesting, sizes at the network's input, fit of the anchors, classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgerpn.letterbox import letterbox
from edgerpn.progress import track
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import Dataset, ImageRecord
from edgerpn.train.network.anchor_fit import AnchorRecall, measure_anchors

NEAR_COPY_IOU = 0.9
"""Overlap from which two boxes of an image are near copies."""
SIZE_LIMITS_PX = (4, 8, 16, 32, 64, 128, 256)
"""Limits of the classes of size: square root of the area at the network's input, pixels."""
_INSIDE = 0.99
"""Share of a box that lies inside another one which it is nested in."""
_BLOCK = 512
_MAX_FITTED = 20_000
"""Boxes that the fit of the anchors is measured on, spread over the split."""

Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxFigures:
    """Figures of the boxes of a split."""

    num_objects: int
    """Objects."""
    num_regions: int
    """Regions of many objects (crowds)."""
    num_empty_images: int
    """Images without an object."""
    objects_per_image: tuple[float, float, int]
    """Median, 95th percentile and largest number."""
    sizes: tuple[int, ...]
    """Number of objects in each class of size, smallest first; one class more than `SIZE_LIMITS_PX`."""
    classes: dict[str, int]
    """Number of objects of each class, in file order."""
    near_copies: dict[int, Boxes] = field(repr=False)
    """Boxes of which another one of their image is a near copy, by position of the image; one of each pair."""
    nested: dict[int, Boxes] = field(repr=False)
    """Boxes that lie inside another one of their image, by position of the image."""
    unseen: dict[int, Boxes] = field(repr=False)
    """Objects too small for every view of the training, by position of the image."""
    anchors: AnchorRecall | None
    """Fit of the settings' anchors to the objects; None without objects."""

    @property
    def num_near_copies(self) -> int:
        """Number of near copies."""
        return sum(map(len, self.near_copies.values()))

    @property
    def num_nested(self) -> int:
        """Number of nested boxes."""
        return sum(map(len, self.nested.values()))


def figures_of(dataset: Dataset, settings: TrainSettings, label: str) -> BoxFigures:
    """Computes the figures of a split's boxes for the network input of some settings."""
    hw, augment = settings.data.input_hw, settings.data.augment
    sizes = np.zeros(len(SIZE_LIMITS_PX) + 1, np.int64)
    classes = np.zeros(len(dataset.class_names), np.int64)
    counts, regions = [], 0
    near_copies: dict[int, Boxes] = {}
    nested: dict[int, Boxes] = {}
    unseen: dict[int, Boxes] = {}
    for row, record in enumerate(track(dataset.records, f"boxes of {label}", unit="image")):
        boxes = record.boxes_xyxy
        counts.append(len(boxes))
        regions += len(record.ignore_xyxy)
        if not len(boxes):
            continue
        scale = letterbox(record.hw, hw).scale_xy[0] if min(record.hw) > 0 else 1.0
        sides = (boxes[:, 2:] - boxes[:, :2]) * scale
        sizes += np.bincount(
            np.searchsorted(SIZE_LIMITS_PX, np.sqrt(sides.prod(axis=1)), side="right"), minlength=len(sizes)
        )
        classes += np.bincount(record.box_classes[record.box_classes >= 0], minlength=len(classes))
        is_unseen = sides.min(axis=1) * augment.scale_range[1] < augment.min_box_px
        is_copy, is_nested = overlaps(boxes)
        for found, mask in ((near_copies, is_copy), (nested, is_nested), (unseen, is_unseen)):
            if mask.any():
                found[row] = boxes[mask]
    return BoxFigures(
        num_objects=int(sum(counts)),
        num_regions=regions,
        num_empty_images=sum(count == 0 for count in counts),
        objects_per_image=(float(np.median(counts)), float(np.percentile(counts, 95)), max(counts)),
        sizes=tuple(sizes.tolist()),
        classes={name: int(count) for name, count in zip(dataset.class_names, classes, strict=True) if count},
        near_copies=near_copies,
        nested=nested,
        unseen=unseen,
        anchors=_fit(dataset.records, settings),
    )


def overlaps(boxes: Boxes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Returns which boxes (G, 4) are near copies of an earlier one, and which others lie inside a larger one."""
    is_copy, is_nested = np.zeros((2, len(boxes)), np.bool_)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    rows = np.arange(len(boxes))
    for start in range(0, len(boxes), _BLOCK):
        part = slice(start, start + _BLOCK)
        common = intersections(boxes[part], boxes)
        iou = common / (area[part, None] + area[None] - common)
        near = iou >= NEAR_COPY_IOU
        is_copy[part] = (near & (rows[None] < rows[part, None])).any(axis=1)
        inside = (common >= _INSIDE * area[part, None]) & (area[None] > area[part, None]) & ~near
        is_nested[part] = inside.any(axis=1)
    return is_copy, is_nested & ~is_copy


def intersections(first: Boxes, second: Boxes) -> npt.NDArray[np.float32]:
    """Returns the common areas of boxes (A, 4) and (B, 4), (A, B)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=2)


def _fit(records: Sequence[ImageRecord], settings: TrainSettings) -> AnchorRecall | None:
    hw = settings.data.input_hw
    total = sum(len(record.boxes_xyxy) for record in records)
    if not total:
        return None
    step = -(-total // _MAX_FITTED)
    fitted = np.concatenate(list(_letterboxed(records, hw)))[::step].astype(np.float64)
    return measure_anchors(settings.model.anchors, fitted, hw)


def _letterboxed(records: Sequence[ImageRecord], hw: tuple[int, int]) -> Iterator[Boxes]:
    for record in records:
        if len(record.boxes_xyxy):
            is_known = min(record.hw) > 0
            yield letterbox(record.hw, hw).to_network(record.boxes_xyxy) if is_known else record.boxes_xyxy

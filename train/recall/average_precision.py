"""Average precision of boxes with classes, computed by faster-coco-eval.

AP: area under the curve of precision over recall of a class, averaged over IoU thresholds 0.50, 0.55, ..., 0.95; AP50:
at 0.50. Both by COCO's rules: 101 levels of recall, the 100 best boxes of each class in each image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.coco import Dataset
from edgerpn.train.recall.coco_evaluation import mean_of_known, precision_at
from edgerpn.train.recall.results import FoundBoxes, Results, by_image

_BUDGET = 100
_SHAPE = (10, 101)
"""Thresholds and levels of recall."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Result of `average_precision`."""

    metrics: dict[str, float]
    """AP and AP50, 0..1: means over the classes that have objects; -1 if no class has one."""
    classes: dict[str, dict[str, float]]
    """The same of each class; -1 for a class without objects."""


def average_precision(dataset: Dataset, results: Results) -> Precision:
    """Measures the precision of boxes with classes.

    Objects of held-out classes, and of classes that the set does not name, are not objects here.

    Args:
        dataset: The annotated images, with the classes of the results, see `Dataset.with_classes`.
        results: The boxes found, with categories from 1 in the order of the classes.

    Raises:
        DataError: A result names an image that is not in the annotations.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    truth = dataset.coco_ground_truth(by_class=True)
    found = by_image(results, truth)
    names = dataset.class_names
    rows = [_precision_of(truth, found, number) for number, _ in enumerate(names, start=1)]
    precision_KTR = np.array(rows).reshape(len(names), *_SHAPE)
    classes = {name: _figures(own) for name, own in zip(names, precision_KTR, strict=True)}
    return Precision(metrics=_figures(precision_KTR), classes=classes)


def _precision_of(truth: Mapping[str, Any], found: Mapping[ImageId, FoundBoxes], number: int) -> np.ndarray:
    """Returns the precision (10, 101) of a class, -1 if it has no objects."""
    objects = [row for row in truth["annotations"] if row["category_id"] == number]
    if not objects:
        return np.full(_SHAPE, -1.0)
    own = {image_id: boxes.pick(boxes.category_ids == number) for image_id, boxes in found.items()}
    own = {image_id: boxes for image_id, boxes in own.items() if len(boxes.scores)}
    return precision_at(_BUDGET, {**truth, "annotations": objects}, own)


def _figures(precision: np.ndarray) -> dict[str, float]:
    """Means of the precision (..., 10, 101) over levels of recall, thresholds and, if there are any, classes."""
    return {"AP": mean_of_known(precision), "AP50": mean_of_known(precision[..., 0, :])}

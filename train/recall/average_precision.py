"""Average precision of boxes with classes, computed by faster-coco-eval.

AP: area under the curve of precision over recall of a class, averaged over IoU thresholds 0.50, 0.55, ..., 0.95; AP50:
at 0.50. Both by COCO's rules: 101 levels of recall, the 100 best boxes of each class in each image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerpn.train.data.coco import Dataset
from edgerpn.train.recall.average_recall import run_evaluation

_BUDGETS = (1, 10, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Result of `average_precision`."""

    metrics: dict[str, float]
    """AP and AP50, 0..1: means over the classes that have objects; -1 if no class has one."""
    classes: dict[str, dict[str, float]]
    """The same of each class; -1 for a class without objects."""


def average_precision(dataset: Dataset, results: Sequence[Mapping[str, Any]]) -> Precision:
    """Measures the precision of boxes with classes.

    Objects of held-out classes, and of classes that the set does not name, are not objects here.

    Args:
        dataset: The annotated images, with the classes of the results, see `Dataset.with_classes`.
        results: COCO results: image_id, category_id (from 1, in the order of the classes), bbox, score.

    Raises:
        DataError: A result names an image that is not in the annotations.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    truth = dataset.coco_ground_truth(by_class=True)
    names = dataset.class_names
    if not truth["annotations"]:
        nothing = {"AP": -1.0, "AP50": -1.0}
        return Precision(metrics=nothing, classes={name: dict(nothing) for name in names})
    evaluation = run_evaluation(truth, results, budgets=_BUDGETS, areas_px={"all": (0.0, 1e10)}, by_class=True)
    precision_TRP = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    # The library knows the classes by their ids, ascending.
    columns = {name: precision_TRP[:, :, column] for column, name in enumerate(names)}
    return Precision(metrics=_figures(precision_TRP), classes={name: _figures(own) for name, own in columns.items()})


def _figures(precision_TR: np.ndarray) -> dict[str, float]:
    """Means of thresholds, levels of recall and, if there are any, classes."""
    return {"AP": _mean(precision_TR), "AP50": _mean(precision_TR[0])}


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0

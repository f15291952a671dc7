"""Class-agnostic average recall, computed by faster-coco-eval.

AR@k: recall of the k best proposals of every image, averaged over IoU thresholds 0.50, 0.55, ..., 0.95.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgerpn.train.recall.coco_evaluation import evaluate_in_parts, mean_of_known
from edgerpn.train.recall.results import Results, by_image

BUDGETS = (10, 100, 300, 1000)
"""Numbers of proposals at which recall is reported."""

AREAS_PX = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas of ground-truth boxes, square pixels of the original image, as COCO divides them."""


def average_recall(ground_truth: Mapping[str, Any], results: Results) -> dict[str, float]:
    """Measures the recall of `results` against `ground_truth`, for all categories together.

    Args:
        ground_truth: COCO annotations (images, annotations); all categories count as one, crowd regions are neutral.
        results: The boxes found. Arrays take a twentieth of the memory of rows.

    Returns:
        AR@10, AR@100, AR@300, AR@1000; AR@100-small, -medium, -large; recall@100-iou50 and -iou70; each 0..1,
        or -1 if there is no ground-truth box of that size (COCO's convention).

    Raises:
        DataError: A result names an image that is not in the annotations.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    found = by_image(results, ground_truth)
    parts = evaluate_in_parts(ground_truth, found, _count, budgets=BUDGETS, areas_px=AREAS_PX)
    hits_TAM, num_objects_A = (np.sum(column, axis=0) for column in zip(*parts, strict=True))
    num_objects_A1 = num_objects_A[:, None]
    return _metrics(np.where(num_objects_A1 > 0, hits_TAM / np.maximum(num_objects_A1, 1), -1.0))


def _count(evaluation: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many objects were found, by threshold, area and budget, and how many there are, by area."""
    evaluation.accumulate()
    objects = [row["area"] for row in evaluation.cocoGt.anns.values() if not row["iscrowd"]]
    num_objects_A = np.array([sum(low <= area <= high for area in objects) for low, high in AREAS_PX.values()])
    recall_TAM = np.asarray(evaluation.eval["recall"])[:, 0]
    # Whole numbers, so that their sum does not depend on the parts. Recall without objects is -1.
    return np.rint(recall_TAM * num_objects_A[:, None]), num_objects_A


def _metrics(recall_TAM: np.ndarray) -> dict[str, float]:
    """Names the recall at each threshold, area and budget."""
    areas = list(AREAS_PX)
    metrics = {f"AR@{budget}": mean_of_known(recall_TAM[:, 0, m]) for m, budget in enumerate(BUDGETS)}
    at_100 = BUDGETS.index(100)
    for area in areas[1:]:
        metrics[f"AR@100-{area}"] = mean_of_known(recall_TAM[:, areas.index(area), at_100])
    for percent in (50, 70):
        metrics[f"recall@100-iou{percent}"] = float(recall_TAM[(percent - 50) // 5, 0, at_100])
    return metrics


def format_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Formats a plain-text table: one row per metric, one column for each of `columns` (title -> metrics)."""
    names = list(next(iter(columns.values())))
    width = max(len(name) for name in names)
    cells = max(8, *(len(title) for title in columns))
    lines = [" " * width + "".join(f"  {title:>{cells}}" for title in columns)]
    for name in names:
        shown = (metrics.get(name, -1.0) for metrics in columns.values())
        lines.append(f"{name:<{width}}" + "".join(f"  {_number(value):>{cells}}" for value in shown))
    return "\n".join(lines)


def format_rows(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Formats a plain-text table: one row for each of `rows` (title -> metrics), one column per metric."""
    names = list(next(iter(rows.values())))
    return format_table({name: {title: metrics[name] for title, metrics in rows.items()} for name in names})


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"

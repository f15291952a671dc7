"""Class-agnostic average recall, computed by faster-coco-eval.

AR@k: recall of the k best proposals of every image, averaged over IoU thresholds 0.50, 0.55, ..., 0.95.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgerpn.errors import DataError, require
from edgerpn.train.data.annotations import ImageId

BUDGETS = (10, 100, 300, 1000)
"""Numbers of proposals at which recall is reported."""

AREAS_PX = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas of ground-truth boxes, square pixels of the original image, as COCO divides them."""


def average_recall(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Measures the recall of `results` against `ground_truth`, for all categories together.

    Args:
        ground_truth: COCO annotations (images, annotations); all categories count as one, crowd regions are neutral.
        results: COCO results: image_id, bbox [x, y, width, height] in pixels, score.

    Returns:
        AR@10, AR@100, AR@300, AR@1000; AR@100-small, -medium, -large; recall@100-iou50 and -iou70; each 0..1,
        or -1 if there is no ground-truth box of that size (COCO's convention).

    Raises:
        DataError: A result names an image that is not in the annotations.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    evaluation = run_evaluation(ground_truth, results, budgets=BUDGETS, areas_px=AREAS_PX)
    return _metrics(np.asarray(evaluation.eval["recall"]), list(evaluation.params.iouThrs))


def run_evaluation(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    budgets: Sequence[int],
    areas_px: Mapping[str, tuple[float, float]],
    by_class: bool = False,
) -> Any:
    """Runs faster-coco-eval; returns its evaluation, with `eval` filled.

    Args:
        ground_truth: As for `average_recall`; with `by_class` its categories count.
        results: As there; with `by_class` each has a category_id.
        budgets: Numbers of best boxes of an image that are evaluated.
        areas_px: Ranges of areas of boxes that are evaluated, square pixels, by name.
        by_class: Whether boxes of different categories do not match.

    Raises:
        DataError: A result names an image that is not in the annotations, or there is no annotation.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    library = require("faster_coco_eval", extra="recall", purpose="measuring recall")
    # The library takes numbers only.
    numbers = {image["id"]: number for number, image in enumerate(ground_truth["images"], start=1)}
    truth = _numbered(ground_truth, numbers, by_class=by_class)
    unknown = {row["image_id"] for row in results} - numbers.keys()
    if unknown:
        raise DataError(
            f"results: {len(unknown)} image ids are not in the annotations, for example {min(unknown, key=str)!r}; "
            "the results belong to other images"
        )
    if not truth["annotations"]:
        raise DataError("annotations: no ground-truth boxes, so recall is not defined")
    coco = library.COCO(truth)
    rows = [
        {**row, "image_id": numbers[row["image_id"]], "category_id": row["category_id"] if by_class else 1}
        for row in results
    ]
    # The library cannot load an empty list of results; one box without area matches nothing.
    evaluation = library.COCOeval_faster(coco, coco.loadRes(rows or [_nothing(truth)]), iouType="bbox", use_area=True)
    params = evaluation.params
    params.useCats = int(by_class)
    params.maxDets = list(budgets)
    params.areaRng = [list(limits) for limits in areas_px.values()]
    params.areaRngLbl = list(areas_px)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _numbered(ground_truth: Mapping[str, Any], numbers: Mapping[ImageId, int], *, by_class: bool) -> dict[str, Any]:
    """Returns the annotations with the images under their `numbers`, and all of category 1 unless `by_class`."""
    annotations = [
        {
            "id": number,
            "image_id": numbers[row["image_id"]],
            "category_id": row["category_id"] if by_class else 1,
            "bbox": row["bbox"],
            "area": row["bbox"][2] * row["bbox"][3],
            "iscrowd": row.get("iscrowd", 0),
        }
        for number, row in enumerate(ground_truth["annotations"], start=1)
        if row["image_id"] in numbers
    ]
    return {
        "info": {},
        "images": [{**image, "id": numbers[image["id"]]} for image in ground_truth["images"]],
        "annotations": annotations,
        "categories": ground_truth["categories"] if by_class else [{"id": 1, "name": "object"}],
    }


def _nothing(truth: Mapping[str, Any]) -> dict[str, Any]:
    return {"image_id": truth["images"][0]["id"], "category_id": 1, "bbox": [0.0, 0.0, 0.0, 0.0], "score": 0.0}


def _metrics(recall_TKAM: np.ndarray, thresholds: list[float]) -> dict[str, float]:
    """Names the entries of COCO's recall array (threshold, category, area, budget)."""
    areas = list(AREAS_PX)
    metrics = {f"AR@{budget}": _mean(recall_TKAM[:, 0, 0, m]) for m, budget in enumerate(BUDGETS)}
    at_100 = BUDGETS.index(100)
    for area in areas[1:]:
        metrics[f"AR@100-{area}"] = _mean(recall_TKAM[:, 0, areas.index(area), at_100])
    for iou in (0.5, 0.7):
        row = int(np.argmin(np.abs(np.array(thresholds) - iou)))
        metrics[f"recall@100-iou{round(iou * 100)}"] = _mean(recall_TKAM[row : row + 1, 0, 0, at_100])
    return metrics


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def coco_results(image_id: ImageId, boxes_xyxy: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """Returns the proposals of an image as COCO results (bbox is x, y, width, height in pixels)."""
    xywh = np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
    return [
        {"image_id": image_id, "category_id": 1, "bbox": box, "score": score}
        for box, score in zip(xywh.tolist(), scores.tolist(), strict=True)
    ]


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

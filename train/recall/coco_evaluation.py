"""faster-coco-eval on some images at a time, because it needs 2 kB for each box.

Boxes of one image never match objects of another, so parts of the images can be evaluated one after another, and only
counts or matches of them are put together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from edgerpn.errors import DataError, require
from edgerpn.train.data.annotations import ImageId
from edgerpn.train.recall.results import FoundBoxes

BOXES_AT_ONCE = 25_000
"""Boxes that the library gets at once, at most."""

Value = TypeVar("Value")
Ranges = Mapping[str, tuple[float, float]]


def evaluate_in_parts(
    ground_truth: Mapping[str, Any],
    found: Mapping[ImageId, FoundBoxes],
    take: Callable[[Any], Value],
    *,
    budgets: Sequence[int],
    areas_px: Ranges,
) -> list[Value]:
    """Matches boxes to objects, all of one category; returns what `take` takes from the evaluation of each part.

    Args:
        ground_truth: COCO annotations (images, annotations); crowd regions are neutral.
        found: The boxes, of images that are in the annotations.
        take: Called with the library's evaluation after `evaluate()`; keeps no reference to it.
        budgets: Numbers of best boxes of an image that are evaluated, ascending.
        areas_px: Ranges of areas of boxes that are evaluated, square pixels, by name.

    Raises:
        DataError: There is no annotation.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    library = _library()
    objects: dict[ImageId, list[Mapping[str, Any]]] = defaultdict(list)
    for row in ground_truth["annotations"]:
        objects[row["image_id"]].append(row)
    ids = [image["id"] for image in ground_truth["images"] if image["id"] in objects or image["id"] in found]
    if not any(image_id in objects for image_id in ids):
        raise DataError("annotations: no ground-truth boxes, so recall is not defined")
    size = max(1, BOXES_AT_ONCE // budgets[-1])
    values = []
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        boxes = [found[image_id].best(budgets[-1]) if image_id in found else None for image_id in part]
        values.append(take(_evaluate(library, [objects.get(i, []) for i in part], boxes, budgets, areas_px)))
    return values


def _evaluate(
    library: Any,
    objects: Sequence[Sequence[Mapping[str, Any]]],
    found: Sequence[FoundBoxes | None],
    budgets: Sequence[int],
    areas_px: Ranges,
) -> Any:
    """Returns the library's evaluation of images; they are numbered from 1, because it takes numbers only."""
    annotations = [
        {"image_id": number, "category_id": 1, "bbox": row["bbox"], "area": row["bbox"][2] * row["bbox"][3],
         "iscrowd": row.get("iscrowd", 0)}
        for number, rows in enumerate(objects, start=1)
        for row in rows
    ]  # fmt: skip
    results = [
        {"image_id": number, "category_id": 1, "bbox": box, "score": score}
        for number, boxes in enumerate(found, start=1)
        if boxes is not None
        for box, score in zip(boxes.boxes_xywh.tolist(), boxes.scores.tolist(), strict=True)
    ]
    truth = library.COCO(
        {
            "info": {},
            "images": [{"id": number} for number in range(1, len(objects) + 1)],
            "annotations": [{**row, "id": number} for number, row in enumerate(annotations, start=1)],
            "categories": [{"id": 1, "name": "object"}],
        }
    )
    # The library cannot load an empty list of results; a last box without area changes no figure.
    nothing = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 0.0, 0.0], "score": -np.inf}
    evaluation = library.COCOeval_faster(
        truth, truth.loadRes(results or [nothing]), iouType="bbox", use_area=True, separate_eval=True
    )
    params = evaluation.params
    params.useCats = 0
    params.maxDets = list(budgets)
    params.areaRng = [list(limits) for limits in areas_px.values()]
    params.areaRngLbl = list(areas_px)
    evaluation.evaluate()
    return evaluation


def precision_at(budget: int, ground_truth: Mapping[str, Any], found: Mapping[ImageId, FoundBoxes]) -> np.ndarray:
    """Returns COCO's precision (10, 101) at thresholds and levels of recall; arguments as for `evaluate_in_parts`.

    The boxes of all images are ranked together, so the matches of all parts are kept: 9 kB for 100 boxes.

    Raises:
        DataError: There is no annotation.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    # These attributes are the library's own (1.7, 1.8): the parameters and the matches of each image.
    parts = evaluate_in_parts(
        ground_truth,
        found,
        lambda part: (part._paramsEval, part._evalImgs_cpp),
        budgets=(budget,),
        areas_px={"all": (0.0, 1e10)},
    )
    whole = _library().COCOeval_faster(iouType="bbox", separate_eval=True)
    whole._paramsEval = parts[0][0]
    whole._evalImgs_cpp = [image for _, images in parts for image in images]
    whole._paramsEval.imgIds = list(range(1, len(whole._evalImgs_cpp) + 1))
    whole.accumulate()
    return np.asarray(whole.eval["precision"])[:, :, 0, 0, 0]


def mean_of_known(values: np.ndarray) -> float:
    """Returns the mean of the library's figures but for -1, which means that there is no object; -1 if all are -1."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def _library() -> Any:
    return require("faster_coco_eval", extra="recall", purpose="measuring recall")

"""Measuring some images at a time: the same figures, and never all boxes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
import pytest

from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.coco import Dataset, ImageRecord
from edgerpn.train.recall import coco_evaluation
from edgerpn.train.recall.average_precision import average_precision
from edgerpn.train.recall.average_recall import AREAS_PX, average_recall
from edgerpn.train.recall.results import FoundBoxes

NUM_IMAGES = 10
NUM_CLASSES = 2


def random_boxes(rng: np.random.Generator, count: int, largest_px: float) -> np.ndarray:
    corners, sides = rng.uniform(0, 300, (count, 2)), rng.uniform(5, largest_px, (count, 2))
    return np.concatenate((corners, corners + sides), axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def measured() -> tuple[Dataset, dict[ImageId, FoundBoxes]]:
    """Images with crowds, without objects, with small objects only, and without results."""
    rng = np.random.default_rng(3)
    records = []
    found: dict[ImageId, FoundBoxes] = {}
    for image_id in range(NUM_IMAGES):
        objects = random_boxes(rng, 0 if image_id % 5 == 2 else 6, 25.0 if image_id < 3 else 150.0)
        crowds = random_boxes(rng, image_id % 3, 150)
        classes = rng.integers(0, NUM_CLASSES, len(objects))
        records.append(
            ImageRecord(
                image_id=image_id,
                file=Path("x.png"),
                hw=(500, 500),
                boxes_xyxy=objects,
                ignore_xyxy=crowds,
                box_classes=classes,
                ignore_classes=rng.integers(0, NUM_CLASSES, len(crowds)),
            )
        )
        near = np.repeat(objects, 5, axis=0)
        near = near + rng.normal(0, 2, near.shape).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        # More than the 100 of a class that count for precision, and with equal scores.
        boxes = np.concatenate((near, random_boxes(rng, 250, 150)))
        scores = rng.uniform(0, [1.0] * len(near) + [0.6] * 250).round(1).astype(np.float32)
        labels = np.concatenate((np.repeat(classes, 5), rng.integers(0, NUM_CLASSES, 250)))
        if image_id != 4:
            found[image_id] = FoundBoxes.of(boxes, scores, labels)
    # The third has no objects.
    names = ("a", "b", "c")
    dataset = Dataset(
        records=tuple(records), annotation_file=Path("x"), sha256="", problems=(), folder=Path("x"), class_names=names
    )
    return dataset, found


def rows_of(found: dict[ImageId, FoundBoxes]) -> list[dict[str, Any]]:
    return [
        {"image_id": image_id, "category_id": int(category), "bbox": box, "score": score}
        for image_id, boxes in found.items()
        for box, score, category in zip(
            boxes.boxes_xywh.tolist(), boxes.scores.tolist(), boxes.category_ids, strict=True
        )
    ]


def evaluate_whole(truth: dict[str, Any], rows: list[dict[str, Any]], **params: Any) -> Any:
    """The library's own evaluation of all images and classes at once."""
    coco = faster_coco_eval.COCO(truth)
    evaluation = faster_coco_eval.COCOeval_faster(coco, coco.loadRes(rows), iouType="bbox")
    for name, value in params.items():
        setattr(evaluation.params, name, value)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


@pytest.mark.parametrize("images_at_once", [1, 3, NUM_IMAGES])
def test_recall_does_not_depend_on_the_parts(
    images_at_once: int, measured: tuple[Dataset, dict[ImageId, FoundBoxes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, found = measured
    monkeypatch.setattr(coco_evaluation, "BOXES_AT_ONCE", 1000 * images_at_once)
    metrics = average_recall(dataset.coco_ground_truth(), found)
    recall = evaluate_whole(
        dataset.coco_ground_truth(),
        [{**row, "category_id": 1} for row in rows_of(found)],
        useCats=0,
        maxDets=[10, 100, 300, 1000],
        areaRng=[list(limits) for limits in AREAS_PX.values()],
    )["recall"][:, 0]
    expected = {f"AR@{budget}": recall[:, 0, m].mean() for m, budget in enumerate((10, 100, 300, 1000))}
    expected |= {f"AR@100-{area}": recall[:, a, 1].mean() for a, area in enumerate(AREAS_PX) if a}
    expected |= {"recall@100-iou50": recall[0, 0, 1], "recall@100-iou70": recall[4, 0, 1]}
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert 0 < metrics["AR@10"] < metrics["AR@100"] < metrics["AR@300"] < 1


@pytest.mark.parametrize("images_at_once", [1, 3, NUM_IMAGES])
def test_precision_does_not_depend_on_the_parts(
    images_at_once: int, measured: tuple[Dataset, dict[ImageId, FoundBoxes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, found = measured
    monkeypatch.setattr(coco_evaluation, "BOXES_AT_ONCE", 100 * images_at_once)
    precision = average_precision(dataset, found)
    expected = evaluate_whole(dataset.coco_ground_truth(by_class=True), rows_of(found))["precision"][:, :, :, 0, -1]
    for column, name in enumerate(dataset.class_names):
        own = expected[:, :, column]
        assert precision.classes[name] == pytest.approx({"AP": own.mean(), "AP50": own[0].mean()}, abs=1e-12)
    assert precision.classes["c"]["AP"] == -1
    assert precision.metrics["AP"] == pytest.approx(expected[:, :, :NUM_CLASSES].mean(), abs=1e-12)
    assert 0.01 < precision.metrics["AP"] < precision.metrics["AP50"] < 1


def test_the_library_never_gets_all_boxes_at_once(
    measured: tuple[Dataset, dict[ImageId, FoundBoxes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, found = measured
    counts = []
    load = faster_coco_eval.COCO.loadRes

    def counting(coco: Any, rows: list[dict[str, Any]]) -> Any:
        counts.append(len(rows))
        return load(coco, rows)

    monkeypatch.setattr(faster_coco_eval.COCO, "loadRes", counting)
    monkeypatch.setattr(coco_evaluation, "BOXES_AT_ONCE", 1000)
    average_recall(dataset.coco_ground_truth(), found)
    average_precision(dataset, found)
    assert max(counts) <= 1000 < sum(counts)


def test_rows_and_arrays_have_the_same_figures(measured: tuple[Dataset, dict[ImageId, FoundBoxes]]) -> None:
    dataset, found = measured
    rows = rows_of(found)
    assert average_recall(dataset.coco_ground_truth(), rows) == average_recall(dataset.coco_ground_truth(), found)
    assert average_precision(dataset, rows) == average_precision(dataset, found)


def test_arrays_keep_21_bytes_for_each_box() -> None:
    rng = np.random.default_rng(0)
    boxes = FoundBoxes.of(random_boxes(rng, 1000, 50), rng.random(1000, np.float32))
    assert sum(array.nbytes for array in boxes) == 21_000

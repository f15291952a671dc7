"""Average precision by class, on small cases that were computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.coco import Dataset, ImageRecord
from edgerpn.train.recall.average_precision import average_precision
from edgerpn.train.recall.average_recall import average_recall, format_rows

NAMES = ("cat", "dog", "bird")


def dataset(*objects: tuple[ImageId, int, float], crowds: tuple[tuple[ImageId, int, float], ...] = ()) -> Dataset:
    """A 20 px square at `left` for each (image, class, left); crowds likewise."""
    records = []
    for image_id in dict.fromkeys(row[0] for row in (*objects, *crowds)):
        own, regions = ([row for row in rows if row[0] == image_id] for rows in (objects, crowds))
        records.append(
            ImageRecord(
                image_id=image_id,
                file=Path("x.png"),
                hw=(100, 400),
                boxes_xyxy=np.array([[x, 0, x + 20, 20] for *_, x in own], np.float32).reshape(-1, 4),
                ignore_xyxy=np.array([[x, 0, x + 20, 20] for *_, x in regions], np.float32).reshape(-1, 4),
                box_classes=np.array([row[1] for row in own], np.int64),
                ignore_classes=np.array([row[1] for row in regions], np.int64),
            )
        )
    return Dataset(
        records=tuple(records), annotation_file=Path("x"), sha256="", problems=(), folder=Path("x"), class_names=NAMES
    )


def result(image_id: ImageId, label: int, left: float, score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": label + 1, "bbox": [left, 0, 20, 20], "score": score}


def test_every_class_has_its_own_precision() -> None:
    truth = dataset((1, 0, 0.0), (1, 1, 100), (2, 0, 0), (2, 1, 100))
    rows = [
        # Both cats, and none of the dogs: one box of the right class is elsewhere, one on a dog has the wrong class.
        *(result(image, 0, 0, 0.9) for image in (1, 2)),
        result(1, 1, 200, 0.8),
        result(2, 0, 100, 0.5),
    ]
    found = average_precision(truth, rows)
    assert found.classes["cat"] == pytest.approx({"AP": 1.0, "AP50": 1.0})
    assert found.classes["dog"] == {"AP": 0.0, "AP50": 0.0}
    assert found.classes["bird"] == {"AP": -1.0, "AP50": -1.0}
    assert found.metrics == pytest.approx({"AP": 0.5, "AP50": 0.5})


def test_a_better_box_of_a_wrong_class_costs_precision() -> None:
    # Best first: wrong, right, right. Precision is 1/2 and then 2/3, and by COCO's rule 2/3 from the start.
    rows = [result(1, 0, 300, 0.9), result(1, 0, 0, 0.8), result(2, 0, 0, 0.7)]
    found = average_precision(dataset((1, 0, 0.0), (2, 0, 0)), rows)
    assert found.classes["cat"]["AP50"] == pytest.approx(2 / 3, abs=1e-3)


def test_the_overlap_counts_for_ap_and_not_for_ap50() -> None:
    # IoU 16 / 24, above the thresholds .50, .55, .60 and .65 of ten.
    found = average_precision(dataset((1, 0, 0.0)), [result(1, 0, 4, 0.9)])
    assert found.metrics == pytest.approx({"AP": 0.4, "AP50": 1.0})


def test_an_object_of_two_classes_counts_for_both_and_once_for_recall() -> None:
    truth = dataset((1, 0, 0.0), (1, 1, 0))
    rows = [result(1, 0, 0, 0.9), result(1, 1, 0, 0.8)]
    assert average_precision(truth, rows).metrics["AP50"] == pytest.approx(1)
    assert average_precision(truth, rows[:1]).metrics["AP50"] == pytest.approx(0.5)
    assert average_recall(truth.coco_ground_truth(), rows[:1])["AR@10"] == 1


def test_regions_of_many_objects_are_neutral_for_their_class_only() -> None:
    truth = dataset(("a", 0, 0.0), crowds=(("a", 0, 100.0),))
    rows = [result("a", 0, 100, 0.9), result("a", 0, 0, 0.8)]
    assert average_precision(truth, rows).classes["cat"]["AP50"] == pytest.approx(1)
    others = dataset(("a", 0, 0.0), crowds=(("a", 1, 100.0),))
    assert average_precision(others, rows).classes["cat"]["AP50"] == pytest.approx(0.5, abs=1e-3)


def test_the_classes_of_a_set_are_numbered_as_those_of_the_model() -> None:
    truth = dataset((1, 0, 0.0), (1, 1, 100)).with_classes(("dog", "fox"))
    assert [record.box_classes.tolist() for record in truth.records] == [[0, -1]]
    assert truth.present_classes == ("dog",)
    found = average_precision(truth, [result(1, 0, 100, 0.9)])
    assert found.classes["dog"]["AP50"] == pytest.approx(1)
    assert found.classes["fox"]["AP50"] == -1
    assert found.metrics["AP50"] == pytest.approx(1)


def test_without_results_or_objects_of_the_classes_there_is_a_figure_too() -> None:
    assert average_precision(dataset((1, 0, 0.0)), []).metrics == {"AP": 0.0, "AP50": 0.0}
    assert average_precision(dataset((1, 0, 0.0)).with_classes(("fox",)), []).metrics == {"AP": -1.0, "AP50": -1.0}


def test_classes_become_rows_of_a_table() -> None:
    table = format_rows({"cat": {"AP": 0.25, "AP50": 0.5}, "jellyfish": {"AP": -1.0, "AP50": -1.0}})
    assert table.splitlines() == [
        "                 AP      AP50",
        "cat           0.250     0.500",
        "jellyfish         -         -",
    ]

"""Average recall on cases worked out by hand, and against plain matching."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgerpn.errors import DataError
from edgerpn.train.recall.average_recall import average_recall, format_table

Box = Sequence[float]
Row = dict[str, Any]


def truth(*boxes: tuple[int, Box], images: int = 3, **changes: Any) -> dict[str, Any]:
    """Annotations of (image id, bbox); image ids are 1..`images`."""
    annotations = [
        {"id": number, "image_id": image, "category_id": 1, "bbox": list(box), "iscrowd": 0, **changes}
        for number, (image, box) in enumerate(boxes, start=1)
    ]
    return {
        "images": [{"id": i, "width": 400, "height": 400, "file_name": f"{i}.png"} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }


def result(image: int, box: Box, score: float = 0.5) -> Row:
    return {"image_id": image, "category_id": 1, "bbox": list(box), "score": score}


def test_perfect_boxes_have_a_recall_of_one() -> None:
    boxes = [(1, (10, 10, 50, 40)), (1, (100, 100, 20, 20)), (2, (5, 5, 200, 150))]
    metrics = average_recall(truth(*boxes), [result(*pair) for pair in boxes])
    assert metrics == {
        "AR@10": 1.0, "AR@100": 1.0, "AR@300": 1.0, "AR@1000": 1.0,
        "AR@100-small": 1.0, "AR@100-medium": 1.0, "AR@100-large": 1.0,
        "recall@100-iou50": 1.0, "recall@100-iou70": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("width", "thresholds"), [(62, 3), (57, 2), (74, 5), (49, 0), (97, 10)])
def test_a_box_counts_up_to_its_overlap(width: int, thresholds: int) -> None:
    # Inside a box 100 wide: IoU is width / 100; .62 passes .50, .55 and .60.
    metrics = average_recall(truth((1, (0, 0, 100, 50))), [result(1, (0, 0, width, 50))])
    assert metrics["AR@100"] == pytest.approx(thresholds / 10)
    assert metrics["recall@100-iou50"] == float(width >= 50)
    assert metrics["recall@100-iou70"] == float(width >= 70)


def test_each_budget_takes_the_best_proposals_of_every_image() -> None:
    # Wrong proposals with higher scores stand before the right one: at rank 11, 101, 301.
    ranks = {1: 10, 2: 100, 3: 300}
    rows = [result(image, (300, 300, 50, 50), 0.9) for image, count in ranks.items() for _ in range(count)]
    rows += [result(image, (0, 0, 40, 40), 0.1) for image in ranks]
    metrics = average_recall(truth(*((image, (0, 0, 40, 40)) for image in ranks)), rows)
    found = [metrics[f"AR@{budget}"] for budget in (10, 100, 300, 1000)]
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_sizes_are_divided_at_32_and_96_pixels_squared() -> None:
    boxes = {"small": (0, 0, 30, 30), "medium": (100, 0, 60, 60), "large": (200, 0, 100, 100)}
    annotations = truth(*((1, box) for box in boxes.values()))
    for found in boxes:
        metrics = average_recall(annotations, [result(1, boxes[found])])
        assert metrics["AR@100"] == pytest.approx(1 / 3)
        assert {name: metrics[f"AR@100-{name}"] for name in boxes} == {name: float(name == found) for name in boxes}


def test_a_size_without_boxes_is_marked() -> None:
    metrics = average_recall(truth((1, (0, 0, 30, 30))), [result(1, (0, 0, 30, 30))])
    assert (metrics["AR@100-small"], metrics["AR@100-medium"], metrics["AR@100-large"]) == (1.0, -1.0, -1.0)
    table = format_table({"model": metrics})
    assert table.splitlines()[6].split() == ["AR@100-medium", "-"]


def test_areas_come_from_the_boxes_not_from_the_masks() -> None:
    metrics = average_recall(truth((1, (0, 0, 100, 100)), area=5.0), [])
    assert metrics["AR@100-large"] == 0.0
    assert metrics["AR@100-small"] == -1.0


def test_crowd_regions_neither_count_nor_hurt() -> None:
    annotations = truth((1, (0, 0, 50, 50)), (1, (100, 100, 200, 200)))
    annotations["annotations"][1]["iscrowd"] = 1
    rows = [result(1, (110, 110, 20, 20), 0.9), result(1, (0, 0, 50, 50), 0.5)]
    assert average_recall(annotations, rows)["AR@100"] == 1.0
    assert average_recall(annotations, rows[:1])["AR@100"] == 0.0


def test_categories_play_no_role() -> None:
    annotations = truth((1, (0, 0, 50, 50)), (1, (100, 100, 60, 60)))
    for category, row in zip((7, 90), annotations["annotations"], strict=True):
        row["category_id"] = category
    annotations["categories"] = [{"id": 7, "name": "fish"}, {"id": 90, "name": "ray"}]
    rows = [result(1, (0, 0, 50, 50)) | {"category_id": 90}, result(1, (100, 100, 60, 60)) | {"category_id": 3}]
    assert average_recall(annotations, rows)["AR@100"] == 1.0
    assert annotations["annotations"][0]["category_id"] == 7
    assert rows[1]["category_id"] == 3


def test_one_proposal_finds_one_object() -> None:
    twins = truth((1, (0, 0, 50, 50)), (1, (0, 0, 50, 50)))
    assert average_recall(twins, [result(1, (0, 0, 50, 50))])["AR@100"] == 0.5


def test_no_proposals_have_no_recall() -> None:
    metrics = average_recall(truth((1, (0, 0, 50, 50)), (2, (0, 0, 10, 10))), [])
    assert metrics["AR@1000"] == 0.0
    assert metrics["recall@100-iou50"] == 0.0


def test_images_without_boxes_do_not_matter() -> None:
    rows = [result(1, (0, 0, 50, 50)), result(3, (0, 0, 50, 50))]
    assert average_recall(truth((1, (0, 0, 50, 50)), images=3), rows)["AR@100"] == 1.0


def test_proposals_of_unknown_images_are_refused() -> None:
    with pytest.raises(DataError, match="2 image ids are not in the annotations, for example 77"):
        average_recall(truth((1, (0, 0, 50, 50))), [result(i, (0, 0, 5, 5)) for i in (1, 77, 78)])


def test_image_ids_may_be_texts() -> None:
    boxes = [(1, (10, 10, 50, 40)), (1, (100, 100, 20, 20)), (2, (5, 5, 200, 150))]
    numbered, rows = truth(*boxes), [result(*pair) for pair in boxes[:2]]
    named = {
        "images": [{**image, "id": f"picture {image['id']}"} for image in reversed(numbered["images"])],
        "annotations": [{**row, "image_id": f"picture {row['image_id']}"} for row in numbered["annotations"]],
    }
    found = average_recall(named, [{**row, "image_id": f"picture {row['image_id']}"} for row in rows])
    assert found == average_recall(numbered, rows)
    assert found["AR@10"] == pytest.approx(2 / 3)


def test_without_a_ground_truth_box_recall_is_not_defined() -> None:
    with pytest.raises(DataError, match="no ground-truth box"):
        average_recall(truth(), [result(1, (0, 0, 5, 5))])


def test_random_proposals_have_the_recall_of_plain_matching() -> None:
    rng = np.random.default_rng(5)
    images = 25
    corners = rng.uniform(0, 200, (images, 2))
    sides = rng.uniform(20, 150, (images, 2))
    boxes = np.concatenate((corners, sides), axis=1)
    rows: list[Row] = []
    best = np.zeros((images, 4))
    for i in range(images):
        proposals = boxes[i] + rng.normal(0, 14, (int(rng.integers(1, 400)), 4))
        proposals[:, 2:] = proposals[:, 2:].clip(2)
        scores = rng.permutation(len(proposals)) / len(proposals)
        rows += [result(i + 1, p.tolist(), float(s)) for p, s in zip(proposals, scores, strict=True)]
        for m, budget in enumerate((10, 100, 300, 1000)):
            # With one object in an image, it is found when any of the best proposals overlaps it enough.
            best[i, m] = max(overlap(boxes[i], proposals[j]) for j in np.argsort(-scores)[:budget])
    thresholds = np.arange(0.5, 0.96, 0.05)
    expected = [float(np.mean(best[:, m, None] >= thresholds)) for m in range(4)]
    metrics = average_recall(truth(*((i + 1, boxes[i].tolist()) for i in range(images)), images=images), rows)
    assert [metrics[f"AR@{budget}"] for budget in (10, 100, 300, 1000)] == pytest.approx(expected)
    assert 0.2 < expected[0] < expected[3] < 1


def test_recall_is_that_of_pycocotools_with_crowds_and_ties() -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    evaluation_of = pytest.importorskip("pycocotools.cocoeval").COCOeval
    rng = np.random.default_rng(7)
    boxes: list[tuple[int, Box]] = []
    rows: list[Row] = []
    for image in range(1, 31):
        for _ in range(int(rng.integers(0, 12))):
            boxes.append((image, [*rng.uniform(0, 250, 2).tolist(), *rng.uniform(5, 150, 2).tolist()]))
            near = np.array(boxes[-1][1]) + rng.normal(0, 6, (12, 4))
            # Scores of one digit: most are equal, and order alone decides about them.
            rows += [result(image, p.clip(1).tolist(), round(float(rng.uniform()), 1)) for p in near]
        far = rng.uniform(1, 200, (150, 4))
        rows += [result(image, p.tolist(), round(float(rng.uniform()), 1)) for p in far]
    annotations = truth(*boxes, images=30)
    for row in annotations["annotations"]:
        row["area"] = row["bbox"][2] * row["bbox"][3]
        row["iscrowd"] = int(rng.random() < 0.2)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = pycocotools.COCO()
        coco.dataset = annotations
        coco.createIndex()
        evaluation = evaluation_of(coco, coco.loadRes(rows), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [10, 100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0]
    metrics = average_recall(annotations, rows)
    sizes = {"": 0, "-small": 1, "-medium": 2, "-large": 3}
    expected = {f"AR@{budget}": recall[:, 0, m].mean() for m, budget in enumerate(evaluation.params.maxDets)}
    expected |= {f"AR@100{size}": recall[:, area, 1].mean() for size, area in sizes.items()}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert 0.1 < metrics["AR@10"] < metrics["AR@1000"] < 1


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    size = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(size.clip(0)))
    return common / float(np.prod(a[2:]) + np.prod(b[2:]) - common)


def test_the_table_has_a_column_for_each_model() -> None:
    lines = format_table({"a.pt": {"AR@10": 0.25, "AR@100": 0.5}, "b": {"AR@10": 0.125}}).splitlines()
    assert [line.split() for line in lines] == [["a.pt", "b"], ["AR@10", "0.250", "0.125"], ["AR@100", "0.500", "-"]]
    assert len({len(line) for line in lines}) == 1

"""Classes that training never sees: holding them out, and recall on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.__main__ import main
from edgerpn.errors import DataError
from edgerpn.train.data.coco import Dataset, read_coco
from edgerpn.train.recall.open_world import open_world_recall, without_other_part
from edgerpn.train.recall.results import by_image

CAT, DOG, BIRD = 1, 2, 7
NAMES = {CAT: "cat", DOG: "polar bear", BIRD: "bird"}


def write_set(folder: Path, split: str, boxes: list[tuple[int, list[float]]], **changes: Any) -> Path:
    """One picture of 100 x 80 with boxes of classes."""
    (folder / "images").mkdir(exist_ok=True)
    assert cv2.imwrite(str(folder / "images" / "1.png"), np.full((80, 100, 3), 90, np.uint8))
    annotations = [
        {"id": number, "image_id": 1, "category_id": category, "bbox": bbox, "iscrowd": 0}
        for number, (category, bbox) in enumerate(boxes, start=1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 80}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in NAMES.items()],
        **changes,
    }
    file = folder / f"{split}.json"
    file.write_text(json.dumps(content))
    return file


BOXES: list[tuple[int, list[float]]] = [(CAT, [0, 0, 20, 20]), (DOG, [40, 0, 20, 20]), (BIRD, [70, 40, 20, 30])]


def read(folder: Path, *names: str, boxes: list[tuple[int, list[float]]] = BOXES, **changes: Any) -> Dataset:
    file = write_set(folder, "val", boxes, **changes)
    return read_coco(file, folder / "images", holdout_classes=names)


def result(x: float, y: float, width: float, height: float, score: float) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "score": score}


def test_held_out_boxes_are_separate_and_counted(tmp_path: Path) -> None:
    dataset = read(tmp_path, "polar bear", "bird")
    (record,) = dataset.records
    np.testing.assert_array_equal(record.boxes_xyxy, [[0, 0, 20, 20]])
    np.testing.assert_array_equal(record.held_out_xyxy, [[40, 0, 60, 20], [70, 40, 90, 70]])
    assert dataset.problems == ("box of a held-out class: 2, kept for evaluation only (annotation 2; annotation 3)",)
    sizes = {part: len(dataset.coco_ground_truth(part)["annotations"]) for part in ("seen", "unseen", "all")}
    assert sizes == {"seen": 1, "unseen": 2, "all": 3}


def test_crowds_of_held_out_classes_are_left_out(tmp_path: Path) -> None:
    file = write_set(tmp_path, "val", BOXES)
    content = json.loads(file.read_text())
    content["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    (record,) = read_coco(file, tmp_path / "images", holdout_classes=("polar bear",)).records
    assert (len(record.boxes_xyxy), len(record.held_out_xyxy), len(record.ignore_xyxy)) == (2, 0, 0)


def test_without_held_out_classes_nothing_changes(tmp_path: Path) -> None:
    (record,) = read(tmp_path).records
    assert (len(record.boxes_xyxy), len(record.held_out_xyxy)) == (3, 0)


@pytest.mark.parametrize(
    ("names", "changes", "problem"),
    [
        (("dog",), {}, "no class named 'dog' to hold out; it has 'cat', 'polar bear', 'bird'"),
        (("cat",), {"categories": []}, "it has no usable list of categories"),
        (("cat", "bird", "polar bear"), {}, "keep at least one to train on"),
        (("cat",), {"categories": [{"id": 1}]}, "it has no usable list of categories"),
    ],
)
def test_classes_that_cannot_be_held_out_are_named(
    names: tuple[str, ...], changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, *names, **changes)
    assert problem in str(caught.value)


@pytest.mark.parametrize("category", [{}, {"category_id": 99}])
def test_a_box_without_a_listed_class_is_dropped_only_if_classes_are_held_out(
    category: dict[str, int], tmp_path: Path
) -> None:
    file = write_set(tmp_path, "val", BOXES)
    content = json.loads(file.read_text())
    del content["annotations"][2]["category_id"]
    content["annotations"][2] |= category
    file.write_text(json.dumps(content))
    assert len(read_coco(file, tmp_path / "images").records[0].boxes_xyxy) == 3
    dataset = read_coco(file, tmp_path / "images", holdout_classes=("cat",))
    assert dataset.problems[0] == "annotation without a class, while classes are held out: 1, dropped (annotation 3)"
    assert (len(dataset.records[0].boxes_xyxy), len(dataset.records[0].held_out_xyxy)) == (1, 1)


def test_proposals_on_objects_of_the_other_part_cost_no_budget(tmp_path: Path) -> None:
    # Twelve proposals on the seen cat outscore the one on the unseen bird: it is the thirteenth of ten.
    crowd = [result(0, 0, 20, 20 + number / 10, 0.9 - number / 100) for number in range(12)]
    dataset = read(tmp_path, "bird", boxes=[BOXES[0], BOXES[2]])
    columns = open_world_recall(dataset, [*crowd, result(70, 40, 20, 30, 0.1)])
    assert list(columns) == ["all", "seen", "unseen"]
    assert columns["all"]["AR@10"] == pytest.approx(0.5)
    assert columns["seen"]["AR@10"] == pytest.approx(1.0)
    assert columns["unseen"]["AR@10"] == pytest.approx(1.0)


def test_a_proposal_belongs_to_the_object_that_it_overlaps_most(tmp_path: Path) -> None:
    dataset = read(tmp_path, "bird", boxes=[(CAT, [0, 0, 20, 20]), (BIRD, [0, 0, 20, 30])])
    rows = [
        result(0, 0, 20, 21, 0.9),  # more the cat's
        result(0, 0, 20, 29, 0.8),  # more the bird's
        result(60, 60, 10, 10, 0.7),  # on no object: background counts for both
        result(0, 0, 8, 8, 0.6),  # too small to be on the cat
    ]
    found = by_image(rows, dataset.coco_ground_truth())
    assert without_other_part(dataset, found, "unseen")[1].scores.tolist() == [0.8, 0.7, 0.6]
    assert without_other_part(dataset, found, "seen")[1].scores.tolist() == [0.9, 0.7, 0.6]


def test_a_part_without_objects_has_no_recall(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no objects of classes that were unseen in training"):
        open_world_recall(read(tmp_path, "bird", boxes=BOXES[:2]), [result(0, 0, 5, 5, 0.5)])


@pytest.fixture
def two_classes(data_folder: Path, tmp_path: Path) -> Path:
    """The rectangles, every third of which is of another class."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(data_folder / "images")
    for split in ("train", "val"):
        content = json.loads((data_folder / f"{split}.json").read_text())
        content["categories"].append({"id": 6, "name": "odd one"})
        for number, row in enumerate(content["annotations"]):
            row["category_id"] = 6 if number % 3 == 0 else 5
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_a_run_trains_without_the_class_and_eval_measures_it_separately(
    two_classes: Path, tmp_path: Path, tiny_texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train = ["train", "--data", str(two_classes), "--out", str(run)]
    sets = [word for text in tiny_texts for word in ("--set", text)]
    assert main([*train, *sets, "--epochs", "1", "--holdout-classes", "odd one"]) == 0
    boxes = json.loads((two_classes / "train.json").read_text())["annotations"]
    held_out = sum(row["category_id"] == 6 for row in boxes)
    assert f"train.json: box of a held-out class: {held_out}, " in capsys.readouterr().out

    assert main([*train, "--resume", "--epochs", "2", "--set", "data.holdout_classes=[]"]) == 1
    assert "the run holds out odd one and cannot continue with no class held out" in capsys.readouterr().err

    report = tmp_path / "report.json"
    assert main(["eval", str(run / "best.pt"), "--data", str(two_classes / "val.json"), "--output", str(report)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "unseen: odd one"
    assert shown[1].split() == ["all", "seen", "unseen"]
    content = json.loads(report.read_text())
    assert content["holdout_classes"] == ["odd one"]
    assert set(content["open_world"]) == {"all", "seen", "unseen"}
    assert content["metrics"] == content["open_world"]["all"]

    # Annotations without classes: measured as any other model.
    plain = json.loads((two_classes / "val.json").read_text())
    (two_classes / "plain.json").write_text(json.dumps({**plain, "categories": []}))
    assert main(["eval", str(run / "best.pt"), "--data", str(two_classes / "plain.json")]) == 0
    captured = capsys.readouterr()
    assert "there is no class named odd one here: recall covers all objects" in captured.err
    assert "unseen" not in captured.out

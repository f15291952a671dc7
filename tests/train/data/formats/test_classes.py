"""`--classes` keeps the boxes of some classes, and an unknown name is an error that lists similar ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.coco import read_split
from edgerpn.train.data.splits import find_split, find_train_and_val
from tests.train.data.formats.data_sets import voc_file, voc_object, write_coco, write_image


def add_crabs(file: Path) -> None:
    """A crab at 1, 2, 4, 6 in every image, and a class that shares its name."""
    content = json.loads(file.read_text())
    content["categories"].append({"id": 8, "name": "crab"})
    for number, image in enumerate(content["images"]):
        box = {"id": 100 + number, "image_id": image["id"], "category_id": 7 + number % 2, "bbox": [1, 2, 3, 4]}
        content["annotations"].append(box)
    file.write_text(json.dumps(content))


def test_boxes_of_other_classes_are_dropped_and_counted(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_coco(tmp_path / f"{name}.json", tmp_path / "images", 3)
        add_crabs(tmp_path / f"{name}.json")
    lines: list[str] = []
    train, val = find_train_and_val(tmp_path, DataChoice(classes=("crab",)), lines.append)
    assert lines[0].endswith("; train: train.json, val: val.json; classes: crab")
    for split in (train, val):
        dataset = read_split(split)
        assert [record.boxes_xyxy.tolist() for record in dataset.records] == [[[1, 2, 4, 6]]] * 3
        assert dataset.problems == (
            "box of a class that --classes does not select: 3, dropped (annotation 1; annotation 2; annotation 3)",
        )
    assert read_split(train).sha256 != read_split(find_split(tmp_path, "train")).sha256
    both = read_split(find_split(tmp_path, "train", DataChoice(classes=("crab", "fish"))))
    assert (both.num_objects, both.problems) == (6, ())


@pytest.mark.parametrize(("rows", "key"), [("annotations", "category_id"), ("categories", "id")])
def test_ids_of_classes_may_be_texts_in_one_of_the_lists(rows: str, key: str, tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    write_coco(file, tmp_path / "images", 2)
    content = json.loads(file.read_text())
    content[rows] = [{**row, key: str(row[key])} for row in content[rows]]
    file.write_text(json.dumps(content))
    dataset = read_split(find_split(file, "train"), by_class=True)
    assert [record.box_classes.tolist() for record in dataset.records] == [[0], [0]]
    assert dataset.problems == ()
    assert read_split(find_split(file, "train", DataChoice(classes=("fish",)))).num_objects == 2


def test_an_unknown_name_is_an_error_with_similar_ones_and_the_list(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", tmp_path / "images", 3)
    expected = (
        f"{tmp_path / 'train.json'}: --classes: no class named 'Fisch' (did you mean 'fish'?), 'boat'; it has 'fish', "
        "'crab'"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        read_split(find_split(tmp_path, "train", DataChoice(classes=("Fisch", "crab", "boat"), split="train=train")))


def test_a_class_that_only_another_split_has_is_no_error(tmp_path: Path) -> None:
    for split, name in (("train", "crab"), ("val", "fish")):
        write_image(tmp_path / "JPEGImages" / f"{split}.png")
        for folder in ("Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        xml = voc_file(f"{split}.png", voc_object(name, (1, 1, 9, 9)))
        (tmp_path / "Annotations" / f"{split}.xml").write_text(xml)
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}\n")
    train, val = (read_split(split) for split in find_train_and_val(tmp_path, DataChoice(classes=("crab",))))
    assert (train.num_objects, val.num_objects) == (1, 0)

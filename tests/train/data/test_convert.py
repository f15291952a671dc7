"""A converted set has the boxes, classes, order and recall of the first; no format loses more than it says."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.__main__ import build_parser, main
from edgerpn.errors import ConfigError, DataError
from edgerpn.labels import WRITERS
from edgerpn.proposals import Proposals
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.coco import Dataset, read_split
from edgerpn.train.data.convert import convert
from edgerpn.train.data.splits import find_splits
from edgerpn.train.recall.measurement import measure
from tests.train.data.formats.data_sets import write_coco, write_voc

CLASSES = ("fish", "crab", "sea star")


def write_set(folder: Path, *, with_crowds: bool) -> None:
    """A COCO set with fractions of pixels, images in no order and classes with gaps in their ids."""
    rng = np.random.default_rng(3)
    for split, names in (("train", ["b", "sub/a", "c d", "a"]), ("val", ["z", "y"])):
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            hw = (int(rng.integers(40, 90)), int(rng.integers(40, 90)))
            file = folder / "images" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(file), rng.integers(0, 255, (*hw, 3), np.uint8))
            image_id = 100 - number
            images.append({"id": image_id, "file_name": f"{name}.png", "width": hw[1], "height": hw[0]})
            for _ in range(number):
                x, y, w, h = (float(value) for value in rng.uniform(2, 30, 4))
                box = {"id": len(boxes) + 1, "image_id": image_id, "bbox": [x, y, w, h]}
                boxes.append(
                    {**box, "category_id": int(rng.choice([3, 7, 90])), "iscrowd": int(with_crowds and w > 20)}
                )
        categories = [{"id": number, "name": name} for number, name in zip((3, 7, 90), CLASSES, strict=True)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))


def read_all(folder: Path, **choice: Any) -> dict[str, Dataset]:
    return {name: read_split(split) for name, split in find_splits(folder, DataChoice(**choice)).items()}


def facts(dataset: Dataset, crowds: bool = True) -> list[Any]:
    """Size, boxes, classes and pixels of every image, in order."""
    return [
        (
            record.hw,
            record.boxes_xyxy.tolist(),
            [dataset.class_names[row] for row in record.box_classes],
            record.ignore_xyxy.tolist() if crowds else [],
            [dataset.class_names[row] for row in record.ignore_classes] if crowds else [],
            zlib.crc32(record.file.read_bytes()),
        )
        for record in dataset.records
    ]


@pytest.mark.parametrize(
    "kinds", [("coco",), ("yolo", "coco"), ("voc", "coco"), ("voc", "yolo", "voc"), ("coco", "yolo")]
)
def test_a_round_trip_keeps_boxes_classes_images_and_their_order(kinds: tuple[str, ...], tmp_path: Path) -> None:
    write_set(tmp_path / "0", with_crowds="yolo" not in kinds)
    for number, kind in enumerate(kinds):
        writer = convert(tmp_path / f"{number}", tmp_path / f"{number + 1}", kind)
        assert writer.notes() == ()
    first, last = read_all(tmp_path / "0"), read_all(tmp_path / f"{len(kinds)}")
    assert first.keys() == last.keys() == {"train", "val"}
    for name in first:
        assert facts(last[name]) == facts(first[name])


@pytest.mark.parametrize("kind", ["labelstudio", "cvat"])
def test_sets_for_labelling_come_back_with_their_boxes(kind: str, tmp_path: Path) -> None:
    write_set(tmp_path / "0", with_crowds=True)
    writer = convert(tmp_path / "0", tmp_path / "1", kind)
    assert "left out" in writer.notes()[0]
    before = read_all(tmp_path / "0")
    after = read_all(tmp_path / "1")
    assert after.keys() == before.keys()
    for name in before:
        first, last = facts(before[name], crowds=False), facts(after[name])
        assert [fact[:1] + fact[2:] for fact in last] == [fact[:1] + fact[2:] for fact in first]
        for one, other in zip(first, last, strict=True):
            np.testing.assert_allclose(np.array(other[1]), np.array(one[1]), atol=1e-4)


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_recall_on_a_converted_set_is_the_same_to_the_last_digit(kind: str, tmp_path: Path) -> None:
    def detect(frame: npt.NDArray[np.uint8]) -> Proposals:
        rng = np.random.default_rng(zlib.crc32(frame.tobytes()))
        corners = rng.uniform(0, 30, (300, 2))
        sizes = rng.uniform(2, 32, (300, 2))
        boxes = np.concatenate((corners, corners + sizes), axis=1).astype(np.float32)
        return Proposals(boxes, np.sort(rng.uniform(0, 1, 300).astype(np.float32))[::-1])

    write_set(tmp_path / "0", with_crowds=False)
    convert(tmp_path / "0", tmp_path / "1", kind)
    found = [
        measure(detect, find_splits(folder)["train"], name="x", num_proposals=300, holdout_classes=()).metrics
        for folder in (tmp_path / "0", tmp_path / "1")
    ]
    assert found[0] == found[1]
    assert 0 < found[0]["AR@100"] < 1


def test_ids_of_images_and_numbers_of_classes_stay(tmp_path: Path) -> None:
    write_set(tmp_path / "0", with_crowds=True)
    convert(tmp_path / "0", tmp_path / "1", "coco")
    content = json.loads((tmp_path / "1" / "train.json").read_text())
    assert [image["id"] for image in content["images"]] == [100, 99, 98, 97]
    assert [image["file_name"] for image in content["images"]] == ["b.png", "sub/a.png", "c d.png", "a.png"]
    # "object" would stand for boxes without a class.
    assert [category["name"] for category in content["categories"]] == list(CLASSES)


def test_an_object_of_two_classes_keeps_both(tmp_path: Path) -> None:
    write_set(tmp_path / "0", with_crowds=False)
    content = json.loads((tmp_path / "0" / "train.json").read_text())
    content["annotations"] = [
        {"id": number, "image_id": 100, "bbox": [2, 3, 20, 20], "category_id": number} for number in (7, 3)
    ]
    (tmp_path / "0" / "train.json").write_text(json.dumps(content))
    convert(tmp_path / "0", tmp_path / "1", "yolo")
    labels = next((tmp_path / "1").rglob("b.txt")).read_text().splitlines()
    assert [line.split()[0] for line in labels] == ["1", "0"]


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path / "in" / "JPEGImages", tmp_path / "in" / "Annotations", 5)
    (tmp_path / "in" / "JPEGImages" / "4.png").write_bytes(b"not an image")
    words = ["data", "convert", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--to", "yolo", "--allow", "images"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'in'}: PASCAL VOC (Annotations/ and JPEGImages/); train: Annotations (train)",
        "train: 4 images, 4 boxes",
        f"  image file broken: 1, image dropped (image 5: {tmp_path / 'in' / 'JPEGImages' / '4.png'}: not an image "
        "that OpenCV can decode (12 bytes))",
        f"{tmp_path / 'out'}: YOLO, 4 images, 4 boxes",
    ]
    assert main(words) == 1
    assert "out: this folder is not empty" in capsys.readouterr().err


def test_a_share_can_be_held_out_and_classes_chosen(tmp_path: Path) -> None:
    write_coco(tmp_path / "0" / "instances.json", tmp_path / "0" / "images", 10)
    convert(tmp_path / "0", tmp_path / "1", "voc", choice=DataChoice(split="0.3@1", classes=("crab",)))
    found = read_all(tmp_path / "1")
    assert [len(dataset.records) for dataset in found.values()] == [7, 3]
    assert sum(dataset.num_objects for dataset in found.values()) == 0


@pytest.mark.parametrize("kind", list(WRITERS))
def test_names_of_classes_become_one_line(kind: str, tmp_path: Path) -> None:
    write_coco(tmp_path / "0" / "instances.json", tmp_path / "0" / "images", 2)
    file = tmp_path / "0" / "instances.json"
    file.write_text(file.read_text().replace('"fish"', '" a\\n fish: #1 \'"').replace('"crab"', '""'))
    convert(file, tmp_path / "1", kind)
    for dataset in read_all(tmp_path / "1").values():
        assert {dataset.class_names[row] for record in dataset.records for row in record.box_classes} == {
            "a fish: #1 '"
        }


def test_a_set_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    write_set(tmp_path / "0", with_crowds=True)
    (tmp_path / "0" / "val.json").write_text("{")
    with pytest.raises(DataError, match=r"val\.json: not valid JSON"):
        convert(tmp_path / "0", tmp_path / "1", "coco")
    assert not (tmp_path / "1").exists()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="not empty"):
        convert(tmp_path / "0", tmp_path / "1", "coco")


def test_the_command_knows_every_writer() -> None:
    for kind in WRITERS:
        words = ["data", "convert", "in", "-o", "out", "--to", kind]
        assert build_parser(words).parse_args(words).to == kind

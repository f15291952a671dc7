"""Reading COCO data, good and bad; every message is asserted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.coco import Dataset, Verify, read_coco, read_split
from edgerpn.train.data.formats.content import Split

WIDTH, HEIGHT = 60, 40


def write_image(file: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """A picture with some structure, so that its file has image data worth the name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 7 % 256
    assert cv2.imwrite(str(file), np.dstack([ramp, 255 - ramp, ramp // 2]).astype(np.uint8))


def image(number: int, name: str | None = None, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "width": WIDTH, "height": HEIGHT, **changes}


def box(number: int, image_id: int, bbox: list[Any], **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "bbox": bbox, "category_id": 3, "iscrowd": 0, **changes}


class CocoFolder:
    """A data set on disk, by default with ten good images 1..10."""

    def __init__(self, root: Path) -> None:
        self.images_dir = root / "images"
        self.file = root / "train.json"
        self.images = [image(number) for number in range(1, 11)]
        self.categories: list[dict[str, Any]] = []
        self.boxes = [box(number, number, [10, 5, 20, 10]) for number in range(1, 11)]
        for number in range(1, 11):
            write_image(self.images_dir / f"{number}.jpg")

    def read(self, verify: Verify = "decode", allow: Sequence[str] = (), **options: Any) -> Dataset:
        self.file.write_text(
            json.dumps({"images": self.images, "annotations": self.boxes, "categories": self.categories})
        )
        split = Split(self.file, self.images_dir, allow=tuple(allow))
        return read_split(split, verify=verify, **options)


@pytest.fixture
def folder(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path)


@pytest.mark.parametrize("verify", ["decode", "header", "none"])
def test_a_clean_set_is_read_without_problems(folder: CocoFolder, verify: Verify) -> None:
    dataset = folder.read(verify)
    assert dataset.problems == ()
    assert [record.image_id for record in dataset.records] == list(range(1, 11))
    first = dataset.records[0]
    assert first.file == folder.images_dir / "1.jpg"
    assert first.hw == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(first.boxes_xyxy, np.array([[10, 5, 30, 15]], np.float32))
    assert first.boxes_xyxy.dtype == first.ignore_xyxy.dtype == np.float32
    assert first.ignore_xyxy.shape == (0, 4)
    assert dataset.annotation_file == folder.file
    assert dataset.sha256 == hashlib.sha256(folder.file.read_bytes()).hexdigest()


def test_file_names_may_be_relative_to_the_folder_above(folder: CocoFolder) -> None:
    folder.images[0]["file_name"] = "images/1.jpg"
    write_image(folder.images_dir / "deep" / "er" / "2.jpg")
    folder.images[1]["file_name"] = "deep/er/2.jpg"
    records = folder.read().records
    assert records[0].file == folder.images_dir / "1.jpg"
    assert records[1].file == folder.images_dir / "deep" / "er" / "2.jpg"


def test_unusable_boxes_are_dropped(folder: CocoFolder) -> None:
    folder.boxes += [box(98, 1, [5, 5, 0, 9]), box(99, 1, [5, 5, float("nan"), 9]), box(100, 1, [60, 5, 9, 9])]
    dataset = folder.read()
    assert [line.partition(" (")[0] for line in dataset.problems] == [
        "box of zero or negative size: 1, dropped",
        "box with a coordinate that is not finite: 1, dropped",
        "box wholly outside its image: 1, dropped",
    ]
    assert [len(record.boxes_xyxy) for record in dataset.records] == [1] * 10


def test_boxes_reaching_out_are_clipped_and_rounding_is_not_counted(folder: CocoFolder) -> None:
    folder.boxes += [box(98, 1, [-4, 30, 24, 1e308]), box(99, 1, [50, 30, 10.04, 10])]
    dataset = folder.read()
    expected = np.array([[10, 5, 30, 15], [0, 30, 20, 40], [50, 30, 60, 40]], np.float32)
    np.testing.assert_array_equal(dataset.records[0].boxes_xyxy, expected)
    line = "box partly outside its image: 1, clipped to the image (annotation 98: [-4, 30, 24, 1e+308] in 60 x 40)"
    assert dataset.problems == (line,)


def test_crowds_become_ignore_regions_and_images_without_boxes_negatives(folder: CocoFolder) -> None:
    folder.boxes[3]["iscrowd"] = 1
    del folder.boxes[4]["iscrowd"]
    dataset = folder.read()
    np.testing.assert_array_equal(dataset.records[3].ignore_xyxy, np.array([[10, 5, 30, 15]], np.float32))
    assert dataset.records[3].boxes_xyxy.shape == (0, 4)
    assert dataset.records[4].boxes_xyxy.shape == (1, 4)
    assert dataset.problems == ("image without boxes: 1, kept as a negative (image 4: 4.jpg)",)


def test_repeated_annotation_ids_are_kept_and_unlisted_images_dropped(folder: CocoFolder) -> None:
    folder.boxes += [box(1, 2, [0, 0, 5, 5]), box(98, 77, [0, 0, 5, 5])]
    dataset = folder.read()
    assert len(dataset.records[1].boxes_xyxy) == 2
    assert dataset.problems == (
        "annotation id used more than once: 1, kept (1)",
        "annotation of an image that is not listed: 1, dropped (annotation 98: image 77)",
    )


def test_only_five_examples_of_a_kind_are_named(folder: CocoFolder) -> None:
    folder.boxes += [box(100 + number, 1, [0, 0, 0, 0]) for number in range(7)]
    (line,) = folder.read(allow=["dropped"]).problems
    assert line.startswith("box of zero or negative size: 7, dropped (annotation 100: ")
    assert line.count("annotation") == 5
    assert line.endswith("annotation 104: [0, 0, 0, 0] in 60 x 40; ...)")


@pytest.mark.parametrize("verify", ["decode", "header", "none"])
def test_a_size_that_the_file_does_not_say_comes_from_the_image(folder: CocoFolder, verify: Verify) -> None:
    write_image(folder.images_dir / "3.jpg", 50, 30)
    folder.images[2] |= {"width": None, "height": "30"}
    folder.boxes[2]["bbox"] = [40, 20, 20, 20]
    dataset = folder.read(verify)
    assert dataset.records[2].hw == (30, 50)
    assert dataset.records[2].boxes_xyxy.tolist() == [[40, 20, 50, 30]]
    assert dataset.problems[0].startswith("image without a usable width and height: 1, size taken from the file")


def test_text_ids_and_classes_are_kept(folder: CocoFolder) -> None:
    for number, (image_row, box_row) in enumerate(zip(folder.images, folder.boxes, strict=True)):
        image_row["id"] = box_row["image_id"] = f"picture-{number}"
        del box_row["id"]
    folder.boxes[1] |= {"category_id": 9, "iscrowd": 1}
    folder.categories = [{"id": 5, "name": "crab"}, {"id": 3, "name": "fish"}, {"name": "nothing"}]
    dataset = folder.read()
    assert dataset.problems == ("image without boxes: 1, kept as a negative (image picture-1: 2.jpg)",)
    assert dataset.records[9].image_id == "picture-9"
    assert dataset.class_names == ("crab", "fish")
    assert dataset.records[0].box_classes.tolist() == [1]
    assert dataset.records[1].ignore_classes.tolist() == [-1]
    assert dataset.coco_ground_truth()["annotations"][0]["image_id"] == "picture-0"


def test_a_box_given_twice_counts_once_whatever_its_class(folder: CocoFolder) -> None:
    folder.boxes += [box(90, 1, [10.02, 5, 20, 10], category_id=7), box(91, 1, [10, 5, 20, 10], iscrowd=1)]
    dataset = folder.read()
    assert len(dataset.records[0].boxes_xyxy) == len(dataset.records[0].ignore_xyxy) == 1
    assert dataset.problems == (
        "box that equals another of its image: 1, kept once (annotation 90: [10.02, 5, 20, 10] in 60 x 40)",
    )


def test_with_classes_a_box_given_twice_counts_once_for_each_class(folder: CocoFolder) -> None:
    folder.categories = [{"id": 3, "name": "fish"}, {"id": 7, "name": "crab"}]
    again = [10.02, 5, 20, 10]
    folder.boxes += [box(90, 1, again, category_id=7), box(91, 1, again, category_id=7), box(92, 1, again)]
    dataset = folder.read(by_class=True)
    assert dataset.records[0].box_classes.tolist() == [0, 1]
    assert dataset.problems == (
        "box that equals another of its image: 2, kept once (annotation 91: [10.02, 5, 20, 10] in 60 x 40; "
        "annotation 92: [10.02, 5, 20, 10] in 60 x 40)",
        "box that equals one of another class: 1, kept once for each class "
        "(annotation 90: [10.02, 5, 20, 10] in 60 x 40)",
    )
    # For recall it is one object; and a name goes before none, for training.
    assert [row["id"] for row in dataset.coco_ground_truth()["annotations"]] == list(range(1, 11))
    named = dataset.with_classes(("crab",)).records[0]
    assert named.box_classes.tolist() == [0, -1]
    np.testing.assert_array_equal(named.boxes_xyxy, dataset.records[0].boxes_xyxy[::-1])


def test_with_classes_boxes_without_one_are_counted(folder: CocoFolder) -> None:
    folder.categories = [{"id": 3, "name": "object"}]
    del folder.boxes[1]["category_id"]
    folder.boxes[2]["category_id"] = 99
    assert folder.read().problems == ()
    dataset = folder.read(by_class=True)
    assert dataset.problems == ("box without a class: 2, kept as an object (annotation 2; annotation 3)",)
    # They are no objects of a class that has this name.
    assert [record.box_classes.tolist() for record in dataset.records[:4]] == [[0], [-1], [-1], [0]]
    assert dataset.present_classes == ("object",)
    renamed = dataset.with_classes(("fish", "object"))
    assert [record.box_classes.tolist() for record in renamed.records[:4]] == [[1], [-1], [-1], [1]]
    assert [len(renamed.coco_ground_truth(by_class=each)["annotations"]) for each in (True, False)] == [8, 10]


def test_held_out_boxes_have_no_class(folder: CocoFolder) -> None:
    folder.categories = [{"id": 3, "name": "fish"}, {"id": 7, "name": "crab"}, {"id": 8, "name": "eel"}]
    folder.boxes += [box(90 + number, 1, [1, 1, 9, 9], category_id=number) for number in (7, 8)]
    dataset = folder.read(by_class=True, holdout_classes=("crab", "eel"))
    assert len(dataset.records[0].held_out_xyxy) == 1


def truncate(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("verify", ["decode", "header"])
@pytest.mark.parametrize(
    ("suffix", "spoil", "line"),
    [
        (".jpg", Path.unlink, "image file missing: 1, image dropped (image 3: 3.jpg)"),
        (
            ".jpg",
            truncate,
            "image file broken: 1, image dropped (image 3: {file}: truncated: the JPEG has no end marker)",
        ),
        (
            ".png",
            truncate,
            "image file broken: 1, image dropped (image 3: {file}: truncated: the PNG has no end chunk)",
        ),
        (".bmp", truncate, "image file broken: 1, image dropped (image 3: {file}: "),
        (
            ".jpg",
            lambda file: file.write_bytes(b""),
            "image file broken: 1, image dropped (image 3: {file}: the file is empty)",
        ),
        (
            ".jpg",
            lambda file: file.write_text("<html>"),
            "image file broken: 1, image dropped (image 3: {file}: not an image that OpenCV can decode (6 bytes))",
        ),
        (
            ".jpg",
            lambda file: file.write_bytes(file.read_bytes()[:30]),
            "image file broken: 1, image dropped (image 3: {file}: truncated: the JPEG ends before its image data)",
        ),
        (
            ".jpg",
            lambda file: write_image(file, 40, 60),
            "image whose size is not the annotated one: 1, image dropped, as its boxes may belong to another picture "
            "(image 3: 3.jpg: 40 x 60, annotated 60 x 40, swapped as after the loss of an EXIF orientation)",
        ),
        (
            ".png",
            lambda file: write_image(file, 61, 40),
            "image whose size is not the annotated one: 1, image dropped, as its boxes may belong to another picture "
            "(image 3: 3.png: 61 x 40, annotated 60 x 40)",
        ),
    ],
)
def test_an_unusable_image_is_dropped_and_named(
    folder: CocoFolder, verify: Verify, suffix: str, spoil: Any, line: str
) -> None:
    file = folder.images_dir / f"3{suffix}"
    write_image(file)
    folder.images[2]["file_name"] = file.name
    spoil(file)
    dataset = folder.read(verify)
    assert [record.image_id for record in dataset.records] == [1, 2, *range(4, 11)]
    assert len(dataset.problems) == 1
    assert dataset.problems[0].startswith(line.format(file=file))


def test_a_png_with_spoilt_pixels_is_found_by_decoding_it(folder: CocoFolder) -> None:
    file = folder.images_dir / "3.png"
    write_image(file)
    data = bytearray(file.read_bytes())
    data[60:90] = bytes(30)
    file.write_bytes(data)
    folder.images[2]["file_name"] = "3.png"
    assert folder.read("header").problems == ()
    assert folder.read("decode").problems[0].startswith("image file broken: 1")


def test_more_than_a_tenth_of_unusable_images_is_refused_with_all_problems(folder: CocoFolder) -> None:
    (folder.images_dir / "3.jpg").unlink()
    truncate(folder.images_dir / "4.jpg")
    folder.boxes.append(box(1, 2, [0, 0, 5, 5]))
    with pytest.raises(
        DataError, match=r"2 of 10 images are not usable: is it .*--allow images \(data\.allow\)"
    ) as caught:
        folder.read()
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "annotation id used more than once",
        "image file missing",
        "image file broken",
    ]
    assert "image 3: 3.jpg" in str(caught.value)
    assert len(folder.read(allow=["images"]).records) == 8


def test_a_set_without_usable_images_is_refused(folder: CocoFolder, tmp_path: Path) -> None:
    folder.images, folder.boxes = [], []
    with pytest.raises(DataError, match="none of its 0 images is usable"):
        folder.read()
    folder.images = [image(1)]
    (tmp_path / "elsewhere").mkdir()
    folder.images_dir = tmp_path / "elsewhere"
    with pytest.raises(DataError, match=r"none of its 1 images is usable in .*elsewhere; is it the right folder"):
        folder.read()
    folder.images_dir = tmp_path / "nowhere"
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected the images of train\.json"):
        folder.read()


def test_a_set_whose_boxes_are_all_unusable_is_refused(folder: CocoFolder) -> None:
    folder.boxes = [box(1, 1, [0, 0, 0, 0])]
    with pytest.raises(DataError, match="none of its 1 boxes is usable"):
        folder.read()
    folder.boxes = []
    assert len(folder.read().records) == 10


@pytest.mark.parametrize("verify", ["decode", "none"])
@pytest.mark.parametrize(
    "name", ["../1.jpg", "a/../../1.jpg", "/etc/hostname", "\\\\server\\1.jpg", "..\\1.jpg", "C:\\1.jpg", "", "1.jpg\0"]
)
def test_file_names_that_leave_the_folder_are_refused(folder: CocoFolder, name: str, verify: Verify) -> None:
    folder.images[5]["file_name"] = name
    with pytest.raises(DataError, match=r"image 6: file_name .* expected a path below the image folder"):
        folder.read(verify)


def test_links_may_not_lead_out_of_the_folder_unless_it_is_the_link(folder: CocoFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "1.jpg"
    write_image(outside)
    (folder.images_dir / "1.jpg").unlink()
    (folder.images_dir / "1.jpg").symlink_to(outside)
    with pytest.raises(
        DataError, match=r"image 1: file_name '1.jpg': leads to .*outside/1.jpg, outside the image folder"
    ):
        folder.read()
    folder.images = [image(1)]
    folder.boxes = folder.boxes[:1]
    os.rename(folder.images_dir, tmp_path / "kept")
    folder.images_dir.symlink_to(tmp_path / "outside")
    assert folder.read().records[0].file == folder.images_dir / "1.jpg"
    folder.images[0]["file_name"] = "images/1.jpg"
    assert folder.read().records[0].file == folder.images_dir / "1.jpg"


def test_a_file_beside_the_folder_is_missing_not_used(folder: CocoFolder) -> None:
    write_image(folder.images_dir.parent / "other" / "1.jpg")
    folder.images[0]["file_name"] = "other/1.jpg"
    line = "image file missing: 1, image dropped (image 1: other/1.jpg (there is 1.jpg))"
    assert folder.read().problems == (line,)


def test_a_missing_annotation_file_is_refused(folder: CocoFolder) -> None:
    with pytest.raises(DataError, match=r"train\.json: cannot be read: No such file"):
        read_coco(folder.file, folder.images_dir)


def test_the_ground_truth_holds_exactly_what_was_kept_in_one_category(folder: CocoFolder) -> None:
    folder.images = folder.images[:2]
    folder.boxes = [
        box(7, 1, [10, 5, 20, 10], category_id=5, area=3.0),
        box(7, 1, [-10, 0, 20, 10], iscrowd=1),
        box(8, 1, [0, 0, 0, 0]),
    ]
    truth = folder.read().coco_ground_truth()
    assert [(entry["id"], entry["width"], entry["height"]) for entry in truth["images"]] == [(1, 60, 40), (2, 60, 40)]
    assert truth["categories"] == [{"id": 1, "name": "object"}]
    common = {"image_id": 1, "category_id": 1}
    assert truth["annotations"] == [
        {"id": 1, "bbox": [10, 5, 20, 10], "area": 200, "iscrowd": 0, **common},
        {"id": 2, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 1, **common},
    ]
    json.dumps(truth)

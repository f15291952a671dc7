"""Sets whose images have an EXIF orientation: the default refuses them, and both readings are right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from edgerpn.errors import DataError
from edgerpn.train.check.checking import check_set
from edgerpn.train.config import load_settings
from edgerpn.train.data.choice import DataChoice, ExifChoice, ImageRules
from edgerpn.train.data.coco import Dataset, read_image, read_split
from edgerpn.train.data.formats.content import Split
from edgerpn.train.data.image_cache import ImageCache
from edgerpn.train.data.loader import DataConfig
from edgerpn.train.data.splits import find_split

WIDTH, HEIGHT = 64, 48
"""Of the stored pictures, which are a dark field with a bright rectangle."""
STORED_BOX = [40, 8, 16, 24]
UPRIGHT_BOX = [16, 40, 24, 16]
"""The rectangle as x, y, width, height in the stored picture, and in the one turned right by a quarter."""


def write_picture(file: Path, orientation: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    x, y, width, height = STORED_BOX
    pixels[y : y + height, x : x + width] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(file, quality=95, exif=exif)


def write_set(
    root: Path, box: list[int], listed_wh: tuple[int, int] | None, *, orientation: int = 6, count: int = 12
) -> Split:
    images: list[dict[str, Any]] = []
    boxes = []
    for number in range(count):
        write_picture(root / "images" / f"{number}.jpg", orientation)
        size = {} if listed_wh is None else {"width": listed_wh[0], "height": listed_wh[1]}
        images.append({"id": number, "file_name": f"{number}.jpg", **size})
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
    (root / "train.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    return Split(root / "train.json", root / "images")


def read(split: Split, exif: ExifChoice) -> Dataset:
    return read_split(split._replace(rules=ImageRules(exif=exif)))


def check_boxes_lie_on_rectangles(dataset: Dataset) -> None:
    for record in dataset.records:
        image = read_image(record.file, record.exif)
        assert image.shape[:2] == record.hw
        (box,) = record.boxes_xyxy
        x1, y1, x2, y2 = np.round(box).astype(int)
        assert image[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 200
        image[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = 0
        assert image.max() < 60


@pytest.mark.parametrize(
    ("box", "listed_wh", "right"),
    [
        (UPRIGHT_BOX, (HEIGHT, WIDTH), "apply"),
        (UPRIGHT_BOX, (WIDTH, HEIGHT), "apply"),
        (UPRIGHT_BOX, None, "apply"),
        (STORED_BOX, (WIDTH, HEIGHT), "ignore"),
        (STORED_BOX, (HEIGHT, WIDTH), "ignore"),
    ],
)
def test_the_default_refuses_and_names_the_reading_that_fits(
    tmp_path: Path, box: list[int], listed_wh: tuple[int, int] | None, right: ExifChoice
) -> None:
    split = write_set(tmp_path, box, listed_wh)
    with pytest.raises(DataError) as refused:
        read(split, "auto")
    message = str(refused.value)
    assert "12 of 12 images with an EXIF orientation have boxes" in message
    counts = {"apply": "12 fit the upright picture only, 0 the stored one only, 0 both"}
    assert counts.get(right, "0 fit the upright picture only, 12 the stored one only, 0 both") in message
    assert f"--exif {right} (data.exif)" in message
    assert str(tmp_path / "images" / "0.jpg") in message
    # Boxes that reach out only follow from it.
    assert "--allow outside" not in message
    assert "--allow clipped" not in message
    check_boxes_lie_on_rectangles(read(split, right))


def test_a_model_brings_its_reading_unless_one_is_chosen(tmp_path: Path) -> None:
    split = write_set(tmp_path, UPRIGHT_BOX, None)
    check_boxes_lie_on_rectangles(read_split(split.read_like("apply")))
    chosen = split._replace(rules=ImageRules(exif="ignore"))
    assert chosen.read_like("apply") == chosen
    with pytest.raises(DataError, match="--exif apply"):
        read_split(split.read_like("auto"))


def test_a_check_with_the_settings_of_a_model_reads_as_the_model_does(tmp_path: Path) -> None:
    write_set(tmp_path, UPRIGHT_BOX, None)
    assert check_set(tmp_path, DataChoice(), load_settings()).num_errors
    report = check_set(tmp_path, DataChoice(allow=("leaked",)), load_settings(overrides=("data.exif=apply",)))
    assert not report.num_errors


def test_boxes_that_fit_both_readings_are_left_to_the_user(tmp_path: Path) -> None:
    split = write_set(tmp_path, STORED_BOX, (WIDTH, HEIGHT), orientation=3)
    with pytest.raises(DataError, match=r"12 both .*Look at some with their boxes, and choose --exif apply or"):
        read(split, "auto")
    check_boxes_lie_on_rectangles(read(split, "ignore"))
    x, y, width, height = STORED_BOX
    turned = [WIDTH - x - width, HEIGHT - y - height, width, height]
    check_boxes_lie_on_rectangles(read(write_set(tmp_path / "turned", turned, None, orientation=3), "apply"))


def test_orientation_matters_only_with_boxes(tmp_path: Path) -> None:
    split = write_set(tmp_path, STORED_BOX, (WIDTH, HEIGHT), orientation=1)
    for rule in ("auto", "apply", "ignore"):
        dataset = read(split, rule)
        assert dataset.problems == ()
        check_boxes_lie_on_rectangles(dataset)
    write_picture(tmp_path / "images" / "empty.jpg", 6)
    root = json.loads(split.annotations.read_text())
    root["images"].append({"id": 99, "file_name": "empty.jpg", "width": HEIGHT, "height": WIDTH})
    split.annotations.write_text(json.dumps(root))
    assert len(read(split, "auto").records) == 13


def test_a_size_of_the_other_reading_is_used_and_counted_and_a_foreign_one_dropped(tmp_path: Path) -> None:
    split = write_set(tmp_path, UPRIGHT_BOX, (WIDTH, HEIGHT))
    root = json.loads(split.annotations.read_text())
    root["images"][0]["width"] = 50
    split.annotations.write_text(json.dumps(root))
    dataset = read(split, "apply")
    assert len(dataset.records) == 11
    assert dataset.problems[0].startswith("image whose size is not the annotated one: 1, image dropped")
    assert dataset.problems[1].startswith("image annotated with the size of the other EXIF reading: 11, used as")


def test_fractions_of_the_image_are_those_of_the_picture_as_read(tmp_path: Path) -> None:
    for number in range(12):
        write_picture(tmp_path / "images" / f"{number}.jpg", 6)
        x, y, width, height = UPRIGHT_BOX
        line = f"0 {(x + width / 2) / HEIGHT} {(y + height / 2) / WIDTH} {width / HEIGHT} {height / WIDTH}\n"
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{number}.txt").write_text(line)
    with pytest.raises(DataError, match=r"both .*choose --exif apply or --exif ignore"):
        read_split(find_split(tmp_path, "train"))
    dataset = read_split(find_split(tmp_path, "train", DataChoice(images=ImageRules(exif="apply"))))
    check_boxes_lie_on_rectangles(dataset)
    assert dataset.problems == ()


@pytest.mark.parametrize("size", [(64, 48), (61, 43)])
def test_a_turned_picture_is_the_same_from_the_cache_and_at_every_reduction(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    write_picture(tmp_path / "a.jpg", 6)
    with Image.open(tmp_path / "a.jpg") as image:
        image.crop((0, 0, *size)).save(tmp_path / "a.jpg", exif=image.getexif())
    (record,) = [
        replace(one, file=tmp_path / "a.jpg", hw=size, boxes_xyxy=np.zeros((0, 4), np.float32), exif="apply")
        for one in read(write_set(tmp_path / "set", UPRIGHT_BOX, None, count=1), "apply").records
    ]
    config = DataConfig(input_hw=(16, 16), view_sides_px=(0,))
    cache = ImageCache([record], config.augment, config.input_hw, size_bytes=1 << 20)
    expected = cv2.rotate(read_image(record.file), cv2.ROTATE_90_CLOCKWISE)
    for reduction in (1, 2, 4, 8):
        first, used = cache.read(0, record.file, reduction, "apply")
        again, _ = cache.read(0, record.file, reduction, "apply")
        np.testing.assert_array_equal(first, again)
        assert first.shape[:2] == tuple(-(-side // used) for side in size)
        assert used == (1 if any(side % reduction for side in size) else reduction)
        if used == 1:
            np.testing.assert_array_equal(first, expected)

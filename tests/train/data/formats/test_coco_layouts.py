"""COCO files are found in the layouts that tools write, with the images that belong to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.coco import read_split
from edgerpn.train.data.splits import find_split, find_train_and_val
from tests.train.data.formats.data_sets import write_coco


@pytest.mark.parametrize(
    ("files", "title"),
    [
        ({"train.json": "images", "val.json": "images"}, "COCO (train.json, val.json)"),
        ({"train.json": "images/train", "val.json": "images/val"}, "COCO (train.json, val.json)"),
        ({"train.json": "train", "valid.json": "valid"}, "COCO (train.json, val.json)"),
        (
            {"annotations/instances_train2017.json": "train2017", "annotations/instances_val2017.json": "val2017"},
            "COCO (annotations/instances_train2017.json, instances_val2017.json)",
        ),
        (
            {"annotations/instances_train.json": "images/train", "annotations/instances_val.json": "images/val"},
            "COCO (annotations/instances_train.json, instances_val.json)",
        ),
        (
            {"train/_annotations.coco.json": "train", "valid/_annotations.coco.json": "valid"},
            "COCO (train/, valid/ with _annotations.coco.json)",
        ),
    ],
)
def test_layouts_with_splits(files: dict[str, str], title: str, tmp_path: Path) -> None:
    for count, (file, images) in enumerate(files.items(), start=2):
        write_coco(tmp_path / file, tmp_path / images, count)
    lines: list[str] = []
    splits = find_train_and_val(tmp_path, log=lines.append)
    for count, (split, (file, images)) in enumerate(zip(splits, files.items(), strict=True), start=2):
        dataset = read_split(split)
        assert (dataset.annotation_file, dataset.folder) == (tmp_path / file, tmp_path)
        assert [record.file for record in dataset.records] == [tmp_path / images / f"{n}.png" for n in range(count)]
        np.testing.assert_array_equal(dataset.records[0].boxes_xyxy, np.array([[10, 5, 30, 15]], np.float32))
        assert dataset.problems == ()
    assert lines[0].startswith(f"{tmp_path}: {title}; train: ")


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("instances.json", "images"),
        ("instances.json", "."),
        ("result.json", "images"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_default.json", "images/default"),
        ("_annotations.coco.json", "."),
        ("my labels.json", "images"),
    ],
)
def test_one_file_for_all_images(file: str, images: str, tmp_path: Path) -> None:
    write_coco(tmp_path / file, tmp_path / images, 5)
    train, val = find_train_and_val(tmp_path)
    assert (len(read_split(train).records), len(read_split(val).records)) == (4, 1)
    assert len(read_split(find_split(tmp_path / file, "val")).records) == 5


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("train.json", "images/train"),
        ("train.json", "images"),
        ("train.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
    ],
)
def test_the_file_of_a_split_finds_its_images(file: str, images: str, tmp_path: Path) -> None:
    write_coco(tmp_path / file, tmp_path / images, 2)
    assert find_split(tmp_path / file, "val").images == tmp_path / images


@pytest.mark.parametrize("name", ["images/0.png", "images\\0.png"])
def test_names_of_label_studio_start_with_the_folder(name: str, tmp_path: Path) -> None:
    write_coco(tmp_path / "result.json", tmp_path / "images", 1)
    content = json.loads((tmp_path / "result.json").read_text())
    content["images"][0]["file_name"] = name
    (tmp_path / "result.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert read_split(find_split(tmp_path / "result.json", "val")).records[0].file == tmp_path / "images" / "0.png"


def test_sets_of_two_years_are_two_candidates(tmp_path: Path) -> None:
    for year in (2014, 2017):
        write_coco(tmp_path / f"annotations/instances_train{year}.json", tmp_path / f"train{year}", 2)
    with pytest.raises(DataError, match="2 data sets recognised") as caught:
        find_split(tmp_path, "train")
    assert "instances_train2014.json" in caught.value.problems[0]
    train = find_split(tmp_path / "annotations" / "instances_train2014.json", "train")
    assert train.images == tmp_path / "train2014"


@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 2], lambda data: b"\xff\xfe" + data, lambda data: b"[]"]
)
def test_a_broken_file_is_one_named_error(spoil: object, tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    write_coco(file, tmp_path / "images", 3)
    file.write_bytes(spoil(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"instances\.json: (not valid JSON|expected a JSON object)"):
        find_split(tmp_path, "val")


def test_apples_hidden_files_are_no_data_sets(tmp_path: Path) -> None:
    write_coco(tmp_path / "labels.json", tmp_path / "images", 3)
    (tmp_path / "._labels.json").write_bytes(b"\0\5\x16\7")
    assert len(read_split(find_split(tmp_path, "train")).records) == 2

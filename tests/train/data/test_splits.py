"""`--data` recognises one layout, finds its splits, logs them in one line, and refuses what is unclear."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.choice import DataChoice, SplitRule, add_arguments, chosen, parse_split
from edgerpn.train.data.coco import class_names, read_split
from edgerpn.train.data.splits import find_split, find_train_and_val
from tests.train.data.formats.data_sets import write_coco, write_image, write_voc, write_yolo


def names_of(split: Any) -> list[str]:
    return [record.file.name for record in read_split(split).records]


def test_a_folder_has_its_splits_and_one_folder_of_images(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", tmp_path / "images", 3)
    write_coco(tmp_path / "val.json", tmp_path / "images", 2)
    lines: list[str] = []
    assert find_split(tmp_path, "train")[:2] == (tmp_path / "train.json", tmp_path / "images")
    assert find_split(tmp_path, "val", log=lines.append)[:2] == (tmp_path / "val.json", tmp_path / "images")
    pair = find_train_and_val(tmp_path, log=lines.append)
    assert pair == (find_split(tmp_path, "train"), find_split(tmp_path, "val"))
    assert lines == [
        f"{tmp_path}: COCO (train.json, val.json); val: val.json",
        f"{tmp_path}: COCO (train.json, val.json); train: train.json, val: val.json",
    ]


def test_an_annotation_file_stands_for_itself_whatever_the_split(tmp_path: Path) -> None:
    write_coco(tmp_path / "mine.json", tmp_path / "images", 3)
    write_coco(tmp_path / "val.json", tmp_path / "images", 2)
    for split in ("train", "val"):
        assert find_split(tmp_path / "mine.json", split)[:2] == (tmp_path / "mine.json", tmp_path / "images")
    assert find_train_and_val(tmp_path / "mine.json")[1][:2] == (tmp_path / "val.json", tmp_path / "images")
    with pytest.raises(DataError, match="these are the validation images"):
        find_train_and_val(tmp_path / "val.json")


def test_the_file_of_a_split_brings_the_validation_split_of_its_layout(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("valid", 2)):
        write_coco(tmp_path / name / "_annotations.coco.json", tmp_path / name, count)
    train, val = find_train_and_val(tmp_path / "train" / "_annotations.coco.json")
    assert (train.images, val.images) == (tmp_path / "train", tmp_path / "valid")
    with pytest.raises(DataError, match="these are the validation images"):
        find_train_and_val(tmp_path / "valid" / "_annotations.coco.json")


def test_without_a_validation_split_images_are_held_out_always_the_same(tmp_path: Path) -> None:
    write_coco(tmp_path / "instances.json", tmp_path / "images", 10)
    lines: list[str] = []
    train, val = find_train_and_val(tmp_path, log=lines.append)
    assert lines == [
        f"{tmp_path}: COCO (instances.json); val: 2 of 10 images (2 of 10 groups by source, seed 0) held out of "
        "instances.json"
    ]
    assert sorted(names_of(train) + names_of(val)) == [f"{number}.png" for number in range(10)]
    assert names_of(val) == names_of(find_split(tmp_path, "val"))
    assert names_of(train) == names_of(find_split(tmp_path, "train", DataChoice(split="0.2")))
    assert names_of(val) != names_of(find_split(tmp_path, "val", DataChoice(split="0.2@1")))
    assert len(names_of(find_split(tmp_path, "val", DataChoice(split="0.5")))) == 5
    # A file stands for itself in evaluation, unless a share is asked for.
    file = tmp_path / "instances.json"
    assert names_of(find_train_and_val(file)[1]) == names_of(find_split(file, "val", DataChoice(split="0.2")))
    assert len(names_of(find_split(file, "val"))) == 10
    assert read_split(train).sha256 != read_split(val).sha256
    assert class_names(val) == {"fish", "crab"}
    assert [split.label for split in (train, val)] == ["instances.json (train)", "instances.json (val)"]


def test_a_broken_record_is_named_by_its_place_in_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    write_coco(file, tmp_path / "images", 10)
    content = json.loads(file.read_text())
    content["annotations"][7] = {"bbox": [1, 2], "image_id": 8}
    file.write_text(json.dumps(content))
    train, val = find_train_and_val(tmp_path)
    assert read_split(train).problems[0] == "annotation without a usable bbox: 1, dropped (annotations[7]: [1, 2])"
    assert sum(len(read_split(part).records) for part in (train, val)) == 10


def test_named_splits_replace_the_usual_ones(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 2), ("test", 1)):
        write_coco(tmp_path / f"{name}.json", tmp_path / "images", count)
    lines: list[str] = []
    _, val = find_train_and_val(tmp_path, DataChoice(split="val=test"), lines.append)
    assert val.annotations.name == "test.json"
    assert lines[0].endswith("; train: train.json, val: test.json; not used: val")
    assert find_split(tmp_path, "train", DataChoice(split="train=val,val=test")).annotations.name == "val.json"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", SplitRule()),
        ("0.25", SplitRule(fraction=0.25)),
        (".1@42", SplitRule(fraction=0.1, seed=42)),
        ("val=test", SplitRule(val="test")),
        ("train=test,val=train", SplitRule(train="test", val="train")),
    ],
)
def test_the_syntax_of_split(text: str, rule: SplitRule) -> None:
    assert parse_split(text) == rule


@pytest.mark.parametrize(
    "text", ["0", "1", "0.0", "20", "0.2@", "0.2@x", "val", "val=dev", "test=val", "val=val,", "-.2"]
)
def test_anything_else_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"expected FRACTION such as 0\.2, FRACTION@SEED"):
        parse_split(text)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--split={text}"])
    assert "expected FRACTION such as 0.2" in capsys.readouterr().err


def test_one_split_cannot_serve_twice() -> None:
    with pytest.raises(ValueError, match="expected different splits for training and validation, got 'val=train'"):
        parse_split("val=train")


def test_the_command_line_gives_the_choice() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert chosen(parser.parse_args([])) == DataChoice()
    words = ["--format", "yolo", "--split", "0.1@3"]
    assert chosen(parser.parse_args(words)) == DataChoice(format="yolo", split="0.1@3")


def test_two_candidates_are_listed_and_format_chooses(tmp_path: Path) -> None:
    write_coco(tmp_path / "instances.json", tmp_path / "images", 2)
    write_yolo(tmp_path / "images", tmp_path / "labels", 2)
    write_voc(tmp_path / "images", tmp_path / "Annotations", 2)
    with pytest.raises(DataError, match="3 data sets recognised; choose one with --format, or name") as caught:
        find_split(tmp_path, "train")
    assert caught.value.problems == (
        "COCO (instances.json)",
        "YOLO (text files for images)",
        "PASCAL VOC (Annotations/ and images/)",
    )
    for name, label in (
        ("coco", "instances.json"),
        ("yolo", f"{tmp_path.name} (train)"),
        ("voc", "Annotations (train)"),
    ):
        choice = DataChoice(format=name, split="0.5")
        found = find_split(tmp_path, "train", choice)
        assert found.label == (label if name != "coco" else "instances.json (train)")
        assert len(read_split(found).records) == 1


def test_nothing_recognised_is_an_error_that_lists_what_was_looked_for(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(DataError, match="no data set recognised in this folder; looked for:") as caught:
        find_split(tmp_path, "val")
    found = [line.partition(":")[0] for line in caught.value.problems]
    assert found == ["COCO", "YOLO", "PASCAL VOC", "Open Images", "LabelMe", "CVAT", "Label Studio"]
    with pytest.raises(DataError) as caught:
        find_split(tmp_path, "val", DataChoice(format="voc"))
    assert len(caught.value.problems) == 1
    with pytest.raises(DataError, match=r"elsewhere: no such file or folder; expected a folder or file of one of"):
        find_split(tmp_path / "elsewhere", "train")


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_coco(tmp_path / "val.json", tmp_path / "images", 2)
    expected = f"{tmp_path}: COCO (train.json, val.json) has no train split; it has val; add it, or choose another with"
    with pytest.raises(DataError, match=re.escape(expected)):
        find_train_and_val(tmp_path)
    assert len(names_of(find_split(tmp_path, "val"))) == 2


def test_a_file_of_another_format_than_chosen_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "mine.json", tmp_path / "images", 2)
    with pytest.raises(DataError, match=r"mine\.json: this file is not of the format 'voc'"):
        find_split(tmp_path / "mine.json", "val", DataChoice(format="voc"))


def test_a_data_set_one_folder_deeper_is_named(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007" / "JPEGImages", tmp_path / "VOC2007" / "Annotations", 2)
    expected = f"no data set recognised in this folder; name the folder {tmp_path / 'VOC2007'} in it; looked for:"
    with pytest.raises(DataError, match=re.escape(expected)):
        find_split(tmp_path, "train")

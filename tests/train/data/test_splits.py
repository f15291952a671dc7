"""One meaning of --data: a folder with both splits, or an annotation file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.splits import find_split, find_train_and_val


def make_folder(folder: Path, *names: str) -> Path:
    (folder / "images").mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_a_folder_has_its_splits_and_one_folder_of_images(tmp_path: Path) -> None:
    data = make_folder(tmp_path, "train.json", "val.json")
    assert find_split(data, "train") == (data / "train.json", data / "images")
    assert find_split(data, "val") == (data / "val.json", data / "images")
    assert find_train_and_val(data) == (find_split(data, "train"), find_split(data, "val"))


def test_an_annotation_file_stands_for_itself_whatever_the_split(tmp_path: Path) -> None:
    data = make_folder(tmp_path, "mine.json", "val.json")
    assert find_split(data / "mine.json", "train") == (data / "mine.json", data / "images")
    assert find_split(data / "mine.json", "val") == (data / "mine.json", data / "images")
    assert find_train_and_val(data / "mine.json")[1] == (data / "val.json", data / "images")


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = make_folder(tmp_path, "train.json")
    with pytest.raises(DataError, match=re.escape(f"{data}: the folder has no val.json; expected a folder with")):
        find_split(data, "val")
    with pytest.raises(DataError, match=r"no such file or folder; expected a folder with train\.json, val\.json"):
        find_split(data / "elsewhere", "train")


def test_training_needs_validation_images_of_its_own(tmp_path: Path) -> None:
    data = make_folder(tmp_path, "train.json")
    with pytest.raises(DataError, match=r"no val\.json beside it"):
        find_train_and_val(data / "train.json")
    (data / "val.json").write_text("{}")
    with pytest.raises(DataError, match="these are the validation images"):
        find_train_and_val(data / "val.json")

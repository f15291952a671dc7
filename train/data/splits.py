"""The files behind `--data`: a folder with annotations and images, or an annotation file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from edgerpn.errors import DataError

SplitName = Literal["train", "val"]
LAYOUT = "a folder with train.json, val.json (COCO) and images/, or a COCO annotation file"


class Split(NamedTuple):
    """The files of one split; `read_coco(*split)` reads it."""

    annotations: Path
    """COCO annotation file."""
    images: Path
    """Folder of its images."""


def find_split(path: Path, split: SplitName) -> Split:
    """Finds the files of a split of a data set.

    Args:
        path: A folder with `split`.json and images/, or any COCO annotation file with images/ beside it. A file
            stands for itself, whatever the split.
        split: Which split of a folder.

    Raises:
        DataError: There is no such file or folder, or the folder does not hold the split.
    """
    if path.is_file():
        return Split(path, path.parent / "images")
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected {LAYOUT}")
    annotations = path / f"{split}.json"
    if not annotations.is_file():
        raise DataError(f"{path}: the folder has no {annotations.name}; expected {LAYOUT}")
    return Split(annotations, path / "images")


def find_train_and_val(path: Path) -> tuple[Split, Split]:
    """Finds both splits that training needs; of an annotation file, the validation split is val.json beside it.

    Raises:
        DataError: One of them is missing, or `path` is itself the validation file.
    """
    train = find_split(path, "train")
    val = path.parent / "val.json" if path.is_file() else find_split(path, "val").annotations
    if not val.is_file():
        raise DataError(f"{path}: no val.json beside it; training also needs annotated validation images")
    if val.samefile(train.annotations):
        raise DataError(f"{path}: these are the validation images; name the training images or their folder")
    return train, Split(val, train.images)

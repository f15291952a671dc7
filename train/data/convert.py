"""Writes a data set of any format in another one, with the boxes that training would use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from edgerpn.files import printable
from edgerpn.labels import LabelledImage, LabelWriter, open_writer
from edgerpn.progress import progress
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.coco import Dataset, read_split
from edgerpn.train.data.splits import find_splits


def convert(
    data: Path,
    output: Path,
    kind: str,
    *,
    choice: DataChoice | None = None,
    link: bool = False,
    log: Callable[[str], None] | None = None,
) -> LabelWriter:
    """Converts all splits of a data set; boxes are repaired and clipped as in training.

    Args:
        data: Folder of a data set, or its annotation file.
        output: Folder of the new set; it must not exist, or be empty.
        kind: A key of `edgerpn.labels.WRITERS`.
        choice: Format, split and classes; None: the set's own splits, all classes.
        link: Whether images become hard links instead of copies.
        log: Called with one line for the layout, for each split, and for each problem.

    Returns:
        The writer, which has counted images and boxes.

    Raises:
        DataError: The set cannot be used, or an image cannot be copied.
        ConfigError: The folder is not empty, or an image cannot be linked.
    """
    # The writer refuses the folder before a large set is read.
    open_writer(kind, output, (), link=link)
    splits = find_splits(data, choice or DataChoice(), log)
    datasets = {name: read_split(split, verify="header", by_class=True) for name, split in splits.items()}
    categories = _categories(datasets.values())
    with (
        open_writer(kind, output, list(map(_printable, categories)), link=link) as writer,
        progress(sum(len(dataset.records) for dataset in datasets.values()), "writing", unit="image") as bar,
    ):
        for name, dataset in datasets.items():
            before = writer.num_images, writer.num_boxes
            for image in _images(dataset, categories):
                writer.add(image, name)
                bar.update()
            if log is not None:
                log(f"{name}: {writer.num_images - before[0]} images, {writer.num_boxes - before[1]} boxes")
                for line in dataset.problems:
                    log(f"  {line}")
    if log is not None:
        for line in writer.notes():
            log(line)
    return writer


def _categories(datasets: Iterable[Dataset]) -> dict[str, int]:
    """Returns a number for every class, in the order of the files."""
    names: dict[str, None] = {}
    for dataset in datasets:
        *named, last = dataset.class_names
        names |= dict.fromkeys(named)
        # The last name stands for boxes without a class.
        if any(len(named) in (*record.box_classes, *record.ignore_classes) for record in dataset.records):
            names[last] = None
    return {name: number for number, name in enumerate(names)}


def _printable(name: str) -> str:
    """Returns the name of a class in one line, as the formats need it."""
    return " ".join(printable(name).split()) or "unnamed"


def _images(dataset: Dataset, categories: Mapping[str, int]) -> Iterator[LabelledImage]:
    # Without the folders that all images share, such as images/train/ of a YOLO set.
    folder = os.path.commonpath([record.file.parent for record in dataset.records])
    numbers = np.array([categories.get(name, 0) for name in dataset.class_names], np.int64)
    keeps_ids = all(isinstance(record.image_id, int) for record in dataset.records)
    for record in dataset.records:
        yield LabelledImage(
            file_name=record.file.relative_to(folder).as_posix(),
            source=record.file,
            size_wh=(record.hw[1], record.hw[0]),
            boxes_xyxy=np.concatenate((record.boxes_xyxy, record.ignore_xyxy)).astype(np.float64),
            categories=numbers[np.concatenate((record.box_classes, record.ignore_classes))],
            is_ignored=np.arange(len(record.boxes_xyxy) + len(record.ignore_xyxy)) >= len(record.boxes_xyxy),
            # Files of results name images by these ids.
            image_id=int(record.image_id) if keeps_ids else None,
        )

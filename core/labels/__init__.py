"""Data sets of labelled images, written image by image in the formats that labelling and training tools read.

with open_writer("yolo", "out", ["fish", "crab"]) as writer:
    writer.add(LabelledImage(file_name="a.jpg", source=path, size_wh=(640, 480), boxes_xyxy=boxes), "train")
for note in writer.notes():
    print(note)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgerpn.labels.json_formats import CocoWriter, LabelStudioWriter
from edgerpn.labels.writing import LabelledImage, LabelWriter
from edgerpn.labels.xml_formats import CvatWriter, VocWriter
from edgerpn.labels.yolo import YoloWriter

__all__ = ["WRITERS", "LabelWriter", "LabelledImage", "open_writer"]

WRITERS: Mapping[str, type[LabelWriter]] = {
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "voc": VocWriter,
    "labelstudio": LabelStudioWriter,
    "cvat": CvatWriter,
}
"""The formats by their names on the command line."""


def open_writer(
    kind: str, folder: str | os.PathLike[str], categories: Sequence[str], *, link: bool = False
) -> LabelWriter:
    """Returns the writer of a new data set, for a `with` block.

    Args:
        kind: A key of `WRITERS`.
        folder: Folder of the set; it must not exist, or be empty.
        categories: Names of the categories, which boxes refer to by index; all different.
        link: Whether images become hard links instead of copies.

    Raises:
        ConfigError: The folder is not empty, or a file.
        DataError: A category has a name that no format can hold.
    """
    return WRITERS[kind](Path(folder), categories, link=link)

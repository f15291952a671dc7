"""Open Images: a CSV file of boxes for each split, in fractions of the image, and the names of classes in another.

The files list millions of images of which people download some, so the images in the folder make the set. Boxes
around groups become ignore regions.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import BAD_OBJECT, ProblemKind, Problems, numbers
from edgerpn.train.data.formats.building import UNANNOTATED, ContentBuilder, FoundObject, ImageIndex
from edgerpn.train.data.formats.content import SPLIT_NAMES, Content, Layout, Split
from edgerpn.train.data.formats.reading import stored_sizes, visible_files

LOOKED_FOR = "Open Images: train-annotations-bbox.csv (ImageID, XMin, XMax, YMin, YMax) and train/ or images/"

OTHER_IMAGE = ProblemKind("row of an image that is not in the folder", "not used")

_EDGES = ("XMin", "XMax", "YMin", "YMax")
_COLUMNS = {"ImageID", *_EDGES}
_PLACES = ("", "annotations", "labels", "csv_folder")
_MAX_HEADER = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """The files of a split."""

    boxes: Path
    """CSV file of the boxes."""
    images: Path
    """Folder of the images."""
    classes: Path | None
    """CSV file of class names; None: classes keep their codes."""


def find_layouts(folder: Path) -> list[Layout]:
    """Returns the Open Images layout in a folder, if there is one."""
    names = [name for choices in SPLIT_NAMES.values() for name in choices]
    places = [folder / place for place in _PLACES] + [folder / name / place for name in names for place in _PLACES]
    files = [file for place in places for file in visible_files(place, ".csv") if is_box_file(file)]
    return [_layout(folder, files)] if files else []


def layout_of_file(file: Path) -> Layout:
    """Returns the layout of one CSV file of boxes.

    Raises:
        DataError: It is another CSV file.
    """
    if not is_box_file(file):
        raise DataError(f"{file}: expected a CSV file of Open Images with the columns {', '.join(sorted(_COLUMNS))}")
    layout = _layout(file.parent.parent if file.parent.name in _PLACES else file.parent, [file])
    return Layout(format=layout.format, title=layout.title, splits={"train": next(iter(layout.splits.values()))})


def is_box_file(file: Path) -> bool:
    """Returns whether the header of a CSV file has the columns of boxes."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            header = stream.readline(_MAX_HEADER)
    except OSError:
        return False
    return {name.strip() for name in header.split(",")} >= _COLUMNS


def read_content(source: _Source) -> Content:
    """Reads the boxes of the images in the folder.

    Raises:
        DataError: A file cannot be read, or there are no images.
    """
    problems = Problems()
    index = ImageIndex(source.images)
    if not index.files:
        raise DataError(f"{source.images}: no images in it; expected those that {source.boxes.name} lists")
    names = _class_names(source.classes) if source.classes is not None else {}
    sizes = stored_sizes(index.files, problems)
    objects: dict[Path, list[FoundObject]] = defaultdict(list)
    for number, row in _rows(source.boxes):
        image = index.by_path(row["ImageID"])
        if image is None:
            problems.add(OTHER_IMAGE, row["ImageID"])
        elif image in sizes:
            found = objects[image]
            name = f"{source.boxes.name} line {number}"
            edges = numbers(row.get(key) for key in _EDGES)
            if edges is None:
                problems.add(BAD_OBJECT, f"{name}: {', '.join(f'{key} {row.get(key)!r}' for key in _EDGES)}")
                continue
            (left, right, top, bottom), (height, width) = edges, sizes[image]
            xywh = (left * width, top * height, (right - left) * width, (bottom - top) * height)
            label = row.get("LabelName") or ""
            is_group = (row.get("IsGroupOf") or "0").strip() == "1"
            found.append(FoundObject(name, names.get(label, label), xywh, is_group))
    builder = ContentBuilder(source.images, problems)
    for image, hw in sizes.items():
        if image in objects:
            builder.add(image, hw, objects[image])
        else:
            problems.add(UNANNOTATED, image.name)
    return builder.content(is_relative=True)


def _layout(folder: Path, files: list[Path]) -> Layout:
    splits: dict[str, Split] = {}
    for file in files:
        split, tags = _split_of(file, folder)
        if split in splits:
            continue
        patterns = ("images/{}", "{}/data", "{}/images", "{}")
        choices = [folder / pattern.format(tag) for tag in tags for pattern in patterns]
        choices += [folder / "images", folder / "data"]
        images = next((choice for choice in choices if choice.is_dir()), folder)
        source = _Source(boxes=file, images=images, classes=_class_file(file, folder))
        splits[split] = Split(file, images, partial(read_content, source), file.name, folder)
    titles = ", ".join(split.annotations.name for split in splits.values())
    return Layout(format="openimages", title=f"Open Images ({titles})", splits=splits)


def _split_of(file: Path, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Returns the split of a file by the words in its path, and the names that its folder may have."""
    words = re.split(r"[^a-z]+", file.relative_to(folder).as_posix().lower())
    found = next((split for split, names in SPLIT_NAMES.items() if set(names) & set(words)), None)
    return (found, SPLIT_NAMES[found]) if found is not None else ("train", ())


def _class_file(file: Path, folder: Path) -> Path | None:
    places = (file.parent, folder, file.parent.parent / "metadata", folder / "metadata")
    found = [csv_file for place in places for csv_file in visible_files(place, ".csv")]
    return next((one for one in found if "class" in one.name.lower() and not is_box_file(one)), None)


def _class_names(file: Path) -> dict[str, str]:
    """Returns names by code (/m/01yrx) from lines of two fields, with or without a header."""
    return {row[0].strip(): row[1].strip() for _, row in _lines(file) if len(row) >= 2}


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields line numbers and rows by column; empty lines are skipped."""
    lines = _lines(file)
    _, header = next(lines, (0, []))
    names = [name.strip() for name in header]
    for number, fields in lines:
        row = dict(zip(names, fields, strict=False))
        if row.get("ImageID"):
            yield number, row


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for fields in reader:
                yield reader.line_num, fields
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; expected a CSV file of Open Images") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8: {error}; expected one of Open Images") from error

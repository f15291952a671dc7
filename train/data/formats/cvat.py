"""CVAT's own XML, "for images" with an element for each image and "for video" with tracks over frames.

Coordinates are pixels from 0. The box of a polygon, ellipse, mask, cuboid or rotated box is the box around it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgerpn.train.data.annotations import BAD_OBJECT, MISSING_FILE, Problems
from edgerpn.train.data.formats.building import (
    ANNOTATED_AGAIN,
    NO_BOX,
    OTHER_SPLIT,
    UNANNOTATED,
    ContentBuilder,
    FoundObject,
    ImageIndex,
)
from edgerpn.train.data.formats.content import Content, Layout, Split, images_beside, split_of_value, splits_in_file
from edgerpn.train.data.formats.reading import iterate_xml, visible_files
from edgerpn.train.data.formats.shapes import extent, numbers, rotated, size_hw

LOOKED_FOR = "CVAT: annotations.xml (for images or for video) and images/"

_CUBOID = tuple(
    f"{axis}{corner}" for corner in ("tl1", "bl1", "tr1", "br1", "tl2", "bl2", "tr2", "br2") for axis in "xy"
)
_ROOT = re.compile(rb"<annotations[\s>]")
_SUBSET = re.compile(rb"<image\s[^>]*\bsubset=\"([^\"]*)\"")
_HEAD_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """The part of a file that is a split."""

    file: Path
    images: Path
    """Folder of the images."""
    split: str | None = None
    """Split whose name the subset of an image has; None: all images."""


def find_layouts(folder: Path) -> list[Layout]:
    """Returns a layout for each CVAT file in a folder."""
    return [layout_of_file(file) for file in visible_files(folder, ".xml") if _is_cvat(file)]


def layout_of_file(file: Path) -> Layout:
    """Returns the layout of one file; images of several subsets are splits.

    Raises:
        DataError: The file cannot be read.
    """
    images = images_beside(file)
    names = splits_in_file(file, _SUBSET, "an XML file of CVAT")
    sources = {split: _Source(file=file, images=images, split=split) for split in names}
    sources = sources or {"train": _Source(file=file, images=images)}
    splits = {
        split: Split(file, images, partial(read_content, source), f"{file.name} ({split})", file.parent)
        for split, source in sources.items()
    }
    return Layout(format="cvat", title=f"CVAT ({file.name})", splits=splits)


def read_content(source: _Source) -> Content:
    """Reads the images and tracks of a file.

    Raises:
        DataError: It is not an XML file of CVAT, or most of its objects cannot be read.
    """
    problems = Problems()
    index = ImageIndex(source.images)
    builder = ContentBuilder(source.images, problems)
    used: set[Path] = set()
    frames: dict[int, list[FoundObject]] | None = None
    frame_hw = None

    def add(path: str, hw: tuple[int, int] | None, objects: list[FoundObject]) -> None:
        image = index.by_path(path)
        if image is None:
            problems.add(MISSING_FILE, f"{source.file.name}: {path}")
        elif image in used:
            problems.add(ANNOTATED_AGAIN, f"{source.file.name}: {path}")
        else:
            used.add(image)
            builder.add(image, hw, objects)

    for element in iterate_xml(source.file, "CVAT", "annotations"):
        if element.tag == "meta":
            builder.declare(name.text or "" for name in element.iterfind(".//label/name"))
            sides = (element.findtext(f".//original_size/{side}") for side in ("height", "width"))
            frame_hw = size_hw(*sides)
        elif element.tag == "image":
            split = split_of_value(element.get("subset"))
            if source.split in (None, split):
                add(*_image(element, problems))
            elif source.split == "train" and split is None:
                problems.add(OTHER_SPLIT, f"{element.get('name')}: {element.get('subset')}")
        elif element.tag == "track":
            frames = defaultdict(list) if frames is None else frames
            _add_track(element, frames, problems)
    # All frames of a video were annotated, also those without a box.
    for path, objects in _by_path(frames, index) if frames is not None else ():
        add(path, frame_hw, objects)
    if source.split is None:
        for image in index.files:
            if image not in used:
                problems.add(UNANNOTATED, image.name)
    return builder.content()


def _is_cvat(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return _ROOT.search(stream.read(_HEAD_BYTES)) is not None
    except OSError:
        return False


def _image(entry: Any, problems: Problems) -> tuple[str, tuple[int, int] | None, list[FoundObject]]:
    """Returns path, size and objects of an image."""
    path = entry.get("name") or ""
    objects = []
    for number, shape in enumerate(entry, start=1):
        label = shape.get("label")
        if label is not None:
            objects += _object(shape, label, f"{path} {shape.tag} {number}", problems)
    return path, size_hw(entry.get("height"), entry.get("width")), objects


def _add_track(track: Any, frames: dict[int, list[FoundObject]], problems: Problems) -> None:
    for shape in track:
        frame = shape.get("frame", "")
        name = f"track {track.get('id')} frame {frame}"
        if not (frame.isascii() and frame.isdigit() and len(frame) < 10):
            problems.add(BAD_OBJECT, name)
        elif shape.get("outside") != "1":
            frames[int(frame)] += _object(shape, track.get("label") or "", name, problems)


def _by_path(frames: dict[int, list[FoundObject]], index: ImageIndex) -> Iterator[tuple[str, list[FoundObject]]]:
    """Yields the images with a number at the end of their names, or the name of a frame without one."""
    by_number = {int(match[0]): file for file in index.files if (match := re.search(r"\d{1,9}$", file.stem))}
    for number in sorted(by_number.keys() | frames.keys()):
        file = by_number.get(number)
        yield (f"frame_{number:06}" if file is None else str(file)), frames.get(number, [])


def _object(shape: Any, label: str, name: str, problems: Problems) -> list[FoundObject]:
    """Returns the object of a shape, or nothing, which is counted."""
    if shape.tag not in _BOXES:
        problems.add(NO_BOX, name)
        return []
    xywh = _BOXES[shape.tag](shape)
    if xywh is None:
        problems.add(BAD_OBJECT, f"{name}: {', '.join(f'{key} {value!r}' for key, value in shape.items())}"[:200])
        return []
    return [FoundObject(name, label, xywh)]


def _given(shape: Any, *keys: str) -> list[float] | None:
    return numbers(shape.get(key) for key in keys)


def _of_box(shape: Any) -> tuple[float, ...] | None:
    found = _given(shape, "xtl", "ytl", "xbr", "ybr")
    angle = numbers([shape.get("rotation", "0")])
    if found is None or angle is None:
        return None
    x1, y1, x2, y2 = found
    box = (x1, y1, x2 - x1, y2 - y1)
    return rotated(box, angle[0], (0.5, 0.5)) if angle[0] else box


def _of_points(shape: Any) -> tuple[float, ...] | None:
    pairs = [point.split(",") for point in (shape.get("points") or "").split(";")]
    found = numbers(value for pair in pairs for value in pair)
    return None if found is None or any(len(pair) != 2 for pair in pairs) else extent(found[0::2], found[1::2])


def _of_ellipse(shape: Any) -> tuple[float, ...] | None:
    found = _given(shape, "cx", "cy", "rx", "ry")
    if found is None:
        return None
    x, y, radius_x, radius_y = found
    return x - radius_x, y - radius_y, 2 * radius_x, 2 * radius_y


def _of_mask(shape: Any) -> tuple[float, ...] | None:
    found = _given(shape, "left", "top", "width", "height")
    return None if found is None else tuple(found)


def _of_cuboid(shape: Any) -> tuple[float, ...] | None:
    found = _given(shape, *_CUBOID)
    return None if found is None else extent(found[0::2], found[1::2])


_BOXES = {"box": _of_box, "polygon": _of_points, "ellipse": _of_ellipse, "mask": _of_mask, "cuboid": _of_cuboid}
"""The box around each kind of shape; the others are points, lines and skeletons."""

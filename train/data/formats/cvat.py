"""CVAT's own XML, "for images" with an element for each image and "for video" with tracks over frames.

Coordinates are pixels from 0. The box of a polygon, ellipse, mask, cuboid or rotated box is the box around it. Tracks
give boxes to numbers of frames, which need not be the numbers in the names of the images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import BAD_OBJECT, MISSING_FILE, ProblemKind, Problems, numbers
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
from edgerpn.train.data.formats.shapes import extent, rotated, rotated_ellipse, size_hw

LOOKED_FOR = "CVAT: annotations.xml (for images or for video) and images/"

FRAME_BY_ORDER = ProblemKind("frame whose number is not in the name of its image", "taken in the order of the names")

_CUBOID = tuple(
    f"{axis}{corner}" for corner in ("tl1", "bl1", "tr1", "br1", "tl2", "bl2", "tr2", "br2") for axis in "xy"
)
_ROOT = re.compile(rb"<annotations[\s>]")
_SUBSET = re.compile(rb"<image\s[^>]*\bsubset=\"([^\"]*)\"")
_STEP = re.compile(r"step\s*=\s*([1-9]\d{0,8})")
_HEAD_BYTES = 4096
_MAX_FRAMES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """The part of a file that is a split."""

    file: Path
    images: Path
    """Folder of the images."""
    split: str | None = None
    """Split whose name the subset of an image has; None: all images."""


@dataclass(slots=True)
class _Video:
    """The tracks of a file, and the numbers of the frames that they mark."""

    hw: tuple[int, int] | None = None
    """Height and width of the frames; None if the task is of images, not of a video."""
    start: int = 0
    step: int = 1
    size: int = 0
    """Number of frames; 0 if not given."""
    tasks: set[str | None] = field(default_factory=set)
    """Tasks of the tracks; None in the file of a single task."""
    objects: dict[int, list[FoundObject]] = field(default_factory=dict)
    """The objects in each frame."""


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
        DataError: It is not an XML file of CVAT, most of its objects cannot be read, or the images do not tell which
            frames they are.
    """
    problems = Problems()
    index = ImageIndex(source.images)
    builder = ContentBuilder(source.images, problems)
    used: set[Path] = set()
    video = _Video()

    def add(image: Path | None, path: str, hw: tuple[int, int] | None, objects: list[FoundObject]) -> None:
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
            _read_meta(element, video)
        elif element.tag == "image":
            split = split_of_value(element.get("subset"))
            if source.split in (None, split):
                path, hw, objects = _image(element, problems)
                add(index.by_path(path), path, hw, objects)
            elif source.split == "train" and split is None:
                problems.add(OTHER_SPLIT, f"{element.get('name')}: {element.get('subset')}")
        elif element.tag == "track":
            _add_track(element, video, problems)
    # All frames of a video were annotated, also those without a box.
    files = _files_of_frames(video, index, source, problems) if video.tasks else {}
    for frame in sorted(files.keys() | video.objects.keys()):
        add(files.get(frame), f"frame {frame}", video.hw, video.objects.get(frame, []))
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


def _read_meta(meta: Any, video: _Video) -> None:
    video.hw = size_hw(*(meta.findtext(f".//original_size/{side}") for side in ("height", "width")))
    video.start = _whole(meta.findtext(".//start_frame")) or 0
    video.size = _whole(meta.findtext(".//size")) or 0
    step = _STEP.search(meta.findtext(".//frame_filter") or "")
    video.step = int(step[1]) if step else 1


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


def _add_track(track: Any, video: _Video, problems: Problems) -> None:
    video.tasks.add(track.get("task_id"))
    for shape in track:
        frame = _whole(shape.get("frame"))
        name = f"track {track.get('id')} frame {shape.get('frame', '')}"
        if frame is None:
            problems.add(BAD_OBJECT, name)
        elif shape.get("outside") != "1":
            objects = video.objects.setdefault(frame, [])
            objects += _object(shape, track.get("label") or "", name, problems)


def _files_of_frames(video: _Video, index: ImageIndex, source: _Source, problems: Problems) -> dict[int, Path]:
    """Returns the image of each frame: by the number at the end of its name, or else by its place among the images.

    CVAT numbers the images of a task by their places, whatever they are called: in the order of their names as texts,
    or, if the user chose so, of the numbers in them.

    Raises:
        DataError: The tracks belong to several tasks, or neither way is clear.
    """
    if len(video.tasks) > 1:
        raise DataError(
            f"{source.file}: has tracks of {len(video.tasks)} tasks, whose frames may share numbers; export each task "
            "by itself, or the project as 'CVAT for images'"
        )
    ordered = sorted(index.files, key=Path.as_posix)
    is_clear = ordered == sorted(ordered, key=_natural)
    found = [(int(match[0]), file) for file in ordered if (match := re.search(r"\d{1,9}$", file.stem))]
    numbered = dict(found)
    frames = range(video.start, video.start + (video.size or _MAX_FRAMES) * video.step, video.step)
    is_numbered = len(numbered) == len(found) and video.start in numbered and all(n in frames for n in numbered)
    # A video's images have the numbers of their frames. Of pictures, CVAT counts those without a number too.
    if is_numbered and (video.hw is not None or [file for _, file in sorted(found)] == ordered):
        return numbered
    if not ordered or len(ordered) != video.size or not is_clear:
        raise DataError(
            f"{source.file}: has tracks over {video.size or 'an unknown number of'} frames from {video.start} in steps "
            f"of {video.step}, but the {len(ordered)} images in {source.images} neither have these numbers at the end "
            "of their names, nor are they as many in one clear order; export the task as 'CVAT for images', which "
            "names the image of each box"
        )
    files = dict(zip(frames, ordered, strict=True))
    for frame, file in files.items():
        problems.add(FRAME_BY_ORDER, f"{frame}: {file.name}")
    return files


def _natural(file: Path) -> list[str | int]:
    """Returns a key by which image_9 comes before image_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.as_posix())]


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
    angle = numbers([shape.get("rotation", "0")])
    if found is None or angle is None:
        return None
    x, y, radius_x, radius_y = found
    return rotated_ellipse(x, y, radius_x, radius_y, angle[0]) if min(radius_x, radius_y) >= 0 else None


def _of_mask(shape: Any) -> tuple[float, ...] | None:
    found = _given(shape, "left", "top", "width", "height")
    return None if found is None else tuple(found)


def _of_cuboid(shape: Any) -> tuple[float, ...] | None:
    found = _given(shape, *_CUBOID)
    return None if found is None else extent(found[0::2], found[1::2])


_BOXES = {"box": _of_box, "polygon": _of_points, "ellipse": _of_ellipse, "mask": _of_mask, "cuboid": _of_cuboid}
"""The box around each kind of shape; the others are points, lines and skeletons."""

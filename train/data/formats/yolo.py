"""YOLO data sets: data.yaml, images/ and labels/, or text files beside the images.

A line of a label file is a class and fractions of the image's width and height: a box (centre x, centre y, width,
height), or the corners of a polygon or rotated box, whose extent is the box. A confidence may follow.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgerpn.errors import DataError, require
from edgerpn.images.formats import has_image_suffix, list_images
from edgerpn.progress import track
from edgerpn.train.data.annotations import BAD_OBJECT, ProblemKind, Problems
from edgerpn.train.data.formats.building import ContentBuilder, FoundObject
from edgerpn.train.data.formats.content import SPLIT_NAMES, Content, Layout, Split
from edgerpn.train.data.formats.reading import (
    annotated_images,
    check_confined,
    read_text,
    stored_sizes,
    visible_files,
)
from edgerpn.train.data.formats.shapes import extent

LOOKED_FOR = (
    "YOLO: data.yaml; images/ and labels/, also in train/ and valid/; images with text files beside them, also in "
    "obj_train_data/"
)

UNNAMED_CLASS = ProblemKind("label of a class without a name", "kept")

_LINE = "'class x y width height' or 'class x1 y1 x2 y2 x3 y3 ...' in fractions of the image size"
_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YAML_KEYS = re.compile(r"^(?:train|val|test)\s*:", re.MULTILINE)
_MAX_YAML_BYTES = 1 << 20
_MAX_CLASS = 1 << 20
_MAX_SHOWN = 300
_MAX_FRACTION = 1.5
"""Boxes with larger numbers are in pixels, if they are many."""
_ROUNDING = 0.001
"""Boxes of detectors exceed the image by no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """The files of a split."""

    file: Path
    """data.yaml, or the folder without one; for messages."""
    folder: Path
    """The folder that the images of a list may not leave."""
    entries: tuple[Path, ...]
    """Folders of images, and text files that list images."""
    names: Mapping[int, str] = field(default_factory=dict)
    num_keypoints: int = 0
    """Numbers of keypoints behind each box."""

    @property
    def images(self) -> Path:
        """The folder to which file names are relative."""
        folders = [self.folder if entry.is_file() else entry for entry in self.entries]
        return folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))


def find_layouts(folder: Path) -> list[Layout]:
    """Returns the YOLO layouts in a folder: each YAML file, or else the folder's own arrangement.

    Raises:
        DataError: A data.yaml cannot be used.
    """
    files = [folder / name for name in _YAML_NAMES if (folder / name).is_file()]
    if not files:
        others = visible_files(folder, ".yaml") + visible_files(folder, ".yml")
        files = [file for file in others if _looks_like_yolo(file)]
    if files:
        return [layout_of_file(file) for file in files]
    splits = _arrangement(folder)
    if not splits:
        return []
    names = _class_names(folder)
    made = {
        split: _split(split, _Source(file=folder, folder=folder, entries=(entry,), names=names))
        for split, entry in splits.items()
    }
    places = ", ".join(entry.relative_to(folder).as_posix() for entry in splits.values())
    where = "text files beside the images" if places == "." else f"text files for {places}"
    return [Layout(format="yolo", title=f"YOLO ({where})", splits=made)]


def layout_of_file(file: Path) -> Layout:
    """Returns the layout of a data.yaml.

    Raises:
        DataError: The file is invalid, or the images that it names do not exist.
    """
    file = Path(os.path.abspath(file))
    content = _read_yaml(file)
    names = _names(content.get("names"), file)
    keypoints = content.get("kpt_shape", [])
    num_keypoints = math.prod(keypoints) if _are_counts(keypoints) else 0
    splits: dict[str, Split] = {}
    sources: dict[str, _Source] = {}
    for split, keys in SPLIT_NAMES.items():
        key = next((key for key in keys if content.get(key)), None)
        if key is None:
            continue
        given = content[key] if isinstance(content[key], list) else [content[key]]
        found = [_find_entry(entry, content.get("path"), file, key) for entry in given]
        if split == "test" and None in found:
            continue  # many files name a test split that was not downloaded; training does not need it
        if None in found:
            splits[split] = _missing_split(split, key, content[key], file)
            continue
        entries = tuple(place for place in found if place is not None)
        root = _root(content.get("path"), entries, file)
        source = _Source(file=file, folder=root, entries=entries, names=names, num_keypoints=num_keypoints)
        sources[split] = source
        splits[split] = _split(split, source)
    if not splits:
        raise DataError(
            f"{file}: names no images; expected 'train' and 'val' with folders of images, got "
            f"{', '.join(map(str, content)) or 'nothing'}"
        )
    is_same = "train" in sources and sources["train"] == sources.get("val")
    repeated = ", which validates on the training images" if is_same else ""
    return Layout(format="yolo", title=f"YOLO ({file.name}{repeated})", splits=splits)


def read_content(source: _Source, *, follow_links: bool = False) -> Content:
    """Reads the label files of a split, which may lead out of their folder if `follow_links`.

    Raises:
        DataError: Names the label file, its line and the expected form; or there are no images or no label files.
    """
    problems = Problems()
    files = list(dict.fromkeys(file for entry in source.entries for file in _images_of(entry, source)))
    where = ", ".join(map(str, source.entries))
    if not files:
        raise DataError(f"{where}: no images in it; expected the images that {source.file} names")
    labels = {file: label for file in files if (label := _label_of(file, source, follow_links)) is not None}
    if not labels:
        raise DataError(
            f"{where}: none of its {len(files)} images has a label file; looked for {_label_places(files[0], source)}"
        )
    sizes = stored_sizes(files, problems)
    builder = ContentBuilder(source.images, problems)
    builder.declare(source.names.values())
    in_pixels: list[str] = []
    by_end: dict[bool, str] = {}
    num_boxes = 0
    for file, (height, width) in track(sizes.items(), "reading labels", unit="file"):
        objects = []
        for where, category, fractions in _parse_labels(labels.get(file), source.num_keypoints, by_end, problems):
            x, y, w, h = fractions
            name = source.names.get(category) or f"class {category}"
            objects.append(FoundObject(where, name, (x * width, y * height, w * width, h * height)))
            if max(map(abs, fractions)) > _MAX_FRACTION:
                in_pixels.append(where)
            if source.names and category not in source.names:
                problems.add(UNNAMED_CLASS, f"{where}: class {category}")
        num_boxes += len(objects)
        builder.add(file, (height, width), objects)
    if len(in_pixels) > num_boxes / 2:
        raise DataError(
            f"{source.file}: {len(in_pixels)} of {num_boxes} boxes have numbers above 1, as if in pixels (first: "
            f"{in_pixels[0]}); expected {_LINE}; divide them by the width and height of the image"
        )
    if by_end.keys() == {True}:
        raise DataError(
            f"{source.file}: every line may end in a confidence and the id of a track, as in results of Ultralytics "
            f"(first: {by_end[True]}); 0 and 1 cannot be told from the corner of a polygon; expected {_LINE}, a "
            "confidence of 0 to 1 behind it or not; remove the ids, or repeat the first corner of polygons at their end"
        )
    return builder.content(is_relative=True)


def _split(split: str, source: _Source) -> Split:
    name = f"{source.file.name} ({split})"
    folder = source.file if source.file.is_dir() else source.file.parent
    return Split(source.file, source.images, partial(read_content, source), name, folder)


def _missing_split(split: str, key: str, entry: object, file: Path) -> Split:
    """Returns a split that can be left unused, and is an error when it is read."""
    message = (
        f"{file}: {key}: {_shown(entry)}: no such folder or file, also not below {file.parent}; name the folder of "
        "the images, relative to 'path' or to this file, or hold images out of the training images with --split 0.2"
    )
    return Split(file, file.parent, partial(_raise, message), f"{file.name} ({split})", file.parent)


def _raise(message: str, *, follow_links: bool = False) -> Content:
    raise DataError(message)


def _arrangement(folder: Path) -> dict[str, Path]:
    """Returns the folder of images of each split, or nothing if there are no labels."""
    for pattern in ("{}/images", "images/{}", "{}", "obj_{}_data"):
        found = {}
        for split, names in SPLIT_NAMES.items():
            for name in names:
                place = folder / pattern.format(name)
                if split not in found and _has_labels(place, folder):
                    found[split] = place
        if found:
            return found
    for place in (folder / "images", folder):
        if _has_labels(place, folder):
            return {"train": place}
    return {}


def _has_labels(images: Path, folder: Path) -> bool:
    if not images.is_dir():
        return False
    if annotated_images(images, ".txt"):
        return True
    labels = _counterpart(images, folder)
    return labels is not None and next(labels.rglob("*.txt"), None) is not None


def _counterpart(path: Path, folder: Path) -> Path | None:
    """Returns the path with the last "images" below the data folder (or near the path's end) made "labels"."""
    parts = path.parts
    start = len(folder.parts) if folder in (path, *path.parents) else max(1, len(parts) - 3)
    for index in range(len(parts) - 1, start - 1, -1):
        if parts[index] == "images":
            return Path(*parts[:index], "labels", *parts[index + 1 :])
    return None


def _label_of(image: Path, source: _Source, follow_links: bool) -> Path | None:
    """Returns an image's label file, or None for an image without objects."""
    places = [image.with_suffix(".txt")]
    counterpart = _counterpart(image, source.folder)
    if counterpart is not None:
        places.insert(0, counterpart.with_suffix(".txt"))
    for place in places:
        if place.is_file():
            # As for images, a whole folder may be a link, a single file in it may not.
            if not follow_links:
                check_confined(place, place.parent)
            return place
    return None


def _label_places(image: Path, source: _Source) -> str:
    counterpart = _counterpart(image, source.folder)
    places = [counterpart, image] if counterpart is not None else [image]
    return " and ".join(str(place.with_suffix(".txt")) for place in places)


def _images_of(entry: Path, source: _Source) -> list[Path]:
    if entry.is_dir():
        return list_images(entry, recursive=True)
    files: dict[Path, str] = {}
    for number, line in enumerate(read_text(entry, "a list of image files").splitlines(), start=1):
        text = line.strip()
        if not text:
            continue
        where = f"{entry}: line {number}"
        file = _listed_image(text, entry, source.folder, where)
        if files.get(file, text) != text:
            raise DataError(f"{where}: {text!r} and {files[file]!r} both lead to {file}; expected two images")
        if has_image_suffix(file.name):
            files[file] = text
    return list(files)


def _listed_image(text: str, entry: Path, folder: Path, where: str) -> Path:
    """Finds an image of a list below the list or the data folder, by its path or the end of it, as `_find_entry`."""
    beside = Path(os.path.normpath(entry.parent / text.replace("\\", "/")))
    if os.path.isfile(beside) and folder in beside.parents:
        return beside
    text = text.removeprefix(f"{folder}{os.sep}")
    # Without "..", no path leaves the data folder.
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for count in (len(parts), *range(min(3, len(parts) - 1), 0, -1)):
        for base in (entry.parent, folder):
            file = base.joinpath(*parts[-count:])
            # Unlike Path.is_file, it takes a name that is too long.
            if os.path.isfile(file) and folder in file.parents:
                return file
    raise DataError(
        f"{where}: {text!r}: no such image, by its whole path or the end of it, neither below {entry.parent} nor below "
        f"{folder}"
    )


def _parse_labels(
    file: Path | None, num_keypoints: int, by_end: dict[bool, str], problems: Problems
) -> Iterator[tuple[str, int, tuple[float, float, float, float]]]:
    """Yields name, class and box (left, top, width, height in fractions of the image) of every line.

    `by_end` receives the first line that may end in the id of a track, and the first that ends in a size or a corner.
    """
    if file is None:
        return
    name = f"{file.parent.name}/{file.name}"
    for number, line in enumerate(read_text(file, f"lines of {_LINE}").splitlines(), start=1):
        if line.strip():
            where = f"{name} line {number}"
            try:
                category, values = _parse_line(line, where, num_keypoints)
                if len(values) >= 4 and len(values) % 2 == 0:
                    by_end.setdefault(_may_end_in_track(values), where)
                yield (where, category, _box_of(values, where, line))
            except DataError as error:
                problems.add(BAD_OBJECT, str(error))


def _parse_line(line: str, where: str, num_keypoints: int) -> tuple[int, list[float]]:
    """Returns the class, and the numbers behind it without keypoints."""
    try:
        category, *values = map(float, line.split())
    except ValueError as error:
        raise DataError(f"{where}: expected numbers, {_LINE}, got {_shown_line(line)}") from error
    if not (0 <= category <= _MAX_CLASS and category.is_integer()):
        raise DataError(f"{where}: expected the number of a class first, got {_shown_line(line)}")
    # A confidence and the id of a track may follow the keypoints.
    has_keypoints = num_keypoints and 0 <= len(values) - 4 - num_keypoints <= 2
    return int(category), values[:4] if has_keypoints else values


def _may_end_in_track(values: list[float]) -> bool:
    """Returns whether an even number of values may be a shape, a confidence and the id of a track."""
    *shape, confidence, track = values
    if len(shape) == 4:
        x, y, width, height = shape
        is_shape = width / 2 <= min(x, 1 - x) + _ROUNDING and height / 2 <= min(y, 1 - y) + _ROUNDING
    else:
        is_shape = len(shape) > 4 and max(shape) <= _MAX_FRACTION
    return is_shape and 0 <= confidence <= 1 and track >= 0 and track.is_integer()


def _box_of(values: list[float], where: str, line: str) -> tuple[float, float, float, float]:
    if len(values) < 4 or (len(values) == 5 and not 0 <= values[4] <= 1):
        raise DataError(f"{where}: expected {_LINE}, a confidence of 0 to 1 behind it or not, got {_shown_line(line)}")
    if len(values) <= 5:
        x, y, width, height = values[:4]
        return x - width / 2, y - height / 2, width, height
    if len(values) % 2 == 0 and values[-1] >= 2 and _may_end_in_track(values):
        raise DataError(
            f"{where}: expected {_LINE}, got the id of a track at the end of {_shown_line(line)}; remove it"
        )
    # An odd number of values: corners and a confidence.
    corners = values[: len(values) // 2 * 2]
    return extent(corners[0::2], corners[1::2])


def _shown_line(line: str) -> str:
    return repr(line.strip()[:80])


def _read_yaml(file: Path) -> dict[Any, Any]:
    yaml = require("yaml", extra="train", purpose="reading data.yaml")
    text = read_text(file, "a YOLO data.yaml")
    if len(text) > _MAX_YAML_BYTES:
        raise DataError(f"{file}: {len(text)} characters; expected a YOLO data.yaml, which is short")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, AttributeError, TypeError) as error:
        # A YAML error of several lines becomes one.
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: not valid YAML: {reason}; expected a YOLO data.yaml") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected 'train', 'val' and 'names', got {type(content).__name__}")
    return content


def _shown(value: Any) -> str:
    """Returns a value of data.yaml for a message; lists that repeat lists would be huge when printed."""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, (list, dict, set)) for item in items):
        return f"a {type(value).__name__}"
    return repr(value)[:_MAX_SHOWN]


def _looks_like_yolo(file: Path) -> bool:
    try:
        text = read_text(file, "")
    except DataError:
        return False
    return _YAML_KEYS.search(text) is not None and re.search(r"^(?:names|nc)\s*:", text, re.MULTILINE) is not None


def _names(value: Any, file: Path) -> dict[int, str]:
    """Returns class names by number from a list or a map."""
    if value is None:
        return {}
    pairs = list(enumerate(value)) if isinstance(value, list) else []
    if isinstance(value, dict):
        pairs = [(int(key) if str(key).isascii() and str(key).isdigit() else key, name) for key, name in value.items()]
    is_good = all(type(key) is int and isinstance(name, (str, int, float)) for key, name in pairs)
    if not isinstance(value, (list, dict)) or not is_good:
        raise DataError(
            f"{file}: names: expected a list of names, or a map from class numbers to names, got {_shown(value)}"
        )
    return {key: str(name) for key, name in pairs}


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(item) is int and 0 < item < 1000 for item in value)


def _find_entry(entry: Any, path: Any, file: Path, key: str) -> Path | None:
    """Finds the images that an entry of data.yaml names.

    The end of the path below the file's folder is tried too, because files name folders of the machine on which they
    were written (/content/set/train/images), and Roboflow's ../train/images starts from another folder.
    """
    for name, value in ((key, entry), ("path", "" if path is None else path)):
        if not isinstance(value, str) or "\0" in value:
            raise DataError(f"{file}: {name}: expected a folder, a list of folders or a text file, got {_shown(value)}")
    text, base = entry.replace("\\", "/"), str(path or "").replace("\\", "/")
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    down = tuple(part for part in parts if part != "..")
    places = [file.parent / base / text, file.parent / text]
    if parts[:1] == ("..",):
        # A sibling folder of the same name belongs to another set.
        places.insert(0, file.parent.joinpath(*down))
    # "images" alone is no end of a path: it would be that of every split.
    tails = [down[-count:] for count in range(min(3, len(down)), 0, -1)]
    places += [file.parent.joinpath(*tail) for tail in tails if tail != ("images",)]
    found = next((place for place in places if os.path.exists(place)), None)
    return None if found is None else Path(os.path.abspath(found))


def _root(path: Any, entries: tuple[Path, ...], file: Path) -> Path:
    """Returns the folder that `path` names if the images are in it, or else the folder of data.yaml."""
    root = Path(os.path.abspath(file.parent / str(path or "").replace("\\", "/")))
    return root if all(root in entry.parents for entry in entries) else file.parent


def _class_names(folder: Path) -> dict[int, str]:
    """Returns the names in classes.txt (labelImg, Label Studio) or obj.names (Darknet), if there is one."""
    for place in ("classes.txt", "labels/classes.txt", "obj.names", "train/classes.txt", "images/classes.txt"):
        if (folder / place).is_file():
            lines = read_text(folder / place, "names of classes").splitlines()
            return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    return {}

"""Label Studio's JSON export: tasks with annotations in per cent of the image.

The box of a polygon, a rectangle rotated about its left upper corner or an ellipse rotated about its centre is the box
around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from edgerpn.errors import DataError
from edgerpn.images.formats import has_image_suffix
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
from edgerpn.train.data.formats.reading import read_text, stored_size, visible_files
from edgerpn.train.data.formats.shapes import extent, rotated, rotated_ellipse, size_hw

LOOKED_FOR = "Label Studio: a JSON export (a list of tasks with 'data' and 'annotations') and images/"

SEVERAL = ProblemKind("task with several annotations", "the ground truth or first used")
SEVERAL_IMAGES = ProblemKind("task with shapes on several images, or whose shapes name none of several", "not used")
PREDICTED = ProblemKind("task without annotations in a file of predictions", "predictions used")

_HEAD_BYTES = 1 << 16
_SPLIT = re.compile(rb"\"split\"\s*:\s*\"([^\"]*)\"")
_UPLOAD = re.compile(r"[0-9a-f]{8}-")
"""Label Studio puts it before the name of an uploaded file."""
_WITHOUT_SHAPE = ("choices", "textarea", "rating", "taxonomy", "number", "relation")
"""Types of results about the whole picture, or about other results."""
_MASKS = ("brush", "bitmask")
"""Types with an extent that is not read."""
_SHAPES = ("rectangle", "polygon", "ellipse")
_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels", "choices")


def find_layouts(folder: Path) -> list[Layout]:
    """Returns a layout for each export in a folder."""
    return [layout_of_file(file) for file in visible_files(folder, ".json") if is_export(file)]


def layout_of_file(file: Path) -> Layout:
    """Returns the layout of one export; tasks whose data name different splits, as our writer does, are splits.

    Raises:
        DataError: The file cannot be read.
    """
    images = images_beside(file)
    splits = {
        split: Split(file, images, partial(read_content, file, images, split), f"{file.name} ({split})", file.parent)
        for split in splits_in_file(file, _SPLIT, "an export of Label Studio")
    } or {"train": Split(file, images, partial(read_content, file, images), file.name, file.parent)}
    return Layout(format="labelstudio", title=f"Label Studio ({file.name})", splits=splits)


def is_export(file: Path) -> bool:
    """Returns whether a JSON file starts like an export."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return False
    return head.startswith(b"[") and (b'"annotations"' in head or b'"predictions"' in head)


def read_content(file: Path, images: Path, split: str | None = None) -> Content:
    """Reads the tasks of an export, or those whose data name a split.

    Raises:
        DataError: It is not an export of Label Studio, or most of its objects cannot be read.
    """
    try:
        tasks = json.loads(read_text(file, "a JSON export of Label Studio"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not valid JSON: {error}; expected an export of Label Studio") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError(f"{file}: expected a list of tasks, as in Label Studio's export 'JSON'")
    problems = Problems()
    index = ImageIndex(images)
    builder = ContentBuilder(images, problems)
    uses_predictions = not any(_entries(task, "annotations") for task in tasks)
    used = set()
    for number, task in enumerate(tasks, start=1):
        own_split = split_of_value(_given_split(task))
        if split not in (None, own_split):
            if split == "train" and own_split is None:
                problems.add(OTHER_SPLIT, f"{file.name} task {task.get('id', number)}: {_given_split(task)}")
            continue
        name = f"{file.name} task {task.get('id', number)}"
        results = _results(task, name, uses_predictions, problems)
        images_of_task, places = _images_of(task, index), _places(results or [])
        named = (images_of_task[place] for place, _ in places if place in images_of_task)
        image = next(named, next(filter(None, images_of_task.values()), None))
        if results is not None and not _is_on_one(places, images_of_task):
            problems.add(SEVERAL_IMAGES, name)
        elif image is None:
            problems.add(MISSING_FILE, f"{name}: {task.get('data')}"[:200])
        elif results is None:
            problems.add(UNANNOTATED, name)
        elif image in used:
            problems.add(ANNOTATED_AGAIN, f"{name}: {image.name}")
        else:
            used.add(image)
            sizes = (size_hw(result.get("original_height"), result.get("original_width")) for result in results)
            hw = next((size for size in sizes if size), None) or stored_size(image, problems)
            if hw is not None:
                builder.add(image, hw, _objects(results, hw, name, problems))
    return builder.content()


def _given_split(task: dict[str, Any]) -> str | None:
    data = task.get("data")
    value = data.get("split") if isinstance(data, dict) else None
    return value if isinstance(value, str) else None


def _entries(task: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Returns the annotations or predictions of a task that were not cancelled."""
    value = task.get(key)
    entries = value if isinstance(value, list) else []
    return [
        entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("result"), list) and not entry.get("was_cancelled")
    ]


def _results(
    task: dict[str, Any], name: str, uses_predictions: bool, problems: Problems
) -> list[dict[str, Any]] | None:
    """Returns the results of the annotation that counts, or None if nobody annotated the task."""
    entries = _entries(task, "predictions" if uses_predictions else "annotations")
    if not entries:
        return None
    if uses_predictions:
        problems.add(PREDICTED, name)
    elif len(entries) > 1:
        problems.add(SEVERAL, name)
    chosen = next((entry for entry in entries if entry.get("ground_truth")), entries[0])
    return [result for result in chosen["result"] if isinstance(result, dict)]


def _images_of(task: dict[str, Any], index: ImageIndex) -> dict[str, Path | None]:
    """Returns the file of each image in the data of a task by its key, None if it is not in the folder."""
    data = task.get("data")
    found = {}
    for key, value in data.items() if isinstance(data, dict) else ():
        if isinstance(value, str):
            path = _path_of(value)
            folder, slash, base = path.rpartition("/")
            original = f"{folder}{slash}{base[9:]}" if _UPLOAD.match(base) else path
            if has_image_suffix(base):
                found[key] = index.by_path(path) or index.by_path(original)
    return found


def _path_of(address: str) -> str:
    """Returns the path in the address of an image: of local storage (?d=PATH), a bucket, a server or a file."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path)


def _objects(
    results: list[dict[str, Any]], hw: tuple[int, int], name: str, problems: Problems
) -> Iterator[FoundObject]:
    # The tag <Labels> writes the class of a shape into a result of its own, with the id of the shape.
    classes = {str(one.get("id")): one.get("value") for one in results if one.get("type") == "labels"}
    for number, result in enumerate(results, start=1):
        where = f"{name} result {number}"
        value: Any = result.get("value")
        kind = _kind(result)
        if result.get("type") == "labels" or kind in _WITHOUT_SHAPE:
            continue
        if kind not in _SHAPES:
            problems.add(BAD_OBJECT if kind in _MASKS else NO_BOX, f"{where}: {kind or 'without a type'}")
            continue
        xywh = _box(kind, value, hw) if isinstance(value, dict) else None
        if xywh is None:
            problems.add(BAD_OBJECT, where)
            continue
        yield FoundObject(where, _label(value) or _label(classes.get(str(result.get("id")))), xywh)


def _kind(result: dict[str, Any]) -> str:
    return str(result.get("type", "")).removesuffix("labels")


def _places(results: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Returns the images that have shapes: the name in the labelling interface, and the place in a list of images."""
    return {
        (str(result.get("to_name")), str(result.get("item_index") or 0))
        for result in results
        if _kind(result) in (*_SHAPES, *_MASKS)
    }


def _is_on_one(places: set[tuple[str, str]], images: dict[str, Path | None]) -> bool:
    """Returns whether all shapes are on one image, which is the only one or has the name of its key in the data."""
    if len(places) > 1 or any(place != "0" for _, place in places):
        return False
    return len(set(images.values()) - {None}) < 2 or all(name in images for name, _ in places)


def _label(value: Any) -> str:
    """Returns the first class in the value of a result; "" if there is none."""
    lists = (value.get(key) for key in _LABELS) if isinstance(value, dict) else ()
    return next((str(names[0]) for names in lists if isinstance(names, list) and names), "")


def _box(kind: str, value: dict[str, Any], hw: tuple[int, int]) -> tuple[float, ...] | None:
    """Returns the box around a shape in pixels, or None if its numbers cannot be read."""
    height, width = hw
    if kind == "polygon":
        points = value.get("points")
        pairs = points if isinstance(points, list) and points else [None]
        found = [numbers(pair) if isinstance(pair, list) and len(pair) == 2 else None for pair in pairs]
        known = [point for point in found if point is not None]
        if len(known) < len(found):
            return None
        return extent([x * width / 100 for x, _ in known], [y * height / 100 for _, y in known])
    sides = ("width", "height") if kind == "rectangle" else ("radiusX", "radiusY")
    found_numbers = numbers([*(value.get(key) for key in ("x", "y", *sides)), value.get("rotation", 0)])
    if found_numbers is None:
        return None
    x, y, w, h, angle = found_numbers
    box = (x * width / 100, y * height / 100, w * width / 100, h * height / 100)
    if kind == "ellipse":
        return rotated_ellipse(*box, angle) if min(w, h) >= 0 else None
    return rotated(box, angle, (0, 0)) if angle else box

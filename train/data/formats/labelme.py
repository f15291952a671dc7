"""LabelMe: a JSON file for each image, beside it.

The box of a polygon, circle or mask is the box around it. Shapes of one label and `group_id` are parts of one object,
as in LabelMe's own converter to COCO.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgerpn.errors import DataError
from edgerpn.progress import track
from edgerpn.train.data.annotations import BAD_OBJECT, MISSING_FILE, ProblemKind, Problems, numbers
from edgerpn.train.data.formats.building import (
    ANNOTATED_AGAIN,
    NO_BOX,
    UNANNOTATED,
    ContentBuilder,
    FoundObject,
    ImageIndex,
)
from edgerpn.train.data.formats.content import SPLIT_NAMES, Content, Layout, Split
from edgerpn.train.data.formats.reading import annotated_images, check_confined, read_text, visible_files
from edgerpn.train.data.formats.shapes import extent, size_hw

LOOKED_FOR = "LabelMe: JSON files beside images, also in train/ and val/"

GROUPED = ProblemKind("shape with the label and group_id of another one", "both are one object")

_MAX_TRIED = 5
"""Files by which a folder is recognised; the first may be damaged."""
_POINT_COUNTS = {"rectangle": 2, "mask": 2, "circle": 2, "oriented_rectangle": 4, "rotation": 4}
"""Least number of points of each shape that has a box."""
_CORNERS = 3
"""Least number of points of a polygon, and of a shape of another tool, which is taken for one."""
_WITHOUT_EXTENT = ("point", "points", "line", "linestrip")


def find_layouts(folder: Path) -> list[Layout]:
    """Returns the LabelMe layout in a folder, if there is one."""
    splits = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            if split not in splits and _holds_shapes(folder / name):
                splits[split] = _split(folder / name, f"{name}/")
    if not splits and _holds_shapes(folder):
        splits["train"] = _split(folder, folder.name)
    places = ", ".join(split.name for split in splits.values())
    title = f"LabelMe (JSON files beside images in {places})"
    return [Layout(format="labelme", title=title, splits=splits)] if splits else []


def read_content(folder: Path, *, follow_links: bool = False) -> Content:
    """Reads the JSON files of a folder, which may lead out of it if `follow_links`.

    Raises:
        DataError: Names the file that is not of LabelMe.
    """
    problems = Problems()
    index = ImageIndex(folder)
    builder = ContentBuilder(folder, problems)
    used = set()
    for file in track(visible_files(folder, ".json"), f"reading {folder.name}", unit="file"):
        if not follow_links:
            check_confined(file, folder)
        root = _load(file)
        # The path is that of the annotator's machine, so the stem comes first.
        path = root.get("imagePath")
        image = index.by_stem(file.stem, path if isinstance(path, str) else "")
        if image is None:
            problems.add(MISSING_FILE, f"{file.name}: {path!r}")
        elif image in used:
            problems.add(ANNOTATED_AGAIN, f"{file.name}: {image.name}")
        else:
            used.add(image)
            objects = _objects(root, file, problems)
            builder.add(image, size_hw(root.get("imageHeight"), root.get("imageWidth")), objects)
    for image in index.files:
        if image not in used:
            problems.add(UNANNOTATED, image.name)
    return builder.content()


def _split(folder: Path, name: str) -> Split:
    return Split(folder, folder, partial(read_content, folder), name, folder)


def _holds_shapes(folder: Path) -> bool:
    if not annotated_images(folder, ".json"):
        return False
    for file in visible_files(folder, ".json")[:_MAX_TRIED]:
        with contextlib.suppress(DataError):
            _load(file)
            return True
    return False


def _load(file: Path) -> dict[str, Any]:
    text = read_text(file, "a JSON file of LabelMe")
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {error}; expected an annotation file of LabelMe") from error
    if not isinstance(root, dict) or not isinstance(root.get("shapes"), list):
        raise DataError(f"{file}: expected a JSON object with a list 'shapes', as LabelMe writes it")
    return root


def _objects(root: dict[str, Any], file: Path, problems: Problems) -> list[FoundObject]:
    objects: dict[tuple[str, str], FoundObject] = {}
    for number, shape in enumerate(root["shapes"], start=1):
        name = f"{file.name} shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("points"), list):
            problems.add(BAD_OBJECT, name)
            continue
        # Files of old versions have polygons only, and no type.
        kind = str(shape.get("shape_type") or "polygon")[:40]
        if kind in _WITHOUT_EXTENT:
            problems.add(NO_BOX, f"{name}: {kind}")
            continue
        points = [numbers(point) if isinstance(point, list) and len(point) == 2 else None for point in shape["points"]]
        known = [point for point in points if point is not None]
        if len(known) < max(_POINT_COUNTS.get(kind, _CORNERS), len(points)):
            problems.add(BAD_OBJECT, f"{name}: {kind} with {len(known)} usable points of {len(points)}")
            continue
        label = shape["label"] if isinstance(shape.get("label"), str) else ""
        group = shape.get("group_id")
        key = (label, name if group is None else f"group {group}")
        box = _box(kind, known)
        if key in objects:
            problems.add(GROUPED, f"{name}: {label!r} of {key[1]}"[:200])
            box = _around(objects[key].xywh, box)
        objects[key] = FoundObject(objects[key].name if key in objects else name, label, box)
    return list(objects.values())


def _box(kind: str, points: list[list[float]]) -> tuple[float, float, float, float]:
    if kind != "circle":
        return extent([x for x, _ in points], [y for _, y in points])
    (x, y), edge = points[:2]
    radius = math.dist((x, y), edge)
    return x - radius, y - radius, 2 * radius, 2 * radius


def _around(*boxes: Sequence[float]) -> tuple[float, float, float, float]:
    """Returns the box around boxes of left, top, width, height."""
    return extent(
        [edge for x, _, width, _ in boxes for edge in (x, x + width)],
        [edge for _, y, _, height in boxes for edge in (y, y + height)],
    )

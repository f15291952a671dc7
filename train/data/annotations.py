"""COCO annotation files: from JSON to checked values; an invalid record is an error that names it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgerpn.errors import DataError

_MAX_EXAMPLES = 5
"""Examples that a report names for each kind of problem."""


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A kind of problem in a data set, and its consequence."""

    what: str
    """Description of one case, in the singular."""
    done: str
    """Treatment of the cases."""


@dataclass(slots=True)
class _ProblemCount:
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Problems:
    """Counts problems by kind and keeps a few examples of each, so that a report stays short."""

    def __init__(self) -> None:
        self._tallies: dict[ProblemKind, _ProblemCount] = {}

    def add(self, kind: ProblemKind, example: str) -> None:
        """Counts one case, described by `example`."""
        tally = self._tallies.setdefault(kind, _ProblemCount())
        tally.count += 1
        if len(tally.examples) < _MAX_EXAMPLES:
            tally.examples.append(example)

    def count(self, kind: ProblemKind) -> int:
        """Returns the number of cases of `kind` so far."""
        tally = self._tallies.get(kind)
        return tally.count if tally else 0

    def lines(self) -> tuple[str, ...]:
        """Returns one line per kind, in order of appearance: description, count, treatment, examples."""
        return tuple(
            f"{kind.what}: {tally.count}, {kind.done} ({'; '.join(tally.examples)}"
            f"{'; ...' if tally.count > _MAX_EXAMPLES else ''})"
            for kind, tally in self._tallies.items()
        )


MISSING_FILE = ProblemKind("image file missing", "image dropped")
BROKEN_FILE = ProblemKind("image file broken", "image dropped")
DUPLICATE_ID = ProblemKind("annotation id used more than once", "kept")
UNKNOWN_IMAGE = ProblemKind("annotation of an image that is not listed", "dropped")
NOT_FINITE = ProblemKind("box with a coordinate that is not finite", "dropped")
EMPTY_BOX = ProblemKind("box of zero or negative size", "dropped")
OUTSIDE_BOX = ProblemKind("box wholly outside its image", "dropped")
CLIPPED_BOX = ProblemKind("box partly outside its image", "clipped to the image")
HELD_OUT_BOX = ProblemKind("box of a held-out class", "kept for evaluation only")

Four = tuple[float, float, float, float]
"""A box as four numbers, in the order that the name of the variable states."""

_ROUNDING_PX = 0.1
"""Boxes that exceed the image by less are not reported, because writers of JSON round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedImage:
    """An entry of "images"."""

    image_id: int
    """COCO id, unique in the file."""
    file_name: str
    """As written in the file."""
    hw: tuple[int, int]
    """Height and width as written in the file, pixels, at least 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedBox:
    """An entry of "annotations" with correct types; its numbers are not checked yet."""

    name: str
    """Its name in messages."""
    image_id: int
    """COCO id of its image."""
    xywh: Four
    """Left, top, width, height as written in the file, pixels; any float."""
    is_crowd: bool
    """Whether it marks a region of many objects instead of a single one."""
    category_id: int | None = None
    """COCO id of its class; read only if classes are held out."""


def parse_json(data: bytes, file: Path) -> dict[str, list[Any]]:
    """Reads the lists "images" and "annotations" of a COCO file.

    Raises:
        DataError: The text is not JSON, or not an object with these two lists.
    """
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {error}; expected a COCO annotation file") from error
    if not isinstance(root, dict):
        raise DataError(f"{file}: expected a JSON object with 'images' and 'annotations', got {type(root).__name__}")
    for key in ("images", "annotations"):
        if not isinstance(root.get(key), list):
            found = f"{type(root[key]).__name__}" if key in root else f"only {', '.join(sorted(root)) or 'nothing'}"
            raise DataError(f"{file}: expected a list {key!r} as in COCO's instances files, got {found}")
    return root


def parse_images(entries: list[Any], file: Path) -> tuple[ListedImage, ...]:
    """Reads the images of a COCO file, in file order.

    Raises:
        DataError: An entry lacks a key or has a wrong type, or two entries share an id.
    """
    images: dict[int, ListedImage] = {}
    for index, entry in enumerate(entries):
        where = f"{file}: images[{index}]"
        image_id = _integer(entry, "id", where)
        where += f" (id {image_id})"
        hw = _integer(entry, "height", where), _integer(entry, "width", where)
        if min(hw) < 1:
            raise DataError(f"{where}: expected a positive width and height, got {hw[1]} x {hw[0]}")
        if image_id in images:
            raise DataError(f"{where}: {images[image_id].file_name!r} already has this id; ids must be unique")
        name = _value(entry, "file_name", where)
        if not isinstance(name, str):
            raise DataError(f"{where}: file_name: expected a text, got {name!r}")
        images[image_id] = ListedImage(image_id=image_id, file_name=name, hw=hw)
    return tuple(images.values())


def parse_boxes(
    entries: list[Any],
    file: Path,
    known: Mapping[int, object],
    problems: Problems,
    *,
    has_classes: bool = False,
    names: Sequence[str] | None = None,
) -> list[ListedBox]:
    """Reads the annotations of a COCO file that belong to a known image, in file order.

    Args:
        entries: The list "annotations".
        file: The annotation file, for messages.
        known: The ids of all listed images.
        problems: Receives repeated ids and annotations of unknown images.
        has_classes: Whether every entry must have a class.
        names: The name of every entry in messages; None: its id.

    Raises:
        DataError: An entry lacks a key or has a wrong type.
    """
    boxes = []
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = f"{file}: annotations[{index}]"
        box_id = _integer(entry, "id", where)
        box = _parse_box(
            entry, names[index] if names else f"annotation {box_id}", f"{where} (id {box_id})", has_class=has_classes
        )
        if box_id in seen:
            problems.add(DUPLICATE_ID, f"{box_id}")
        seen.add(box_id)
        if box.image_id in known:
            boxes.append(box)
        else:
            problems.add(UNKNOWN_IMAGE, f"{box.name}: image {box.image_id}")
    return boxes


def parse_holdout(root: Mapping[str, Any], names: Sequence[str], file: Path) -> frozenset[int]:
    """Returns the ids of the held-out classes.

    Args:
        root: The content of the annotation file.
        names: Names of classes, as in its list "categories".
        file: The annotation file, for messages.

    Raises:
        DataError: The file has no such class, or all of its classes would be held out.
    """
    if not names:
        return frozenset()
    categories = root.get("categories")
    entries = categories if isinstance(categories, list) else []
    ids: dict[str, set[int]] = {}
    for index, entry in enumerate(entries):
        where = f"{file}: categories[{index}]"
        ids.setdefault(str(_value(entry, "name", where)), set()).add(_integer(entry, "id", where))
    unknown = [name for name in names if name not in ids]
    if unknown:
        raise DataError(
            f"{file}: no class named {', '.join(map(repr, unknown))} to hold out; it has "
            f"{', '.join(map(repr, ids)) or 'no list of categories'}"
        )
    held_out = frozenset().union(*(ids[name] for name in names))
    if held_out == frozenset().union(*ids.values()):
        raise DataError(f"{file}: all of its classes ({', '.join(ids)}) are held out; keep at least one to train on")
    return held_out


def clip_box(box: ListedBox, hw: tuple[int, int], problems: Problems) -> Four | None:
    """Returns the box as x1, y1, x2, y2 clipped to an image of `hw`, or None if nothing remains; reports problems."""
    clipped, kind = _clip(box.xywh, float(hw[0]), float(hw[1]))
    if kind is not None:
        x, y, width, height = box.xywh
        problems.add(kind, f"{box.name}: [{x:g}, {y:g}, {width:g}, {height:g}] in {hw[1]} x {hw[0]}")
    return clipped


def _clip(xywh: Four, image_h: float, image_w: float) -> tuple[Four | None, ProblemKind | None]:
    if not all(math.isfinite(value) for value in xywh):
        return None, NOT_FINITE
    x, y, width, height = xywh
    if width <= 0 or height <= 0:
        return None, EMPTY_BOX
    right, bottom = x + width, y + height
    if x >= image_w or y >= image_h or right <= 0 or bottom <= 0:
        return None, OUTSIDE_BOX
    # Rounded to float32 as in the record; the narrowest boxes become empty.
    x1, y1, x2, y2 = (float(np.float32(v)) for v in (max(x, 0), max(y, 0), min(right, image_w), min(bottom, image_h)))
    if x2 <= x1 or y2 <= y1:
        return None, EMPTY_BOX
    beyond = max(-x, -y, right - image_w, bottom - image_h)
    return (x1, y1, x2, y2), CLIPPED_BOX if beyond > _ROUNDING_PX else None


def _parse_box(entry: Any, name: str, where: str, *, has_class: bool) -> ListedBox:
    xywh = _value(entry, "bbox", where)
    if not isinstance(xywh, list) or len(xywh) != 4 or not all(_is_number(value) for value in xywh):
        raise DataError(f"{where}: bbox: expected 4 numbers [x, y, width, height] in pixels, got {xywh!r}")
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd: expected 0 or 1, got {crowd!r}")
    x, y, width, height = (_to_float(value) for value in xywh)
    return ListedBox(
        name=name,
        image_id=_integer(entry, "image_id", where),
        xywh=(x, y, width, height),
        is_crowd=bool(crowd),
        category_id=_integer(entry, "category_id", where) if has_class else None,
    )


def _value(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a JSON object, got {entry!r}")
    if key not in entry:
        raise DataError(f"{where}: {key!r} is missing; it has {', '.join(sorted(entry)) or 'nothing'}")
    return entry[key]


def _integer(entry: Any, key: str, where: str) -> int:
    value = _value(entry, key, where)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not int:
        raise DataError(f"{where}: {key}: expected a whole number, got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _to_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf

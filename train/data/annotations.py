"""COCO annotation files: from JSON to checked values; malformed records are repaired or dropped, and counted."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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

    def count(self, *kinds: ProblemKind) -> int:
        """Returns the number of cases of some kinds so far."""
        return sum(self._tallies[kind].count for kind in kinds if kind in self._tallies)

    def kinds(self) -> dict[ProblemKind, tuple[int, tuple[str, ...]]]:
        """Returns the count and the examples of each kind, in order of appearance."""
        return {kind: (tally.count, tuple(tally.examples)) for kind, tally in self._tallies.items()}

    def lines(self) -> tuple[str, ...]:
        """Returns one line per kind, in order of appearance: description, count, treatment, examples."""
        return tuple(
            f"{kind.what}: {tally.count}, {kind.done} ({'; '.join(tally.examples)}"
            f"{'; ...' if tally.count > _MAX_EXAMPLES else ''})"
            for kind, tally in self._tallies.items()
        )


MISSING_FILE = ProblemKind("image file missing", "image dropped")
BROKEN_FILE = ProblemKind("image file broken", "image dropped")
BAD_IMAGE = ProblemKind("image entry without a usable id and file name", "image dropped")
LISTED_AGAIN = ProblemKind("image listed again with the same id and file", "listed once")
NO_SIZE = ProblemKind("image without a usable width and height", "size taken from the file")
DUPLICATE_ID = ProblemKind("annotation id used more than once", "kept")
UNKNOWN_IMAGE = ProblemKind("annotation of an image that is not listed", "dropped")
BAD_BBOX = ProblemKind("annotation without a usable bbox", "dropped")
BAD_OBJECT = ProblemKind("object whose form or numbers cannot be read", "dropped")
TEXT_BBOX = ProblemKind("bbox whose numbers are texts", "read as numbers")
POLYGON_BBOX = ProblemKind("annotation with a polygon but without a usable bbox", "box taken around the polygon")
BAD_CROWD = ProblemKind("iscrowd that is neither 0 nor 1", "taken as 0")
NO_CLASS = ProblemKind("annotation without a class, while classes are held out", "dropped")
NOT_FINITE = ProblemKind("box with a coordinate that is not finite", "dropped")
EMPTY_BOX = ProblemKind("box of zero or negative size", "dropped")
OUTSIDE_BOX = ProblemKind("box wholly outside its image", "dropped")
CLIPPED_BOX = ProblemKind("box partly outside its image", "clipped to the image")
HELD_OUT_BOX = ProblemKind("box of a held-out class", "kept for evaluation only")

OUTCOMES = {1: NOT_FINITE, 2: EMPTY_BOX, 3: OUTSIDE_BOX, 4: CLIPPED_BOX}
"""Problems of a box by their codes in `clip_boxes`; 0: no problem."""
_USABLE = (0, 4)
_ROUNDING_PX = 0.1
"""Boxes that exceed the image by less are not reported, because writers of JSON round."""
_PLAIN = 1e15
"""Whole numbers below it are exact as floats."""

ImageId = int | str
"""Id of an image: COCO's number, or the text of another tool."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedImage:
    """An entry of "images"."""

    image_id: ImageId
    """Its id, unique in the file."""
    file_name: str
    """As written in the file."""
    hw: tuple[int, int] | None
    """Height and width as written in the file, pixels, at least 1; None if it has no usable ones."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ListedBoxes:
    """The entries of "annotations" as columns of length N, in file order; the numbers are not checked yet."""

    names: Sequence[str]
    """Names in messages."""
    image_rows: npt.NDArray[np.int64]
    """Positions of their images in the list of images."""
    xywh: npt.NDArray[np.float64]
    """(N, 4) left, top, width, height as written in the file, pixels; any float."""
    is_crowd: npt.NDArray[np.bool_]
    """Whether each marks a region of many objects instead of a single one."""
    class_rows: npt.NDArray[np.int64]
    """Positions of their classes in `class_names`; -1: without a named class."""
    class_names: tuple[str, ...]
    """Names of the classes in file order."""
    is_held_out: npt.NDArray[np.bool_]
    """Whether the class of each is held out."""

    def __len__(self) -> int:
        return len(self.names)

    def select(self, mask: npt.NDArray[np.bool_]) -> ListedBoxes:
        """Returns the boxes that a mask of length N marks."""
        if mask.all():
            return self
        return ListedBoxes(
            names=[self.names[row] for row in np.flatnonzero(mask).tolist()],
            image_rows=self.image_rows[mask],
            xywh=self.xywh[mask],
            is_crowd=self.is_crowd[mask],
            class_rows=self.class_rows[mask],
            class_names=self.class_names,
            is_held_out=self.is_held_out[mask],
        )

    def describe(self, row: int, hw: tuple[float, float]) -> str:
        """Returns name and numbers of a box in an image of `hw`, for messages."""
        x, y, width, height = self.xywh[row]
        return f"{self.names[row]}: [{x:g}, {y:g}, {width:g}, {height:g}] in {hw[1]:g} x {hw[0]:g}"


def read_json(file: Path, expected: str, make: Callable[[list[tuple[str, Any]]], Any] | None = None) -> tuple[Any, str]:
    """Reads JSON in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        file: The file.
        expected: Its content, for messages.
        make: Makes the value of each object of its keys and values; None: a dict.

    Returns:
        The content, and the hex digest of the file's bytes.

    Raises:
        DataError: It cannot be read, or is not JSON.
    """
    try:
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        # A large file is not kept twice while its objects are made.
        del data
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=make), digest
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; expected {expected}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {error}; expected {expected}") from error


def read_coco_json(file: Path) -> tuple[dict[str, Any], str]:
    """Reads a COCO file with the lists "images" and "annotations"; returns it and its hex digest.

    Raises:
        DataError: It cannot be read, is not JSON, or not an object with these two lists.
    """
    root, digest = read_json(file, "a COCO annotation file", _without_polygons)
    if not isinstance(root, dict):
        raise DataError(f"{file}: expected a JSON object with 'images' and 'annotations', got {type(root).__name__}")
    for key in ("images", "annotations"):
        if not isinstance(root.get(key), list):
            found = f"{type(root[key]).__name__}" if key in root else f"only {', '.join(sorted(root)) or 'nothing'}"
            raise DataError(f"{file}: expected a list {key!r} as in COCO's instances files, got {found}")
    return root, digest


def _without_polygons(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object without its polygons if it has a bbox; they take most of the memory of a large file."""
    row = dict(pairs)
    box = row.get("bbox")
    if "segmentation" in row and type(box) is list and len(box) == 4 and {*map(type, box)} <= {int, float}:
        del row["segmentation"]
    return row


def repair_rows(
    root: Mapping[str, Any], file: Path, problems: Problems, names: Sequence[str] | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Drops or repairs the entries of a COCO file that are malformed.

    Args:
        root: The content of the file; not changed.
        file: The annotation file, for messages.
        problems: Receives each repair.
        names: The name of every annotation in messages; None: its id, or its place.

    Returns:
        The content, in which every image has a unique id and a file name, and a size or none; every annotation has
        the id of a listed image, that of its class as the list of classes writes it, as a text or a number, a bbox of
        four numbers, and iscrowd 0 or 1 or none. And the names of its annotations.

    Raises:
        DataError: Two different images have one id.
    """
    images = _repair_images(root["images"], file, problems)
    known: dict[ImageId, ImageId] = {image["id"]: image["id"] for image in images}
    categories = {category_id for _, category_id in class_ids(root)}
    kept, kept_names = [], []
    seen: set[ImageId] = set()
    for index, row in enumerate(root["annotations"]):
        box_id = _id_of(row.get("id")) if isinstance(row, dict) else None
        name = names[index] if names else f"annotation {box_id}" if box_id is not None else f"annotations[{index}]"
        fixed = row if _is_sound(row, known) else _repair_box(row, name, known, problems)
        if box_id is not None and box_id in seen:
            problems.add(DUPLICATE_ID, f"{box_id}")
        seen.add(index if box_id is None else box_id)
        if fixed is not None:
            kept.append(_with_listed_class(fixed, categories))
            kept_names.append(name)
    return {**root, "images": images, "annotations": kept}, tuple(kept_names)


def parse_images(root: Mapping[str, Any]) -> tuple[ListedImage, ...]:
    """Reads the images of a repaired file, in file order."""
    return tuple(
        ListedImage(
            image_id=row["id"],
            file_name=row["file_name"],
            hw=(int(row["height"]), int(row["width"])) if row.get("height") is not None else None,
        )
        for row in root["images"]
    )


def parse_boxes(
    root: Mapping[str, Any], names: Sequence[str], held_out: frozenset[ImageId], problems: Problems
) -> ListedBoxes:
    """Reads the annotations of a repaired file, in file order.

    Args:
        root: The content of the file.
        names: The names of its annotations.
        held_out: Ids of the classes that are held out; if there are any, annotations without a listed class are
            dropped.
        problems: Receives the annotations without a class.
    """
    rows = root["annotations"]
    classes = class_ids(root)
    class_names = tuple(dict.fromkeys(name for name, _ in classes))
    class_rows = {class_id: class_names.index(name) for name, class_id in classes}
    if held_out:
        has_class = [_id_of(row.get("category_id")) in class_rows for row in rows]
        for name, is_known in zip(names, has_class, strict=True):
            if not is_known:
                problems.add(NO_CLASS, name)
        rows = [row for row, is_known in zip(rows, has_class, strict=True) if is_known]
        names = [name for name, is_known in zip(names, has_class, strict=True) if is_known]
    positions = {row["id"]: position for position, row in enumerate(root["images"])}
    of_class = [_id_of(row.get("category_id")) for row in rows]
    return ListedBoxes(
        names=names,
        image_rows=np.fromiter((positions[row["image_id"]] for row in rows), np.int64, len(rows)),
        xywh=np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        is_crowd=np.fromiter((row.get("iscrowd", 0) == 1 for row in rows), np.bool_, len(rows)),
        class_rows=np.fromiter(
            (class_rows.get(class_id, -1) if class_id is not None else -1 for class_id in of_class),
            np.int64,
            len(rows),
        ),
        class_names=class_names,
        is_held_out=np.fromiter((class_id in held_out for class_id in of_class), np.bool_, len(rows)),
    )


def parse_holdout(root: Mapping[str, Any], names: Sequence[str], file: Path) -> frozenset[ImageId]:
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
    ids: dict[str, set[ImageId]] = {}
    for name, category_id in class_ids(root):
        ids.setdefault(name, set()).add(category_id)
    unknown = [name for name in names if name not in ids]
    if unknown:
        raise DataError(
            f"{file}: no class named {', '.join(map(repr, unknown))} to hold out; it has "
            f"{', '.join(map(repr, ids)) or 'no usable list of categories'}"
        )
    held_out = frozenset().union(*(ids[name] for name in names))
    if held_out == frozenset().union(*ids.values()):
        raise DataError(f"{file}: all of its classes ({', '.join(ids)}) are held out; keep at least one to train on")
    return held_out


def class_ids(root: Mapping[str, Any]) -> list[tuple[str, ImageId]]:
    """Returns the name and the id of each usable entry of "categories", in file order."""
    entries = root.get("categories")
    rows = [row for row in (entries if isinstance(entries, list) else []) if isinstance(row, dict) and "name" in row]
    found = ((str(row["name"]), _id_of(row.get("id"))) for row in rows)
    return [(name, category_id) for name, category_id in found if category_id is not None]


def clip_boxes(
    xywh: npt.NDArray[np.float64], image_hw: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Clips boxes to their images.

    Args:
        xywh: (N, 4) any floats.
        image_hw: (N, 2) height and width of the image of each; infinite if unknown.

    Returns:
        Boxes as (N, 4) x1, y1, x2, y2, and the problem of each as its code in `OUTCOMES`. Boxes that are not usable
        hold any numbers.
    """
    image_h, image_w = image_hw.T
    is_finite = np.all(np.isfinite(xywh), axis=1)
    x, y, width, height = np.where(is_finite.reshape(-1, 1), xywh, 0.0).T
    with np.errstate(over="ignore"):
        right, bottom = x + width, y + height
        corners = [np.maximum(x, 0), np.maximum(y, 0), np.minimum(right, image_w), np.minimum(bottom, image_h)]
        # Rounded to float32 as in the record; the narrowest boxes become empty.
        xyxy = np.stack(corners, axis=1).astype(np.float32)
    is_empty = (width <= 0) | (height <= 0)
    is_outside = (x >= image_w) | (y >= image_h) | (right <= 0) | (bottom <= 0)
    is_narrow = (xyxy[:, 2] <= xyxy[:, 0]) | (xyxy[:, 3] <= xyxy[:, 1])
    is_beyond = np.maximum(np.maximum(-x, -y), np.maximum(right - image_w, bottom - image_h)) > _ROUNDING_PX
    outcome = np.select([~is_finite, is_empty, is_outside, is_narrow, is_beyond], [1, 2, 3, 2, 4], 0)
    return xyxy, outcome.astype(np.int64)


def is_usable(outcome: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Returns which boxes `clip_boxes` leaves something of."""
    return np.isin(outcome, _USABLE)


def twin_id(value: ImageId) -> ImageId | None:
    """Returns the same id written as a text instead of a number, or the other way round; None if there is none."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None
    return str(value)


def numbers(values: Iterable[Any]) -> list[float] | None:
    """Returns numbers and texts as floats, which may be infinite or NaN; None if one of them cannot be read."""
    found = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return None
        try:
            found.append(float(value))
        except ValueError:
            return None
        except OverflowError:
            found.append(math.inf)
    return found


def _repair_images(entries: Sequence[Any], file: Path, problems: Problems) -> list[dict[str, Any]]:
    images: dict[ImageId, dict[str, Any]] = {}
    for index, row in enumerate(entries):
        image_id = _id_of(row.get("id")) if isinstance(row, dict) else None
        name = row.get("file_name") if isinstance(row, dict) else None
        if image_id is None or not isinstance(name, str):
            is_object = isinstance(row, dict)
            shown = f"id {_shorten(row.get('id'))}, file_name {_shorten(name)}" if is_object else _shorten(row)
            problems.add(BAD_IMAGE, f"images[{index}]: {shown}")
            continue
        if image_id in images:
            if images[image_id]["file_name"] != name:
                raise DataError(
                    f"{file}: images[{index}] (id {image_id}): {images[image_id]['file_name']!r} already has this id; "
                    "ids must be unique"
                )
            problems.add(LISTED_AGAIN, f"image {image_id}: {name}")
            continue
        sides = [_side(row.get(key)) for key in ("height", "width")]
        if None in sides:
            problems.add(NO_SIZE, f"image {image_id}: {_shorten(row.get('width'))} x {_shorten(row.get('height'))}")
            sides = [None, None]
        changes = {"id": image_id, "height": sides[0], "width": sides[1]}
        images[image_id] = row if all(row.get(key) == value for key, value in changes.items()) else {**row, **changes}
    return list(images.values())


def _is_sound(row: Any, known: Mapping[ImageId, ImageId]) -> bool:
    """Whether an annotation needs no repair; fast, for the many."""
    if type(row) is not dict:
        return False
    box, image_id = row.get("bbox"), row.get("image_id")
    return (
        type(box) is list
        and len(box) == 4
        and all(type(v) is float or (type(v) is int and -_PLAIN < v < _PLAIN) for v in box)
        and type(image_id) in (int, str)
        and image_id in known
        and row.get("iscrowd", 0) in (0, 1)
    )


def _repair_box(row: Any, name: str, known: Mapping[ImageId, ImageId], problems: Problems) -> dict[str, Any] | None:
    """Returns an annotation in its repaired form, or None to drop it."""
    if not isinstance(row, dict):
        problems.add(BAD_BBOX, f"{name}: {_shorten(row)}")
        return None
    image_id = _id_of(row.get("image_id"))
    if image_id is not None and image_id not in known:
        twin = twin_id(image_id)
        image_id = known.get(twin) if twin is not None else None
    if image_id is None:
        problems.add(UNKNOWN_IMAGE, f"{name}: image {_shorten(row.get('image_id'))}")
        return None
    box = _numbers(row.get("bbox"), 4)
    around = _around(row.get("segmentation")) if box is None else None
    if box is None and around is None:
        problems.add(BAD_BBOX, f"{name}: {_shorten(row.get('bbox'))}")
        return None
    if around is not None:
        problems.add(POLYGON_BBOX, name)
    elif any(isinstance(value, str) for value in row["bbox"]):
        problems.add(TEXT_BBOX, f"{name}: {_shorten(row['bbox'])}")
    crowd = row.get("iscrowd", 0)
    is_crowd = {"0": 0, "1": 1, 0: 0, 1: 1}.get(crowd) if isinstance(crowd, (int, float, str)) else None
    if is_crowd is None:
        problems.add(BAD_CROWD, f"{name}: {_shorten(crowd)}")
    return {**row, "image_id": image_id, "bbox": box or around, "iscrowd": is_crowd or 0}


def _with_listed_class(row: dict[str, Any], categories: Collection[ImageId]) -> dict[str, Any]:
    """Returns an annotation with the id of its class as the list of classes writes it."""
    category_id = _id_of(row.get("category_id"))
    if category_id is None or category_id in categories:
        return row
    twin = twin_id(category_id)
    return {**row, "category_id": twin} if twin in categories else row


def _id_of(value: Any) -> ImageId | None:
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) in (int, str) else None


def _side(value: Any) -> int | None:
    """Returns a width or height that can be used, or None."""
    number = _id_of(value)
    return number if isinstance(number, int) and 0 < number < _PLAIN else None


def _numbers(values: Any, count: int | None = None) -> list[float] | None:
    """Returns numbers, also those written as texts, as floats; None if they are not all numbers, or not `count`."""
    if not isinstance(values, (list, tuple)) or (count is not None and len(values) != count):
        return None
    return numbers(values)


def _around(segmentation: Any) -> list[float] | None:
    """Returns the box around polygons [[x, y, x, y, ...], ...], or None."""
    polygons = segmentation if isinstance(segmentation, list) else []
    polygons = [polygons] if polygons and not isinstance(polygons[0], list) else polygons
    parts = [_numbers(polygon) for polygon in polygons]
    if not parts or any(part is None or len(part) < 6 or len(part) % 2 for part in parts):
        return None
    points = np.concatenate([np.array(part, np.float64).reshape(-1, 2) for part in parts])
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

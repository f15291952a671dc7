"""The images and boxes that a split lists: loaded from any format, repaired, and checked against the image sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerpn.train.data import annotations as data_annotations
from edgerpn.train.data.annotations import (
    BAD_BBOX,
    BAD_OBJECT,
    EMPTY_BOX,
    HELD_OUT_BOX,
    NO_CLASS,
    NOT_FINITE,
    UNKNOWN_IMAGE,
    ListedBoxes,
    ListedImage,
    ProblemKind,
    Problems,
)
from edgerpn.train.data.findings import Finding, find_doubles, find_in_boxes, find_repeated, of_mask, with_places
from edgerpn.train.data.formats import coco_layouts
from edgerpn.train.data.formats.content import Content, Split
from edgerpn.train.data.rules import DOUBLED, DROPPED, UNLISTED

DOUBLED_BOX = ProblemKind("box that equals another of its image", "kept once")
SHARED_PLACE = ProblemKind("box that equals one of another class", "kept once for each class")
NAMELESS_BOX = ProblemKind("box without a class", "kept as an object")
_MALFORMED = (BAD_BBOX, BAD_OBJECT, NO_CLASS, NOT_FINITE, EMPTY_BOX)

ImageSize = tuple[float, float]
"""Height and width of an image, pixels; infinite if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Listing:
    """The images and boxes of a split."""

    images: tuple[ListedImage, ...]
    """In file order."""
    boxes: ListedBoxes
    """Of these images, in file order."""
    problems: Problems
    """Repairs so far; receives those to come."""
    sha256: str
    """Hex digest of the annotations."""
    is_relative: bool = False
    """Whether the boxes were fractions of the images, which are converted by the sizes of the stored images."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CheckedBoxes:
    """Boxes after the check against the sizes of their images, as columns of length N."""

    boxes: ListedBoxes
    """As listed, without those of unusable images."""
    xyxy: npt.NDArray[np.float32]
    """(N, 4) clipped to the images, pixels."""
    is_kept: npt.NDArray[np.bool_]
    """Whether each is usable and no copy of another."""
    findings: tuple[Finding, ...]
    """Findings of the rules about whole sets."""


def load_content(split: Split) -> Content:
    """Reads the annotations of a split and repairs malformed entries.

    Raises:
        DataError: The file cannot be read, is not a COCO file, or gives one id to two images.
    """
    content = split.load() if split.load is not None else coco_layouts.read_file(split.annotations)
    if content.is_repaired:
        return content
    # A copy, because a split can be read again.
    problems = copy.deepcopy(content.problems)
    root, names = data_annotations.repair_rows(content.root, split.annotations, problems, content.box_names)
    return replace(content, root=root, box_names=names, problems=problems, is_repaired=True)


def read_listing(split: Split, holdout_classes: Sequence[str] = ()) -> Listing:
    """Reads the images and boxes of a split.

    Raises:
        DataError: See `load_content`; or a held-out class is unknown.
    """
    content = load_content(split)
    problems = copy.deepcopy(content.problems)
    held_out = data_annotations.parse_holdout(content.root, holdout_classes, split.annotations)
    return Listing(
        images=data_annotations.parse_images(content.root),
        boxes=data_annotations.parse_boxes(content.root, content.box_names or (), held_out, problems),
        problems=problems,
        sha256=content.sha256,
        is_relative=content.is_relative,
    )


def check_boxes(
    listing: Listing, sizes: Sequence[ImageSize], files: Sequence[Path | str | None], *, by_class: bool = False
) -> CheckedBoxes:
    """Clips the boxes to their images, counts what is wrong with them, and applies the rules about whole sets.

    Args:
        listing: The images and boxes; its problems receive the repairs.
        sizes: Size of each listed image.
        files: File of each listed image; None: it is not usable, and its boxes are left out.
        by_class: Whether boxes of different classes in one place are kept.
    """
    has_file = np.array([file is not None for file in files], np.bool_)
    boxes = listing.boxes.select(has_file[listing.boxes.image_rows])
    image_hw = np.array(sizes, np.float64).reshape(-1, 2)[boxes.image_rows]
    xyxy, outcome = data_annotations.clip_boxes(boxes.xywh, image_hw)
    is_usable = data_annotations.is_usable(outcome)
    places = np.where(is_usable[:, None], xyxy, 0)
    is_double = find_doubles(boxes, places, by_class=by_class) & is_usable
    problems = listing.problems
    in_images = np.argsort(boxes.image_rows, kind="stable")
    for row in in_images[outcome[in_images] > 0].tolist():
        kind = data_annotations.OUTCOMES[outcome[row]]
        problems.add(kind, boxes.describe(row, (image_hw[row, 0], image_hw[row, 1])))
    for row in np.flatnonzero(is_double).tolist():
        problems.add(DOUBLED_BOX, boxes.describe(row, (image_hw[row, 0], image_hw[row, 1])))
    if by_class:
        for row in np.flatnonzero(is_usable & ~is_double & (boxes.class_rows < 0)).tolist():
            problems.add(NAMELESS_BOX, boxes.names[row])
        for row in np.flatnonzero(find_doubles(boxes, places) & is_usable & ~is_double).tolist():
            problems.add(SHARED_PLACE, boxes.describe(row, (image_hw[row, 0], image_hw[row, 1])))
    for row in np.flatnonzero(is_usable & boxes.is_held_out).tolist():
        problems.add(HELD_OUT_BOX, boxes.names[row])
    findings = [*find_in_boxes(boxes, image_hw), of_mask(DOUBLED, is_double), *_find_lost(listing, boxes)]
    findings.append(find_repeated(files))
    return CheckedBoxes(
        boxes=boxes,
        xyxy=xyxy,
        is_kept=is_usable & ~is_double,
        findings=tuple(with_places(one, boxes, files) for one in findings if one.count),
    )


def known_sizes(listing: Listing) -> list[ImageSize]:
    """Returns the sizes as listed."""
    return [image.hw or (math.inf, math.inf) for image in listing.images]


def _find_lost(listing: Listing, boxes: ListedBoxes) -> list[Finding]:
    """Applies the rules about annotations that are not among the boxes."""
    problems = listing.problems
    malformed, unlisted = problems.count(*_MALFORMED), problems.count(UNKNOWN_IMAGE)
    total = len(boxes) + problems.count(BAD_BBOX, BAD_OBJECT, NO_CLASS)
    found = [Finding(rule=DROPPED, count=malformed, total=total)]
    num_with_boxes = len(np.unique(listing.boxes.image_rows))
    # A file of part of the images often keeps the boxes of all.
    if 2 * num_with_boxes < len(listing.images):
        found.append(Finding(rule=UNLISTED, count=unlisted, total=len(listing.boxes) + unlisted))
    return found
